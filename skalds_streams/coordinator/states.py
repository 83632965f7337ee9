"""Deletes what was saved and can never count again: of tasks that are forgotten, of former assigns, and what a later
run has replaced. Each coordinator for its own partitions.

Rules: level, not edge: whoever comes next finds what one before left over. A key of task.state is deleted for ever: the
rows are read to their end after the states, so a task whose state was seen is in them, unless it is forgotten; a run
that comes later has another key. A coordinator that wakes up after hours with old news deletes nothing that counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice

import structlog
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.model.saved import StateRecord
from skalds_streams.proxy.states import StateSender
from skalds_streams.view.cluster import ClusterView
from skalds_streams.view.states import StateReader

SWEEP_MS = 600_000
"""Time between two looks, or as much sooner as rows are forgotten sooner."""
MOST_AT_ONCE = 1_000

log = structlog.get_logger(__name__)


class StateSweeper:
    """See the module."""

    def __init__(
        self,
        view: ClusterView,
        reader: StateReader,
        sender: StateSender,
        partitions: Callable[[], Iterable[int]],
        *,
        retention_ms: int,
    ) -> None:
        """partitions: those that this process coordinates now; retention_ms: how long a row outlives its task's end."""
        self._view, self._reader, self._sender, self._partitions = view, reader, sender, partitions
        self._sweep_s = min(SWEEP_MS, retention_ms) / 1000

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._sweep_s)
            await self._view.wait_caught_up()
            for partition in sorted(self._partitions()):
                try:
                    await self.sweep(partition)
                except (ClientError, OSError, TimeoutError) as error:
                    log.warning("states.not_swept", partition=partition, error=repr(error))

    async def sweep(self, partition: int) -> int:
        """Look at one partition; returns how many keys were deleted. Raises what sending raises."""
        index = await self._reader.index(partition)
        suspects = set(islice(index.garbage(self._view.rows), MOST_AT_ONCE))
        if not suspects:
            return 0
        await self._view.read_rows()
        keys = [key for key in index.garbage(self._view.rows) if key in suspects]
        for error in await self._sender.send([StateRecord(key, None) for key in keys]):
            if error is not None:
                raise error
        log.info("states.swept", partition=partition, keys=len(keys))
        return len(keys)
