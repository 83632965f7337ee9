"""What must hold of every row at every moment. Called after every event in tests, and on load in production."""

from __future__ import annotations

from collections.abc import Iterator

from skalds_streams.core.row import Row, Status, Wanted
from skalds_streams.errors import InvariantError

ENDS_A_RUN = frozenset({"Stopped", "Finished", "Failed", "Lost"})
"""Kinds of causes by which a holder leaves a row; nothing else frees it."""


def check_row(row: Row) -> None:
    """Raise InvariantError with every rule that the row breaks."""
    broken = list(_broken(row))
    if broken:
        raise InvariantError(f"task {row.task_id}, revision {row.revision}: " + "; ".join(broken))


def check_step(before: Row | None, after: Row) -> None:
    """Raise InvariantError when `after` can't follow `before`, whatever the event was."""
    check_row(after)
    if before is None:
        return
    broken: list[str] = []
    if after.revision != before.revision + 1:
        broken.append(f"revision {before.revision} → {after.revision}")
    if after.epoch not in (before.epoch, before.epoch + 1):
        broken.append(f"epoch {before.epoch} → {after.epoch}")
    if before.holder is not None and before.holder != after.holder and after.why.kind not in ENDS_A_RUN:
        broken.append(f"holder {before.holder} → {after.holder} by {after.why.kind}")
    if broken:
        raise InvariantError(f"task {after.task_id}, revision {after.revision}: " + "; ".join(broken))


def _broken(row: Row) -> Iterator[str]:
    if not row.task_id:
        yield "a row without task id"
    if row.holder is not None and row.is_terminal:
        yield f"{row.status.value} but held by {row.holder.skald_id}"
    if row.holder is not None and row.holder.epoch != row.epoch:
        yield f"holder of epoch {row.holder.epoch} in a row of epoch {row.epoch}"
    if row.first_epoch > row.epoch + 1:
        yield f"its first run is of epoch {row.first_epoch}, and its last was of {row.epoch}"
    if row.status is Status.RUNNING and row.holder is None:
        yield "Running without a holder"
    if row.status in (Status.PAUSED, Status.CREATED) and row.holder is not None:
        yield f"{row.status.value} with a holder"
    if row.release is not None and row.holder is None:
        yield "asked to release without a holder"
    if row.release is not None and row.wanted is not Wanted.RUN:
        yield "asked to release although not wanted"
    if row.wanted is Wanted.RUN and row.status is Status.CREATED:
        yield "wanted but never assigned"
