"""What one event does to one row. Pure: (row, event, context) → decision. The journal writes the decision, then
applies it.

Rules (each has a test, the first five a planted bug):
- a row with a holder is never given another; the holder leaves only by a report of its own run or by its death;
- cancel, pause, restart, move and a changed recipient ask the holder to stop, and wait;
- epoch +1 at every placement, and a new row starts above every epoch ever used in its partition;
- a report that does not name the row's run changes nothing;
- inside a topic the offset is the order, between topics the times decide, cancel at a tie;
- a command that loses changes the row's note ("superseded by …"), so that nothing a user sent vanishes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from skalds_streams.core import events
from skalds_streams.core.control import acknowledged, superseded
from skalds_streams.core.found import completed
from skalds_streams.core.moves import let_go, moved, settled
from skalds_streams.core.patch import merge_patch
from skalds_streams.core.placement import Choice
from skalds_streams.core.restarts import after_crash
from skalds_streams.core.row import Cause, Holder, Release, Row, Status, Wanted
from skalds_streams.core.transitions import Step, step
from skalds_streams.core.unanswered import kept_for_a_refusal, still_unanswered

AHEAD_MS = 50
"""How far ahead of ours a broker's clock may be. A time beyond counts as now (`_sent_at`); clamping all would make
ties of an order that is known."""
FORGOTTEN = "forgotten: ended longer ago than the retention"
NOTHING_CHANGED = "already so: nothing changed"
"""Note of a row whose cause asked for what was so already: recorded, as every command is."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a decision may know beside the row: the batch's time, where a task would go, and what was ever used in the
    partition.
    """

    now_ms: int
    choose: Callable[[Row], Choice]
    epoch_floor: int = 0
    revision_floor: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """`row` is the new row, or None when nothing changes; then `ignored` says why.

    `choice` is set when the task was placed. forget: the row leaves the table; `row` is its last state, for history.
    """

    row: Row | None = None
    ignored: str | None = None
    choice: Choice | None = None
    forget: bool = False


def decide(row: Row | None, event: events.Event, context: Context) -> Decision:
    """Decide one event. Raises IllegalTransitionError only for a row that breaks the transition table, never for an odd
    event.
    """
    if isinstance(event, events.Command):
        known = row or Row(event.task_id, epoch=context.epoch_floor, revision=context.revision_floor)
        changed: Row | str = _command(known, event, context)
    elif row is None:
        return Decision(ignored="unknown task")
    elif isinstance(event, events.Retry):
        changed = _retry(row, event, context)
    elif isinstance(event, events.Deadline):
        changed = _deadline(row, event, context)
    elif isinstance(event, events.Expired):
        changed = _expired(row, event)
    elif isinstance(event, events.Found):
        changed = completed(row, event.spec)
    else:
        changed = _report(row, event, context)
    if isinstance(changed, str):
        return Decision(ignored=changed)
    placed, choice = _place(changed, context)
    sent_ms = _sent_at(placed if row is None else row, event.cause, context)
    told = acknowledged(row, placed, event, now_ms=context.now_ms, sent_ms=sent_ms)
    if row is not None and placed == row:
        if not isinstance(event, events.Command):
            return Decision(ignored="changes nothing")
        told = replace(told, note=NOTHING_CHANGED)
    return Decision(
        replace(told, revision=placed.revision + 1, why=event.cause, updated_at_ms=context.now_ms),
        choice=choice,
        forget=isinstance(event, events.Expired),
    )


# -- commands


def _command(row: Row, event: events.Command, context: Context) -> Row | str:
    if event.origin is not None:
        if event.origin_offset <= row.forwarded.get(event.origin, -1):
            return "forwarded twice"
        row = replace(row, forwarded={**row.forwarded, event.origin: event.origin_offset})
    row = replace(row, note=None)
    if isinstance(event, events.Assign):
        return _assign(row, event, context)
    if isinstance(event, events.Cancel):
        return _cancel(row, event, context)
    if isinstance(event, events.Update):
        return _update(row, event, context)
    raise TypeError(f"unknown command {type(event).__name__}")


def _time_of(row: Row, cause: Cause, register_ms: int, context: Context) -> int:
    """The time an event counts with: not ahead of our clock, never before what its topic already applied."""
    return max(_sent_at(row, cause, context), register_ms)


def _sent_at(row: Row, cause: Cause, context: Context) -> int:
    """When a command was sent, by the broker's clock. Ahead of ours it counts as now, as the broker's may have jumped.

    Unless the row has counted times already that are ahead of ours, too: then ours has been set back, and held against
    it every assign would have been sent before the last cancel.
    """
    shown_ms = context.now_ms + AHEAD_MS
    is_behind = max(row.assign_at_ms, row.cancel_at_ms, row.update_at_ms) > shown_ms
    return max(cause.at_ms if cause.at_ms <= shown_ms or is_behind else context.now_ms, 0)


def _assign(row: Row, event: events.Assign, context: Context) -> Row:
    if event.release is Release.MOVE and event.spec == events.TaskSpec():
        return moved(row, event.to)
    if event.origin is not None and _sent_at(row, event.cause, context) < row.assign_at_ms:
        return superseded(row, "assign", row.assign_at_ms)
    at_ms = _time_of(row, event.cause, row.assign_at_ms, context)
    described = _described(replace(row, assign_at_ms=at_ms), event.spec, at_ms)
    if at_ms <= row.cancel_at_ms:
        return superseded(described, "cancel", row.cancel_at_ms)
    if row.is_over or described.class_name != row.class_name:
        described = replace(described, first_epoch=row.epoch + 1)
    asked = event.release
    if asked is Release.MOVE and row.holder is not None and described.recipient == row.holder.skald_id:
        asked = None  # pinned to where it is
    release = asked or _needs_release(row, described)
    if release is Release.MOVE:
        described = replace(described, move_to=event.to)
    if event.then is Wanted.PAUSE:
        return _pause(described)
    if row.holder is not None:
        return replace(described, wanted=Wanted.RUN, release=release or row.release)
    begun = replace(described, wanted=Wanted.RUN, status=step(row.status, Step.ASSIGN), release=None, retry_at_ms=0)
    if row.status is not Status.ASSIGNING:
        begun = replace(begun, attempt=0, error=None, cancel_applied_at_ms=0, refused=None)
    return begun


def _needs_release(row: Row, described: Row) -> Release | None:
    """Why the present run can't simply go on under the new description."""
    if row.holder is None:
        return None
    if row.wanted is not Wanted.RUN or described.class_name != row.class_name:
        return Release.RESTART
    if described.recipient is not None and described.recipient != row.holder.skald_id:
        return Release.MOVE
    return None


def _described(row: Row, spec: events.TaskSpec, at_ms: int) -> Row:
    changes: dict[str, Any] = {
        name: value
        for name in ("class_name", "recipient", "requires", "weight", "priority", "max_restarts", "deadline_at_ms")
        if (value := getattr(spec, name)) is not None
    }
    if spec.deadline_at_ms is None and row.deadline_at_ms <= at_ms:
        changes["deadline_at_ms"] = 0  # one that has passed was for the former assign
    if spec.attachments is not None:
        if at_ms >= row.update_at_ms:
            changes |= _parameters(row, dict(spec.attachments), at_ms)
        else:
            changes["note"] = f"its attachments are superseded by update at {row.update_at_ms}"
    return replace(row, **changes)


def _parameters(row: Row, attachments: dict[str, Any], at_ms: int) -> dict[str, Any]:
    if attachments == row.attachments:
        return {"update_at_ms": at_ms}
    changes = {"attachments": attachments, "attachments_version": row.attachments_version + 1, "update_at_ms": at_ms}
    return changes if row.holder is None else {**changes, "unanswered": kept_for_a_refusal(row)}


def _pause(row: Row) -> Row:
    if row.holder is not None:
        return replace(row, wanted=Wanted.PAUSE, release=None)
    return replace(
        row, wanted=Wanted.PAUSE, status=step(row.status, Step.PAUSE), release=None, waiting=None, retry_at_ms=0
    )


def _cancel(row: Row, event: events.Cancel, context: Context) -> Row:
    at_ms = _time_of(row, event.cause, row.cancel_at_ms, context)
    row = replace(row, cancel_at_ms=at_ms)
    if at_ms < row.assign_at_ms:
        return superseded(row, "assign", row.assign_at_ms)
    if row.is_terminal:
        return replace(row, wanted=Wanted.CANCEL, note=f"already {row.status.value}")
    if row.holder is not None:
        return replace(row, wanted=Wanted.CANCEL, release=None)
    return _cancelled(replace(row, wanted=Wanted.CANCEL), context)


def _cancelled(row: Row, context: Context) -> Row:
    return replace(
        row,
        status=step(row.status, Step.CANCEL),
        cancel_applied_at_ms=context.now_ms,
        waiting=None,
        retry_at_ms=0,
        release=None,
    )


def _update(row: Row, event: events.Update, context: Context) -> Row:
    by_assign = row.update_at_ms == row.assign_at_ms
    if (by_assign or event.origin is not None) and _sent_at(row, event.cause, context) < row.update_at_ms:
        return superseded(row, "assign" if by_assign else "update", row.update_at_ms)
    at_ms = _time_of(row, event.cause, row.update_at_ms, context)
    new = merge_patch(row.attachments or {}, event.attachments) if event.merge else event.attachments
    return replace(row, **_parameters(row, dict(new), at_ms))


# -- reports


def _report(row: Row, event: events.Report, context: Context) -> Row | str:
    holder = row.holder
    if holder is None or (holder.epoch, holder.incarnation) != (event.epoch, event.incarnation):
        return "not of the present run"
    how_hard = ", ".join(event.steps) if isinstance(event, events.Ended) else ""
    row = replace(row, note=how_hard or None)
    return _ON_REPORT[type(event)](row, event, context)


def _running(row: Row, event: events.Running, context: Context) -> Row | str:
    if row.status is not Status.ASSIGNING:
        return "runs already"
    return replace(
        row,
        status=step(row.status, Step.RUN),
        running_since_ms=context.now_ms,
        applied_version=event.version,
        applied_at_ms=context.now_ms,
        unanswered=still_unanswered(row, event.version),
        refused=None,
    )


def _applied(row: Row, event: events.Applied, context: Context) -> Row | str:
    if event.version <= row.applied_version:
        return "applied already"
    return replace(
        row,
        applied_version=event.version,
        applied_at_ms=context.now_ms,
        unanswered=still_unanswered(row, event.version),
        refused=None,
    )


def _refused(row: Row, event: events.Refused, context: Context) -> Row | str:
    if event.version <= row.applied_version:
        return "of older parameters"
    refused = {"version": event.version, "at_ms": context.now_ms, "error": event.error}
    rest = {number: value for number, value in row.unanswered.items() if number != str(event.version)}
    runs = str(row.applied_version)
    if event.version == row.attachments_version and runs in rest:
        # The next run must start with what was accepted, not with what was refused; that may be no parameters at all.
        return replace(row, refused=refused, attachments=rest[runs], unanswered={})
    return replace(row, refused=refused, unanswered=rest)


def _freed(row: Row, *, elsewhere: bool = False) -> Row:
    row = replace(row, running_since_ms=0, unanswered={})
    if row.release is Release.MOVE or elsewhere:
        return let_go(row)
    held = row.holder.skald_id if row.holder else row.last_skald
    return replace(row, holder=None, release=None, last_skald=held)


def _settled(row: Row, context: Context) -> Row | None:
    """The run is over and a cancel or pause was asked: its end is the answer. None when the task is wanted."""
    if row.wanted is Wanted.CANCEL:
        return _cancelled(_freed(row), context)
    if row.wanted is Wanted.PAUSE:
        return replace(_freed(row), status=step(row.status, Step.PAUSE))
    return None


def _stopped(row: Row, event: events.Stopped, context: Context) -> Row:
    settled = _settled(row, context)
    if settled is None:
        settled = replace(_freed(row, elsewhere=event.elsewhere), status=step(row.status, Step.FREE))
    return settled


def _lost(row: Row, event: events.Lost, context: Context) -> Row:
    return _settled(row, context) or replace(_freed(row), status=step(row.status, Step.FREE))


def _finished(row: Row, event: events.Finished, context: Context) -> Row:
    if (
        row.wanted is Wanted.RUN and row.release is Release.RESTART
    ):  # another run was asked for; this was the former's end
        return replace(_freed(row), status=step(row.status, Step.FREE))
    return replace(_freed(row), status=step(row.status, Step.FINISH), error=None, attempt=0)


def _failed(row: Row, event: events.Failed, context: Context) -> Row:
    row = replace(row, error=event.error)
    settled = _settled(row, context)
    if settled is not None:
        return settled
    if row.release is Release.RESTART or (row.release is not None and event.retryable):
        return replace(_freed(row), status=step(row.status, Step.FREE))
    attempt, retry_at_ms = after_crash(row, context.now_ms)
    if retry_at_ms is None or not event.retryable:
        return replace(_freed(row), status=step(row.status, Step.FAIL), attempt=attempt)
    return replace(_freed(row), status=step(row.status, Step.FREE), attempt=attempt, retry_at_ms=retry_at_ms)


def _drain(row: Row, event: events.Drain, context: Context) -> Row | str:
    if row.wanted is not Wanted.RUN or row.release is not None:
        return "is to stop already"
    return replace(row, release=Release.MOVE)


_ON_REPORT: Mapping[type[events.Report], Callable[..., Row | str]] = {
    events.Running: _running,
    events.Applied: _applied,
    events.Refused: _refused,
    events.Stopped: _stopped,
    events.Finished: _finished,
    events.Failed: _failed,
    events.Lost: _lost,
    events.Drain: _drain,
}


def _retry(row: Row, event: events.Retry, context: Context) -> Row | str:
    if not row.is_waiting or (row.epoch, row.attempt) != (event.epoch, event.attempt):
        return "not waiting for this"
    return replace(row, retry_at_ms=0, note=None)


def _deadline(row: Row, event: events.Deadline, context: Context) -> Row | str:
    if row.is_terminal or row.wanted is Wanted.CANCEL or row.deadline_at_ms != event.at_ms:
        return "no such deadline"
    row = replace(row, wanted=Wanted.CANCEL, release=None, note=f"deadline at {event.at_ms} has passed")
    return row if row.holder is not None else _cancelled(row, context)


def _expired(row: Row, event: events.Expired) -> Row | str:
    if not row.is_terminal or row.revision != event.revision:
        return "has changed since"
    return replace(row, note=FORGOTTEN)


# -- placement


def _place(row: Row, context: Context) -> tuple[Row, Choice | None]:
    """Give a waiting row a holder, or the reasons why nobody can be it. A row in back-off waits for its Retry."""
    row = settled(row)
    if not row.is_waiting or row.retry_at_ms > 0:
        return (replace(row, waiting=None) if row.waiting is not None else row), None
    choice = context.choose(row)
    if choice.skald_id is None or choice.incarnation is None:
        return replace(row, waiting=dict(choice.waiting)), None
    epoch = row.epoch + 1
    holder = Holder(choice.skald_id, choice.incarnation, epoch, choice.members_offset)
    placed = replace(row, holder=holder, epoch=epoch, waiting=None, move_to=None, moved_from=None)
    return replace(placed, last_skald=choice.skald_id, of_class=choice.of_class), choice
