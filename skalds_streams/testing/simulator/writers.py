"""Stand-in for aiokafka's producer, with as much of their manners as our code meets.

A transactional producer never gives a batch up and goes on in the background when its caller does; a plain one asks
again until its time is over, so a record may be there twice, or be there after KafkaTimeoutError. `_link` among the
keyword arguments says whose it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka.errors import OutOfOrderSequenceNumber, ProducerFenced

from skalds_streams.coordinator.batch import Output
from skalds_streams.testing.simulator.machines import LeaseWatch
from skalds_streams.testing.simulator.network import Connection, Link
from skalds_streams.testing.simulator.storage import size_of


class Batch:
    """What `create_batch` gives."""

    def __init__(self, most_bytes: int) -> None:
        self.outputs: list[tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]] = []
        self._left = most_bytes

    def append(
        self,
        *,
        key: bytes | None,
        value: bytes | None,
        timestamp: int | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> object | None:
        size = size_of(Output("", key, value, tuple(headers)))
        if size > self._left and self.outputs:
            return None
        self._left -= size
        self.outputs.append((key, value, tuple(headers)))
        return self

    def close(self) -> None:
        """Nothing more is put in."""


class Sender:
    """A producer's sender: our code asks whether it has died. Here it never does."""

    sender_task: asyncio.Task[None] | None = None


class Metadata:
    """What a producer knows of the cluster: a broker that is alone."""

    def brokers(self) -> tuple[str]:
        """The brokers."""
        return ("the only one",)


class Client:
    """A producer's client."""

    cluster = Metadata()


class Producer:
    """AIOKafkaProducer."""

    client = Client()

    def __init__(
        self,
        *,
        _link: Link,
        transactional_id: str | None = None,
        request_timeout_ms: int = 40_000,
        transaction_timeout_ms: int = 60_000,
        max_batch_size: int | None = None,
        **options: object,
    ) -> None:
        self._link, self._id = _link, transactional_id
        self._timeout_s = request_timeout_ms / 1000
        self._transaction_s = transaction_timeout_ms / 1000
        self._most_bytes = _link.most_bytes(max_batch_size)
        self._connection, self._coordinator = Connection(), Connection()
        self._waiting: dict[tuple[str, int], list[tuple[Output, float, asyncio.Future[Any]]]] = {}
        self._busy: set[tuple[str, int]] = set()
        self._epoch: int | None = None
        self._sequence = 0
        self._pending: list[asyncio.Future[Any]] = []
        self._sent: dict[tuple[str, int], asyncio.Future[Any]] = {}
        """The last batch of each partition."""
        self._fenced = False
        self._ends_asked = 0
        self._sender = Sender()

    async def start(self) -> None:
        await self._link.connect()

    async def stop(self) -> None:
        self._link.closed.update((self._connection, self._coordinator))

    # -- plain: one request in flight a partition, what is sent meanwhile goes into the batches after it

    async def send(self, topic: str, value: bytes, key: bytes | None = None, partition: int = 0) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._link.loop.create_future()
        if topic == self._link.broker.topics.heartbeat and self._link.watch is not None:
            future.add_done_callback(self._beaten(self._link.watch))
        waiting = self._waiting.setdefault((topic, partition), [])
        waiting.append((Output(topic, key, value), self._link.loop.now + self._timeout_s, future))
        if (topic, partition) not in self._busy:
            self._busy.add((topic, partition))
            self._link.loop.call_soon(self._flush, topic, partition)
        return future

    async def send_and_wait(self, topic: str, value: bytes, key: bytes | None = None, partition: int = 0) -> None:
        await (await self.send(topic, value, key=key, partition=partition))

    def _beaten(self, watch: LeaseWatch) -> Callable[[asyncio.Future[Any]], None]:
        """Takes note when a heartbeat is acknowledged that is sent now."""
        sent_ms = watch.now_ms()

        def settled(done: asyncio.Future[Any]) -> None:
            if not done.cancelled() and done.exception() is None:
                watch.acknowledged(sent_ms)

        return settled

    def _flush(self, topic: str, partition: int) -> None:
        waiting = self._waiting[topic, partition]
        if not waiting:
            self._busy.discard((topic, partition))
            return
        taken, left = 0, self._most_bytes
        while taken < len(waiting) and (taken == 0 or len(waiting[taken][0].value or b"") <= left):
            left -= len(waiting[taken][0].value or b"")
            taken += 1
        batch = waiting[:taken]
        del waiting[:taken]
        broker = self._link.broker

        def append() -> None:
            broker.check_size([output for output, _, _ in batch])
            for output, _, _ in batch:
                broker.append(topic, partition, output)

        timeout_s = batch[0][1] - self._link.loop.now
        request = self._link.request(append, self._connection, timeout_s=timeout_s)
        request.add_done_callback(lambda done: self._flushed(done, [item[2] for item in batch], topic, partition))

    def _flushed(
        self, done: asyncio.Future[None], futures: list[asyncio.Future[Any]], topic: str, partition: int
    ) -> None:
        if done.cancelled():
            return
        error = done.exception()
        for future in futures:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
                future.exception()
        self._flush(topic, partition)

    # -- transactions

    async def begin_transaction(self) -> None:
        self._check()
        if self._epoch is None:
            self._check_conduct()
            broker, name, wait_s = self._link.broker, str(self._id), self._transaction_s
            _, self._epoch = await self._link.request(lambda: broker.init_producer(name, wait_s), self._coordinator)
        self._pending = []

    async def abort_transaction(self) -> None:
        if self._pending:
            await self._end(commit=False)

    async def commit_transaction(self) -> None:
        self._check()
        if self._pending:
            await asyncio.gather(*self._pending)
            await self._end(commit=True)

    async def _end(self, *, commit: bool) -> None:
        broker, name, epoch = self._link.broker, str(self._id), self._epoch or 0
        ending = self._link.request(
            lambda: broker.end_transaction(name, epoch, commit=commit), self._coordinator, on_attempt=self._note_ending
        )
        try:
            await asyncio.shield(ending)
        except ProducerFenced:
            self._note_fenced()
            raise
        self._pending = []

    def _note_ending(self) -> None:
        self._ends_asked += 1

    def count_commits(self) -> Callable[[], int]:
        """Stands in for the function of this name, which counts what aiokafka does."""
        return lambda: self._ends_asked

    def create_batch(self) -> Batch:
        return Batch(self._most_bytes)

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> asyncio.Future[Any]:
        self._check()
        self._sequence += 1
        broker, name, epoch, sequence = self._link.broker, str(self._id), self._epoch or 0, self._sequence
        outputs = [Output(topic, key, value, headers) for key, value, headers in batch.outputs]

        def produce() -> int:
            broker.check_size(outputs)
            return broker.produce(name, epoch, topic, partition, outputs, sequence)

        former = self._sent.get((topic, partition))
        future: asyncio.Future[Any] = self._link.loop.create_future()
        self._sent[topic, partition] = future
        if former is None or former.done():
            self._send_after(former, produce, future)
        else:
            former.add_done_callback(lambda done: self._send_after(done, produce, future))
        future.add_done_callback(self._watch)
        self._pending.append(future)
        return future

    def _send_after(
        self, former: asyncio.Future[Any] | None, produce: Callable[[], int], future: asyncio.Future[Any]
    ) -> None:
        """One request in flight a partition. After one that was refused the broker misses its sequence number."""
        if future.done() or (former is not None and former.cancelled()):
            return
        if former is not None and former.exception() is not None:
            future.set_exception(OutOfOrderSequenceNumber())
            future.exception()
            return
        request = self._link.request(produce, self._connection)
        request.add_done_callback(lambda done: _hand_on(done, future))

    def _watch(self, done: asyncio.Future[Any]) -> None:
        if not done.cancelled() and isinstance(done.exception(), ProducerFenced):
            self._note_fenced()

    def _note_fenced(self) -> None:
        self._fenced = True
        self._link.fenced_at[self._partition] = self._link.loop.now

    @property
    def _partition(self) -> int:
        return int(str(self._id).rpartition("-")[2])

    def _check_conduct(self) -> None:
        """One that was fenced opens again only when the group has said since that the partition is its own."""
        fenced, asked = (at.get(self._partition, -1.0) for at in (self._link.fenced_at, self._link.asked_at))
        if fenced > asked:
            self._link.broker.complain("asks before it opens again", f"{self._id}, fenced at {fenced:.3f}")

    def _check(self) -> None:
        if self._fenced:
            raise ProducerFenced


def _hand_on(done: asyncio.Future[Any], future: asyncio.Future[Any]) -> None:
    if done.cancelled() or future.done():
        return
    error = done.exception()
    if error is None:
        future.set_result(done.result())
    else:
        future.set_exception(error)
        future.exception()
