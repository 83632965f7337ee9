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
        self.brokers = [1, 2, 3]
        self.client = SimpleNamespace(cluster=SimpleNamespace(brokers=lambda: self.brokers))

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


def heart_of(lease: Lease, beat_ms: int = 2_000) -> Heartbeat:
    return Heartbeat(
        TOPICS,
        {},
        skald_id="a",
        incarnation="a1",
        lease=lease,
        beat_ms=beat_ms,
        describe=lambda: {"state": "up"},
        running=lambda: 0,
        seen=lambda: 0,
    )


class Silent(Producer):
    """Connected to a broker that stands still."""

    async def send_and_wait(self, *args: Any, **more: Any) -> None:
        self.sends += 1
        await asyncio.get_running_loop().create_future()


class Taking(Producer):
    """Fails once, then every record is written. `enough`: after four."""

    def __init__(self) -> None:
        super().__init__(KafkaTimeoutError())
        self.enough = asyncio.Event()

    async def send_and_wait(self, *args: Any, **more: Any) -> None:
        if self.sends == 0:
            await super().send_and_wait()
        self.sends += 1
        if self.sends > 4:
            self.enough.set()


async def test_a_beat_that_one_producer_is_not_told_of_is_acknowledged_by_the_other() -> None:
    others = asyncio.all_tasks()
    heart = heart_of(Lease(100, 10), beat_ms=10)
    patient, hasty = Silent(KafkaTimeoutError()), Taking()
    heart._producer, heart._hasty = cast("Any", patient), cast("Any", hasty)
    task = asyncio.create_task(heart.run())
    async with asyncio.timeout(10):
        await hasty.enough.wait()
    assert heart._n >= 3
    assert patient.sends in (heart._n, heart._n + 1)
    task.cancel()
    await asyncio.wait({task})
    assert asyncio.all_tasks() == others, "nothing is sent any more"


async def test_a_broker_that_is_alone_is_asked_by_the_patient_producer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_module, "HASTY_TIMEOUT_BEATS", 0.0)
    monkeypatch.setattr(heartbeat_module, "AGAIN_BEATS", 0.0)
    heart = heart_of(Lease(20_000, 2_000))
    patient, hasty = Producer(KafkaTimeoutError()), Taking()
    hasty.brokers = [1]
    heart._producer, heart._hasty = cast("Any", patient), cast("Any", hasty)
    task = asyncio.create_task(heart.run())
    while patient.sends < 5:  # noqa: ASYNC110  # of a fake that has no event to wait for
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert hasty.sends == 0


async def test_a_slow_broker_has_the_time_of_the_patient_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_module, "HASTY_TIMEOUT_BEATS", 0.0)
    monkeypatch.setattr(heartbeat_module, "AGAIN_BEATS", 0.0)
    heart = heart_of(Lease(20_000, 2_000))
    enough = asyncio.Event()

    class Hasty(Producer):
        async def send_and_wait(self, *args: Any, **more: Any) -> None:
            if self.sends == 3:
                enough.set()
            await super().send_and_wait()

    class Slow(Producer):
        async def send_and_wait(self, *args: Any, **more: Any) -> None:
            await enough.wait()

    heart._producer = cast("Any", Slow(KafkaTimeoutError()))
    heart._hasty = cast("Any", Hasty(KafkaTimeoutError()))
    task = asyncio.create_task(heart.run())
    async with asyncio.timeout(10):
        await heart.first_acknowledged.wait()
    task.cancel()
    await asyncio.wait({task})


async def test_heartbeats_go_on_after_an_outage_and_end_with_their_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_module, "AGAIN_BEATS", 0.0)
    heart = heart_of(Lease(20_000, 2_000))
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


class Overtaken(Producer):
    """Acknowledges when the lease has lapsed, and its owner goes on as another incarnation."""

    def __init__(self, heart: Heartbeat, lease: Lease) -> None:
        super().__init__(KafkaTimeoutError())
        self._heart, self._lease = heart, lease

    async def send_and_wait(self, *args: Any, **more: Any) -> None:
        self.sends += 1
        self._heart.begin_anew("a2")
        self._lease.begin_anew()


async def test_a_last_word_of_a_former_incarnation_renews_no_lease() -> None:
    lease = Lease(20_000, 2_000)
    heart = heart_of(lease)
    producer = Overtaken(heart, lease)
    heart._producer = cast("Any", producer)
    await heart.leave("holding")
    assert (producer.sends, lease.is_valid) == (1, False)
    assert not heart.first_acknowledged.is_set()
