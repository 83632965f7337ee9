"""Stand-in for aiokafka's consumer, with as much of its manners as our code meets; `_link` among the keyword arguments
says whose it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiokafka import TopicPartition

from skalds_streams.model.record import Record
from skalds_streams.testing.simulator.network import Connection, Link


class Consumer:
    """AIOKafkaConsumer that reads partitions as a log, without a group."""

    def __init__(
        self,
        *,
        _link: Link,
        isolation_level: str = "read_uncommitted",
        fetch_max_wait_ms: int = 0,
        **options: object,
    ) -> None:
        self._link = _link
        self._committed = isolation_level == "read_committed"
        self._coalesce_s = fetch_max_wait_ms / 1000
        self._positions: dict[TopicPartition, int] = {}
        self._connection = Connection()
        self._fetch: Fetch | None = None

    async def start(self) -> None:
        await self._link.connect()

    async def stop(self) -> None:
        self._link.closed.add(self._connection)
        if self._fetch is not None:
            self._fetch.stop()

    def assign(self, tps: Sequence[TopicPartition]) -> None:
        self._positions = dict.fromkeys(tps, 0)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._positions[tp] = offset

    async def seek_to_beginning(self, *tps: TopicPartition) -> None:
        for tp in tps:
            self._positions[tp] = 0

    async def position(self, tp: TopicPartition) -> int:
        return self._positions[tp]

    async def end_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        partitions = self._link.broker.partitions

        def ends() -> dict[TopicPartition, int]:
            return {tp: partitions[tp.topic, tp.partition].end(committed=self._committed) for tp in tps}

        return await self._link.request(ends, self._connection, timeout_s=self._link.rng.uniform(10, 40))

    async def getmany(self, *tps: TopicPartition, timeout_ms: int = 0) -> dict[TopicPartition, list[Record]]:
        """What is new. With a timeout of a second or more: waits for something new, as its callers go on asking.

        A fetch goes on in the background when its caller has stopped waiting.
        """
        if self._fetch is None:
            wanted = {tp: self._positions[tp] for tp in tps or self._positions}
            self._fetch = Fetch(self._link, wanted, self._committed, self._connection, self._coalesce_s)
        if timeout_ms >= 1_000:
            await asyncio.wait({self._fetch.future})
        elif not self._fetch.future.done():
            await asyncio.wait({self._fetch.future}, timeout=timeout_ms / 1000)
            if not self._fetch.future.done():
                return {}
        found, self._fetch = self._fetch.future.result(), None
        for tp, (position, _) in found.items():
            self._positions[tp] = position
        return {tp: records for tp, (_, records) in found.items() if records}


Found = dict[TopicPartition, tuple[int, list[Record]]]


class Fetch:
    """One long poll: (new position, records) of each partition that has moved."""

    def __init__(
        self,
        link: Link,
        positions: dict[TopicPartition, int],
        committed: bool,
        connection: Connection,
        coalesce_s: float = 0.0,
    ) -> None:
        """Begins at once; `future` gets what was found. coalesce_s: longest time that an answer waits for more."""
        self._link, self._positions, self._committed = link, positions, committed
        self._connection, self._coalesce_s = connection, coalesce_s
        self.future: asyncio.Future[Found] = link.loop.create_future()
        self._number = link.broker.number()
        self._look()

    def stop(self) -> None:
        """Nobody waits for it any more."""
        self.future.cancel()
        self._unwatch()

    def _look(self) -> None:
        link = self._link
        if self.future.done() or self._connection in link.closed:
            return
        if not link.reaches:
            link.on_heal[self._number] = self._look
            return
        found = self._collect()
        if not found:
            self._watch()
            return
        delay = link.rng.uniform(0.1, 1.0) * link.weather.usual_s * 2 + link.rng.random() * self._coalesce_s
        if link.weather.slow and link.rng.random() < link.weather.slow / 3:
            delay = link.rng.uniform(0.05, 1.0) * link.weather.slow_s
        if link.deaf_until > link.loop.now and any(tp.topic == link.broker.topics.heartbeat for tp in found):
            delay = max(delay, link.deaf_until - link.loop.now)
        link.loop.call_later(delay, self._give, found, context=link.inside)

    def _collect(self) -> Found:
        found: Found = {}
        for tp, start in self._positions.items():
            partition = self._link.broker.partitions[tp.topic, tp.partition]
            end = partition.end(committed=self._committed)
            if end > start:
                found[tp] = (end, partition.read(start, committed=self._committed))
        return found

    def _give(self, found: Found) -> None:
        """The answer is what there was when it left the broker: a process that was stopped meanwhile sees old news."""
        if self.future.done():
            return
        if self._link.reaches:
            self.future.set_result(found)
        else:
            self._look()

    def _watch(self) -> None:
        for tp in self._positions:
            partition = self._link.broker.partitions[tp.topic, tp.partition]
            partition.watchers[self._number] = self._wake

    def _unwatch(self) -> None:
        self._link.on_heal.pop(self._number, None)
        for tp in self._positions:
            self._link.broker.partitions[tp.topic, tp.partition].watchers.pop(self._number, None)

    def _wake(self) -> None:
        self._unwatch()
        self._look()
