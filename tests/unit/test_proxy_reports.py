"""Reports against a producer that fails: every future is looked at, and a producer that has died ends the process."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError

from skalds_streams.errors import KafkaError
from skalds_streams.proxy.reports import ReportSender
from skalds_streams.skald import heartbeat as heartbeat_module
from skalds_streams.skald.heartbeat import Heartbeat
from skalds_streams.skald.lease import Lease
from skalds_streams.topics import Topics

pytestmark = pytest.mark.anyio

TOPICS = Topics.named(app="x")
DOCS = [("t", {"kind": "Lost"}), ("u", {"kind": "Lost"})]


class Producer:
    def __init__(self, error: Exception) -> None:
        self.error = error
        self.sends = 0
        self._sender = SimpleNamespace(sender_task=None)

    async def send(self, *args: Any, **more: Any) -> asyncio.Future[None]:
        self.sends += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(self.error)
        return future

    async def send_and_wait(self, *args: Any, **more: Any) -> None:
        await (await self.send())


async def dead() -> None:
    raise KafkaConnectionError("Unexpected error during batch delivery")


async def test_every_future_of_a_failed_batch_is_looked_at() -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    sender = ReportSender(TOPICS, {})
    sender._producer = cast("Any", Producer(KafkaTimeoutError()))
    with pytest.raises(KafkaTimeoutError):
        await sender.send_reports(DOCS)
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


async def test_a_sender_that_has_died_is_not_tried_again_for_ever() -> None:
    sender = ReportSender(TOPICS, {})
    producer = Producer(KafkaConnectionError())
    sender._producer = cast("Any", producer)
    producer._sender.sender_task = asyncio.create_task(dead())
    await asyncio.wait({producer._sender.sender_task})
    with pytest.raises(KafkaError, match="sender has died"):
        await sender.send_reports(DOCS)


async def test_heartbeats_go_on_after_an_outage_and_end_with_their_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_module, "AGAIN_BEATS", 0.0)
    heart = Heartbeat(
        TOPICS,
        {},
        skald_id="a",
        incarnation="a1",
        lease=Lease(20_000, 2_000),
        beat_ms=2_000,
        describe=dict,
        running=lambda: 0,
        seen=lambda: 0,
    )
    producer = Producer(KafkaConnectionError())
    heart._producer = cast("Any", producer)
    task = asyncio.create_task(heart.run())
    for _ in range(50):
        await asyncio.sleep(0)
    assert producer.sends > 3
    assert not task.done()
    producer._sender.sender_task = asyncio.create_task(dead())
    with pytest.raises(KafkaError, match="sender has died"):
        await asyncio.wait_for(task, 5)
