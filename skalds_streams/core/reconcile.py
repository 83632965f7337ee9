"""What a skald must do so that what runs here is what the rows say. Pure: (rows, runs) → actions.

Rules: only a row that names this incarnation is ours, compared at this moment; an epoch that ended here never starts
again here; a row held here that is not to run and does not run is answered with Stopped, else nobody would free it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from skalds_streams.core.row import Row, Wanted

NOT_HELD = "not held here"


@dataclass(frozen=True, slots=True)
class Run:
    """One worker here: its epoch, the version of the parameters sent to it, and whether it is being stopped.

    `accepted`: the version that it runs with, as it said; -1 while it has not begun. `kept_by`: the skald id, for one
    that runs on although the incarnation that began it has lost its lease.
    """

    epoch: int
    version: int
    accepted: int = -1
    stopping: bool = False
    kept_by: str | None = None
    class_name: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker for a row that is ours."""

    row: Row


@dataclass(frozen=True, slots=True)
class Push:
    """Send newer parameters to a worker that runs."""

    row: Row


@dataclass(frozen=True, slots=True)
class Stop:
    """End a worker that is not to run here."""

    task_id: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class SayStopped:
    """This epoch was given to us and withdrawn before it ran."""

    task_id: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Adopt:
    """A worker that ran on without a lease is ours again, under another epoch."""

    row: Row


Action = Adopt | Start | Push | Stop | SayStopped


def reconcile_task(task_id: str, row: Row | None, run: Run | None, done_epoch: int, incarnation: str) -> Action | None:
    """The one thing to do for one task now. `done_epoch`: highest epoch of the task that ended here, 0 if none."""
    ours = row if row is not None and row.holder is not None and row.holder.incarnation == incarnation else None
    reason = _why_not(row, ours)
    if run is not None:
        if run.stopping:
            return None
        if run.kept_by is not None and row is not None and reason in (None, NOT_HELD):
            return _kept(row, ours, run)
        if ours is None or reason is not None or ours.epoch != run.epoch:
            return Stop(task_id, run.epoch, reason or "another epoch")
        return Push(ours) if ours.attachments_version > run.version else None
    if ours is None or ours.epoch <= done_epoch:
        return None
    return Start(ours) if reason is None else SayStopped(task_id, ours.epoch, reason)


def reconcile(
    rows: Mapping[str, Row], runs: Mapping[str, Run], done: Mapping[str, int], incarnation: str
) -> Iterator[Action]:
    """Actions for every task that is held here or runs here."""
    held = {
        task_id for task_id, row in rows.items() if row.holder is not None and row.holder.incarnation == incarnation
    }
    for task_id in sorted(held | runs.keys()):
        action = reconcile_task(task_id, rows.get(task_id), runs.get(task_id), done.get(task_id, 0), incarnation)
        if action is not None:
            yield action


def _kept(row: Row, ours: Row | None, run: Run) -> Action | None:
    """A worker that ran on: adopt it, or end it when another skald has the task, or is to have it, or the task is of
    another class or has other parameters now: should the worker refuse those, no row would know any more what it runs
    with. Else wait for the row to say.
    """
    if row.class_name != run.class_name:
        return Stop(row.task_id, run.epoch, "another class")
    if ours is not None and ours.epoch > run.epoch:
        return Adopt(ours) if _runs_with_them(ours, run) else Stop(row.task_id, run.epoch, "other parameters")
    if row.is_terminal or row.wanted is not Wanted.RUN:
        return Stop(row.task_id, run.epoch, row.wanted.value)
    if row.holder is not None and row.holder.skald_id != run.kept_by:
        return Stop(row.task_id, run.epoch, f"held by {row.holder.skald_id}")
    if row.recipient not in (None, run.kept_by):
        return Stop(row.task_id, run.epoch, f"recipient is {row.recipient}")
    return None


def _runs_with_them(row: Row, run: Run) -> bool:
    """Whether the worker runs with the row's parameters: the last that were sent, or those before, if it refused
    them.
    """
    if run.accepted == row.attachments_version:
        return True
    refused = row.refused is not None and row.refused["version"] == row.attachments_version
    return refused and row.applied_version == run.accepted


def _why_not(row: Row | None, ours: Row | None) -> str | None:
    if row is None:
        return "task is gone"
    if ours is None:
        return NOT_HELD
    if ours.wanted is not Wanted.RUN:
        return ours.wanted.value
    return ours.release.value if ours.release is not None else None
