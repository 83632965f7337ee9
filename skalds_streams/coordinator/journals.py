"""The journals that this process owns: opened when Faust is given their partitions, closed when it loses them.

Rules: opening is idempotent and side by side; a delivery of a partition that is not ours is dropped, its owner reads
it; one journal that can't go on ends the process with a clear error, the others are closed cleanly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress

import structlog

from skalds_streams.coordinator.journal import Delivery, Journal, JournalContext
from skalds_streams.coordinator.log import PartitionLog
from skalds_streams.core.row import Row

OPEN_WAIT_S = 5.0
"""How long a rebalance waits for journals to open; later they go on in the background."""

log = structlog.get_logger(__name__)


class Journals:
    """All journals of one process, by partition number."""

    def __init__(
        self,
        context: JournalContext,
        new_log: Callable[[int], PartitionLog],
        on_fatal: Callable[[BaseException], object],
    ) -> None:
        self._context, self._new_log, self._on_fatal = context, new_log, on_fatal
        self._journals: dict[int, Journal] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._told = False

    # -- what Faust says

    async def own(self, partitions: Collection[int]) -> None:
        """These partitions, and no others, are ours. Waits at most OPEN_WAIT_S for new journals to open."""
        over = [p for p in self._journals if p not in partitions or self._tasks[p].done()]
        await asyncio.gather(*(self._close(partition) for partition in over))
        for partition in partitions:
            if partition not in self._journals:
                self._begin(partition)
        opening = [asyncio.ensure_future(journal.opened.wait()) for journal in self._journals.values()]
        if opening:
            _, late = await asyncio.wait(opening, timeout=OPEN_WAIT_S)
            for waiting in late:
                waiting.cancel()
            if late:
                log.warning(
                    "journals.open_late", partitions=[p for p, j in self._journals.items() if not j.opened.is_set()]
                )
        self._told = True

    async def close(self) -> None:
        await self.own(())

    def _begin(self, partition: int) -> None:
        journal = Journal(partition, self._new_log(partition), self._context)
        self._journals[partition] = journal
        self._tasks[partition] = asyncio.create_task(self._run(journal), name=f"journal-{partition}")

    async def _run(self, journal: Journal) -> None:
        try:
            await journal.run()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # the edge: what ends a journal ends the process
            log.error("journal.failed", partition=journal.partition, error=str(error))
            self._on_fatal(error)
        finally:
            journal.opened.clear()

    async def _close(self, partition: int) -> None:
        journal, task = self._journals.pop(partition), self._tasks.pop(partition)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await journal.close()

    # -- what agents bring

    async def offer(self, delivery: Delivery) -> None:
        journal = self._journals.get(delivery.record.partition)
        if journal is not None:
            await journal.offer(delivery)
        else:
            delivery.drop()

    # -- what others read

    def __iter__(self) -> Iterator[Journal]:
        return iter(self._journals.values())

    def get(self, partition: int) -> Journal | None:
        return self._journals.get(partition)

    @property
    def partitions(self) -> frozenset[int]:
        return frozenset(self._journals)

    @property
    def all_open(self) -> bool:
        """Whether the group has told us what is ours, and all of it is open."""
        return self._told and all(journal.opened.is_set() for journal in self._journals.values())

    def row(self, partition: int, task_id: str) -> Row | None:
        journal = self._journals.get(partition)
        return journal.rows.get(task_id) if journal is not None else None

    def rows(self) -> Iterator[Row]:
        for journal in list(self._journals.values()):
            yield from list(journal.rows.values())

    def end_offset(self, partition: int) -> int | None:
        """Offset after the last record of the changelog as it was when the journal opened;

        None while it is not open.
        """
        journal = self._journals.get(partition)
        return journal.end_offset if journal is not None and journal.opened.is_set() else None
