"""Bugs to be planted into production code while a world runs. Each is what somebody could have written.

`PLANTED`: name → context manager, those of `planted_inputs` and `planted_leases` among them. Where the core would
refuse the outcome by its own check (`check_step`), the bug takes that check along: it is planted as if nobody had
thought of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any
from unittest.mock import patch

from aiokafka.errors import KafkaError as ClientError

from skalds_streams.coordinator import batch, journal, log, timers
from skalds_streams.core import control, decide, membership
from skalds_streams.core.row import Status, Wanted
from skalds_streams.errors import FencedError, JournalError
from skalds_streams.model.documents import Positions
from skalds_streams.proxy.client import log_consumer
from skalds_streams.skald import actor, node, supervisor
from skalds_streams.testing.simulator import process, writers
from tests.simulation import planted_inputs, planted_leases  # noqa: F401  # they plant their own
from tests.simulation.planting import PLANTED, planted

__all__ = ["PLANTED"]


@contextmanager
def no_check_step() -> Iterator[None]:
    with patch.object(batch, "check_step", lambda before, after: None):
        yield


@planted
def no_position_check() -> Iterator[None]:
    """A record that was applied is applied again when it is delivered again."""

    def add_one(self: Any, record: Any) -> None:
        self._positions = Positions({}, self._positions.epoch_floor, self._positions.revision_floor)
        self.staged.offsets.pop(record.topic, None)
        real(self, record)

    real = batch.Stager.add_one
    with patch.object(batch.Stager, "add_one", add_one):
        yield


@planted
def acknowledged_before_the_commit() -> Iterator[None]:
    """A batch whose transaction failed is acknowledged and not looked at again."""

    async def turn(self: Any) -> None:
        await self._take()
        while await self._fill():
            pass
        deliveries = self._batch()
        if not deliveries:
            return
        staged = self._stage(deliveries)
        for _ in range(staged.records):
            self._pending.popleft().ack()
        if not staged.is_empty:
            await self._write(staged)

    with patch.object(journal.Journal, "_turn", turn):
        yield


@planted
def transactions_follow_a_commit_that_was_asked_for_twice() -> Iterator[None]:
    """Was in the product: the first request, late, commits what there is of the next transaction."""
    with patch.object(writers.Producer, "count_commits", lambda producer: lambda: 0):
        yield


@planted
def epoch_not_raised_at_placement() -> Iterator[None]:
    def place(row: Any, context: Any) -> Any:
        placed, choice = real(row, context)
        if choice is not None and row.epoch > 0:
            placed = replace(placed, epoch=row.epoch, holder=replace(placed.holder, epoch=row.epoch))
        return placed, choice

    real = decide._place
    with patch.object(decide, "_place", place):
        yield


@planted
def cancel_before_assign_is_forgotten() -> Iterator[None]:
    """A cancel of a task that was never assigned leaves no time behind."""

    def cancel(row: Any, event: Any, context: Any) -> Any:
        after = real(row, event, context)
        return replace(after, cancel_at_ms=row.cancel_at_ms) if row.assign_at_ms == 0 else after

    real = decide._cancel
    with patch.object(decide, "_cancel", cancel):
        yield


@planted
def assign_wins_a_tie() -> Iterator[None]:
    def assign(row: Any, event: Any, context: Any) -> Any:
        tie = decide._time_of(row, event.cause, row.assign_at_ms, context) == row.cancel_at_ms
        after = real_assign(replace(row, cancel_at_ms=row.cancel_at_ms - 1) if tie else row, event, context)
        return replace(after, cancel_at_ms=row.cancel_at_ms)

    def cancel(row: Any, event: Any, context: Any) -> Any:
        at_ms = decide._time_of(row, event.cause, row.cancel_at_ms, context)
        if at_ms == row.assign_at_ms:
            return replace(row, cancel_at_ms=at_ms, note="superseded by assign")
        return real_cancel(row, event, context)

    real_assign, real_cancel = decide._assign, decide._cancel
    with patch.object(decide, "_assign", assign), patch.object(decide, "_cancel", cancel):
        yield


@planted
def holder_replaced_by_an_assign() -> Iterator[None]:
    """An assign of a task that runs places it anew, at once."""

    def assign(row: Any, event: Any, context: Any) -> Any:
        if row.holder is not None and event.release is not None:
            row = replace(row, holder=None, release=None, status=Status.ASSIGNING, wanted=Wanted.RUN)
        return real(row, event, context)

    real = decide._assign
    with patch.object(decide, "_assign", assign), no_check_step():
        yield


@planted
def cancel_frees_the_holder_at_once() -> Iterator[None]:
    def cancel(row: Any, event: Any, context: Any) -> Any:
        after = real(row, event, context)
        if after.wanted is Wanted.CANCEL and after.holder is not None and not after.is_terminal:
            return decide._cancelled(decide._freed(after), context)
        return after

    real = decide._cancel
    with patch.object(decide, "_cancel", cancel), no_check_step():
        yield


@planted
def a_pause_counts_as_applied_when_it_is_asked() -> Iterator[None]:
    def is_so(name: str, row: Any) -> bool:
        return name == control.PAUSE or real(name, row)

    real = control._is_so
    with patch.object(control, "_is_so", is_so):
        yield


@planted
def fenced_journal_does_not_ask_the_group() -> Iterator[None]:
    async def is_ours(self: Any) -> bool:
        return True

    with patch.object(journal.Journal, "_is_ours", is_ours):
        yield


@planted
def fenced_journal_stays_closed() -> Iterator[None]:
    async def is_ours(self: Any) -> bool:
        return False

    with patch.object(journal.Journal, "_is_ours", is_ours):
        yield


@planted
def unknown_outcome_is_tried_again_as_it_was() -> Iterator[None]:
    """After an error the same batch goes out again, without opening the log and looking at the positions."""

    async def run(self: Any) -> None:
        while not self._closed:
            if not await self._open():
                self.give_up()
                return
            try:
                while True:
                    try:
                        await self._turn()
                    except FencedError:
                        raise
                    except (ClientError, JournalError, TimeoutError, OSError):
                        await asyncio.sleep(0.1)
            except FencedError:
                pass
            self.opened.clear()
            self.statistics.reopened += 1

    with patch.object(journal.Journal, "run", run):
        yield


@planted
def stopped_of_another_epoch_counts() -> Iterator[None]:
    def report(row: Any, event: Any, context: Any) -> Any:
        if row.holder is not None and type(event).__name__ == "Stopped":
            event = replace(event, epoch=row.holder.epoch, incarnation=row.holder.incarnation)
        return real(row, event, context)

    real = decide._report
    with patch.object(decide, "_report", report):
        yield


@planted
def reconcile_starts_rows_of_a_former_incarnation() -> Iterator[None]:
    """The skald id is compared, not the incarnation."""

    def reconcile_task(task_id: str, row: Any, run: Any, done: int, incarnation: str) -> Any:
        if row is not None and row.holder is not None and row.holder.skald_id == incarnation.split(".")[0]:
            row = replace(row, holder=replace(row.holder, incarnation=incarnation))
        return real(task_id, row, run, done, incarnation)

    real = supervisor.reconcile_task
    with patch.object(supervisor, "reconcile_task", reconcile_task):
        yield


@planted
def an_epoch_that_ended_here_starts_again() -> Iterator[None]:
    def reconcile_task(task_id: str, row: Any, run: Any, done: int, incarnation: str) -> Any:
        return real(task_id, row, run, 0, incarnation)

    real = supervisor.reconcile_task
    with patch.object(supervisor, "reconcile_task", reconcile_task):
        yield


@planted
def forwarded_records_are_not_deduplicated() -> Iterator[None]:
    def command(row: Any, event: Any, context: Any) -> Any:
        if event.origin is not None:
            row = replace(row, forwarded={})
        return real(row, event, context)

    real = decide._command
    with patch.object(decide, "_command", command):
        yield


@planted
def recovery_reads_uncommitted() -> Iterator[None]:
    @wraps(log_consumer)
    def uncommitted(client: Any, **more: Any) -> Any:
        return log_consumer(client, **{**more, "committed": False})

    with patch.object(log, "log_consumer", uncommitted):
        yield


@planted
def lost_is_never_said() -> Iterator[None]:
    def find_due(*args: Any, **more: Any) -> Any:
        return (due for due in real(*args, **more) if due.kind != "Lost")

    real = timers.find_due
    with patch.object(timers, "find_due", find_due):
        yield


@planted
def positions_are_not_in_the_transaction() -> Iterator[None]:
    def outputs(*args: Any) -> Any:
        return real(*args)[:-1]

    real = batch.outputs
    with patch.object(journal, "outputs", outputs):
        yield


@planted
def stopped_is_said_before_the_host_is_reaped() -> Iterator[None]:
    def stop(self: Any, reason: str) -> None:
        real(self, reason)
        if reason != actor.LEAVING:
            self._reporter.say("Stopped", self.task_id, self.epoch, reason=reason)

    real = actor.Actor.stop
    with patch.object(actor.Actor, "stop", stop):
        yield


@planted
def leaving_is_said_before_the_workers_are_stopped() -> Iterator[None]:
    async def leave(self: Any) -> None:
        await node._ended(self._beating)
        await self._heartbeat.leave("leaving")
        await self.supervisor.close()

    with patch.object(node.SkaldNode, "leave", leave):
        yield


@planted
def the_lock_is_not_in_the_hosts() -> Iterator[None]:
    """Found by no test before: the next process may say `replaces` while hosts of the former still live."""

    def is_free(self: Any, claimant: Any) -> bool:
        return all(life.over for life in self.lives if life is not claimant)

    with patch.object(process.Seat, "is_free", is_free):
        yield


@planted
def only_the_last_predecessor_is_replaced() -> Iterator[None]:
    """Was in the product until seeds 34, 62 and 126."""

    def heard(member: Any, doc: Any) -> Any:
        after = real(member, doc)
        return replace(after, replaces=after.replaces[-1:])

    real = membership.heard_as
    with patch.object(membership, "heard_as", heard):
        yield


@planted
def a_refused_update_stays_for_the_next_run() -> Iterator[None]:
    """Was in the product, for tasks without parameters, until seed 522."""

    def refused(row: Any, event: Any, context: Any) -> Any:
        after = real(row, event, context)
        return after if isinstance(after, str) else replace(after, attachments=row.attachments)

    real = decide._refused
    with patch.dict(decide._ON_REPORT, {decide.events.Refused: refused}):
        yield


@planted
def rows_are_read_from_the_middle() -> Iterator[None]:
    """Recovery loses what stands before the last compaction's holes."""

    async def read(self: Any, limit: Any) -> Any:
        recovered = await real(self, limit)
        if len(recovered.rows) > 1:
            recovered.rows.pop(min(recovered.rows))
        return recovered

    real = log.PartitionLog._read
    with patch.object(log.PartitionLog, "_read", read):
        yield


@planted
def forwarded_commands_are_sent_all_at_once() -> Iterator[None]:
    """Was in the product until a schedule of 24 commands for tasks of another partition, with a lossy network."""
    with patch.object(journal, "in_waves", lambda forwards: [forwards] if forwards else []):
        yield
