"""What the catalogue's answer adds to a row that waits for its task's document.

Rules: what the row has wins, it was said by an event; the document counts as if the assign that asked had brought it,
so an update sent after that assign wins over it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skalds_streams.core.events import TaskSpec
from skalds_streams.core.row import Row

_NOT_SAID = Row("")


def completed(row: Row, spec: TaskSpec) -> Row | str:
    """The row with what it lacks, or why it needs nothing."""
    if not row.is_waiting or row.class_name is not None:
        return "waits for no document"
    changes: dict[str, Any] = {
        name: value
        for name in ("class_name", "recipient", "requires", "weight", "priority", "max_restarts", "deadline_at_ms")
        if (value := getattr(spec, name)) is not None and getattr(row, name) == getattr(_NOT_SAID, name)
    }
    if spec.attachments is not None and row.attachments_version == 0:
        changes |= {
            "attachments": dict(spec.attachments),
            "attachments_version": 1,
            "update_at_ms": row.assign_at_ms,
        }
    return replace(row, **changes, note=None)
