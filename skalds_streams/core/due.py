"""What the coordinator itself finds due: runs whose holder is dead, back-offs that are over, tasks that could be
placed now.

Looked at on every membership change and every second as a net (level, not edge). The answer is written as a record;
that record, not the clock, is the cause, and `decide` checks that it still fits.

Rules of a drain: no more is asked to leave than others have room for, and what was asked is counted until it is placed,
for a task must not stop for a place that another gets; and so few at a time that none stands still in a queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from skalds_streams.core.membership import Members
from skalds_streams.core.moves import let_go
from skalds_streams.core.options import of_class
from skalds_streams.core.placement import Load, choose
from skalds_streams.core.restarts import longest_ms
from skalds_streams.core.row import Holder, Json, Release, Row, Status, Wanted

MOVES_AT_ONCE = 8
"""Tasks of drained skalds that one process has under way at a time: as many as a skald starts at once by default."""
STARTS_WITHIN_MS = 10_000
"""A task that was placed so long ago and does not run yet holds up no drain."""
RETENTION_MS = 7 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Due:
    """One thing that is due for one row, as it stood when it was looked at."""

    kind: Literal["Lost", "Drain", "Retry", "Deadline", "Expired", "Found"]
    task_id: str
    epoch: int
    incarnation: str
    attempt: int
    reason: str
    revision: int = 0
    deadline_at_ms: int = 0
    task: Json | None = None
    """The document that was found."""


Catalogue = Callable[[str], tuple[Json, str] | None]
"""Task id → (its Task document, where it stands), None when it has none. Must not block."""


def no_catalogue(task_id: str) -> tuple[Json, str] | None:
    """Of a process without one."""
    return None


@dataclass(slots=True)
class Room:
    """What the drains of one process may use. `load`: all that is spoken for; `under_way`: moves that are not over."""

    load: Load
    under_way: int = 0
    held_back: int = 0
    """Tasks that were not asked to leave yet, as enough are under way."""

    def take(self, row: Row, members: Members) -> bool:
        """Speak for the room that a row needs elsewhere. False when nobody else has it."""
        choice = choose(let_go(row), members, self.load)
        if choice.incarnation is not None:
            self.load.note(choice.incarnation, choice.members_offset, choice.units(row))
        return choice.incarnation is not None


def room_of(rows: Iterable[Row], members: Members, loads: Iterable[Load], now_ms: int) -> Room:
    """The room as these rows leave it. loads: what was placed since heartbeats were seen."""
    room = Room(Load(*loads))
    for row in rows:
        if row.holder is not None and row.release is Release.MOVE:
            room.take(row, members)
            room.under_way += 1
        elif row.holder is not None and row.status is Status.ASSIGNING:
            room.under_way += row.updated_at_ms + STARTS_WITHIN_MS > now_ms
    return room


def find_due(
    rows: Iterable[Row],
    members: Members,
    load: Load,
    now_ms: int,
    retention_ms: int = RETENTION_MS,
    room: Room | None = None,
    catalogue: Catalogue = no_catalogue,
) -> Iterator[Due]:
    """Everything that is due now, at most one thing a row.

    retention_ms: how long a row outlives its task's end. room: `room_of` all rows of this process; what is asked to
    leave is noted there.
    """
    room = room if room is not None else Room(Load(load))
    for row in rows:
        if row.is_terminal:
            if row.updated_at_ms + retention_ms <= now_ms:
                yield Due("Expired", row.task_id, row.epoch, "", row.attempt, "retention is over", row.revision)
        elif 0 < row.deadline_at_ms <= now_ms and row.wanted is not Wanted.CANCEL:
            at_ms = row.deadline_at_ms
            yield Due("Deadline", row.task_id, row.epoch, "", row.attempt, "deadline has passed", 0, at_ms)
        elif row.holder is not None:
            due = _of_a_holder(row, row.holder, members, room)
            if due is not None:
                yield due
        elif row.is_waiting:
            due = _found(row, catalogue) or _retry(row, members, load, now_ms)
            if due is not None:
                yield due


def _of_a_holder(row: Row, holder: Holder, members: Members, room: Room) -> Due | None:
    if members.is_dead(holder.incarnation, holder.seen):
        reason = f"{holder.skald_id}: {members.why_dead(holder.incarnation)}"
        return Due("Lost", row.task_id, holder.epoch, holder.incarnation, row.attempt, reason)
    member = members.get(holder.incarnation)
    if member is None or member.state != "draining" or row.release is not None or row.wanted is not Wanted.RUN:
        return None
    if row.recipient == holder.skald_id:
        return None
    if room.under_way >= MOVES_AT_ONCE:
        room.held_back += 1
        return None
    if not room.take(row, members):
        return None  # it runs on where it is rather than nowhere
    room.under_way += 1
    return Due("Drain", row.task_id, holder.epoch, holder.incarnation, row.attempt, f"{holder.skald_id} is drained")


def _found(row: Row, catalogue: Catalogue) -> Due | None:
    found = catalogue(row.task_id) if row.class_name is None else None
    if found is None:
        return None
    return Due("Found", row.task_id, row.epoch, "", row.attempt, found[1], row.revision, task=found[0])


def _retry(row: Row, members: Members, load: Load, now_ms: int) -> Due | None:
    if now_ms < row.retry_at_ms <= now_ms + longest_ms(of_class(row.of_class).backoff_most_ms):
        return None
    if row.retry_at_ms > 0:
        return Due("Retry", row.task_id, row.epoch, "", row.attempt, "back-off is over")
    choice = choose(row, members, load)
    if choice.skald_id is not None:
        return Due("Retry", row.task_id, row.epoch, "", row.attempt, f"{choice.skald_id} can take it")
    if _kinds(choice.waiting) != _kinds(row.waiting or {}):
        return Due("Retry", row.task_id, row.epoch, "", row.attempt, "reasons changed")
    return None


def _kinds(waiting: Mapping[str, str]) -> dict[str, str]:
    """The reasons without their counts: every heartbeat moves one, and each waiting row would be written anew."""
    return {skald: "full" if reason.startswith("full ") else reason for skald, reason in waiting.items()}
