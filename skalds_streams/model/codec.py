"""From the bytes of an input record to the core's events: commands, forwarded commands, reports.

Rules: what can't be understood raises WireError whose text a person can act on, and touches nothing; limits are checked
before anything is built. What is written is in `documents`; heartbeats are plain and are folded in `core.membership`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from skalds_streams.core import events
from skalds_streams.core.partition import partition_of
from skalds_streams.core.row import Cause, Release, Wanted
from skalds_streams.errors import WireError
from skalds_streams.model.deadletter import redrive_reason
from skalds_streams.model.event import TaskEvent
from skalds_streams.model.record import Record
from skalds_streams.model.specs import (
    MAX_NAME,
    check_attachments,
    check_spec,
    errors_text,
    integer,
    json_size,
    json_type,
    task_spec,
)
from skalds_streams.model.specs import Limits as Limits
from skalds_streams.topics import Topics

MAX_TASK_ID_BYTES = 512
MAX_TEXT = 2_048
MAX_STEPS = 20
MAX_ERROR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Parsed:
    """One input record understood: events of tasks of its own partition, and documents for those of others."""

    events: Sequence[events.Event] = ()
    forwards: Sequence[tuple[str, dict[str, Any]]] = ()
    """(task id, skald.report document): ids whose partition is not the record's."""


def parse(record: Record, topics: Topics, limits: Limits) -> Parsed:
    """Understand a record of an input topic. Raises WireError with the reason."""
    if record.value is None:
        raise WireError("the value is empty")
    if len(record.value) > limits.record_bytes:
        raise WireError(
            f"the value has {len(record.value)} bytes, the limit is {limits.record_bytes} (SKALDS_MAX_RECORD_BYTES)"
        )
    doc = _object(record.value)
    if record.topic == topics.report:
        return Parsed(events=_parse_report(record, doc, topics, limits))
    return _parse_command(record, doc, topics, limits)


def _object(value: bytes) -> dict[str, Any]:
    try:
        doc = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise WireError(f"not JSON: {error}") from None
    if not isinstance(doc, dict):
        raise WireError(f"not a JSON object but {json_type(doc)}")
    return doc


# -- commands


def _parse_command(record: Record, doc: dict[str, Any], topics: Topics, limits: Limits) -> Parsed:
    if record.topic == topics.update and not ({"taskIds", "task_ids"} & doc.keys()):
        if "attachments" not in doc:
            raise WireError("neither taskIds nor attachments")
        doc = {**doc, "taskIds": [_key_as_id(record)]}
    event = _task_event(doc)
    ids = list(dict.fromkeys(event.task_ids))
    if not ids:
        raise WireError("taskIds is empty")
    if len(ids) > limits.ids_per_event:
        raise WireError(f"{len(ids)} ids in one event, the limit is {limits.ids_per_event} (SKALDS_MAX_IDS_PER_EVENT)")
    for task_id in ids:
        _check_id(task_id)
    kind = {topics.assign: "Assign", topics.cancel: "Cancel", topics.update: "Update"}[record.topic]
    specs = _specs(event, limits) if kind == "Assign" else {}
    if kind == "Update":
        size = check_attachments(event.attachments, limits, required=True)
        if size * len(ids) > limits.fan_out_bytes:
            raise WireError(
                f"{len(ids)} ids times {size} bytes of attachments, the limit is {limits.fan_out_bytes}: send several"
            )
    for name, skald in (("recipient", event.recipient), ("to", event.to)):
        if skald and len(skald) > MAX_NAME:
            raise WireError(f"{name} has {len(skald)} characters, the limit is {MAX_NAME}")
    reason = _reason(record, event.reason)
    cause = Cause(kind, record.topic, record.partition, record.offset, record.timestamp_ms, reason)
    own: list[events.Event] = []
    forwards: list[tuple[str, dict[str, Any]]] = []
    for task_id in ids:
        if partition_of(task_id, topics.partitions) == record.partition:
            own.append(_command(kind, task_id, event, specs, cause))
        else:
            forwards.append((task_id, _forward(kind, task_id, event, specs, cause)))
    return Parsed(own, forwards)


def _task_event(doc: dict[str, Any]) -> TaskEvent:
    try:
        return TaskEvent.model_validate(doc)
    except ValidationError as error:
        raise WireError("not a TaskEvent: " + errors_text(error)) from None


def _key_as_id(record: Record) -> str:
    if not record.key:
        raise WireError("no task id: the value has no taskIds and the record has no key")
    try:
        return record.key.decode()
    except UnicodeDecodeError:
        raise WireError("the key is not UTF-8, so it is no task id") from None


def _check_id(task_id: str) -> None:
    if not task_id or "\0" in task_id or len(task_id.encode(errors="replace")) > MAX_TASK_ID_BYTES:
        raise WireError(f"not a task id: {task_id[:40]!r} (1 to {MAX_TASK_ID_BYTES} bytes of UTF-8, no NUL)")
    if any(0xD800 <= ord(char) <= 0xDFFF for char in task_id):
        raise WireError("not a task id: a lone surrogate is no UTF-8")


def _specs(event: TaskEvent, limits: Limits) -> dict[str, events.TaskSpec]:
    specs: dict[str, events.TaskSpec] = {}
    for at, item in enumerate(event.tasks or ()):
        try:
            task_id, spec = task_spec(item, limits)
        except WireError as error:
            raise WireError(f"tasks[{at}]{error}") from None
        specs[task_id] = spec
    unnamed = specs.keys() - set(event.task_ids)
    if unnamed:
        raise WireError(f"tasks describes {sorted(unnamed)[0]!r}, which taskIds does not name")
    return specs


def _command(
    kind: str, task_id: str, event: TaskEvent, specs: dict[str, events.TaskSpec], cause: Cause
) -> events.Assign | events.Cancel | events.Update:
    if kind == "Cancel":
        return events.Cancel(task_id, cause)
    if kind == "Update":
        return events.Update(task_id, cause, attachments=event.attachments, merge=bool(event.merge))
    spec = specs.get(task_id, events.TaskSpec())
    return _assign(task_id, cause, spec=spec, recipient=event.recipient, action=event.action, to=event.to)


def _assign(
    task_id: str,
    cause: Cause,
    *,
    spec: events.TaskSpec,
    recipient: str | None,
    action: str | None,
    to: str | None,
    **origin: Any,
) -> events.Assign:
    if recipient:
        values = {name: getattr(spec, name) for name in _SPEC_FIELDS}
        spec = events.TaskSpec(**{**values, "recipient": recipient})
    then = Wanted.PAUSE if action == "pause" else Wanted.RUN
    release = {"restart": Release.RESTART, "move": Release.MOVE}.get(action or "")
    target = to or None if release is Release.MOVE else None
    resume = action == "resume"
    return events.Assign(task_id, cause, spec=spec, then=then, release=release, resume=resume, to=target, **origin)


_SPEC_FIELDS = (
    "class_name",
    "attachments",
    "recipient",
    "requires",
    "weight",
    "priority",
    "max_restarts",
    "deadline_at_ms",
)


def _reason(record: Record, given: object) -> str | None:
    """What the event says itself; else that it is a dead letter which was sent again, if it is one."""
    return _text(given) or _text(redrive_reason(record.headers))


def _text(text: object) -> str | None:
    return text[:MAX_TEXT] if isinstance(text, str) and text else None


# -- forwarded commands


def _forward(
    kind: str, task_id: str, event: TaskEvent, specs: dict[str, events.TaskSpec], cause: Cause
) -> dict[str, Any]:
    spec = specs.get(task_id)
    return {
        "v": 1,
        "kind": "Forwarded",
        "task_id": task_id,
        "command": kind,
        "cause": {name: getattr(cause, name) for name in ("kind", "topic", "partition", "offset", "at_ms", "reason")},
        "spec": {name: getattr(spec, name) for name in _SPEC_FIELDS} if spec else None,
        "recipient": event.recipient,
        "action": event.action,
        "to": event.to,
        "attachments": event.attachments if kind == "Update" else None,
        "merge": bool(event.merge),
    }


def _forwarded(
    record: Record, doc: dict[str, Any], task_id: str, topics: Topics, limits: Limits
) -> events.Assign | events.Cancel | events.Update:
    command, came = doc["command"], doc["cause"]
    topic = {"Assign": topics.assign, "Cancel": topics.cancel, "Update": topics.update}[command]
    partition = integer(came["partition"])
    if came["topic"] != topic or not 0 <= partition < topics.partitions:
        raise ValueError(f"{command} does not come from {topic}")
    at_ms, reason = integer(came["at_ms"]), _reason(record, came.get("reason"))
    cause = Cause(command, record.topic, record.partition, record.offset, at_ms, reason)
    origin: dict[str, Any] = {"origin": f"{topic}/{partition}", "origin_offset": integer(came["offset"])}
    if command == "Cancel":
        return events.Cancel(task_id, cause, **origin)
    if command == "Update":
        check_attachments(doc["attachments"], limits, required=True)
        return events.Update(task_id, cause, attachments=doc["attachments"], merge=bool(doc.get("merge")), **origin)
    given = doc.get("spec") or {}
    spec = events.TaskSpec(**{name: given.get(name) for name in _SPEC_FIELDS})
    check_spec(spec)
    check_attachments(spec.attachments, limits)
    recipient = doc.get("recipient") or None
    to = doc.get("to") or None
    for name in (recipient, to):
        check_spec(events.TaskSpec(recipient=name))
    return _assign(task_id, cause, spec=spec, recipient=recipient, action=doc.get("action"), to=to, **origin)


# -- reports

_RUN_REPORTS: Mapping[str, Callable[..., events.Event]] = {
    "Running": events.Running,
    "Applied": events.Applied,
    "Refused": events.Refused,
    "Stopped": events.Stopped,
    "Finished": events.Finished,
    "Failed": events.Failed,
    "Lost": events.Lost,
    "Drain": events.Drain,
}


def _parse_report(record: Record, doc: dict[str, Any], topics: Topics, limits: Limits) -> list[events.Event]:
    task_id, kind = doc.get("task_id"), doc.get("kind")
    if not isinstance(task_id, str):
        raise WireError("a report without task_id")
    _check_id(task_id)
    if partition_of(task_id, topics.partitions) != record.partition:
        raise WireError(f"a report of {task_id!r} belongs into partition {partition_of(task_id, topics.partitions)}")
    try:
        if kind == "Forwarded":
            return [_forwarded(record, doc, task_id, topics, limits)]
        return [_report(record, doc, task_id, limits)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        named = kind[:40] if isinstance(kind, str) else json_type(kind)
        raise WireError(f"not a {named} report: {type(error).__name__}: {error}") from None


def _report(record: Record, doc: dict[str, Any], task_id: str, limits: Limits) -> events.Event:
    kind = doc["kind"]
    if kind not in _RUN_REPORTS and kind not in ("Retry", "Deadline", "Expired", "Found"):
        raise ValueError("unknown kind")
    reason = _reason(record, doc.get("reason"))
    cause = Cause(kind, record.topic, record.partition, record.offset, record.timestamp_ms, reason)
    if kind == "Found":
        return events.Found(task_id, cause, _found(doc["task"], task_id, limits))
    if kind == "Retry":
        return events.Retry(task_id, cause, integer(doc["epoch"]), integer(doc["attempt"]))
    if kind == "Deadline":
        return events.Deadline(task_id, cause, integer(doc["deadline_at_ms"]))
    if kind == "Expired":
        return events.Expired(task_id, cause, integer(doc["revision"]))
    more: dict[str, Any] = {}
    if kind in ("Running", "Applied", "Refused"):
        more["version"] = integer(doc["version"])
    if kind in ("Refused", "Failed"):
        more["error"] = _error(doc.get("error"))
    if kind == "Failed":
        more["retryable"] = bool(doc.get("retryable", True))
    if kind in ("Stopped", "Finished", "Failed"):
        more["steps"] = tuple(str(_text(item)) for item in (doc.get("steps") or ())[:MAX_STEPS])
    if kind == "Stopped":
        more["elsewhere"] = bool(doc.get("elsewhere"))
    return _RUN_REPORTS[kind](task_id, cause, integer(doc["epoch"]), str(doc["incarnation"])[:MAX_NAME], **more)


def _found(document: Any, task_id: str, limits: Limits) -> events.TaskSpec:
    named, spec = task_spec(document, limits)
    if named != task_id:
        raise ValueError("its document is of another task")
    return spec


def _error(error: Any) -> dict[str, Any] | None:
    """What a run ended with. Too much of it is cut, not refused: the end of a run must never go unheard."""
    if error is None:
        return None
    if not isinstance(error, dict):
        raise ValueError("error must be an object")  # noqa: TRY004  # becomes a WireError
    size = json_size(error)
    if size is not None and size <= MAX_ERROR_BYTES:
        return error
    kept = {name: _text(error.get(name)) for name in ("type", "message", "reason")}
    return {**kept, "field": None, "traceback": []}
