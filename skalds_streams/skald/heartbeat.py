"""Sends this skald's heartbeats: the next one `beat_ms` after the last was acknowledged, never sooner, by a producer of
its own.

The whole document goes out on change, every FULL_EVERY_MS, and always while this process does not take part; a short
one otherwise. A beat whose fate is unknown is
sent again under the same number.
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
from skalds_streams.proxy.client import check_alive
from skalds_streams.skald.lease import Lease, boottime_ms
from skalds_streams.topics import Topics

FULL_EVERY_MS = 30_000
REQUEST_TIMEOUT_BEATS = 1.5
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
        self._client = {**client, "request_timeout_ms": int(REQUEST_TIMEOUT_BEATS * beat_ms)}
        self._skald_id, self._incarnation, self._lease, self._beat_ms = skald_id, incarnation, lease, beat_ms
        self._describe, self._running, self._seen = describe, running, seen
        self._producer: AIOKafkaProducer | None = None
        self._n = 0
        self._told: dict[str, Any] | None = None
        self._told_at_ms = 0
        self.first_acknowledged = asyncio.Event()

    async def start(self) -> None:
        self._producer = AIOKafkaProducer(**self._client, acks="all", linger_ms=0)
        await self._producer.start()

    async def stop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def run(self) -> None:
        failing = False
        while True:
            try:
                await self._beat(self._describe())
                failing = False
            except (ClientError, OSError, TimeoutError) as error:
                if not failing:
                    log.warning("heartbeat.not_acknowledged", error=repr(error))
                failing = True
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
        if self._producer is None:
            raise RuntimeError("the heartbeat is not started")
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
        await self._producer.send_and_wait(
            self._topics.heartbeat, orjson.dumps(doc), key=self._skald_id.encode(), partition=0
        )
        self._n += 1
        self._lease.renew(now_ms)
        self.first_acknowledged.set()
        if full:
            self._told, self._told_at_ms = described, now_ms
