"""What the workers here save is written: the last state, in order, again after an error, and before the end is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError, NotLeaderForPartitionError

from skalds_streams.model.saved import StateRecord
from skalds_streams.skald import states as states_module
from skalds_streams.skald.states import States, StateStatistics

pytestmark = pytest.mark.anyio


class Sender:
    """A broker that takes what the test lets it take."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, bytes, bytes]]] = []
        self.outcomes: list[BaseException | None] = []
        self.unreachable = 0
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, records: Sequence[StateRecord]) -> list[BaseException | None]:
        await self.open.wait()
        if self.unreachable:
            self.unreachable -= 1
            raise KafkaConnectionError
        told = [(item.key.encode().decode(), item.value or b"", dict(item.headers)["seq"]) for item in records]
        self.batches.append(told)
        return [self.outcomes.pop(0) if self.outcomes else None for _ in records]


@asynccontextmanager
async def writing(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[States, Sender]]:
    monkeypatch.setattr(states_module, "AGAIN_S", 0)
    sender = Sender()
    states = States(cast("Any", None), cast("Any", sender), skald_id="a")
    task = asyncio.create_task(states.run())
    try:
        yield states, sender
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)


async def test_of_several_states_the_last_is_written_while_one_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async with writing(monkeypatch) as (states, sender):
        sender.open.clear()
        states.save("t", 5, '{"n":0}')
        await until(lambda: not states._wake.is_set())
        for number in range(1, 10):
            states.save("t", 5, f'{{"n":{number}}}')
        sender.open.set()
        assert await states.flush("t", 20)
        assert sender.batches == [[("t@5", b'{"n":0}', b"1")], [("t@5", b'{"n":9}', b"10")]]


async def test_flush_waits_for_the_broker_and_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    async with writing(monkeypatch) as (states, sender):
        assert await states.flush("t", 0.001), "nothing waits"
        sender.open.clear()
        states.save("t", 5, "{}")
        states.save("other", 1, "{}")
        assert not await states.flush("t", 0.001)
        assert not await states.flush(None, 0.001)
        assert states.statistics == StateStatistics(not_written=1), "one run has ended without"
        sender.open.set()
        assert await states.flush(None, 20)


@pytest.mark.parametrize("by", ["none sent", "one refused"])
async def test_after_an_error_it_is_tried_again(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    async with writing(monkeypatch) as (states, sender):
        if by == "none sent":
            sender.unreachable = 3
        else:
            sender.outcomes = [None, NotLeaderForPartitionError()]
        states.save("t", 5, "{}")
        states.save("u", 5, '{"u":1}')
        assert await states.flush(None, 20)
        assert sender.batches[-1][-1] == ("u@5", b'{"u":1}', b"1")
        assert len([item for batch in sender.batches for item in batch if item[0] == "t@5"]) == 1, "it was taken"
        assert states.statistics == StateStatistics(), "nothing is lost"


async def test_what_will_never_be_taken_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async with writing(monkeypatch) as (states, sender):
        sender.outcomes = [MessageSizeTooLargeError()]
        states.save("t", 5, "{}")
        assert await states.flush("t", 20)
        states.save("t", 5, "x" * 70_000)
        assert await states.flush("t", 0.001), "the SDK refuses it, so it was no worker of ours"
        assert len(sender.batches) == 1
        assert states.statistics == StateStatistics(lost=2)


async def test_a_run_that_goes_on_under_another_epoch_saves_under_that(monkeypatch: pytest.MonkeyPatch) -> None:
    async with writing(monkeypatch) as (states, sender):
        for epoch in (5, 6):
            states.save("t", epoch, "{}")
            assert await states.flush("t", 20)
        assert [item[0][0] for item in sender.batches] == ["t@5", "t@6"]
        assert [item[0][2] for item in sender.batches] == [b"1", b"1"]
