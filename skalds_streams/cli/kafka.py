"""What the commands do with Kafka: find the topics, read the table once, send events and follow them, read history.

Rules: consumers have no group and read committed records only; a topic is never created by reading or sending;
following begins before sending, so that no answer is missed. Reading ranges is `replay.reader`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from skalds_streams.core.membership import Members
from skalds_streams.core.partition import partition_of
from skalds_streams.core.row import Row
from skalds_streams.errors import SkaldsError, WireError
from skalds_streams.model.changelog import ChangelogState
from skalds_streams.model.record import Record
from skalds_streams.proxy.client import client_options, record_of
from skalds_streams.replay.reader import (
    LogReader,
    Place,
    Ranges,
    check_counts,
    open_consumer,
    partition_counts,
    translated_errors,
)
from skalds_streams.replay.recording import Entry, read_entry
from skalds_streams.settings import Settings
from skalds_streams.topics import Topics
from skalds_streams.view.cluster import ClusterView

FIRST_WINDOW = 5_000
"""Offsets read at first to find the last records of a task; four times more each time until there are enough."""
REQUEST_BYTES = 64 * 1024
"""Room of a produce request beside the record itself."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the topics are, and how clients get there."""

    settings: Settings
    topics: Topics
    client: Mapping[str, Any]

    @property
    def words(self) -> frozenset[str]:
        """Words in names of secret parameters."""
        return self.settings.secret_words


async def connect(settings: Settings, *needed: str) -> Cluster:
    """Look the topics up. The number of partitions is the topics', whatever the settings say.

    needed: names of fields of `Topics`, the first one partitioned by task id. Raises UnreachableError, TopicError.
    """
    client = client_options(settings)
    topics = _topics(settings, settings.kafka_topic_partitions)
    names = [getattr(topics, name) for name in needed]
    counts = await partition_counts(client, names)
    same = [name for name in names if name != topics.heartbeat]
    if topics.heartbeat in names:
        check_counts(counts, [topics.heartbeat], settings.bootstrap)
    return Cluster(settings, _topics(settings, check_counts(counts, same, settings.bootstrap)), client)


def _topics(settings: Settings, partitions: int) -> Topics:
    return Topics.named(app=settings.app, prefix=settings.topic_prefix, partitions=partitions)


# -- the table ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Table:
    """The ownership table and the members as they were when read.

    `problems`: records that could not be understood, in words.
    """

    rows: Mapping[str, Row] = field(default_factory=dict)
    members: Members = field(default_factory=Members)
    problems: list[str] = field(default_factory=list)


async def read_table(cluster: Cluster, reader: LogReader, task_id: str | None = None) -> Table:
    """Read changelog and heartbeats once, to their ends; of one task only its partition."""
    rows, problems = await read_rows(cluster, reader, None if task_id is None else [task_id])
    members, more = await read_members(cluster, reader)
    return Table(rows, members, problems + more)


async def read_rows(
    cluster: Cluster, reader: LogReader, task_ids: Collection[str] | None
) -> tuple[Mapping[str, Row], list[str]]:
    """(rows by id, the records that could not be understood, in words); None: of all tasks."""
    topics = cluster.topics
    partitions: Collection[int] = range(topics.partitions)
    if task_ids is not None:
        partitions = {partition_of(task_id, topics.partitions) for task_id in task_ids}
    problems, state = list[str](), ChangelogState()
    async for records in reader.read(await reader.whole(topics.changelog, partitions)):
        for record in records:
            try:
                state.apply(record.partition, record.key, record.value)
            except SkaldsError as error:
                problems.append(f"{record.where}: {error}")
    return {key: row for key, row in state.rows.items() if task_ids is None or key in task_ids}, problems


async def read_members(cluster: Cluster, reader: LogReader, most: int | None = None) -> tuple[Members, list[str]]:
    """(who is there, the heartbeats that could not be understood, in words). most: only so many, the last ones."""
    members, problems = Members(cluster.settings.hold_beats), list[str]()
    ranges = await reader.whole(cluster.topics.heartbeat, [0])
    if most is not None:
        ranges = {place: (max(begin, end - most), end) for place, (begin, end) in ranges.items()}
    async for records in reader.read(ranges):
        for record in records:
            try:
                members.apply(orjson.loads(record.value or b""), record.offset, record.timestamp_ms)
            except (ValueError, TypeError, AttributeError) as error:
                problems.append(f"{record.where}: {error}")
    return members, problems


@asynccontextmanager
async def live_view(cluster: Cluster) -> AsyncIterator[ClusterView]:
    """Rows and members as they change, read to their ends."""
    view = ClusterView(cluster.topics, cluster.client, cluster.settings.hold_beats)
    reading = asyncio.create_task(view.run(), name="cli-view")
    try:
        await view.wait_caught_up()
        yield view
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


# -- history -----------------------------------------------------------------------------------------------------------


async def last_history(cluster: Cluster, reader: LogReader, task_id: str, most: int) -> list[Entry]:
    """The last records of a task on taskworker.update, oldest first, read backwards window by window."""
    topics = cluster.topics
    place = (topics.history, partition_of(task_id, topics.partitions))
    begin, end = (await reader.whole(topics.history, [place[1]]))[place]
    found: list[Entry] = []
    window = FIRST_WINDOW
    while begin < end and len(found) < most and not (found and found[0].row.revision <= 1):
        start = max(begin, end - window)
        found = await _entries(reader, {place: (start, end)}, task_id) + found
        end, window = start, window * 4
    return found[-most:] if most else []


async def _entries(reader: LogReader, ranges: Ranges, task_id: str) -> list[Entry]:
    found: list[Entry] = []
    async for records in reader.read(ranges):
        found += [entry for record in records if (entry := entry_of(record, task_id)) is not None]
    return found


def entry_of(record: Record, task_id: str) -> Entry | None:
    """The history entry if it is this task's and can be understood."""
    if record.key != task_id.encode():
        return None
    try:
        return read_entry(record)
    except WireError:
        return None


# -- sending and following ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sent:
    """Where the broker put an event."""

    topic: str
    partition: int
    offset: int

    def to_doc(self) -> dict[str, Any]:
        """For `-o json`."""
        return {"topic": self.topic, "partition": self.partition, "offset": self.offset}

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"


class Sender:
    """Sends as long as it is open (`sending`)."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer

    async def send(self, events: Sequence[tuple[str, str, bytes]]) -> list[Sent]:
        """Send (topic, key, value) and wait until the broker has them all.

        The broker's own partitioning by key decides the partition.
        """
        futures = [await self._producer.send(topic, value, key=key.encode()) for topic, key, value in events]
        placed = [await future for future in futures]
        return [Sent(item.topic, item.partition, item.offset) for item in placed]


@asynccontextmanager
async def sending(cluster: Cluster, most_bytes: int = 0) -> AsyncIterator[Sender]:
    """A sender of values of at most so many bytes (or 1 MB)."""
    most = max(most_bytes + REQUEST_BYTES, 1024 * 1024)
    producer = AIOKafkaProducer(**cluster.client, enable_idempotence=True, acks="all", max_request_size=most)
    with translated_errors(cluster.client):
        try:
            await producer.start()
            yield Sender(producer)
        finally:
            await producer.stop()


async def send(cluster: Cluster, events: Sequence[tuple[str, str, bytes]]) -> list[Sent]:
    """Send (topic, key, value) and wait until the broker has them all."""
    async with sending(cluster, max(len(value) for _, _, value in events)) as sender:
        return await sender.send(events)


class Follower:
    """What is appended to some partitions from now on."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    async def start(self, places: Collection[Place]) -> None:
        """Stand at the ends of these partitions."""
        tps = [TopicPartition(*place) for place in places]
        ends = await self._consumer.end_offsets(tps)
        self._consumer.assign(tps)
        for tp, end in ends.items():
            self._consumer.seek(tp, end)

    async def records(self, until_s: float) -> AsyncIterator[Record]:
        """New records until this moment of `time.monotonic`."""
        while (left_s := until_s - time.monotonic()) > 0:
            got = await self._consumer.getmany(timeout_ms=int(min(left_s, 1.0) * 1000) + 1)
            for items in got.values():
                for item in items:
                    yield record_of(item)


@asynccontextmanager
async def following(cluster: Cluster, places: Collection[Place]) -> AsyncIterator[Follower]:
    """A follower that stands at the ends of these partitions."""
    async with open_consumer(cluster.client) as consumer:
        follower = Follower(consumer)
        await follower.start(places)
        yield follower
