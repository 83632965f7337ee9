"""Finding what was saved: read to the end at every question, not in between, and again when the broker was away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, TopicAuthorizationFailedError

from skalds_streams.core.partition import partition_of
from skalds_streams.errors import StateError
from skalds_streams.model.saved import StateKey, StateRecord
from skalds_streams.topics import Topics
from skalds_streams.view import states as states_module
from skalds_streams.view.states import StateReader

pytestmark = pytest.mark.anyio

TOPICS = Topics.named(app="x", partitions=1)


class Broker:
    """The log of task.state, and the consumers that read it."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.connections = 0
        self.open = 0
        self.read = 0
        self.away = 0
        self.error: Exception = KafkaConnectionError()
        self.vanish: int | None = None
        """A record that is compacted away when it is fetched, with a newer one for it."""

    def save(self, task_id: str, epoch: int, value: bytes | None, seq: int = 1) -> None:
        made = StateRecord.of(StateKey(task_id, epoch), value or b"", seq=seq, skald_id="a")
        self.log.append(
            SimpleNamespace(
                topic=TOPICS.state,
                partition=0,
                offset=len(self.log),
                key=made.key.encode(),
                value=value,
                timestamp=0,
                headers=made.headers,
            )
        )

    def consumer(self, client: Any, **more: Any) -> Consumer:
        return Consumer(self)


class Consumer:
    def __init__(self, broker: Broker) -> None:
        self._broker, self._at = broker, 0

    async def start(self) -> None:
        self._broker.open += 1
        if self._broker.away:
            self._broker.away -= 1
            raise self._broker.error
        self._broker.connections += 1

    async def stop(self) -> None:
        self._broker.open -= 1

    def assign(self, tps: Any) -> None:
        self._tp = tps[0]

    def assignment(self) -> Any:
        return ()

    def pause(self, *tps: Any) -> None:
        """Nothing is fetched here anyway."""

    async def end_offsets(self, tps: Any) -> Any:
        return {tps[0]: len(self._broker.log)}

    def seek(self, tp: Any, offset: int) -> None:
        self._at = offset

    async def seek_to_beginning(self, tp: Any) -> None:
        self._at = 0

    async def position(self, tp: Any) -> int:
        return self._at

    async def getmany(self, *tps: Any, timeout_ms: int, max_records: int | None = None) -> Any:
        await asyncio.sleep(0)
        broker = self._broker
        if max_records and self._at == broker.vanish:
            broker.vanish = None
            broker.save("t", 1, b'{"n":"newer"}', seq=9)
            self._at += 1
        found = [item for item in broker.log[self._at :] if item is not None][:max_records]
        if found:
            self._at = found[-1].offset + 1
        broker.read += len(found)
        return {self._tp: found} if found else {}


@asynccontextmanager
async def reading(monkeypatch: pytest.MonkeyPatch, broker: Broker) -> AsyncIterator[StateReader]:
    monkeypatch.setattr(states_module, "log_consumer", broker.consumer)
    monkeypatch.setattr(states_module, "AGAIN_S", 0)
    reader = StateReader(TOPICS, {})
    task = asyncio.create_task(reader.run())
    try:
        async with asyncio.timeout(20):
            yield reader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert broker.open == 0, "no connection is left behind"


async def found(reader: StateReader, task_id: str = "t", first_epoch: int = 0) -> str | None:
    saved = await reader.find(task_id, first_epoch)
    return saved.text if saved is not None else None


async def test_a_question_finds_what_was_written_before_it_and_reads_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = Broker()
    async with reading(monkeypatch, broker) as reader:
        assert await found(reader) is None
        for epoch in range(1, 4):
            broker.save("t", epoch, b'{"n":%d}' % epoch)
            broker.save("other", epoch, b"{}")
            assert await found(reader) == f'{{"n":{epoch}}}'
        assert await found(reader, first_epoch=4) is None
        assert (broker.read, broker.connections) == (6 + 3, 1), "each once, and each answer"
        broker.save("t", 3, None)
        assert await found(reader) == '{"n":2}'


async def test_nothing_is_connected_before_a_question_nor_for_long_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_module, "LINGER_S", 0)
    broker = Broker()
    async with reading(monkeypatch, broker) as reader:
        await asyncio.sleep(0)
        assert broker.connections == 0
        assert await found(reader) is None
        while broker.open:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)
        assert await found(reader) is None
        assert broker.connections == 2


async def test_a_broker_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker()
    broker.away = 3
    broker.save("t", 1, b"{}")
    async with reading(monkeypatch, broker) as reader:
        assert await asyncio.gather(found(reader), found(reader, "other")) == ["{}", None]


async def test_who_may_not_read_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker()
    broker.away, broker.error = 1, TopicAuthorizationFailedError()
    async with reading(monkeypatch, broker) as reader:
        with pytest.raises(StateError, match=r"may not read task\.state"):
            await reader.find("t", 0)
        assert await found(reader) is None, "it has the right now"


async def test_a_record_that_is_replaced_while_it_is_fetched_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = Broker()
    broker.save("t", 1, b"{}")
    broker.vanish = 0
    async with reading(monkeypatch, broker) as reader:
        assert await found(reader) == '{"n":"newer"}'


async def test_a_topic_that_was_made_anew_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker()
    for number in range(5):
        broker.save("t", number, b'{"old":true}')
    async with reading(monkeypatch, broker) as reader:
        assert await found(reader) == '{"old":true}'
        broker.log.clear()
        broker.save("t", 2, b'{"new":true}')
        assert await found(reader) == '{"new":true}'


async def test_who_asks_for_what_can_not_be_read_is_told_and_others_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = Broker()
    broker.save("t", 1, b"\xff")
    broker.save("other", 1, b"{}")
    async with reading(monkeypatch, broker) as reader:
        answers = await asyncio.gather(reader.find("t", 0), found(reader, "other"), return_exceptions=True)
        assert isinstance(answers[0], StateError)
        assert answers[1] == "{}"


async def test_who_does_not_wait_any_more_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker()
    broker.save("t", 1, b"{}")
    async with reading(monkeypatch, broker) as reader:
        gone = asyncio.create_task(reader.find("t", 0))
        await asyncio.sleep(0)
        gone.cancel()
        assert await found(reader) == "{}"
        assert await reader.index(partition_of("t", 1)) is not None
