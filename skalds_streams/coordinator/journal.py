"""The loop of one partition: take what has come → stage → forward → one transaction → swap the rows in → acknowledge
in order.

Rules: no batch is decided before the former's outcome is known; after an error whose outcome is unknown the log is
opened again and the same deliveries are looked at anew, where positions tell which of them are in; being fenced means
asking the group, never fighting; rows are served only while open; once closed nothing more is decided, whether or not
the loop has noticed that it was cancelled. What Faust delivers is a hint: a record is applied only when all before it
are, and what was left out is read from the topic (what is not delivered at all: `omissions`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.coordinator.batch import Secrecy, Staged, Stager, advanced, condemned, in_waves, outputs
from skalds_streams.coordinator.log import OF_THE_RECORD, PartitionLog, UnwritableError
from skalds_streams.core.membership import Members
from skalds_streams.core.placement import Load
from skalds_streams.core.row import Row
from skalds_streams.errors import FencedError, JournalError, TopicRecreatedError, TopicResizedError
from skalds_streams.failpoints import reach
from skalds_streams.model.codec import Limits
from skalds_streams.model.documents import Positions
from skalds_streams.model.record import Record
from skalds_streams.topics import Topics

QUEUE_MOST = 5_000
"""Deliveries that may wait in one journal before its agent is held back."""
TRIES_BEFORE_HALVING = 3
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
    fetched: int = 0


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
        self._confirmed = 0
        self._closed = False
        self._heard_at: dict[str, float] = {}
        self._empty_to: dict[str, int] = {}
        """Topic → offset up to which nothing is in it after the position: markers of transactions, or deleted."""

    async def offer(self, delivery: Delivery) -> None:
        """Hand over a delivery; waits while the queue is full. Dropped when the journal is closed: the next owner gets
        it.
        """
        if not self._closed:
            self._heard_at[delivery.record.topic] = asyncio.get_running_loop().time()
            await self._queue.put(delivery)
        if self._closed:  # also when it was closed while we waited
            delivery.drop()

    def confirm(self) -> None:
        """The group has just said again that the partition is ours: an answer to a question asked before is void."""
        self._confirmed += 1

    async def close(self) -> None:
        """Stop serving rows and writing. What is queued goes back to the group unacknowledged."""
        self.give_up()
        await self._log.close()

    def give_up(self) -> None:
        """Take and serve nothing any more, at once."""
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
                self.give_up()
                return
            try:
                while not self._closed:
                    await self._turn()
            except FencedError:
                log.warning("journal.fenced", partition=self.partition)
            except (ClientError, JournalError, TimeoutError, OSError) as error:
                log.warning("journal.outcome_unknown", partition=self.partition, error=repr(error))
            self.opened.clear()
            self.statistics.reopened += 1
        self.give_up()  # also what came at the last moment

    # -- opening

    async def _open(self) -> bool:
        """Open the log, as often as it takes. False: the partition is not ours, or the journal is closed."""
        if self._tries > 1:  # at once after one error, slower each time that it did not help
            await asyncio.sleep(_pause_s(self._tries - 1))
        for failures in itertools.count(1):
            if self._closed:
                return False
            if self.statistics.reopened and not await self._is_ours():
                log.info("journal.not_ours", partition=self.partition)
                return False
            if self._closed:  # while we asked
                return False
            try:
                recovered = await self._log.open()
            except (TopicRecreatedError, TopicResizedError) as error:
                self.fatal = error
                raise
            except (ClientError, JournalError, TimeoutError, OSError) as error:
                pause_s = _pause_s(failures)
                log.warning("journal.open_failed", partition=self.partition, error=repr(error), again_in_s=pause_s)
                self.statistics.reopened += 1
                await asyncio.sleep(pause_s)
                continue
            if self._closed:
                return False
            self.rows, self.positions, self.end_offset = recovered.rows, recovered.positions, recovered.end_offset
            now = asyncio.get_running_loop().time()
            self._heard_at = {topic: max(self._heard_at.get(topic, 0.0), now) for topic in self._context.topics.inputs}
            self._empty_to = {}
            self.opened.set()
            log.debug("journal.open", partition=self.partition, rows=len(self.rows))
            return True
        return False

    async def _is_ours(self) -> bool:
        while True:
            asked = self._confirmed
            if await self._context.is_ours(self.partition, self.positions):
                return True
            if asked == self._confirmed:
                return False

    # -- one turn

    async def _turn(self) -> None:
        await self._take()
        while await self._fill():
            pass
        deliveries = self._batch()
        if not deliveries:
            return
        await reach("before_decide")
        if self._closed:  # there are no rows any more: to decide on none would overwrite those that the log has
            return
        staged = self._stage(deliveries)
        await reach("after_decide")
        if not staged.is_empty:
            try:
                await self._write(staged)
            except (ClientError, JournalError, TimeoutError, OSError) as error:
                self._suspect(staged.records, error)
                raise
        if self._closed:  # and all was given back
            return
        for _ in range(staged.records):
            self._pending.popleft().ack()
        # A halved batch grows by and by: what is not written yet may hold what halved it.
        self._limit, self._tries, self._poison = min(2 * self._limit, self._context.batch_max), 0, None
        self._count(staged)
        await reach("after_ack")

    def _suspect(self, batch: int, error: Exception) -> None:
        """A write has failed: halve the batch, until it fits, or the one record that can't be written is found. At once
        when the broker has refused what is in it, which no other try would change; else after some tries.
        """
        if batch > 1 and isinstance(error, OF_THE_RECORD):
            self._limit = batch // 2
            return
        self._tries += 1
        if self._tries < TRIES_BEFORE_HALVING:
            return
        if batch > 1:
            self._limit = batch // 2
        elif isinstance(error, OF_THE_RECORD):
            self._poison = f"can't be written: {error!r}"

    def _condemned(self, record: Record) -> Staged:
        """The poisonous record alone, cut to what surely fits, as a dead letter."""
        letter = condemned(record, str(self._poison), self._context.topics)
        return Staged(offsets={record.topic: record.offset}, deadletters=[letter], records=1)

    async def _take(self) -> None:
        """Wait for a delivery, then take all that is there, up to the limit."""
        if not self._pending:
            self._pending.append(await self._queue.get())
        while len(self._pending) < self._limit and not self._queue.empty():
            self._pending.append(self._queue.get_nowait())

    def _batch(self) -> list[Delivery]:
        wanted = 1 if self._poison else self._limit
        return list(itertools.islice(self._pending, wanted))

    # -- what Faust does not deliver

    async def _fill(self) -> bool:
        """Put what was left out before what comes after it. Whether something was.

        When a rebalance overlaps with another, Faust drops records that it has read and goes on behind them. Applied
        out of order, the later one would make the earlier one a repetition.
        """
        reached = dict(self.positions.offsets)
        for at, delivery in enumerate(self._batch()):
            topic, offset = delivery.record.topic, delivery.record.offset
            begin = reached.get(topic, -1) + 1
            if offset > max(begin, self._empty_to.get(topic, 0)):
                missing = await self._fetch(topic, begin, offset)
                if not missing:
                    self._empty_to[topic] = offset
                for item in reversed(missing):
                    self._pending.insert(at, item)
                if missing:
                    return True
            reached[topic] = max(offset, begin - 1)
        return False

    def silent_inputs(self, silent_s: float) -> list[str]:
        """Inputs of which nothing came for so long; none while the journal is not open."""
        if not self.opened.is_set():
            return []
        before = asyncio.get_running_loop().time() - silent_s
        return [topic for topic, at in self._heard_at.items() if at <= before]

    def next_offset(self, topic: str) -> int:
        """Offset of the first record of an input that is not applied yet."""
        return self.positions.offsets.get(topic, -1) + 1

    def lacks(self, topic: str, end: int) -> bool:
        """Whether there may be records before offset `end` that are not applied."""
        return end > max(self.next_offset(topic), self._empty_to.get(topic, 0))

    async def recover(self, topic: str, end: int) -> None:
        """Read what is in an input before offset `end` and was not delivered, and take it as if it had been.

        Raises KafkaError of the client library, TimeoutError, OSError.
        """
        if not self.lacks(topic, end):
            return
        found = await self._fetch(topic, self.next_offset(topic), end)
        if not found:  # said only of all that is after the position: what waits in the queue is not applied yet
            self._empty_to[topic] = end
        while found:
            for delivery in found:
                await self.offer(delivery)
            begin = found[-1].record.offset + 1
            found = await self._fetch(topic, begin, end) if begin < end and not self._closed else []

    async def _fetch(self, topic: str, begin: int, end: int) -> list[Delivery]:
        """Read a piece of an input, the first part of it when it is long. Nothing of it is acknowledged to Faust.

        Nothing is found where there are only markers of transactions, or what was there is deleted.
        """
        records = await self._log.read_input(topic, begin, end, self._limit)
        if not records:
            return []
        self.statistics.fetched += len(records)
        where = f"{topic}/{self.partition}@{records[0].offset}"
        log.warning("journal.fetched", what="records that were not delivered", count=len(records), first=where)
        return [Delivery(record, _nothing) for record in records]

    def _stage(self, deliveries: Sequence[Delivery]) -> Staged:
        first = deliveries[0].record
        if self._poison and first.offset > self.positions.offsets.get(first.topic, -1):
            return self._condemned(first)
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
        for wave in in_waves(staged.forwards):
            await context.forwarder.send_reports(wave)
        positions = advanced(self.positions, staged)
        try:
            written = outputs(staged, positions, context.topics, context.secrecy)
        except (TypeError, ValueError) as error:
            raise UnwritableError(type(error).__name__) from error
        await self._log.write(written)
        await reach("after_commit")
        for task_id, row in staged.rows.items():
            if row is None:
                self.rows.pop(task_id, None)
            else:
                self.rows[task_id] = row
        self.positions = positions

    def _count(self, staged: Staged) -> None:
        self.statistics.events += staged.records
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


def _nothing() -> None:
    """Nobody waits for an acknowledgement."""


def _pause_s(failures: int) -> float:
    return float(min(BACKOFF_FIRST_S * 2 ** min(failures - 1, 10), BACKOFF_MOST_S))
