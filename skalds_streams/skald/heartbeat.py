"""Sends this skald's heartbeats: the next one `beat_ms` after the last was acknowledged, never sooner, by producers of
its own.

The whole document goes out on change, every FULL_EVERY_MS, and always while this process does not take part; a short
one otherwise. A beat whose fate is unknown is sent again under the same number.

Two producers: a patient one, so that a slow broker has the time it needs, and where there are several brokers a hasty
one beside it, for a beat that is not acknowledged soon. To a broker that stands still one connects as to any, and
aiokafka finds out by the timeout of a request only, first of the leader, then once more when it asks just that broker
who leads now: 3 s each when one is patient, which is too much of a lease when the others took 12 s to elect a leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.core.membership import WAITING
from skalds_streams.proxy.client import brokers_known, check_alive, look_at
from skalds_streams.skald.lease import Lease, boottime_ms
from skalds_streams.topics import Topics

FULL_EVERY_MS = 30_000
REQUEST_TIMEOUT_BEATS = 1.5
HASTY_TIMEOUT_BEATS = 0.5
"""Also how long the patient producer is alone at work on a beat."""
AGAIN_BEATS = 0.25

log = structlog.get_logger(__name__)


class Heartbeat:
    """`run` beats until cancelled; `leave` says that every worker here is gone."""

    def __init__(
        self,
        topics: Topics,
        client: Mapping[str, Any],
        *,
        skald_id: str,
        incarnation: str,
        lease: Lease,
        beat_ms: int,
        describe: Callable[[], dict[str, Any]],
        running: Callable[[], int],
        seen: Callable[[], int],
    ) -> None:
        """describe: the long-lived part of the document; running: units of capacity in use; seen: last beat read."""
        self._topics = topics
        self._client = dict(client)
        self._skald_id, self._incarnation, self._lease, self._beat_ms = skald_id, incarnation, lease, beat_ms
        self._describe, self._running, self._seen = describe, running, seen
        self._producer: AIOKafkaProducer | None = None
        self._hasty: AIOKafkaProducer | None = None
        self._failing = False
        """Whether the last beat was not acknowledged."""
        self._n = 0
        self._told: dict[str, Any] | None = None
        self._told_at_ms = 0
        self.first_acknowledged = asyncio.Event()

    async def start(self) -> None:
        self._producer = self._made(REQUEST_TIMEOUT_BEATS)
        await self._producer.start()
        self._hasty = self._made(HASTY_TIMEOUT_BEATS)
        await self._hasty.start()

    def _made(self, timeout_beats: float) -> AIOKafkaProducer:
        timeout_ms = int(timeout_beats * self._beat_ms)
        return AIOKafkaProducer(**{**self._client, "request_timeout_ms": timeout_ms}, acks="all", linger_ms=0)

    async def stop(self) -> None:
        producers, self._producer, self._hasty = (self._producer, self._hasty), None, None
        for producer in producers:
            if producer is not None:
                await producer.stop()

    async def run(self) -> None:
        self._failing = False
        while True:
            try:
                await self._beat(self._describe())
                self._failing = False
            except (ClientError, OSError, TimeoutError) as error:
                if not self._failing:
                    log.warning("heartbeat.not_acknowledged", error=repr(error))
                self._failing = True
                if self._producer is not None:
                    check_alive(self._producer)
                await asyncio.sleep(AGAIN_BEATS * self._beat_ms / 1000)
                continue
            await asyncio.sleep(self._beat_ms / 1000)

    def begin_anew(self, incarnation: str) -> None:
        """Beat for a new incarnation from now on. Only while `run` does not run."""
        self._incarnation, self._n, self._told = incarnation, 0, None
        self.first_acknowledged.clear()

    async def leave(self, state: str, timeout_s: float = 3.0) -> None:
        """Say `leaving` or `holding`: sent after the last host was reaped, so this incarnation is dead at once.

        Given up after `timeout_s`.
        """
        with suppress(ClientError, OSError, TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._beat({**self._describe(), "state": state})

    async def _beat(self, described: dict[str, Any]) -> None:
        doc: dict[str, Any] = {
            "v": 1,
            "skald_id": self._skald_id,
            "incarnation": self._incarnation,
            "n": self._n + 1,
            "seen": self._seen(),
            "running": self._running(),
        }
        now_ms = boottime_ms()
        self._lease.tried(now_ms)
        # Who begins to read in the middle must know who waits, and which lease it has.
        full = described != self._told or now_ms - self._told_at_ms >= FULL_EVERY_MS or described["state"] == WAITING
        if full:
            doc |= described
        await self._append(orjson.dumps(doc))
        if doc["incarnation"] != self._incarnation:  # it was a last word, and its lease has lapsed meanwhile
            return
        self._n += 1
        self._lease.renew(now_ms)
        self.first_acknowledged.set()
        if full:
            self._told, self._told_at_ms = described, now_ms

    async def _append(self, beat: bytes) -> None:
        """Returns when one of the producers was told that the beat is written. The other may write it once more.

        Raises what the patient one met.
        """
        if self._producer is None:
            raise RuntimeError("the heartbeat is not started")
        patient = asyncio.create_task(self._send(self._producer, beat))
        tries = {patient}
        try:
            if not self._failing:
                await asyncio.wait(tries, timeout=HASTY_TIMEOUT_BEATS * self._beat_ms / 1000)
            if self._hasty is not None and not patient.done() and brokers_known(self._hasty) > 1:
                tries.add(asyncio.create_task(self._insist(self._hasty, beat)))
            ended, _ = await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
            min(ended, key=lambda task: task.exception() is not None).result()
        finally:
            for task in tries:
                task.cancel()
            await asyncio.wait(tries)
            for task in tries:
                look_at(task)

    async def _insist(self, producer: AIOKafkaProducer, beat: bytes) -> None:
        while True:
            try:
                return await self._send(producer, beat)
            except (ClientError, OSError, TimeoutError):
                check_alive(producer)
            await asyncio.sleep(AGAIN_BEATS * self._beat_ms / 1000)

    async def _send(self, producer: AIOKafkaProducer, beat: bytes) -> None:
        await producer.send_and_wait(self._topics.heartbeat, beat, key=self._skald_id.encode(), partition=0)
