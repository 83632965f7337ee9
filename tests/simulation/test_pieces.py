"""The pieces that a world is made of behave as what they stand for."""

from __future__ import annotations

import asyncio
import random

import pytest
from aiokafka.errors import MessageSizeTooLargeError, ProducerFenced, RecordListTooLargeError

from skalds_streams.coordinator.batch import Output
from skalds_streams.testing.simulator.broker import AgainError, Broker
from skalds_streams.testing.simulator.loop import OWNER, VirtualLoop
from skalds_streams.topics import Topics

TOPICS = Topics.named(app="skalds", partitions=1)
LOG = TOPICS.changelog


def broker(marker_s: float = 0.0) -> tuple[VirtualLoop, Broker]:
    loop = VirtualLoop()
    return loop, Broker(loop, random.Random(1), TOPICS, marker_s=marker_s)


def record(key: str, value: str = "x") -> Output:
    return Output(LOG, key.encode(), value.encode())


def read(of: Broker, *, committed: bool = True) -> list[bytes | None]:
    return [item.key for item in of.partitions[LOG, 0].read(0, committed=committed)]


def test_a_reader_sees_a_transaction_whole_or_not_at_all() -> None:
    _, kafka = broker()
    _, epoch = kafka.init_producer("id", 10.0)
    kafka.produce("id", epoch, LOG, 0, [record("a"), record("b")], 1)
    assert (read(kafka), len(read(kafka, committed=False))) == ([], 2)
    kafka.end_transaction("id", epoch, commit=True)
    assert read(kafka) == [b"a", b"b"]


def test_who_opens_aborts_and_fences_the_former() -> None:
    _, kafka = broker()
    _, former = kafka.init_producer("id", 10.0)
    kafka.produce("id", former, LOG, 0, [record("a")], 1)
    with pytest.raises(AgainError):
        kafka.init_producer("id", 10.0)
    _, present = kafka.init_producer("id", 10.0)
    with pytest.raises(ProducerFenced):
        kafka.produce("id", former, LOG, 0, [record("late")], 2)
    with pytest.raises(ProducerFenced):
        kafka.end_transaction("id", former, commit=True)
    kafka.produce("id", present, LOG, 0, [record("b")], 1)
    kafka.end_transaction("id", present, commit=True)
    assert read(kafka) == [b"b"]


def test_a_batch_that_arrives_twice_is_written_once() -> None:
    _, kafka = broker()
    _, epoch = kafka.init_producer("id", 10.0)
    for _ in range(2):
        kafka.produce("id", epoch, LOG, 0, [record("a")], 1)
    kafka.end_transaction("id", epoch, commit=True)
    kafka.end_transaction("id", epoch, commit=True)
    assert read(kafka) == [b"a"]


def test_a_transaction_that_stays_open_hides_what_follows_until_its_timeout() -> None:
    loop, kafka = broker()
    _, epoch = kafka.init_producer("id", 10.0)
    kafka.produce("id", epoch, LOG, 0, [record("open")], 1)
    kafka.append(LOG, 0, record("behind"))
    assert read(kafka) == []
    loop.advance(21.0)
    assert read(kafka) == [b"behind"]
    with pytest.raises(ProducerFenced):
        kafka.end_transaction("id", epoch, commit=True)


def test_compaction_keeps_the_last_of_each_key() -> None:
    _, kafka = broker()
    for key in ("a", "b", "a", "a"):
        kafka.append(LOG, 0, record(key))
    assert kafka.partitions[LOG, 0].compact() == 2
    assert read(kafka) == [b"b", b"a"]


def test_a_batch_that_is_too_large_is_refused_as_a_whole() -> None:
    _, kafka = broker()
    kafka.message_bytes, kafka.segment_bytes = 1_000, 900
    kafka.check_size([record("a", "x" * 700)])
    with pytest.raises(RecordListTooLargeError):
        kafka.check_size([record("a", "x" * 350), record("b", "x" * 400)])
    with pytest.raises(MessageSizeTooLargeError):
        kafka.check_size([record("a", "x" * 1_000)])


def test_who_reads_from_before_what_is_kept_gets_what_there_is() -> None:
    _, kafka = broker()
    for key in ("a", "b", "c"):
        kafka.append(LOG, 0, record(key))
    partition = kafka.partitions[LOG, 0]
    partition.delete_before(2)
    assert (partition.begin, read(kafka)) == (2, [b"c"])
    partition.delete_before(9)
    assert (partition.begin, partition.end(committed=True), read(kafka)) == (3, 3, [])


def test_time_jumps_and_a_paused_process_catches_up() -> None:
    loop = VirtualLoop()  # type: ignore[abstract]
    seen: list[tuple[str, float]] = []

    async def beat(name: str) -> None:
        while True:
            await asyncio.sleep(1.0)
            seen.append((name, loop.now))

    def begin(number: int, name: str) -> None:
        OWNER.set(number)
        loop.create_task(beat(name))

    for number, name in ((1, "a"), (2, "b")):
        loop.call_soon(begin, number, name)
    loop.advance(1.5)
    loop.pause(1)
    loop.advance(3.5)
    loop.resume(1)
    loop.kill(2)
    loop.advance(5.0)
    assert seen == [("a", 1.0), ("b", 1.0), ("b", 2.0), ("b", 3.0), ("a", 3.5), ("a", 4.5)]
    loop.dispose()
