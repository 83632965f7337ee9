"""The changelog partition of one journal, seen from Kafka: open (which fences whoever had it), read to the end, write
one transaction.

Rules: one transactional id a partition, so the broker refuses a predecessor whatever it still has in its buffers; the
end offset read after opening is stable; a transaction whose outcome is unknown is never retried here, the log is
opened again instead; and so it is when aiokafka had to ask twice for a commit, as the one that was not answered could
come late, and commit the beginning of the next transaction (Kafka's KIP-890 is about that).
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    CorruptRecordException,
    IllegalOperation,
    InvalidProducerEpoch,
    InvalidTimestampError,
    MessageSizeTooLargeError,
    ProducerClosed,
    ProducerFenced,
    RecordListTooLargeError,
    UnsupportedForMessageFormatError,
)
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.coordinator.batch import Output
from skalds_streams.core.row import Row
from skalds_streams.errors import FencedError, JournalError, TopicRecreatedError, TopicResizedError
from skalds_streams.failpoints import reach
from skalds_streams.model.changelog import ChangelogState
from skalds_streams.model.documents import Positions
from skalds_streams.model.record import Record
from skalds_streams.proxy.client import count_commits, log_consumer, look_at, record_of
from skalds_streams.proxy.partition_count import BEGIN_AFRESH
from skalds_streams.topics import Topics

TRANSACTION_TIMEOUT_MS = 10_000
"""How long a dead coordinator's open transaction can hide later records from readers."""
WRITE_TIMEOUT_S = 15.0
OPEN_TIMEOUT_S = 30.0
"""How long opening may stand still: a long changelog takes what it takes."""
READ_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 3.0
CUT_TIMEOUT_S = 1.0
BATCH_BYTES = 256 * 1024
MAX_REQUEST_BYTES = 16 * 1024 * 1024


class UnwritableError(JournalError):
    """A batch can't even be written down."""


OF_THE_RECORD = (
    CorruptRecordException,
    InvalidTimestampError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    UnsupportedForMessageFormatError,
    UnwritableError,
)
"""Errors that a record itself can cause. Any other comes from around it (rights, a topic that is gone, a broker), and
no record is given up for it.
"""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the log says of a partition. `end_offset`: offset after the last record, markers included."""

    rows: dict[str, Row]
    positions: Positions
    end_offset: int


class PartitionLog:
    """One partition's transactional writer and its reader."""

    def __init__(self, partition: int, *, topics: Topics, transactional_id: str, client: Mapping[str, Any]) -> None:
        """client: keyword arguments for every aiokafka client (bootstrap_servers, security)."""
        self.partition = partition
        self._topics, self._transactional_id, self._client = topics, transactional_id, client
        self._producer: AIOKafkaProducer | None = None
        self._commits: Callable[[], int] = lambda: 0
        self._stopping: set[asyncio.Task[None]] = set()

    async def open(self) -> Recovered:
        """Take over the partition and read it. Raises FencedError, JournalError, aiokafka's errors, TimeoutError."""
        await self.close()
        with self._client_errors():
            async with asyncio.timeout(OPEN_TIMEOUT_S) as limit:
                await self._start_producer()
                await reach("while_opening")
                return await self._read(limit)

    async def close(self) -> None:
        """Stop the writer. Bounded in time; never raises for a broker that is away. Goes on when we are cancelled."""
        producer, self._producer = self._producer, None
        if producer is not None:
            stopping = asyncio.create_task(_discard(producer))
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)
            await asyncio.shield(stopping)

    async def _start_producer(self) -> None:
        producer = AIOKafkaProducer(
            **{**self._client, "request_timeout_ms": int(WRITE_TIMEOUT_S * 1000)},
            transactional_id=self._transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            max_request_size=MAX_REQUEST_BYTES,
            max_batch_size=BATCH_BYTES,
        )
        self._producer = producer
        await _start(producer)
        # An empty transaction sends nothing; beginning it waits for InitProducerId, which is what fences the former
        # owner.
        await producer.begin_transaction()
        await producer.abort_transaction()
        self._commits = count_commits(producer)

    async def _read(self, limit: asyncio.Timeout) -> Recovered:
        tp = TopicPartition(self._topics.changelog, self.partition)
        consumer = log_consumer(self._client)
        try:
            await _start(consumer)
            consumer.assign([tp])
            end = (await consumer.end_offsets([tp]))[tp]
            await consumer.seek_to_beginning(tp)
            state = ChangelogState()
            while await consumer.position(tp) < end:
                records = (await consumer.getmany(tp, timeout_ms=500)).get(tp, [])
                with _collector_paused():
                    for record in records:
                        state.apply(self.partition, record.key, record.value)
                if records:
                    limit.reschedule(asyncio.get_running_loop().time() + OPEN_TIMEOUT_S)
                await reach("in_recovery")
            positions = state.positions.get(self.partition, Positions({}))
        finally:
            await consumer.stop()
        self._check_count(positions)
        await self._check_inputs(positions)  # raises for an input that was made anew
        return Recovered(state.rows, positions, end)

    def _check_count(self, positions: Positions) -> None:
        if positions.partitions not in (0, self._topics.partitions):
            raise TopicResizedError(
                f"{self._topics.changelog}, partition {self.partition}, was written when there were"
                f" {positions.partitions} partitions, and now there are to be {self._topics.partitions}: tasks would be"
                f" looked for where they are not. Set KAFKA_TOPIC_PARTITIONS={positions.partitions} again."
                f" If the topics have other numbers now: {BEGIN_AFRESH}"
            )

    async def _check_inputs(self, positions: Positions) -> None:
        ends = await self._input_ends(positions.offsets)
        for topic, applied in positions.offsets.items():
            if ends[topic] <= applied:
                raise TopicRecreatedError(
                    f"topic {topic}, partition {self.partition}, ends at offset {ends[topic]}, but offset {applied} was"
                    " applied before: the topic was deleted and made anew. To begin afresh, start with another"
                    f" SKALDS_APP, or delete {self._topics.changelog} as well."
                )

    # -- inputs, as Faust reads them: also what an open transaction of somebody else has written

    @asynccontextmanager
    async def _inputs(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = log_consumer(self._client, committed=False)
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                await _start(consumer)
                yield consumer
        finally:
            await consumer.stop()

    async def _input_ends(self, topics: Iterable[str]) -> dict[str, int]:
        """Offset after the last record of this partition in each topic."""
        tps = [TopicPartition(topic, self.partition) for topic in topics]
        if not tps:
            return {}
        async with self._inputs() as consumer:
            return {tp.topic: offset for tp, offset in (await consumer.end_offsets(tps)).items()}

    async def read_input(self, topic: str, start: int, end: int, most: int) -> list[Record]:
        """The records of this partition from offset `start` to before `end`, the first `most` of them."""
        tp = TopicPartition(topic, self.partition)
        found: list[Record] = []
        async with self._inputs() as consumer:
            consumer.assign([tp])
            consumer.seek(tp, start)
            while len(found) < most and await consumer.position(tp) < end:
                items = (await consumer.getmany(tp, timeout_ms=200)).get(tp, [])
                found += [record_of(item) for item in items if item.offset < end]
        return found[:most]

    async def write(self, outputs: Sequence[Output]) -> None:
        """Write one transaction and wait for its commit.

        Raises FencedError; any other error means that the outcome is unknown.
        """
        producer = self._producer
        if producer is None:
            raise JournalError("the log is not open")
        before = self._commits()
        with self._client_errors():
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await producer.begin_transaction()
                futures = await self._send(producer, outputs)
                await _all(futures)
                await reach("in_transaction")
                await producer.commit_transaction()
        if self._commits() > before + 1:
            raise JournalError("a commit was asked for twice: no transaction may follow under this producer's epoch")

    @contextmanager
    def _client_errors(self) -> Iterator[None]:
        try:
            yield
        except (ProducerFenced, InvalidProducerEpoch) as error:
            raise FencedError(f"partition {self.partition} has another owner") from error
        except (AssertionError, IllegalOperation) as error:  # what aiokafka raises once its sender has died
            raise JournalError(f"the producer of partition {self.partition} can't go on: {error!r}") from error

    async def _send(self, producer: AIOKafkaProducer, outputs: Sequence[Output]) -> list[asyncio.Future[Any]]:
        by_topic: dict[str, list[Output]] = {}
        for output in outputs:
            by_topic.setdefault(output.topic, []).append(output)
        futures: list[asyncio.Future[Any]] = []
        for topic, items in by_topic.items():
            for batch in _batches(producer, items):
                future = await producer.send_batch(batch, topic, partition=self.partition)
                future.add_done_callback(look_at)  # when sending the next one fails, this one is not awaited
                futures.append(future)
        return futures


@contextmanager
def _collector_paused() -> Iterator[None]:
    """For a moment without an await. Rows make no cycles, but are so many objects that the garbage collector, which
    counts them, would take a quarter of a recovery.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _batches(producer: AIOKafkaProducer, outputs: Sequence[Output]) -> list[Any]:
    batches = []
    batch = producer.create_batch()
    for output in outputs:
        if not _append(batch, output):
            batches.append(batch)
            batch = producer.create_batch()
            if not _append(batch, output):
                raise JournalError(f"a record of {len(output.value or b'')} bytes fits no batch")
    batches.append(batch)
    for item in batches:
        item.close()
    return batches


def _append(batch: Any, output: Output) -> bool:
    return batch.append(key=output.key, value=output.value, timestamp=None, headers=list(output.headers)) is not None


async def _all(futures: Sequence[asyncio.Future[Any]]) -> None:
    """Wait for every future before raising the first error, so that none is left unread."""
    results = await asyncio.gather(*futures, return_exceptions=True)
    for result in results:
        if isinstance(result, asyncio.CancelledError):  # the batch's, not ours
            raise JournalError("aiokafka has given a batch up")
        if isinstance(result, BaseException):
            raise result


async def _start(client: Any) -> None:
    """Start a client of aiokafka's. Cancelled while it connects it would forget the connection, so it gets a moment."""
    starting = asyncio.ensure_future(client.start())
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait({starting}, timeout=CUT_TIMEOUT_S)
        starting.cancel()
        await asyncio.wait({starting})
        look_at(starting)
        raise


async def _discard(producer: AIOKafkaProducer) -> None:
    """Stop it, within STOP_TIMEOUT_S and a moment.

    aiokafka's stop() waits until everything is delivered, without a broker for ever, and when it is interrupted its
    sender and its connections live on. What this one still holds belongs to a transaction that is over.
    """
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await producer.stop()
    except (ClientError, OSError, TimeoutError):
        await _cut(producer)
    # How the last transaction and what was not sent of it ended, which nobody asks any more.
    unsent = [batch._drain_waiter for queued in producer._message_accumulator._batches.values() for batch in queued]
    for future in (producer._txn_manager._transaction_waiter, *unsent):
        if future is not None and future.done():
            look_at(future)


async def _cut(producer: AIOKafkaProducer) -> None:
    sender = producer._sender.sender_task
    for _ in range(2):  # the first cancellation lets it wait for its requests, the second ends that
        if sender is not None and not sender.done():
            sender.cancel()
            await asyncio.wait({sender}, timeout=CUT_TIMEOUT_S)
    accumulator = producer._message_accumulator
    for queued in accumulator._batches.values():
        accumulator._pending_batches.update(queued)  # where the callback of one that was tried before looks for it
    accumulator.fail_all(ProducerClosed())
    with suppress(ClientError, OSError, TimeoutError):
        async with asyncio.timeout(CUT_TIMEOUT_S):
            await producer.client.close()
