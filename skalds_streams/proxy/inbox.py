"""Reads the topics of a KafkaConfig, in the background loop, and hands the records out in small batches.

Rules: at most TAKE_MAX records are held; with a group, offsets are committed every 5 s for what was handed out, as
upstream's consumer does. What callers see is in `kafka`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import anyio
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError as ClientError
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from skalds_streams.errors import KafkaError
from skalds_streams.proxy.connection import JOIN_TRY_S, KafkaConfig, close_consumer, error_text, insist, open_consumer

TAKE_MAX = 500


@dataclass(frozen=True, slots=True)
class ConsumedRecord:
    """One record as read. `timestamp`: ms since the epoch, the broker's for a topic with LogAppendTime."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int


class Inbox:
    """`run` it in the loop first, then `take` there. `obstacle`: why there is no connection yet, or ""."""

    def __init__(self, config: KafkaConfig) -> None:
        self.obstacle = ""
        self._config = config
        self._consumer: AIOKafkaConsumer | None = None
        self._ready = asyncio.Event()

    async def wait_connected(self) -> None:
        """Return once the positions of all assigned partitions are known."""
        await self._ready.wait()

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Keep a consumer open until cancelled."""
        task_status.started()
        self._consumer = await insist(self._config, open_consumer, JOIN_TRY_S, self._note)
        try:
            self.obstacle = ""
            self._ready.set()
            await anyio.sleep_forever()
        finally:
            await close_consumer(self._consumer)

    async def take(self, wait_s: float) -> Sequence[ConsumedRecord]:
        """The next records in order of each partition, at most TAKE_MAX; none if none came within `wait_s` seconds.

        Raises KafkaError for what the broker refuses.
        """
        with anyio.move_on_after(wait_s):
            await self._ready.wait()
        if self._consumer is None or not self._ready.is_set():
            return []
        try:
            batches = await self._consumer.getmany(timeout_ms=int(wait_s * 1000), max_records=TAKE_MAX)
        except ClientError as error:
            raise KafkaError(f"reading {self._config.consume_topic_list}: {error_text(error)}") from error
        return [
            ConsumedRecord(item.topic, item.partition, item.offset, item.key, item.value, item.timestamp)
            for batch in batches.values()
            for item in batch
        ]

    def _note(self, obstacle: str) -> None:
        self.obstacle = obstacle
