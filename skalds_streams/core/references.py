"""References to secrets: a parameter whose whole text is `secret("env:NAME")` or `secret("file:/path")` stands for a
value that only the worker's own process reads. Rows, topics and pages keep the reference, which is no secret itself.

Rules: one form, double quotes included, so that no text is one by accident. What looks like a reference and is none is
an error, not a value: somebody meant one. What does not live here: reading the value, and what may be read
(`worker.secrets`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FORMS = 'secret("env:NAME") or secret("file:/path")'
_REFERENCE = re.compile(r'secret\("(env:[^"\s=]+|file:/[^"\x00-\x1f\x7f]+)"\)')
_MEANT_AS_ONE = re.compile(r"secret\(.*\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reference:
    """`kind`: "env" or "file"; `name`: of the variable, or an absolute path; `text`: as it was written."""

    kind: str
    name: str
    text: str


def reference_of(value: object) -> Reference | None:
    """The reference that a JSON value is; None for any other value. Raises ValueError, which does not repeat the
    value, for a text that was meant as one.
    """
    if not isinstance(value, str) or not value.startswith("secret("):
        return None
    found = _REFERENCE.fullmatch(value)
    if found is not None:
        kind, _, name = found[1].partition(":")
        return Reference(kind, name, value)
    if _MEANT_AS_ONE.fullmatch(value):
        raise ValueError(f"not a reference to a secret: it must be {FORMS}")
    return None


def is_reference(value: object) -> bool:
    """Whether the value is a reference, and so may be shown where a secret may not."""
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None
