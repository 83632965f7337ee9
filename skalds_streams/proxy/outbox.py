"""Sends records through an idempotent producer, in the background loop.

Rules: records of one topic are handed over in the order they came, and those of one key are in the log in that order;
topics do not wait for each other. A record that has no answer DELIVERY_S after it came is given up, and its receipt
says whether it can still be written.

**A producer is used until the first record that the broker refuses.** The refused batch has used up sequence numbers,
so the broker refuses every later batch of that partition too (OutOfOrderSequenceNumber), and aiokafka never recovers.
So: stop handing over, wait until everything handed over is decided, open a new producer, and go on. Records refused
only for the gap, or with others in one batch for what one of them is, are not in the log: they are sent again first, in
their old order, each in a batch of its own, so that in the end only the culprit fails. **The first record of a producer
to a partition is awaited alone:** before it the broker knows of no sequence, takes a batch after a gap, and later
records would overtake.

What does not live here: receipts and bounds (`delivery`), what callers see (`kafka`). All runs in the loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidTimestampError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownProducerId,
    UnknownTopicOrPartitionError,
)
from anyio import TASK_STATUS_IGNORED, create_task_group
from anyio.abc import TaskGroup, TaskStatus

from skalds_streams.core.partition import murmur2
from skalds_streams.proxy.connection import (
    RETRY_S,
    TRY_S,
    KafkaConfig,
    close_producer,
    error_text,
    insist,
    open_producer,
)
from skalds_streams.proxy.delivery import Delivery, Outgoing

DELIVERY_S = 30.0
"""A receipt is settled after this at the latest; upstream's delivery timeout."""
TRIES_MAX = 3
"""A record refused for a gap is sent this often in all."""
GAP_ERRORS = (OutOfOrderSequenceNumber, UnknownProducerId)
"""The broker refuses a batch for what is missing before it, so it is not in the log."""
BATCH_ERRORS = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidTimestampError)
"""The broker refuses a batch for one of its records, so none of them is in the log."""
HARMLESS_ERRORS = (MessageSizeTooLargeError, TopicAuthorizationFailedError, UnknownTopicOrPartitionError)
"""Raised before a record gets into a batch: the producer is as good as before."""
TOPIC_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""A topic that was just created is not known to every broker at once."""
CREATE_TIME = 0


class Outbox:
    """`run` it in the loop first, then `accept` records there. `obstacle`: why there is no connection yet, or ""."""

    def __init__(self, config: KafkaConfig, delivery_s: float = DELIVERY_S) -> None:
        self.obstacle = ""
        self._config, self._delivery_s = config, delivery_s
        self._queues: dict[str, deque[Outgoing]] = {}
        self._lanes: TaskGroup | None = None
        self._producer: AIOKafkaProducer | None = None
        self._ready = asyncio.Event()
        self._spoilt = asyncio.Event()
        self._idle = asyncio.Event()
        self._handed: set[Outgoing] = set()
        self._in_flight: set[Outgoing] = set()
        self._again: list[Outgoing] = []
        self._begun: set[tuple[str, int]] = set()
        """Partitions that have a record of this producer."""
        self._count = 0

    @property
    def connected(self) -> bool:
        """Whether there has been a producer. Readable from any thread."""
        return self._producer is not None

    async def wait_connected(self) -> None:
        """Return once there is a producer."""
        await self._ready.wait()

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Keep a producer open until cancelled, a new one after each that is spoilt."""
        async with create_task_group() as self._lanes:
            task_status.started()
            while True:
                producer = await insist(self._config, open_producer, TRY_S, self._note)
                try:
                    await self._use(producer)
                finally:
                    self._ready.clear()
                    await close_producer(producer)

    def accept(self, record: Outgoing) -> None:
        """Queue a record; its receipt tells the outcome."""
        self._count += 1
        record.number = self._count
        timer = asyncio.get_running_loop().call_later(self._delivery_s, self._give_up, record)
        record.receipt.add_done_callback(lambda _: timer.cancel())
        self._queue(record.topic).append(record)

    async def _use(self, producer: AIOKafkaProducer) -> None:
        self.obstacle = ""
        self._producer = producer
        self._spoilt.clear()
        self._begun.clear()
        for record in sorted(self._again, key=lambda item: item.number, reverse=True):
            self._queue(record.topic).appendleft(record)
        self._again.clear()
        self._ready.set()
        await self._spoilt.wait()
        while self._in_flight or self._handed:
            self._idle.clear()
            await self._idle.wait()

    def _queue(self, topic: str) -> deque[Outgoing]:
        """The records of a topic that wait; a lane that works them off runs as long as there are any."""
        queue = self._queues.get(topic)
        if queue is None:
            queue = self._queues[topic] = deque()
            if self._lanes is None:
                raise RuntimeError("the outbox does not run")
            self._lanes.start_soon(self._lane, topic, queue)
        return queue

    async def _lane(self, topic: str, queue: deque[Outgoing]) -> None:
        while queue:
            if not self._ready.is_set():
                await self._ready.wait()
                continue
            record = queue.popleft()
            if record.receipt.done():
                continue
            self._handed.add(record)
            try:
                if not await self._hand_over(record):
                    queue.appendleft(record)
            finally:
                self._handed.discard(record)
                self._idle.set()
        del self._queues[topic]

    async def _hand_over(self, record: Outgoing) -> bool:
        """Whether that is done with; False: try again."""
        producer = self._producer
        if producer is None:
            return False
        try:
            there = await _topic_there(producer, record.topic)
            if there is None:
                await asyncio.sleep(RETRY_S)
                return False
            if not there:
                record.receipt.fail("not accepted: the broker has no such topic and makes none")
                return True
            partition = _partition(producer, record)
            future = await producer.send(
                record.topic, record.value, record.key, partition, record.timestamp_ms, record.headers
            )
        except KafkaTimeoutError:  # the partition's buffer is full and was not sent
            return False
        except HARMLESS_ERRORS as error:
            record.receipt.fail(_refused(error), error)
            return True
        except Exception as error:  # noqa: BLE001  # it concerns this record, whose receipt has it; the lane goes on
            self._spoil()
            record.receipt.fail(_refused(error), error)
            return True
        self._in_flight.add(record)
        future.add_done_callback(partial(self._decided, record))
        place = (record.topic, partition)
        if record.tries > 0 or place not in self._begun:
            await asyncio.wait([future])  # alone in its batch
            if future.exception() is None:
                self._begun.add(place)
        return True

    def _decided(self, record: Outgoing, future: asyncio.Future[object]) -> None:
        self._in_flight.discard(record)
        self._idle.set()
        error = future.exception()
        if error is None:
            record.receipt.deliver(_delivery(record, future.result()))
            return
        self._spoil()
        record.tries += 1
        for_others = record.tries < TRIES_MAX if isinstance(error, GAP_ERRORS) else record.tries == 1
        if isinstance(error, GAP_ERRORS + BATCH_ERRORS) and for_others and not record.receipt.done():
            self._again.append(record)
        else:
            record.receipt.fail(_refused(error), error)

    def _spoil(self) -> None:
        """Nothing more goes to this producer."""
        self._ready.clear()
        self._spoilt.set()

    def _give_up(self, record: Outgoing) -> None:
        after = f"after {self._delivery_s:g} s"
        if record in self._in_flight or record in self._handed:
            record.receipt.fail(f"no acknowledgement {after}: it may or may not be in the log, or come there yet")
        elif self._ready.is_set():
            record.receipt.fail(f"not sent {after}: the broker takes no more for this topic")
        else:
            obstacle = self.obstacle or "no answer"
            record.receipt.fail(f"not sent {after}: no Kafka broker at {self._config.address}: {obstacle}")

    def _note(self, obstacle: str) -> None:
        self.obstacle = obstacle


async def _topic_there(producer: AIOKafkaProducer, topic: str) -> bool | None:
    """Whether the brokers have a topic; None: they do not answer. Asking makes them create it where that is allowed."""
    client = producer.client
    if client.cluster.partitions_for_topic(topic):
        return True
    for pause_s in TOPIC_PAUSES_S:
        client.add_topic(topic)
        if not await client.force_metadata_update():
            return None
        if client.cluster.partitions_for_topic(topic) or topic in client.cluster.unauthorized_topics:
            return True  # without the right to it send() says so
        await asyncio.sleep(pause_s)
    return False


def _partition(producer: AIOKafkaProducer, record: Outgoing) -> int:
    """Kafka's default: murmur2 of the key."""
    partitions = sorted(producer.client.cluster.partitions_for_topic(record.topic))
    return int(partitions[(murmur2(record.key) & 0x7FFFFFFF) % len(partitions)])


def _refused(error: BaseException) -> str:
    return f"not accepted: {error_text(error)}"


def _delivery(record: Outgoing, answer: object) -> Delivery:
    """aiokafka gives every record of a batch the client time of the first, so that one is taken from the record."""
    of_client = answer.timestamp_type == CREATE_TIME  # type: ignore[attr-defined]  # aiokafka's RecordMetadata
    timestamp_ms = record.timestamp_ms if of_client else answer.timestamp  # type: ignore[attr-defined]
    return Delivery(record.topic, answer.partition, answer.offset, timestamp_ms)  # type: ignore[attr-defined]
