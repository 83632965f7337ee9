"""The Faust agents: one module a topic, about twenty lines each.

They hand records to the coordinator and decide nothing.
"""

from ..topics import TASK_ASSIGN as TASK_ASSIGN  # fails loudly when imported as a top-level package
