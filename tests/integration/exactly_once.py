"""Counts that everything is applied exactly once: a stream of commands, and what is read back from the topics by
a reader that shares nothing with the coordinator.

What is counted is in `check_exactly_once`; what the broker let through, and from whom, in `check_writers`; how long a
partition stood still in `longest_pauses_s`.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.record.memory_records import MemoryRecords

from skalds_streams.core.partition import partition_of
from skalds_streams.topics import POSITIONS_KEY
from tests.integration.system import PARTITIONS, Node, System, until

if TYPE_CHECKING:
    from skalds_streams.devcluster.cluster import DevCluster

TASKS = [f"task-{number:03}" for number in range(100)]
BURST = 40
AHEAD_MOST = 800
"""Inputs that may be sent and not yet applied: the stream lasts as long as the test, and work always waits."""
PROGRESS_LEAST = 200
BACKLOG_LEAST = 100
STALLED_S = 30.0
COMMIT = 1
"""The kind of a marker that ends a committed transaction; 0 is an abort."""
HISTORY_ONLY = ("attachments_masked", "attachments_digest", "members_offset")

Place = tuple[str, int, int]
"""(topic, partition, offset) of an input."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One acknowledged input."""

    place: Place
    task_ids: tuple[str, ...]
    key: str | None
    """The parameter that it adds, if it is an update."""


class Progress:
    """How far the inputs are applied, read from the committed changelog. Positions that fall are a failure."""

    def __init__(self, system: System) -> None:
        self._topics = system.topics
        self._tps = [TopicPartition(system.topics.changelog, number) for number in range(PARTITIONS)]
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=system.bootstrap, group_id=None, isolation_level="read_committed"
        )
        self.positions: dict[tuple[str, int], int] = {}
        self.fallen: list[str] = []

    async def run(self) -> None:
        await self._consumer.start()
        try:
            self._consumer.assign(self._tps)
            await self._consumer.seek_to_beginning(*self._tps)
            while True:
                for records in (await self._consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        if record.key == POSITIONS_KEY:
                            self._advance(record.partition, orjson.loads(record.value)["positions"])
        finally:
            await self._consumer.stop()

    def _advance(self, partition: int, offsets: dict[str, int]) -> None:
        for topic, offset in offsets.items():
            before = self.positions.get((topic, partition), -1)
            if offset < before:
                self.fallen.append(f"{topic}/{partition} from {before} to {offset}")
            self.positions[topic, partition] = offset

    @property
    def applied(self) -> int:
        """Commands applied. Nothing but whole records is on these topics, so offsets count."""
        return sum(self.by_partition())

    def by_partition(self) -> list[int]:
        commands = (self._topics.assign, self._topics.cancel, self._topics.update)
        return [sum(self.positions.get((topic, number), -1) + 1 for topic in commands) for number in range(PARTITIONS)]

    async def read_to_the_end(self) -> None:
        """Until all that is committed now was read."""
        ends = await self._consumer.end_offsets(self._tps)
        for tp, end in ends.items():
            await until(lambda tp=tp, end=end: self._has_read(tp, end), f"{tp} is read to {end}")

    async def _has_read(self, tp: TopicPartition, end: int) -> bool:
        return await self._consumer.position(tp) >= end

    async def is_complete(self) -> bool:
        """Whether every input there is has been applied, reports included."""
        tps = [TopicPartition(t, p) for t in self._topics.inputs for p in range(PARTITIONS)]
        ends = await self._consumer.end_offsets(tps)
        return all(self.positions.get((tp.topic, tp.partition), -1) == end - 1 for tp, end in ends.items())


class Stream:
    """Commands of every kind in the background: for one task, for several of a partition, and for some of others."""

    def __init__(self, system: System, progress: Progress) -> None:
        self._system, self._progress = system, progress
        self._dice = random.Random(7)
        self._by_partition: dict[int, list[str]] = defaultdict(list)
        for task_id in TASKS:
            self._by_partition[partition_of(task_id, PARTITIONS)].append(task_id)
        self.acknowledged: list[Sent] = []
        self.enough = asyncio.Event()

    @property
    def unapplied(self) -> int:
        return len(self.acknowledged) - self._progress.applied

    async def run(self) -> None:
        numbers = 0
        while not self.enough.is_set():
            if self.unapplied > AHEAD_MOST:
                await asyncio.sleep(0.01)
                continue
            sending = [self._send(number) for number in range(numbers, numbers + BURST)]
            self.acknowledged += await asyncio.gather(*sending)
            numbers += BURST

    async def _send(self, number: int) -> Sent:
        dice, topics = self._dice, self._system.topics
        task_id = dice.choice(TASKS)
        siblings = self._by_partition[partition_of(task_id, PARTITIONS)]
        kind = number % 10
        key = None
        if kind < 6:
            topic, key = topics.update, f"n{number}"
            document: dict[str, Any] = {"taskIds": [task_id], "attachments": {key: number}, "merge": True}
        elif kind == 6:
            topic, task = topics.assign, {"id": task_id, "className": "Nowhere", "source": "test"}
            document = {"taskIds": [task_id], "tasks": [task]}
        elif kind == 7:
            topic, document = topics.cancel, {"taskIds": [task_id]}
        elif kind == 8:
            topic, document = topics.assign, {"taskIds": list(dict.fromkeys([task_id, *dice.sample(siblings, 3)]))}
        else:
            topic, document = topics.assign, {"taskIds": list(dict.fromkeys([task_id, *dice.sample(TASKS, 3)]))}
        answer = await self._system.send(topic, document, key=task_id)
        return Sent((topic, answer.partition, answer.offset), tuple(document["taskIds"]), key)


@asynccontextmanager
async def streaming(system: System) -> AsyncIterator[tuple[Stream, Progress]]:
    """A stream that runs until the end of the block, then waits until all of it is applied."""
    progress = Progress(system)
    stream = Stream(system, progress)
    reading, sending = asyncio.create_task(progress.run()), asyncio.create_task(stream.run())
    try:
        yield stream, progress
        stream.enough.set()
        await sending
        await until_progress(progress, progress.is_complete, "every input is applied")
    finally:
        for task in (sending, reading):
            task.cancel()
        for task in (sending, reading):
            with suppress(asyncio.CancelledError):
                await task


async def until_progress(progress: Progress, condition: Callable[[], Any], what: str) -> None:
    try:
        await until(lambda: progress.fallen or condition(), what, STALLED_S)
    except AssertionError as error:
        raise AssertionError(f"{error}; positions: {sorted(progress.positions.items())}") from None
    assert progress.fallen == [], "positions that fell"


async def some_progress(stream: Stream, progress: Progress) -> None:
    begun = progress.by_partition()

    def is_in_mid_stream() -> bool:
        gained = [now - before for now, before in zip(progress.by_partition(), begun, strict=True)]
        return min(gained) > 0 and sum(gained) >= PROGRESS_LEAST and stream.unapplied >= BACKLOG_LEAST

    await until_progress(
        progress,
        is_in_mid_stream,
        f"{PROGRESS_LEAST} more inputs are applied, some of each partition, and {BACKLOG_LEAST} wait",
    )


async def metric(node: Node, name: str) -> int:
    """One of the node's metrics; 0 when it does not answer."""
    _, text = await node.get("/metrics")
    values = [line.split()[1] for line in str(text).splitlines() if line.startswith(f"{name} ")]
    return int(float(values[0])) if values else 0


# -- what is counted ---------------------------------------------------------------------------------------------------


async def check_exactly_once(system: System, sent: Iterable[Sent], tasks: Iterable[str] = TASKS) -> None:
    """Every input is the cause of exactly one history record a named task, and nothing else is a cause.

    tasks: all that there are.
    """
    inputs = {
        (topic, record.partition, record.offset): record
        for topic in system.topics.inputs
        for record in await system.records(topic)
    }
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in await system.records(system.topics.history):
        by_task[record.key.decode()].append(orjson.loads(record.value))
    causes = Counter(
        ((doc["why"]["topic"], doc["why"]["partition"], doc["why"]["offset"]), task_id)
        for task_id, docs in by_task.items()
        for doc in docs
    )
    assert [item for item, count in causes.items() if count > 1] == [], "applied twice"
    assert [item for item in causes if item[0] not in inputs] == [], "caused by nothing"
    _check_every_input(system, list(sent), inputs, causes)
    for task_id, docs in by_task.items():
        assert [doc["revision"] for doc in docs] == list(range(1, len(docs) + 1)), task_id
    assert set(by_task) == set(tasks)
    await _check_rows(system, sent, by_task)
    assert await system.deadletters() == []


def _check_every_input(system: System, sent: list[Sent], inputs: dict[Place, Any], causes: Counter[Any]) -> None:
    commands = {place for place in inputs if place[0] != system.topics.report}
    assert {item.place for item in sent} == commands, "what was acknowledged is what is there"
    copies: dict[tuple[Place, str], list[Place]] = defaultdict(list)
    for place, record in inputs.items():
        doc = orjson.loads(record.value)
        if place[0] == system.topics.report and doc["kind"] == "Forwarded":
            origin = doc["cause"]
            copies[(origin["topic"], origin["partition"], origin["offset"]), doc["task_id"]].append(place)
    wrong = []
    for item in sent:
        for task_id in item.task_ids:
            is_own = partition_of(task_id, PARTITIONS) == item.place[1]
            places = [item.place] if is_own else copies[item.place, task_id]
            times = sum(causes[place, task_id] for place in places)
            if times != 1:
                wrong.append((item.place, task_id, times))
    assert wrong == [], "(input, task, times applied)"
    assert any(copies.values()), "nothing was forwarded"


async def _check_rows(system: System, sent: Iterable[Sent], by_task: dict[str, list[dict[str, Any]]]) -> None:
    """The row is what the history says last, and holds the sum of the updates."""
    rows = await system.rows()
    assert set(rows) == set(by_task)
    updates: dict[str, set[str]] = defaultdict(set)
    for item in sent:
        if item.key is not None:
            for task_id in item.task_ids:
                updates[task_id].add(item.key)
    for task_id, row in rows.items():
        last = by_task[task_id][-1]
        seen = {name: value for name, value in last.items() if name not in HISTORY_ONLY}
        assert {name: row.get(name) for name in seen} == seen
        assert set(row["attachments"] or ()) == updates[task_id], task_id
        assert row["attachments_version"] == len(updates[task_id]), task_id


def check_writers(cluster: DevCluster, system: System) -> dict[int, list[int]]:
    """In the log's own files, batches of the changelog by one transactional id each, epochs never falling: once a
    successor has written, nothing of its predecessor comes after. Returns partition → epochs in order.
    """
    found: dict[int, list[int]] = {}
    for partition in range(PARTITIONS):
        epochs: list[int] = []
        writers = set()
        for batch in _batches(cluster.directory / "kafka/data" / f"{system.topics.changelog}-{partition}"):
            writers.add(batch.producer_id)
            if epochs[-1:] != [batch.producer_epoch]:
                epochs.append(batch.producer_epoch)
        assert len(writers) == 1, f"partition {partition} has writers {writers}"
        assert epochs == sorted(set(epochs)), f"partition {partition}: epochs {epochs}"
        found[partition] = epochs
    return found


def longest_pauses_s(cluster: DevCluster, system: System, begun_s: float, ended_s: float) -> dict[int, float]:
    """Partition → the longest time between two commits of its changelog within this time, its ends included.

    By the broker's clock, from the markers that it wrote: where inputs always wait, it is how long nobody wrote.
    """
    found: dict[int, float] = {}
    for partition in range(PARTITIONS):
        directory = cluster.directory / "kafka/data" / f"{system.topics.changelog}-{partition}"
        commits = [at_s for at_s in _commits(directory) if begun_s < at_s < ended_s]
        found[partition] = max(after - before for before, after in pairwise([begun_s, *commits, ended_s]))
    return found


def _commits(directory: Path) -> Iterable[float]:
    for batch in _batches(directory):
        if batch.is_control_batch:
            for marker in batch:
                _version, kind = struct.unpack(">hh", marker.key)
                if kind == COMMIT:
                    yield marker.timestamp / 1000


def _batches(directory: Path) -> Iterable[Any]:
    for path in sorted(directory.glob("*.log")):
        records = MemoryRecords(path.read_bytes())
        while records.has_next():
            yield records.next_batch()
