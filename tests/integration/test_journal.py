"""The journal and its log on a real broker: who may write, what is read back, what an interruption leaves behind."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from skalds_streams.coordinator import log as log_module
from skalds_streams.coordinator.batch import Output, Secrecy
from skalds_streams.coordinator.journal import Delivery, Journal, JournalContext
from skalds_streams.coordinator.log import PartitionLog
from skalds_streams.core.membership import Members
from skalds_streams.core.row import Row
from skalds_streams.errors import FencedError, JournalError, TopicRecreatedError
from skalds_streams.model.codec import Limits
from skalds_streams.model.documents import Positions, encode_positions, encode_row
from skalds_streams.model.record import Record
from skalds_streams.proxy.topic_setup import ensure_topics
from skalds_streams.topics import POSITIONS_KEY, Topics
from tests.integration.system import System, until

if TYPE_CHECKING:
    from skalds_streams.devcluster.cluster import DevCluster

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

PARTITION = 1


def client_tasks() -> set[asyncio.Task[Any]]:
    """Tasks of aiokafka's that run."""
    return {task for task in asyncio.all_tasks() if "aiokafka" in repr(task.get_coro()) + repr(task)}


class Partition:
    """One partition of a system of its own, and the means to open it, again and again."""

    def __init__(self, kafka_port: int) -> None:
        prefix = f"j{secrets.token_hex(4)}."
        self.topics = Topics.named(app="it", prefix=prefix, partitions=2)
        self.client = {"bootstrap_servers": f"127.0.0.1:{kafka_port}"}
        self.transactional_id = f"{prefix}it-{PARTITION}"
        self.logs: list[PartitionLog] = []
        self.acked: list[int] = []

    def log(self, make: Callable[..., PartitionLog] = PartitionLog) -> PartitionLog:
        made = make(PARTITION, topics=self.topics, transactional_id=self.transactional_id, client=self.client)
        self.logs.append(made)
        return made

    async def create_topics(self, **configs: dict[str, str]) -> None:
        """configs: settings of single topics that come on top, by the names of Topics."""
        extra = {getattr(self.topics, name): config for name, config in configs.items()}
        specs = [replace(item, config={**item.config, **extra.get(item.name, {})}) for item in self.topics.specs()]
        await ensure_topics(specs, self.client, replication_factor=1)

    def outputs(self, row: Row | None, positions: Positions, task_id: str = "t") -> list[Output]:
        return [
            Output(self.topics.changelog, task_id.encode(), encode_row(row) if row else None),
            Output(self.topics.history, task_id.encode(), b"{}"),
            Output(self.topics.changelog, POSITIONS_KEY, encode_positions(positions)),
        ]

    async def read(self, topic: str, *, committed: bool = True) -> list[Any]:
        """Every record of the partition in a topic."""
        tp = TopicPartition(topic, PARTITION)
        level = "read_committed" if committed else "read_uncommitted"
        consumer = AIOKafkaConsumer(**self.client, isolation_level=level, max_partition_fetch_bytes=4_000_000)
        await consumer.start()
        try:
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            end = (await consumer.end_offsets([tp]))[tp]
            found: list[Any] = []
            while await consumer.position(tp) < end:
                found += (await consumer.getmany(tp, timeout_ms=200)).get(tp, [])
            return found
        finally:
            await consumer.stop()

    async def publish(self, count: int) -> None:
        """Offsets 0 to count - 1 of task.assign, so that the topic is as long as the positions say."""
        async with AIOKafkaProducer(**self.client) as producer:
            for _ in range(count):
                await producer.send_and_wait(self.topics.assign, b"{}", partition=PARTITION)

    # -- a journal

    def delivery(self, offset: int, *, value: bytes | None = None) -> Delivery:
        task = {"id": "t", "className": "Cam", "source": "s", "attachments": {"n": offset}}
        encoded = value if value is not None else orjson.dumps({"taskIds": ["t"], "tasks": [task]})
        record = Record(self.topics.assign, PARTITION, offset, b"t", encoded, 1_000 + offset)
        return Delivery(record, lambda: self.acked.append(offset))

    def context(self, **more: Any) -> JournalContext:
        async def is_ours(partition: int, positions: Positions) -> bool:
            return True

        values: dict[str, Any] = {
            "topics": self.topics,
            "limits": Limits(),
            "secrecy": Secrecy(),
            "members": Members(),
            "forwarder": self,
            "now_ms": lambda: 1_000_000,
            "is_ours": is_ours,
        }
        return JournalContext(**{**values, **more})

    async def send_reports(self, docs: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Nothing here is forwarded: murmur2 of "t" is odd."""
        raise AssertionError(docs)

    @asynccontextmanager
    async def journal(self, make: Callable[..., PartitionLog] = PartitionLog) -> AsyncIterator[Journal]:
        journal = Journal(PARTITION, self.log(make), self.context())
        task = asyncio.create_task(journal.run())
        try:
            await asyncio.wait_for(journal.opened.wait(), 20)
            yield journal
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await journal.close()


@pytest.fixture
async def partition(cluster: DevCluster) -> AsyncIterator[Partition]:
    before = client_tasks()
    made = Partition(cluster.kafka_port)
    await made.create_topics()
    try:
        yield made
    finally:
        for item in made.logs:
            await item.close()
        await until(lambda: client_tasks() == before, "no task of a client is left", 5)


def row(revision: int, task_id: str = "t") -> Row:
    return Row(task_id, revision=revision)


# -- who may write


async def test_opening_fences_the_predecessor_and_reads_what_it_had_committed(partition: Partition) -> None:
    old, new = partition.log(), partition.log()
    assert (await old.open()).rows == {}
    await partition.publish(8)
    await old.write(partition.outputs(row(1), Positions({partition.topics.assign: 7}, 3, 4)))
    recovered = await new.open()
    assert recovered.rows == {"t": row(1)}
    assert recovered.positions == Positions({partition.topics.assign: 7}, 3, 4)
    with pytest.raises(FencedError, match="another owner"):
        await old.write(partition.outputs(row(2), Positions({partition.topics.assign: 7})))
    await new.write(partition.outputs(row(3), Positions({partition.topics.assign: 7})))
    assert (await partition.log().open()).rows == {"t": row(3)}


async def test_what_a_predecessor_had_sent_and_not_committed_never_happened(partition: Partition) -> None:
    old, new = partition.log(), partition.log()
    await old.open()
    producer = old._producer
    assert producer is not None
    await producer.begin_transaction()
    for future in await old._send(producer, partition.outputs(row(1), Positions({}))):
        await future
    assert len(await partition.read(partition.topics.changelog, committed=False)) == 2
    recovered = await new.open()
    assert (recovered.rows, recovered.positions) == ({}, Positions({}))
    await new.write(partition.outputs(row(5), Positions({})))
    with pytest.raises((FencedError, JournalError)):
        await old.write(partition.outputs(row(2), Positions({})))
    assert [item.key for item in await partition.read(partition.topics.changelog)] == [b"t", POSITIONS_KEY]


async def test_the_last_to_open_is_fenced_by_nobody_and_a_duel_ends(partition: Partition) -> None:
    """Whoever opens takes over, however often: the broker favours the last, which is why the group is asked."""
    one, two = partition.log(), partition.log()
    for revision in range(1, 4):
        await one.open()
        await one.write(partition.outputs(row(2 * revision), Positions({})))
        await two.open()
        with pytest.raises(FencedError):
            await one.write(partition.outputs(row(99), Positions({})))
        await two.write(partition.outputs(row(2 * revision + 1), Positions({})))
    assert (await partition.log().open()).rows == {"t": row(7)}


# -- what is read back


async def test_recovery_reads_the_last_of_each_row_and_forgets_tombstones(partition: Partition) -> None:
    log = partition.log()
    await log.open()
    for revision in range(1, 6):
        await log.write(partition.outputs(row(revision), Positions({}, revision)))
    await log.write(partition.outputs(row(1, "u"), Positions({}, 6), "u"))
    await log.write(partition.outputs(None, Positions({}, 7)))
    recovered = await partition.log().open()
    assert (recovered.rows, recovered.positions) == ({"u": row(1, "u")}, Positions({}, 7))
    assert recovered.end_offset == 7 * 3, "two records and a marker each"


async def test_a_transaction_of_many_batches_is_one(partition: Partition) -> None:
    log = partition.log()
    await log.open()
    large = [row(1, f"t{number}") for number in range(40)]
    outputs = [
        Output(partition.topics.changelog, item.task_id.encode(), encode_row(replace(item, note="x" * 50_000)))
        for item in large
    ]
    await log.write([*outputs, Output(partition.topics.changelog, POSITIONS_KEY, encode_positions(Positions({})))])
    assert sorted((await partition.log().open()).rows) == sorted(item.task_id for item in large)


async def test_a_topic_that_was_made_anew_is_refused_with_what_to_do(partition: Partition) -> None:
    log = partition.log()
    await log.open()
    await partition.publish(3)
    await log.write(partition.outputs(row(1), Positions({partition.topics.assign: 2})))
    assert (await log.open()).positions.offsets == {partition.topics.assign: 2}
    admin = AIOKafkaAdminClient(**partition.client)
    await admin.start()
    try:
        await admin.delete_topics([partition.topics.assign])
        await until(lambda: _is_gone(admin, partition.topics.assign), "the topic is gone")
    finally:
        await admin.close()
    await partition.create_topics()
    with pytest.raises(TopicRecreatedError, match=r"ends at offset 0, but offset 2 was applied.*SKALDS_APP"):
        await partition.log().open()


async def _is_gone(admin: AIOKafkaAdminClient, topic: str) -> bool:
    return topic not in await admin.list_topics()


async def test_an_input_that_ends_in_somebodys_open_transaction_is_no_topic_made_anew(partition: Partition) -> None:
    """Faust reads it, so its offset is a position; a reader of committed records does not see that far."""
    log = partition.log()
    await log.open()
    async with AIOKafkaProducer(**partition.client, transactional_id=secrets.token_hex(4)) as stranger:
        await stranger.begin_transaction()
        await stranger.send_and_wait(partition.topics.assign, b"{}", partition=PARTITION)
        await log.write(partition.outputs(row(1), Positions({partition.topics.assign: 0})))
        assert (await partition.log().open()).rows == {"t": row(1)}
        await stranger.abort_transaction()


# -- an outcome that nobody knows


class Forgetful(PartitionLog):
    """Loses the answer to every second commit."""

    commits = 0

    async def write(self, outputs: Sequence[Output]) -> None:
        await super().write(outputs)
        type(self).commits += 1
        if type(self).commits % 2:
            raise TimeoutError


async def test_rows_of_an_unacknowledged_write_are_seen_and_not_written_twice(partition: Partition) -> None:
    Forgetful.commits = 0
    async with partition.journal(Forgetful) as journal:
        await partition.publish(6)
        for offset in range(6):
            await journal.offer(partition.delivery(offset))
            await until(lambda offset=offset: offset in partition.acked, "it is acknowledged")
    assert partition.acked == [0, 1, 2, 3, 4, 5]
    rows = [orjson.loads(item.value) for item in await partition.read(partition.topics.changelog) if item.key == b"t"]
    assert [item["revision"] for item in rows] == [1, 2, 3, 4, 5, 6]
    assert Forgetful.commits == 6


async def test_a_broker_that_stands_still_in_mid_stream_costs_no_event_and_doubles_none(
    cluster: DevCluster, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "WRITE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(log_module, "STOP_TIMEOUT_S", 0.3)
    monkeypatch.setattr(log_module, "CUT_TIMEOUT_S", 0.3)
    await partition.publish(60)
    async with partition.journal() as journal:
        for offset in range(60):
            await journal.offer(partition.delivery(offset))
            if offset == 20:
                cluster.kafka.pause()
            await asyncio.sleep(0.002)
        try:
            await asyncio.sleep(4)
        finally:
            cluster.kafka.resume()
        await until(lambda: len(partition.acked) == 60, "all are acknowledged", 30)
        assert journal.rows["t"].attachments == {"n": 59}
        assert journal.statistics.reopened > 0
    assert partition.acked == list(range(60))
    history = [orjson.loads(item.value) for item in await partition.read(partition.topics.history)]
    assert [item["why"]["offset"] for item in history] == list(range(60))


# -- nothing is left behind


async def test_a_writer_that_cant_flush_is_stopped_in_time_and_leaves_nothing(
    cluster: DevCluster, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka's stop() waits for the broker for ever; interrupted, it leaves its sender and its connections."""
    monkeypatch.setattr(log_module, "STOP_TIMEOUT_S", 0.5)
    monkeypatch.setattr(log_module, "CUT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(log_module, "WRITE_TIMEOUT_S", 2.0)
    log = partition.log()
    await log.open()
    before = client_tasks()
    cluster.kafka.pause()
    try:
        with pytest.raises(TimeoutError):
            await log.write(partition.outputs(row(1), Positions({})))
        await asyncio.wait_for(log.close(), 5)
        await until(lambda: client_tasks() <= before, "no task of the client is left", 2)
    finally:
        cluster.kafka.resume()


@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.01, 0.03, 0.06, 0.1, 0.15])
async def test_closing_while_it_opens_leaves_nothing_and_the_next_owner_opens(
    partition: Partition, after_s: float
) -> None:
    log = partition.log()
    before = client_tasks()
    opening = asyncio.create_task(log.open())
    await asyncio.sleep(after_s)
    opening.cancel()
    with suppress(asyncio.CancelledError):
        await opening
    await log.close()
    await until(lambda: client_tasks() == before, "no task of a client is left", 5)
    assert (await partition.log().open()).rows == {}


# -- dead letters


async def test_a_dead_letter_of_one_and_a_half_megabytes_keeps_its_bytes(partition: Partition) -> None:
    await partition.publish(2)
    value = b"{" + secrets.token_bytes(1_500_000)
    async with partition.journal() as journal:
        await journal.offer(partition.delivery(0, value=value))
        await journal.offer(partition.delivery(1))
        await until(lambda: partition.acked == [0, 1], "both are done with")
    (letter,) = await partition.read(partition.topics.deadletter)
    assert letter.value == value
    assert dict(letter.headers)["reason"].startswith(b"the value has 1500001 bytes")


async def test_what_no_dead_letter_can_hold_is_cut_and_says_so(cluster: DevCluster) -> None:
    partition = Partition(cluster.kafka_port)
    await partition.create_topics(deadletter={"max.message.bytes": "200000"})
    await partition.publish(5)
    async with partition.journal() as journal:
        for offset in range(5):
            value = b"{" + b"x" * 1_500_000 if offset == 2 else None
            await journal.offer(partition.delivery(offset, value=value))
        await until(lambda: len(partition.acked) == 5, "all are done with", 30)
        assert journal.rows["t"].revision == 4
    assert partition.acked == [0, 1, 2, 3, 4]
    (letter,) = await partition.read(partition.topics.deadletter)
    assert letter.value == b"{" + b"x" * 99_999
    assert dict(letter.headers)["reason"].endswith(b"; cut to 100000 bytes")
    assert dict(letter.headers)["source.offset"] == b"2"


# -- a whole node


async def test_a_journal_that_cant_go_on_ends_the_process_with_the_reason(system: System) -> None:
    node = system.node()
    node.start()
    await node.ready()
    await system.assign("t")
    await system.status("t", "Running")
    assert await node.stop() == 0
    admin = AIOKafkaAdminClient(bootstrap_servers=system.bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([system.topics.assign])
        await until(lambda: _is_gone(admin, system.topics.assign), "the topic is gone")
    finally:
        await admin.close()
    node.start()
    assert node.process is not None
    assert await asyncio.to_thread(node.process.wait, 40) == 1
    assert "the topic was deleted and made anew. To begin afresh" in node.log()
    system.nodes.remove(node)  # the lint of the logs would miss the causes that were deleted


async def test_a_node_outlives_a_broker_that_is_away_longer_than_any_timeout(
    cluster: DevCluster, system: System
) -> None:
    """Longer than a session, a transaction and a request: 20 s. The lease is longer, so that workers run on."""
    node = system.node(SKALDS_LEASE_MS="60000")
    node.start()
    await node.ready()
    for number in range(6):
        await system.assign(f"t{number}", attachments={"fps": 1})
    for number in range(6):
        await system.status(f"t{number}", "Running", applied_version=1)
    sends = [asyncio.create_task(system.update(f"t{number}", {"fps": 2}, merge=True)) for number in range(6)]
    await asyncio.sleep(0.005)
    cluster.kafka.pause()
    try:
        await asyncio.sleep(20)
    finally:
        cluster.kafka.resume()
    await asyncio.gather(*sends)
    for number in range(6):
        await system.status(f"t{number}", "Running", epoch=1, applied_version=2)
    await system.assign("new")
    await system.status("new", "Running")
    await node.ready()
    assert await node.stop() == 0
