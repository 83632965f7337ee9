"""The journals that this process owns: opened when Faust is given their partitions, closed when it loses them.

Rules: opening is idempotent and side by side; a delivery of a partition that is not ours is dropped, its owner reads
it; one journal that can't go on ends the process with a clear error, the others are closed cleanly. When the topics
have another number of partitions than they must have, none goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator

import structlog

from skalds_streams.coordinator.journal import Delivery, Journal, JournalContext
from skalds_streams.coordinator.log import PartitionLog
from skalds_streams.core.row import Row
from skalds_streams.errors import TopicResizedError
from skalds_streams.proxy.partition_count import BEGIN_AFRESH

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
        self._closing: set[asyncio.Task[None]] = set()
        self._told = False
        self._halted = False

    # -- what Faust says

    async def own(self, partitions: Collection[int]) -> None:
        """These partitions, and no others, are ours. Waits at most OPEN_WAIT_S for new journals to open."""
        count = self._context.topics.partitions
        if any(partition >= count for partition in partitions):
            self.halt(
                TopicResizedError(
                    f"partition {max(partitions)} of an input was given to this node, but there must be only {count}"
                    f" (from 0): this node decides nothing any more and ends. {BEGIN_AFRESH}"
                )
            )
        if self._halted:
            partitions = ()
        for partition in [p for p in self._journals if p not in partitions or self._tasks[p].done()]:
            self._end(partition)
        for partition in partitions:
            if partition in self._journals:
                self._journals[partition].confirm()
            else:
                self._begin(partition)
        self._told = True
        await self._wait_open()

    async def _wait_open(self) -> None:
        """No heartbeat is sent to the group meanwhile, so what takes longer goes on in the background."""
        opening = [asyncio.ensure_future(journal.opened.wait()) for journal in self._journals.values()]
        try:
            if opening:
                await asyncio.wait(opening, timeout=OPEN_WAIT_S)
        finally:
            for waiting in opening:
                waiting.cancel()
        late = [partition for partition, journal in self._journals.items() if not journal.opened.is_set()]
        if late:
            log.warning("journals.open_late", partitions=late)

    def halt(self, error: TopicResizedError) -> None:
        """Decide nothing any more, whatever the group says, and end the process."""
        if self._halted:
            return
        self._halted = True
        log.error("journals.halted", error=str(error))
        for partition in list(self._journals):
            self._end(partition)
        self._on_fatal(error)

    async def close(self) -> None:
        """Let go of all; returns when every writer is stopped."""
        await self.own(())
        if self._closing:
            await asyncio.wait(self._closing)

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
            if isinstance(error, TopicResizedError):
                self.halt(error)
            else:
                self._on_fatal(error)
        finally:
            journal.opened.clear()

    def _end(self, partition: int) -> None:
        """Nothing of it is taken or served from here on. Stopping its writer takes time, which nobody waits for: a
        successor fences it.
        """
        journal, task = self._journals.pop(partition), self._tasks.pop(partition)
        task.cancel()
        journal.give_up()
        closing = asyncio.create_task(_close(journal, task), name=f"closing-{partition}")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

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
        return self._told and not self._halted and all(journal.opened.is_set() for journal in self._journals.values())

    def row(self, partition: int, task_id: str) -> Row | None:
        journal = self._journals.get(partition)
        return journal.rows.get(task_id) if journal is not None and journal.opened.is_set() else None

    def rows(self) -> Iterator[Row]:
        for journal in list(self._journals.values()):
            if journal.opened.is_set():
                yield from list(journal.rows.values())

    def next_offset(self, topic: str, partition: int) -> int | None:
        """Offset of the first record of an input that is not applied yet; None while the journal is not open."""
        journal = self._journals.get(partition)
        if journal is None or not journal.opened.is_set():
            return None
        return journal.next_offset(topic)

    def end_offset(self, partition: int) -> int | None:
        """Offset after the last record of the changelog as it was when the journal opened;

        None while it is not open.
        """
        journal = self._journals.get(partition)
        return journal.end_offset if journal is not None and journal.opened.is_set() else None


async def _close(journal: Journal, task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})
    await journal.close()
