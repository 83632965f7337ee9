"""Reads whole topics from their beginning, for ever, with a consumer of its own and no group.

After an error of the client the reader starts over where it was; what it delivered is never delivered twice in one
life.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.model.record import Record
from skalds_streams.proxy.client import log_consumer, record_of

AGAIN_S = 1.0
POLL_MS = 1_000

log = structlog.get_logger(__name__)


class TopicReader:
    """Hands every committed record of some partitions to `on_records`, in offset order within a partition."""

    def __init__(
        self,
        topic: str,
        partitions: int,
        client: Mapping[str, Any],
        on_records: Callable[[Sequence[Record]], object],
        *,
        coalesce_ms: int = 0,
    ) -> None:
        """coalesce_ms: wait up to this long for more records before a fetch returns; 0 returns the first at once."""
        self._tps = [TopicPartition(topic, number) for number in range(partitions)]
        self._client, self._on_records = dict(client), on_records
        if coalesce_ms:
            self._client |= {"fetch_min_bytes": 1_000_000, "fetch_max_wait_ms": coalesce_ms}
        self._next: dict[TopicPartition, int] = {}
        self._consumer: AIOKafkaConsumer | None = None
        self._delivered = asyncio.Event()
        self.caught_up = asyncio.Event()
        """Set once everything that was there at the start has been delivered."""

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            try:
                await self._read()
            except (ClientError, OSError, TimeoutError) as error:
                log.warning("reader.again", topic=self._tps[0].topic, error=repr(error))
                await asyncio.sleep(AGAIN_S)

    async def read_on(self) -> None:
        """Return when everything that is there now has been delivered; as long as no broker answers it does not."""
        await self.caught_up.wait()
        ends: Mapping[TopicPartition, int] | None = None
        while True:
            self._delivered.clear()
            try:
                if self._consumer is not None:
                    ends = ends or await self._consumer.end_offsets(self._tps)
                    if self._consumer is not None and await self._reached(self._consumer, ends):
                        return
            except (ClientError, OSError, TimeoutError) as error:
                log.warning("reader.end_not_known", topic=self._tps[0].topic, error=repr(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self._delivered.wait()

    async def _read(self) -> None:
        consumer = log_consumer(self._client)
        try:
            await consumer.start()
            consumer.assign(self._tps)
            self._consumer = consumer
            ends = await consumer.end_offsets(self._tps)
            for tp in self._tps:
                if tp in self._next:
                    consumer.seek(tp, self._next[tp])
                else:
                    await consumer.seek_to_beginning(tp)
            while True:
                if not self.caught_up.is_set() and await self._reached(consumer, ends):
                    self.caught_up.set()
                wait_ms = POLL_MS if self.caught_up.is_set() else 20
                for tp, records in (await consumer.getmany(timeout_ms=wait_ms)).items():
                    self._on_records([record_of(item) for item in records])
                    self._next[tp] = records[-1].offset + 1
                self._delivered.set()
        finally:
            self._consumer = None
            await consumer.stop()

    async def _reached(self, consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> bool:
        for tp, end in ends.items():
            if await consumer.position(tp) < end:
                return False
        return True
