"""Finds what was saved of a task, when somebody asks: reads task.state to its end, remembers where each state lies, and
fetches the one.

Nothing is read before the first question, and what others save all the time is not followed in between: with many
saving workers every node would read the states of all. A question costs the records since the last one; the first, a
partition, which compaction keeps to about twice what its tasks have saved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError as ClientError
from aiokafka.errors import TopicAuthorizationFailedError

from skalds_streams.core.partition import partition_of
from skalds_streams.errors import StateError
from skalds_streams.model.record import Record
from skalds_streams.model.saved import Saved, Spot, StateIndex, read_saved
from skalds_streams.proxy.client import log_consumer, look_at, record_of
from skalds_streams.topics import Topics

LINGER_S = 60.0
"""How long the connection is kept for a next question: with it a question takes a few ms, without it ten times that."""
RETRY_BACKOFF_MS = 20
"""aiokafka learns of a topic by failing once and waiting this long."""
AGAIN_S = 0.5
STALL_S = 15.0
"""A broker that has sent nothing for so long is asked anew."""
POLL_MS = 200
TRIES = 3
"""How often a state may be gone, replaced by a newer one, just before it is fetched."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Question:
    """`task_id` None: only the index is wanted."""

    partition: int
    task_id: str | None
    first_epoch: int
    answer: asyncio.Future[Any]


class StateReader:
    """`run` answers for ever what is asked by `find` and `index`."""

    def __init__(self, topics: Topics, client: Mapping[str, Any]) -> None:
        self._topics, self._client = topics, client
        self._indexes: dict[int, StateIndex] = {}
        self._next: dict[int, int] = {}
        self._asked: list[_Question] = []
        self._wake = asyncio.Event()
        self._consumer: AIOKafkaConsumer | None = None

    async def find(self, task_id: str, first_epoch: int) -> Saved | None:
        """What counts for the task's next run: the newest that was acknowledged to anybody before this call.

        Waits as long as no broker answers. Raises StateError when it can't be understood.
        """
        found: Saved | None = await self._ask(partition_of(task_id, self._topics.partitions), task_id, first_epoch)
        return found

    async def index(self, partition: int) -> StateIndex:
        """Where the states of a partition lie, read to its end now."""
        found: StateIndex = await self._ask(partition)
        return found

    async def run(self) -> None:
        """Answer until cancelled."""
        try:
            while True:
                await self._wait()
                asked, self._asked = [item for item in self._asked if not item.answer.done()], []
                try:
                    await self._answer(asked)
                except TopicAuthorizationFailedError:
                    error = StateError(f"this node may not read {self._topics.state}: it needs the right to")
                    for item in asked:
                        _fail(item, error)
                except (ClientError, OSError, TimeoutError) as error:
                    log.warning("states.again", error=repr(error))
                    self._asked += [item for item in asked if not item.answer.done()]
                    self._wake.set()
                    await self._close()
                    await asyncio.sleep(AGAIN_S)
        finally:
            await self._close()

    async def _ask(self, partition: int, task_id: str | None = None, first_epoch: int = 0) -> Any:
        question = _Question(partition, task_id, first_epoch, asyncio.get_running_loop().create_future())
        question.answer.add_done_callback(look_at)
        self._asked.append(question)
        self._wake.set()
        return await question.answer

    async def _wait(self) -> None:
        if self._consumer is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await self._wake.wait()
            if not self._wake.is_set():
                await self._close()
        await self._wake.wait()
        self._wake.clear()

    async def _answer(self, asked: Sequence[_Question]) -> None:
        if not asked:
            return
        consumer = await self._opened()
        await self._read_on(consumer, {item.partition for item in asked})
        for item in asked:
            if item.task_id is None:
                _settle(item, self._indexes[item.partition])
                continue
            try:
                _settle(item, await self._fetched(consumer, item, item.task_id))
            except StateError as error:
                _fail(item, error)
        consumer.pause(*consumer.assignment())  # nothing is fetched until the next question

    async def _fetched(self, consumer: AIOKafkaConsumer, item: _Question, task_id: str) -> Saved | None:
        for _ in range(TRIES):
            spot = self._indexes[item.partition].newest(task_id, item.first_epoch)
            if spot is None:
                return None
            record = await self._record(consumer, item.partition, spot)
            if record is not None:
                return read_saved(record)
            await self._read_on(consumer, {item.partition})  # replaced meanwhile, and compacted away
        raise StateError(f"what task {task_id} has saved last is not in {self._topics.state} any more")

    async def _record(self, consumer: AIOKafkaConsumer, partition: int, spot: Spot) -> Record | None:
        tp = TopicPartition(self._topics.state, partition)
        consumer.assign([tp])
        consumer.seek(tp, spot.offset)
        async with asyncio.timeout(STALL_S):
            while await consumer.position(tp) <= spot.offset:
                for items in (await consumer.getmany(tp, timeout_ms=POLL_MS, max_records=1)).values():
                    return record_of(items[0]) if items[0].offset == spot.offset else None
        return None

    async def _read_on(self, consumer: AIOKafkaConsumer, partitions: set[int]) -> None:
        """Read partitions to the ends that they have now."""
        tps = {TopicPartition(self._topics.state, number): number for number in sorted(partitions)}
        ends = await consumer.end_offsets(list(tps))
        for tp, number in tps.items():
            if number not in self._indexes or self._next[number] > ends[tp]:  # never read, or the topic was made anew
                self._indexes[number], self._next[number] = StateIndex(), 0
        behind = [tp for tp, number in tps.items() if self._next[number] < ends[tp]]
        if not behind:
            return
        consumer.assign(behind)
        for tp in behind:
            if self._next[tps[tp]]:
                consumer.seek(tp, self._next[tps[tp]])
            else:
                await consumer.seek_to_beginning(tp)
        async with asyncio.timeout(STALL_S) as limit:
            while any(self._next[tps[tp]] < ends[tp] for tp in behind):
                for tp, items in (await consumer.getmany(timeout_ms=POLL_MS)).items():
                    for item in items:
                        self._indexes[tps[tp]].apply(record_of(item))
                    limit.reschedule(asyncio.get_running_loop().time() + STALL_S)
                for tp in behind:
                    self._next[tps[tp]] = await consumer.position(tp)

    async def _opened(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            # Nobody writes there in transactions.
            consumer = log_consumer(self._client, committed=False, retry_backoff_ms=RETRY_BACKOFF_MS)
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
            self._consumer = consumer
        return self._consumer

    async def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()


def _fail(item: _Question, error: StateError) -> None:
    if not item.answer.done():
        item.answer.set_exception(error)


def _settle(item: _Question, answer: object) -> None:
    if not item.answer.done():
        item.answer.set_result(answer)
