"""Sends saved states, and their tombstones, to task.state."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.core.partition import partition_of
from skalds_streams.model.saved import StateRecord
from skalds_streams.proxy.client import check_alive
from skalds_streams.topics import Topics


class StateSender:
    """Connects with the first record: where nothing is saved there is no connection.

    Not an idempotent producer, for what `ReportSender` says of them; a state that is written twice is the same state.
    """

    def __init__(self, topics: Topics, client: Mapping[str, Any]) -> None:
        self._topics, self._client = topics, client
        self._producer: AIOKafkaProducer | None = None
        self._lock = asyncio.Lock()

    async def send(self, records: Sequence[StateRecord]) -> list[BaseException | None]:
        """Send them and wait: for each None when the broker has it, else the error. Raises aiokafka's errors when none
        could be sent, KafkaError when it can't send any more.
        """
        producer = await self._started()
        outcome = await asyncio.gather(*(self._send(producer, item) for item in records), return_exceptions=True)
        if any(isinstance(item, ClientError) for item in outcome):
            check_alive(producer)
        return outcome

    async def stop(self) -> None:
        """Let go of the connection."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def _started(self) -> AIOKafkaProducer:
        async with self._lock:
            if self._producer is None:
                producer = AIOKafkaProducer(**self._client, acks="all", linger_ms=0)
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    async def _send(self, producer: AIOKafkaProducer, record: StateRecord) -> None:
        await producer.send_and_wait(
            self._topics.state,
            record.value,
            key=record.key.encode(),
            partition=partition_of(record.key.task_id, self._topics.partitions),
            headers=list(record.headers),
        )
