"""Task documents as the core takes them, and the bounds on what they may hold.

Rules: what is out of bounds raises, with a text that a person can act on and that repeats no parameter. What events and
reports look like around them is in `codec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from skalds_streams.core.events import TaskSpec
from skalds_streams.core.options import LABEL_MAX_CHARS, LABELS_MOST, are_labels
from skalds_streams.core.row import NAME_MAX_CHARS, Json
from skalds_streams.errors import WireError
from skalds_streams.model.task import Task

MAX_NAME = NAME_MAX_CHARS
"""Characters of a class name, a skald id."""
MAX_INTEGER = 2**53
"""What every JSON reader keeps exact; a row with more could not even be written."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what comes from outside. `fan_out_bytes`: parameters of an update times the tasks that it names."""

    record_bytes: int = 1_000_000
    ids_per_event: int = 10_000
    attachments_bytes: int = 256 * 1024
    fan_out_bytes: int = 16 * 1024 * 1024


def task_spec(item: Any, limits: Limits) -> tuple[str, TaskSpec]:
    """(id, what it says) of a Task document. Raises WireError, whose text follows the document's name."""
    try:
        task = Task.model_validate(item)
    except ValidationError as error:
        raise WireError(" is not a Task: " + errors_text(error)) from None
    attachments = task.attachments
    if attachments is not None and not isinstance(attachments, dict):
        attachments = attachments.model_dump(mode="json", by_alias=True)
    spec = TaskSpec(
        class_name=task.class_name,
        attachments=attachments,
        recipient=task.executor or None,
        requires=task.requires,
        weight=task.weight,
        priority=task.priority,
        max_restarts=task.max_restarts,
        deadline_at_ms=task.deadline_date_time if "deadline_date_time" in task.model_fields_set else None,
    )
    try:
        check_attachments(attachments, limits)
        check_spec(spec)
    except (ValueError, WireError) as error:
        raise WireError(f": {error}") from None
    return task.id, spec


def errors_text(error: ValidationError) -> str:
    """The first few, each with its field, on one line; without the values."""
    items = error.errors(include_input=False, include_url=False)
    shown = [f"{'.'.join(map(str, item['loc'])) or 'value'}: {item['msg']}" for item in items[:5]]
    return "; ".join(shown) + (f"; and {len(items) - 5} more" if len(items) > 5 else "")


def check_attachments(attachments: Any, limits: Limits, *, required: bool = False) -> int:
    """Returns their size as JSON."""
    if attachments is None:
        if required:
            raise WireError("attachments is missing: an update carries the new parameters")
        return 0
    if not isinstance(attachments, dict):
        raise WireError(f"attachments must be an object, not {json_type(attachments)}")
    size = json_size(attachments)
    if size is None:
        raise WireError("attachments are nested too deep to be written down (about 250 levels)")
    if size > limits.attachments_bytes:
        raise WireError(
            f"attachments have {size} bytes, the limit is {limits.attachments_bytes} (SKALDS_MAX_ATTACHMENTS_BYTES)"
        )
    return size


def check_merged(task_id: str, attachments: Json | None, limits: Limits) -> None:
    """What a merged update makes of a task's parameters: many small ones must not make what one must not be. Raises
    WireError.
    """
    try:
        check_attachments(attachments, limits)
    except WireError as error:
        raise WireError(f"merged with the parameters of task {task_id[:40]!r}: {error}") from None


def json_size(value: Any) -> int | None:
    """Bytes as JSON; None for what can be read but not written: with four levels of documents around it, too deep."""
    try:
        return len(orjson.dumps([[[[value]]]])) - 8
    except orjson.JSONEncodeError:
        return None


def json_type(value: object) -> str:
    """In JSON's words, for people: "an array"."""
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def check_spec(spec: TaskSpec) -> None:
    """What decide and the row rely on. Raises ValueError."""
    for name in ("class_name", "recipient"):
        text = getattr(spec, name)
        if text is not None and not (isinstance(text, str) and len(text) <= MAX_NAME):
            raise ValueError(f"{name} must be a text of at most {MAX_NAME} characters")
    for name, least in (("weight", 1), ("priority", 0), ("max_restarts", 0), ("deadline_at_ms", 0)):
        number = getattr(spec, name)
        if number is not None and integer(number) < least:
            raise ValueError(f"{name} must be at least {least}")
    if spec.requires is not None and not are_labels(spec.requires):
        raise ValueError(
            f"requires must be at most {LABELS_MOST} labels with texts of at most {LABEL_MAX_CHARS} characters"
        )


def integer(value: object) -> int:
    """The value, when it is a whole number that every JSON reader keeps exact. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_INTEGER:
        raise ValueError(f"not a whole number, or above {MAX_INTEGER}")
    return value
