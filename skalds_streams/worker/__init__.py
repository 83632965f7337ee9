"""What user code sees, and the child processes it runs in. Imports neither Faust nor Kafka.

    from skalds_streams.worker import BaseTaskWorker, run_main_handler

The SDK is `baseclass`; `saving` checks what a worker saves; `registry` finds the classes of the user's modules,
`installed` those of packages. The processes: `zygote` forks hosts, a `host` runs one worker, `run` is that worker's
life, `stopper` interrupts it; `standalone` lives it in a terminal. They speak `frames` (blocking) and `channel`
(asyncio) over sockets.
"""

from skalds_streams.worker.baseclass import (
    BaseTaskWorker,
    NonRetryableError,
    release_handler,
    run_after_handler,
    run_before_handler,
    run_main_handler,
    update_event_handler,
)
from skalds_streams.worker.policy import Backoff

__all__ = [
    "Backoff",
    "BaseTaskWorker",
    "NonRetryableError",
    "release_handler",
    "run_after_handler",
    "run_before_handler",
    "run_main_handler",
    "update_event_handler",
]
