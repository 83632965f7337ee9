"""The loop of one partition: take what has come → stage → forward → one transaction → swap the rows in → acknowledge
in order.

Rules: no batch is decided before the former's outcome is known; after an error whose outcome is unknown the log is
opened again and the same deliveries are looked at anew, where positions tell which of them are in; being fenced means
asking the group, never fighting; rows are served only while open.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.coordinator.batch import Secrecy, Staged, Stager, advanced, deadletter, outputs
from skalds_streams.coordinator.log import PartitionLog
from skalds_streams.core.membership import Members
from skalds_streams.core.placement import Load
from skalds_streams.core.row import Row
from skalds_streams.errors import FencedError, JournalError, TopicRecreatedError
from skalds_streams.model.codec import Limits, Positions
from skalds_streams.model.record import Record
from skalds_streams.topics import Topics

QUEUE_MOST = 5_000
"""Deliveries that may wait in one journal before its agent is held back."""
TRIES_BEFORE_HALVING = 3
CONDEMNED_BYTES = 100_000
BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 5.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A record, how to tell Faust that it is done with, and how to tell it that nobody here will ever be.

    Undropped, it would hold up a rebalance for ever: Faust waits until all that it handed out is acknowledged.
    """

    record: Record
    ack: Callable[[], object]
    drop: Callable[[], object] = lambda: None


class Forwarder(Protocol):
    """Sends documents to skald.report and returns when the broker has them."""

    async def send_reports(self, docs: Sequence[tuple[str, dict[str, Any]]]) -> None: ...


@dataclass(frozen=True, slots=True)
class JournalContext:
    """What every journal of a process shares. `now_ms` is the wall clock; `is_ours` asks the group."""

    topics: Topics
    limits: Limits
    secrecy: Secrecy
    members: Members
    forwarder: Forwarder
    now_ms: Callable[[], int]
    is_ours: Callable[[int, Positions], Awaitable[bool]]
    batch_max: int = 500


@dataclass(slots=True)
class JournalStatistics:
    """Counts since the process began, for metrics."""

    events: int = 0
    batches: int = 0
    skipped: int = 0
    deadletters: int = 0
    reopened: int = 0


class Journal:
    """See the module. `run` ends when closed, or when the partition is not ours any more."""

    def __init__(self, partition: int, partition_log: PartitionLog, context: JournalContext) -> None:
        self.partition = partition
        self.rows: dict[str, Row] = {}
        self.positions = Positions({})
        self.end_offset = 0
        self.load = Load()
        self.opened = asyncio.Event()
        self.statistics = JournalStatistics()
        self.fatal: JournalError | None = None
        self._log, self._context = partition_log, context
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue(QUEUE_MOST)
        self._pending: deque[Delivery] = deque()
        self._limit = context.batch_max
        self._tries = 0
        self._poison: str | None = None
        self._closed = False

    async def offer(self, delivery: Delivery) -> None:
        """Hand over a delivery; waits while the queue is full. Dropped when the journal is closed: the next owner gets
        it.
        """
        if not self._closed:
            await self._queue.put(delivery)
        if self._closed:  # also when it was closed while we waited
            delivery.drop()

    async def close(self) -> None:
        """Stop serving rows and writing. What is queued goes back to the group unacknowledged."""
        self._give_up()
        await self._log.close()

    def _give_up(self) -> None:
        self._closed = True
        self.opened.clear()
        self.rows = {}
        while not self._queue.empty():
            self._pending.append(self._queue.get_nowait())
        for delivery in self._pending:
            delivery.drop()
        self._pending.clear()

    async def run(self) -> None:
        """Own the partition until closed, or until the group says that it is another's.

        Raises what can't be mended by trying again.
        """
        while not self._closed:
            if not await self._open():
                self._give_up()
                return
            try:
                while True:
                    await self._turn()
            except FencedError:
                log.warning("journal.fenced", partition=self.partition)
            except (ClientError, JournalError, TimeoutError, OSError) as error:
                log.warning("journal.outcome_unknown", partition=self.partition, error=repr(error))
            self.opened.clear()
            self.statistics.reopened += 1

    # -- opening

    async def _open(self) -> bool:
        """Open the log, as often as it takes. False: the partition is not ours, or the journal is closed."""
        for pause_s in _backoff():
            if self._closed:
                return False
            if self.statistics.reopened and not await self._context.is_ours(self.partition, self.positions):
                log.info("journal.not_ours", partition=self.partition)
                return False
            try:
                recovered = await self._log.open()
            except TopicRecreatedError as error:
                self.fatal = error
                raise
            except (ClientError, JournalError, TimeoutError, OSError) as error:
                log.warning("journal.open_failed", partition=self.partition, error=repr(error), again_in_s=pause_s)
                self.statistics.reopened += 1
                await asyncio.sleep(pause_s)
                continue
            self.rows, self.positions, self.end_offset = recovered.rows, recovered.positions, recovered.end_offset
            self.opened.set()
            log.debug("journal.open", partition=self.partition, rows=len(self.rows))
            return True
        return False

    # -- one turn

    async def _turn(self) -> None:
        deliveries = await self._take()
        staged = self._condemned(deliveries[0].record) if self._poison else self._stage(deliveries)
        if not staged.is_empty:
            try:
                await self._write(staged)
            except ClientError as error:
                self._suspect(len(deliveries), error)
                raise
        for delivery in deliveries:
            self._pending.popleft()
            delivery.ack()
        self._limit, self._tries, self._poison = self._context.batch_max, 0, None
        self._count(staged, len(deliveries))

    def _suspect(self, batch: int, error: ClientError) -> None:
        """A write was refused, not lost: after some tries halve the batch until the one record that can't be written
        is found.
        """
        if error.retriable:
            return
        self._tries += 1
        if self._tries < TRIES_BEFORE_HALVING:
            return
        if batch > 1:
            self._limit = batch // 2
        else:
            self._poison = f"can't be written: {error!r}"

    def _condemned(self, record: Record) -> Staged:
        """The poisonous record alone, cut to what surely fits, as a dead letter."""
        reason = (
            f"{self._poison}; cut to {CONDEMNED_BYTES} bytes"
            if len(record.value or b"") > CONDEMNED_BYTES
            else self._poison
        )
        letter = deadletter(
            replace(record, value=record.value[:CONDEMNED_BYTES] if record.value else None),
            str(reason),
            self._context.topics,
        )
        return Staged(offsets={record.topic: record.offset}, deadletters=[letter])

    async def _take(self) -> list[Delivery]:
        """Wait for one delivery, then take all that is there, up to the limit."""
        if not self._pending:
            self._pending.append(await self._queue.get())
        while len(self._pending) < self._limit and not self._queue.empty():
            self._pending.append(self._queue.get_nowait())
        wanted = 1 if self._poison else min(self._limit, len(self._pending))
        return [self._pending[at] for at in range(wanted)]

    def _stage(self, deliveries: Sequence[Delivery]) -> Staged:
        context = self._context
        stager = Stager(
            self.rows,
            self.positions,
            topics=context.topics,
            members=context.members,
            load=self.load,
            limits=context.limits,
            now_ms=context.now_ms(),
        )
        return stager.add(delivery.record for delivery in deliveries)

    async def _write(self, staged: Staged) -> None:
        context = self._context
        if staged.forwards:
            await context.forwarder.send_reports(staged.forwards)
        positions = advanced(self.positions, staged)
        await self._log.write(outputs(staged, positions, context.topics, context.secrecy))
        for task_id, row in staged.rows.items():
            if row is None:
                self.rows.pop(task_id, None)
            else:
                self.rows[task_id] = row
        self.positions = positions

    def _count(self, staged: Staged, events: int) -> None:
        self.statistics.events += events
        self.statistics.batches += 1
        self.statistics.skipped += staged.skipped
        self.statistics.deadletters += len(staged.deadletters)
        for letter in staged.deadletters:
            headers = dict(letter.headers)
            log.warning(
                "journal.deadletter",
                reason=headers["reason"].decode(),
                source=b"/".join(
                    (headers["source.topic"], headers["source.partition"], headers["source.offset"])
                ).decode(),
            )


def _backoff() -> Iterator[float]:
    pause_s = BACKOFF_FIRST_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, BACKOFF_MOST_S)
