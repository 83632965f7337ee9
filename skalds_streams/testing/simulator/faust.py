"""Faust's consumer of one process: joins the group, hands records to the journals, commits what was acknowledged.

Rules as Faust has them: at a rebalance the flow stops and buffers are cleared, what was handed out is not waited for;
then the table is told what is ours, and reading begins at the journals' positions (`tables.consumer`), at the group's
offset where a journal is not open yet. One that the group has given up asks before it joins again. Soon after a
rebalance it drops a part of what it has read and goes on behind it, with `Weather.gaps`. Acknowledged offsets are
committed up to the first that is not, about once a second.
`GroupQuestion` finds here what it looks for in Faust.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.coordinator.journal import Delivery
from skalds_streams.coordinator.journals import Journals
from skalds_streams.model.record import Record
from skalds_streams.testing.simulator.group import UNKNOWN
from skalds_streams.testing.simulator.network import Connection, Link, Reply
from skalds_streams.testing.simulator.readers import Fetch
from skalds_streams.topics import Topics

COMMIT_S = 1.0
GAPS_S = 5.0
"""How long after a rebalance records may be dropped."""


class FaustConsumer:
    """See the module. `run` works until cancelled."""

    def __init__(
        self,
        link: Link,
        topics: Topics,
        instance: str,
        journals: Callable[[], Journals],
        may_rejoin: Callable[[], Awaitable[bool]],
    ) -> None:
        self._may_rejoin = may_rejoin
        self._link, self._topics, self._instance, self._journals = link, topics, instance, journals
        self._connection, self._fetching = Connection(), Connection()
        self.member = 0
        self.landed = 0
        """As which member the group took its last join, whether it knows of that or not."""
        self.generation = 0
        self.partitions: tuple[int, ...] = ()
        self._rejoin = asyncio.Event()
        self._flow: asyncio.Task[None] | None = None
        self._unacked: dict[TopicPartition, dict[int, bool]] = {}
        """Offsets handed out and not committed yet, in order: whether each is acknowledged."""
        self._committing = False
        self._commit_task: asyncio.Future[None] | None = None
        self._thread = self

    # -- what GroupQuestion uses

    def assignment(self) -> set[TopicPartition]:
        self._heard_ours(self.partitions)
        return {TopicPartition(topic, number) for number in self.partitions for topic in self._topics.inputs}

    async def call_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await function(*args)

    def _ensure_consumer(self) -> FaustConsumer:
        return self

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """With the present generation. Raises as aiokafka's does."""
        if any(tp.partition not in self.partitions for tp in offsets):
            raise IllegalStateError("not assigned")
        plain = {(tp.topic, tp.partition): offset for tp, offset in offsets.items()}
        group, member, generation = self._link.broker.group, self.member, self.generation
        try:
            await self._link.request(lambda: group.commit(member, generation, plain), self._connection)
        except CommitFailedError:
            self._rejoin.set()
            raise
        self._heard_ours([tp.partition for tp in offsets])

    def _heard_ours(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._link.asked_at[partition] = self._link.loop.now

    @property
    def reading(self) -> bool:
        """Whether the agents are fed."""
        return self._flow is not None

    # -- membership

    def notice(self) -> None:
        """A heartbeat's answer: join again. Comes from the network."""
        self._link.loop.call_soon(self._rejoin.set, context=self._link.inside)

    async def run(self) -> None:
        while True:
            self._rejoin.clear()
            if self.member and not self._link.broker.group.knows(self.member) and not await self._may_rejoin():
                return
            await self._join()
            if self.member == UNKNOWN:
                await asyncio.sleep(1.0)
                continue
            self._heard_ours(self.partitions)
            self._unacked = {}
            journals = self._journals()
            await journals.own(set(self.partitions))
            offsets = await self._offsets()
            for tp in offsets:
                begins = journals.next_offset(tp.topic, tp.partition)
                offsets[tp] = offsets[tp] if begins is None else begins
            self._flow = asyncio.create_task(self._read(offsets), name="faust-flow")
            await self._rejoin.wait()
            await self._revoke()

    async def _join(self) -> None:
        group, member = self._link.broker.group, self.member

        def join(reply: Reply) -> None:
            group.join(
                self._instance,
                member,
                notice=self.notice,
                knows=lambda: self.generation,
                joined=lambda *answer: reply(answer),
            )
            self.landed = group.seats[self._instance].member
            if self._link.gone or self._link.partitioned:  # it was on its way when that began
                group.silent(self.landed)

        self.member, self.generation, self.partitions = await self._link.deferred(join, self._connection)

    async def _offsets(self) -> dict[TopicPartition, int]:
        committed, tps = self._link.broker.group.committed, sorted(self.assignment())

        def read() -> dict[TopicPartition, int]:
            return {tp: committed.get((tp.topic, tp.partition), 0) for tp in tps}

        return await self._link.request(read, self._connection)

    async def _revoke(self) -> None:
        if self._flow is not None:
            self._flow.cancel()
            await asyncio.gather(self._flow, return_exceptions=True)
            self._flow = None
        await self._commit_acked()

    async def stop(self) -> None:
        """Commit, leave the group, for good."""
        await self._revoke()
        self.partitions = ()
        group, member = self._link.broker.group, self.member
        await self._link.request(lambda: group.leave(member), self._connection, timeout_s=3.0)

    # -- records

    async def _read(self, offsets: dict[TopicPartition, int]) -> None:
        gaps_until = self._link.loop.now + GAPS_S
        while True:
            fetch = Fetch(self._link, offsets, False, self._fetching)
            try:
                found = await fetch.future
            finally:
                fetch.stop()
            queues: list[list[Record]] = []
            for tp, (position, records) in found.items():
                offsets[tp] = position
                if self._link.weather.gaps and self._link.loop.now < gaps_until:
                    self._drop_some(records)
                if records:
                    queues.append(records)
            while queues:
                queue = queues[self._link.rng.randrange(len(queues))] if len(queues) > 1 else queues[0]
                run = 1 + self._link.rng.randrange(4)
                for record in queue[:run]:
                    await self._journals().offer(self._delivery(record))
                del queue[:run]
                queues = [item for item in queues if item]

    def _drop_some(self, records: list[Record]) -> None:
        """Of what was read while a rebalance overlapped with another a piece is lost: from the start, the end, all."""
        rng = self._link.rng
        if records and rng.random() < self._link.weather.gaps:
            first = 0 if rng.random() < 0.5 else rng.randrange(len(records))
            after = len(records) if rng.random() < 0.5 else rng.randint(first, len(records))
            del records[first:after]

    def _delivery(self, record: Record) -> Delivery:
        offsets = self._unacked.setdefault(TopicPartition(record.topic, record.partition), {})
        offsets[record.offset] = False
        return Delivery(record, lambda: self._ack(offsets, record.offset), lambda: self._drop(offsets, record.offset))

    def _ack(self, offsets: dict[int, bool], offset: int) -> None:
        offsets[offset] = True
        if not self._committing:
            self._committing = True
            self._link.loop.call_later(COMMIT_S, self._commit_soon)

    def _drop(self, offsets: dict[int, bool], offset: int) -> None:
        """Nobody waits for it any more; the gap stays, so nothing beyond it is committed."""
        if not offsets.get(offset, True):
            offsets[offset] = False
            offsets[-1] = False

    def _commit_soon(self) -> None:
        self._committing = False
        self._commit_task = asyncio.ensure_future(self._commit_acked(), loop=self._link.loop)

    async def _commit_acked(self) -> None:
        done: dict[TopicPartition, int] = {}
        for tp, offsets in self._unacked.items():
            for offset in [number for number in offsets if number >= 0]:
                if not offsets[offset]:
                    break
                done[tp] = offset + 1
                del offsets[offset]
        if done:
            try:
                await self.commit(done)
            except ClientError:
                return
