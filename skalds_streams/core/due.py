"""What the coordinator itself finds due: runs whose holder is dead, back-offs that are over, tasks that could be
placed now.

Looked at on every membership change and every second as a net (level, not edge). The answer is written as a record;
that record, not the clock, is the cause, and `decide` checks that it still fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from skalds_streams.core.membership import Members
from skalds_streams.core.placement import Load, choose
from skalds_streams.core.restarts import BACKOFF_LONGEST_MS
from skalds_streams.core.row import Holder, Row, Wanted

RETENTION_MS = 7 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Due:
    """One thing that is due for one row, as it stood when it was looked at."""

    kind: Literal["Lost", "Drain", "Retry", "Deadline", "Expired"]
    task_id: str
    epoch: int
    incarnation: str
    attempt: int
    reason: str
    revision: int = 0
    deadline_at_ms: int = 0


def find_due(
    rows: Iterable[Row], members: Members, load: Load, now_ms: int, retention_ms: int = RETENTION_MS
) -> Iterator[Due]:
    """Everything that is due now, at most one thing a row. retention_ms: how long a row outlives its task's end."""
    for row in rows:
        if row.is_terminal:
            if row.updated_at_ms + retention_ms <= now_ms:
                yield Due("Expired", row.task_id, row.epoch, "", row.attempt, "retention is over", row.revision)
        elif 0 < row.deadline_at_ms <= now_ms and row.wanted is not Wanted.CANCEL:
            at_ms = row.deadline_at_ms
            yield Due("Deadline", row.task_id, row.epoch, "", row.attempt, "deadline has passed", 0, at_ms)
        elif row.holder is not None:
            due = _of_a_holder(row, row.holder, members, load)
            if due is not None:
                yield due
        elif row.is_waiting:
            due = _retry(row, members, load, now_ms)
            if due is not None:
                yield due


def _of_a_holder(row: Row, holder: Holder, members: Members, load: Load) -> Due | None:
    if members.is_dead(holder.incarnation, holder.seen):
        reason = f"{holder.skald_id}: {members.why_dead(holder.incarnation)}"
        return Due("Lost", row.task_id, holder.epoch, holder.incarnation, row.attempt, reason)
    member = members.get(holder.incarnation)
    if member is None or member.state != "draining" or row.release is not None or row.wanted is not Wanted.RUN:
        return None
    if row.recipient == holder.skald_id or choose(replace(row, holder=None), members, load).skald_id is None:
        return None  # it runs on where it is rather than nowhere
    return Due("Drain", row.task_id, holder.epoch, holder.incarnation, row.attempt, f"{holder.skald_id} is drained")


def _retry(row: Row, members: Members, load: Load, now_ms: int) -> Due | None:
    if now_ms < row.retry_at_ms <= now_ms + BACKOFF_LONGEST_MS:
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
