"""Acknowledged control: when a cancel, pause, resume or restart was asked, by which record, and what became of it.

Rules: the row keeps the last of each kind; it is open until it is applied or superseded, and never changes after that;
cancel and pause are applied when no run is left, resume and restart when main runs; a later command that wants
something else supersedes it, and so does an end that nobody asked for (Finished, Failed); one that lost to an earlier
record is superseded at once. Nothing is decided by any of it: it is read off the rows before and after a decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from skalds_streams.core import events
from skalds_streams.core.row import Cause, Control, Release, Row, Status, Wanted

CANCEL, PAUSE, RESUME, RESTART = "cancel", "pause", "resume", "restart"
_WANTED: Mapping[str, Wanted] = {
    CANCEL: Wanted.CANCEL,
    PAUSE: Wanted.PAUSE,
    RESUME: Wanted.RUN,
    RESTART: Wanted.RUN,
}
KINDS = len(_WANTED)
"""How many commands a row keeps, at most."""
SUPERSEDED = "superseded by "
"""How the note begins of a row whose cause has lost to an earlier record."""


def superseded(row: Row, kind: str, at_ms: int) -> Row:
    """The row with the note that its cause has lost to the command of that kind and time."""
    return replace(row, note=f"{SUPERSEDED}{kind} at {at_ms}")


def acknowledged(before: Row | None, after: Row, event: events.Event, *, now_ms: int, sent_ms: int) -> Row:
    """The row with what this event has done to what was asked, and what it asks itself. sent_ms: the time that the
    event's record counts with.
    """
    controls = dict(after.controls)
    asked, cause = _asked(before, after, event), _sent_as(event)
    if asked is not None:
        control = Control(cause.topic, cause.partition, cause.offset, sent_ms, superseded_by=_winner(after))
        former = controls.get(asked)
        if control.is_open or former is None or former.asked_at_ms <= sent_ms:
            controls[asked] = control
    if not any(control.is_open for control in controls.values()):
        return replace(after, controls=controls) if asked is not None else after
    was_over = before is not None and before.is_terminal
    judged = {
        name: _judged(name, control, after, cause, now_ms, was_over=was_over) if control.is_open else control
        for name, control in controls.items()
    }
    return after if judged == after.controls else replace(after, controls=judged)


def _asked(before: Row | None, after: Row, event: events.Event) -> str | None:
    if isinstance(event, events.Cancel):
        return CANCEL
    if not isinstance(event, events.Assign):
        return None
    if event.then is Wanted.PAUSE:
        return PAUSE
    if event.release is Release.RESTART:
        return RESTART
    was_paused = before is not None and before.wanted is Wanted.PAUSE
    return RESUME if event.resume or (was_paused and after.wanted is Wanted.RUN) else None


def _sent_as(event: events.Event) -> Cause:
    """The record that somebody sent, also of one that was forwarded. Its reason may hold secrets, and is in `why`."""
    cause = replace(event.cause, reason=None)
    if not isinstance(event, events.Command) or event.origin is None:
        return cause
    topic, _, partition = event.origin.rpartition("/")
    return replace(cause, topic=topic, partition=int(partition), offset=event.origin_offset)


def _winner(row: Row) -> Cause | None:
    """The command to which the row's cause has lost. Its place is not in the row, its time is."""
    if row.note is None or not row.note.startswith(SUPERSEDED):
        return None
    kind, _, at_ms = row.note.removeprefix(SUPERSEDED).partition(" at ")
    return Cause(kind.title(), "", -1, -1, int(at_ms) if at_ms.isdecimal() else 0)


def _judged(name: str, control: Control, row: Row, cause: Cause, now_ms: int, *, was_over: bool) -> Control:
    """An open one as the row shows it now. was_over: the task had ended before, so nothing was left to end."""
    if row.wanted is _WANTED[name]:
        if _is_so(name, row) or (name == CANCEL and was_over):
            return replace(control, applied_at_ms=now_ms, epoch=row.epoch, version=row.applied_version)
        if not row.is_terminal:
            return control
    return replace(control, superseded_by=cause)


def _is_so(name: str, row: Row) -> bool:
    if name == CANCEL:
        return row.status is Status.CANCELLED
    if name == PAUSE:
        return row.status is Status.PAUSED
    return row.status is Status.RUNNING and row.release is None


def broken_controls(before: Row | None, after: Row) -> Iterator[str]:
    """What can't be, in words; for tests and the simulator: a wrong acknowledgement is to hold up no task."""
    known = before.controls if before is not None else {}
    for name, control in after.controls.items():
        former = known.get(name)
        same = former if former is not None and former.place == control.place else None
        if control.applied_at_ms and control.superseded_by is not None:
            yield f"{name} is applied and superseded"
        if control.is_open:
            yield from _not_open(name, after)
        elif control.applied_at_ms and (same is None or same.is_open):
            yield from _not_applied(name, after, is_new=same is None)
        if same is not None and not same.is_open and same != control:
            yield f"{name} changed after it was answered"


def _not_open(name: str, row: Row) -> Iterator[str]:
    if row.wanted is not _WANTED[name] or row.is_terminal:
        yield f"{name} is open, but the task is {row.status.value} and to {row.wanted.value}"
    if row.holder is None and not row.is_waiting:
        yield f"{name} is open, and nothing is to come"
    if row.status is Status.RUNNING and row.release is None and _WANTED[name] is Wanted.RUN:
        yield f"{name} is open, but the task runs"


def _not_applied(name: str, row: Row, *, is_new: bool) -> Iterator[str]:
    if _WANTED[name] is not Wanted.RUN:
        if row.holder is not None:
            yield f"{name} is applied while {row.holder.skald_id} holds the task"
    elif row.status is not Status.RUNNING or row.release is not None:
        yield f"{name} is applied, but the task is {row.status.value}, release {row.release}"
    elif is_new and name == RESTART:
        yield "restart is applied before it can be"
