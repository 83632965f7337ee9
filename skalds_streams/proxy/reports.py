"""Sends documents to skald.report, keyed and partitioned by task id:

what skalds report, what coordinators find due and what they forward.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.core.partition import partition_of
from skalds_streams.proxy.client import check_alive, look_at
from skalds_streams.topics import Topics


class ReportSink(Protocol):
    """Takes reports, and returns when they can't be lost any more."""

    async def send_reports(self, docs: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """docs: (task id, document)."""


class ReportSender:
    """`start` before use; `send_reports` returns when the broker has everything.

    Not an idempotent producer: one refused batch would poison it for ever, and it never gives a batch up. A report that
    is written twice changes nothing, as it names its run, or its origin.
    """

    def __init__(self, topics: Topics, client: Mapping[str, Any]) -> None:
        self._topics, self._client = topics, client
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        self._producer = AIOKafkaProducer(**self._client, acks="all", linger_ms=0)
        await self._producer.start()

    async def stop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def send_reports(self, docs: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """docs: (task id, document). Raises aiokafka's errors; KafkaError when it can't send any more."""
        producer = self._producer
        if producer is None:
            raise RuntimeError("the report sender is not started")
        try:
            for future in [await self._send(producer, task_id, doc) for task_id, doc in docs]:
                await future
        except ClientError:
            check_alive(producer)
            raise

    async def _send(self, producer: AIOKafkaProducer, task_id: str, doc: dict[str, Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = await producer.send(
            self._topics.report,
            orjson.dumps(doc),
            key=task_id.encode(),
            partition=partition_of(task_id, self._topics.partitions),
        )
        future.add_done_callback(look_at)  # when one before it fails, this one is not awaited
        return future
