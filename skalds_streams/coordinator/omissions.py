"""Finds what has come to an input but was not delivered, where nothing comes after it that would tell.

Beside the journals' turns, so that no command waits for a look; one question a process, over a connection that stays.
What is not delivered yet at a look may be on its way: it is read only when the next one finds the input silent still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.coordinator.journal import Journal
from skalds_streams.proxy.client import log_consumer

SILENT_S = 5.0
"""An input that is silent for so long is looked at: whether there is more of it than came."""
TICK_S = 1.0

log = structlog.get_logger(__name__)


class InputWatch:
    """Looks at the inputs of all open journals of a process."""

    def __init__(
        self,
        journals: Iterable[Journal],
        client: Mapping[str, Any],
        *,
        silent_s: float = SILENT_S,
        tick_s: float = TICK_S,
    ) -> None:
        self._journals, self._client = journals, client
        self._silent_s, self._tick_s = silent_s, tick_s
        self._consumer: AIOKafkaConsumer | None = None
        self._asked_at: dict[TopicPartition, float] = {}

    async def run(self) -> None:
        """Look until cancelled. A broker that is away is asked again after SILENT_S."""
        behind: Mapping[TopicPartition, int] = {}
        try:
            while True:
                await asyncio.sleep(self._tick_s)
                try:
                    await self._recover(behind)
                    behind = await self._behind()
                except (ClientError, TimeoutError, OSError) as error:
                    log.debug("inputs.not_looked", error=repr(error))
                    behind = {}
                    await self._close()
        finally:
            await self._close()

    async def _recover(self, behind: Mapping[TopicPartition, int]) -> None:
        for tp, journal in self._silent().items():
            if tp in behind:
                await journal.recover(tp.topic, behind[tp])

    async def _behind(self) -> dict[TopicPartition, int]:
        """Inputs that hold more than was applied → offset after their last record."""
        now = asyncio.get_running_loop().time()
        silent = self._silent()
        self._asked_at = {tp: at for tp, at in self._asked_at.items() if tp in silent and now - at < self._silent_s}
        asked = [tp for tp in silent if tp not in self._asked_at]
        if not asked:
            return {}
        self._asked_at |= dict.fromkeys(asked, now)
        ends = await self._ends(asked)
        return {tp: end for tp, end in ends.items() if silent[tp].lacks(tp.topic, end)}

    def _silent(self) -> dict[TopicPartition, Journal]:
        return {
            TopicPartition(topic, journal.partition): journal
            for journal in self._journals
            for topic in journal.silent_inputs(self._silent_s)
        }

    async def _ends(self, tps: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        if self._consumer is None:
            self._consumer = log_consumer(self._client, committed=False)
            await self._consumer.start()
        ends: Mapping[TopicPartition, int] = await self._consumer.end_offsets(tps)
        return ends

    async def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with suppress(ClientError, OSError):
                await consumer.stop()
