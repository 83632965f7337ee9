"""Reads topics from one offset to another, with a consumer of its own. No group, nothing written, no topic created.

Rules: a topic is looked up before it is read, so that the broker never creates it for us; only committed records are
delivered, in offset order within a partition; a reader that gets nothing for STALL_S gives up with a clear error
instead of waiting for ever.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.errors import KafkaError, TopicError, UnreachableError
from skalds_streams.model.record import Record
from skalds_streams.proxy.admin import Admin
from skalds_streams.proxy.client import log_consumer, record_of

POLL_MS = 50
FETCH_WAIT_MS = 100
"""How long the broker holds back an answer without records; the last fetch of a range waits for it."""
RETRY_BACKOFF_MS = 20
"""aiokafka learns of a topic by failing once and waiting this long."""
STALL_S = 30.0
"""Longer than a dead coordinator's transaction can hide records: its timeout of 10 s and the broker's sweep of 10 s."""

Place = tuple[str, int]
"""(topic, partition)"""
Ranges = Mapping[Place, tuple[int, int]]
"""First offset and the offset after the last, by place."""
Progress = Callable[[str, int, int], object]
"""Called with (topic, offsets done, offsets in all) while a range is read."""


@contextmanager
def translated_errors(client: Mapping[str, Any]) -> Iterator[None]:
    """Turn the client library's errors into ours: UnreachableError when no broker answers, KafkaError for the rest."""
    where = client["bootstrap_servers"]
    try:
        yield
    except BrokenPipeError:  # of who reads our output, not of Kafka
        raise
    except (KafkaConnectionError, KafkaTimeoutError, TimeoutError, OSError):
        raise UnreachableError(f"no Kafka broker answers at {where} (--kafka, or KAFKA_HOST and KAFKA_PORT)") from None
    except ClientError as error:
        raise KafkaError(f"Kafka at {where}: {error!r}") from None


async def partition_counts(client: Mapping[str, Any], names: Collection[str]) -> dict[str, int]:
    """Number of partitions of each topic that exists; missing ones are not in the answer. Creates nothing."""
    admin = Admin(**client)
    with translated_errors(client):
        try:
            await admin.start()
            there = sorted(set(await admin.list_topics()) & set(names))
            described = await admin.describe_topics(there) if there else []
            return {item["topic"]: len(item["partitions"]) for item in described}
        finally:
            await admin.close()


def check_counts(counts: Mapping[str, int], names: Collection[str], where: str) -> int:
    """The number of partitions that all of `names` have. Raises TopicError for a missing topic or different numbers."""
    missing = [name for name in names if name not in counts]
    if missing:
        raise TopicError(
            f"topic {', '.join(missing)} does not exist at {where}: no skald has run there yet, or SKALDS_APP and"
            " SKALDS_TOPIC_PREFIX are others."
            " `skalds-streams topics create` makes the topics."
        )
    numbers = {counts[name] for name in names}
    if len(numbers) != 1:
        shown = ", ".join(f"{name}: {counts[name]}" for name in names)
        raise TopicError(f"the topics at {where} must have equally many partitions, but have {shown}")
    return numbers.pop()


@asynccontextmanager
async def open_consumer(client: Mapping[str, Any], *, committed: bool = True) -> AsyncIterator[AIOKafkaConsumer]:
    """A started consumer without a group.

    committed=False: its end offsets count what an open transaction has written, too.
    """
    consumer = log_consumer(
        client, committed=committed, retry_backoff_ms=RETRY_BACKOFF_MS, fetch_max_wait_ms=FETCH_WAIT_MS
    )
    with translated_errors(client):
        try:
            await consumer.start()
            yield consumer
        finally:
            await consumer.stop()


class LogReader:
    """Reads ranges. Use as `async with open_reader(client) as reader`."""

    def __init__(self, client: Mapping[str, Any], consumer: AIOKafkaConsumer) -> None:
        self._client, self._consumer = client, consumer

    async def begins(self, places: Collection[Place]) -> dict[Place, int]:
        """The first offset that is kept, by place."""
        found = await self._consumer.beginning_offsets([TopicPartition(*place) for place in places])
        return {(tp.topic, tp.partition): offset for tp, offset in found.items()}

    async def ends(self, places: Collection[Place], *, committed: bool = True) -> dict[Place, int]:
        """The offset after the last record, by place. committed=False: records of open transactions included."""
        if not committed:
            async with open_consumer(self._client, committed=False) as consumer:
                return await _ends(consumer, places)
        return await _ends(self._consumer, places)

    async def whole(
        self, topic: str, partitions: Collection[int], *, committed: bool = True
    ) -> dict[Place, tuple[int, int]]:
        """The ranges that hold all of these partitions as they are now."""
        places = [(topic, number) for number in partitions]
        begins, ends = await self.begins(places), await self.ends(places, committed=committed)
        return {place: (begins[place], ends[place]) for place in places}

    async def read(self, ranges: Ranges, on_progress: Progress | None = None) -> AsyncIterator[list[Record]]:
        """Every committed record of the ranges, in lists of one partition each.

        Raises KafkaError when the broker falls silent.
        """
        left = {TopicPartition(*place): limits for place, limits in ranges.items() if limits[0] < limits[1]}
        if not left:
            return
        consumer, total, done = self._consumer, sum(end - begin for begin, end in left.values()), 0
        consumer.assign(list(left))
        for tp, (begin, _) in left.items():
            consumer.seek(tp, begin)
        at = {tp: begin for tp, (begin, _) in left.items()}
        moved_s = time.monotonic()
        while left:
            for tp, items in (await consumer.getmany(timeout_ms=POLL_MS)).items():
                records = [record_of(item) for item in items if tp in left and item.offset < left[tp][1]]
                if records:
                    yield records
            for tp, (_, end) in list(left.items()):
                position = min(await consumer.position(tp), end)
                if position > at[tp]:
                    done, at[tp], moved_s = done + position - at[tp], position, time.monotonic()
                if position >= end:
                    del left[tp]
                    consumer.pause(tp)
            if on_progress is not None:
                on_progress(next(iter(at)).topic, done, total)
            if time.monotonic() - moved_s > STALL_S:
                waiting = ", ".join(f"{tp.topic}/{tp.partition}@{at[tp]}" for tp in left)
                raise KafkaError(
                    f"nothing more came from {waiting} within {STALL_S:g} s: a transaction may be stuck there"
                )


@asynccontextmanager
async def open_reader(client: Mapping[str, Any]) -> AsyncIterator[LogReader]:
    """A reader, closed at the end. Raises UnreachableError, KafkaError."""
    async with open_consumer(client) as consumer:
        yield LogReader(client, consumer)


async def _ends(consumer: AIOKafkaConsumer, places: Collection[Place]) -> dict[Place, int]:
    found = await consumer.end_offsets([TopicPartition(*place) for place in places])
    return {(tp.topic, tp.partition): offset for tp, offset in found.items()}
