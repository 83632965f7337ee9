"""A reader whose broker is away leaves no client behind, and goes on where it was."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError

from skalds_streams.model.record import Record
from skalds_streams.view import reader as reader_module
from skalds_streams.view.reader import TopicReader

pytestmark = pytest.mark.anyio


class Broker:
    """What there is to read, and the consumers made for it."""

    def __init__(self) -> None:
        self.offsets = [0, 1]
        self.open = 0
        self.refuses = 0
        self.loses = 0

    def consumer(self, client: Any, **more: Any) -> Consumer:
        self.open += 1
        return Consumer(self)


class Consumer:
    def __init__(self, broker: Broker) -> None:
        self._broker, self._at = broker, 0

    async def start(self) -> None:
        if self._broker.refuses:
            self._broker.refuses -= 1
            raise KafkaConnectionError

    async def stop(self) -> None:
        self._broker.open -= 1

    def assign(self, tps: Any) -> None:
        self._tp = tps[0]

    async def end_offsets(self, tps: Any) -> Any:
        return {tps[0]: len(self._broker.offsets)}

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._at = offset

    async def seek_to_beginning(self, tp: TopicPartition) -> None:
        self._at = 0

    async def position(self, tp: TopicPartition) -> int:
        return self._at

    async def getmany(self, timeout_ms: int) -> Any:
        await asyncio.sleep(0)
        if self._at >= len(self._broker.offsets):
            if self._broker.loses:
                self._broker.loses -= 1
                raise KafkaConnectionError
            return {}
        self._at += 1
        return {self._tp: [Record("x", 0, self._at - 1, None, None, 0)]}


async def test_a_reader_goes_on_where_it_was_and_leaves_no_client_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker()
    broker.refuses, broker.loses = 3, 2
    seen: list[int] = []
    monkeypatch.setattr(reader_module, "log_consumer", broker.consumer)
    monkeypatch.setattr(reader_module, "record_of", lambda item: item)
    monkeypatch.setattr(reader_module, "AGAIN_S", 0.0)
    reader = TopicReader("x", 1, {}, lambda records: seen.extend(record.offset for record in records))
    task = asyncio.create_task(reader.run())
    await asyncio.wait_for(reader.caught_up.wait(), 5)
    broker.offsets.append(2)
    for _ in range(1_000):
        if len(seen) == 3 and not broker.loses and broker.open == 1:
            break
        await asyncio.sleep(0)
    assert (seen, broker.loses, broker.open) == ([0, 1, 2], 0, 1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert broker.open == 0
