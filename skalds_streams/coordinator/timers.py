"""Writes what is due (Lost, Retry, Found) to skald.report: when membership changes, and every second as a net.

The same thing is not written again while its answer may still be on its way; if it got lost, it is written again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol

import structlog
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.coordinator.journal import Forwarder
from skalds_streams.core.due import RETENTION_MS, Catalogue, Due, Room, find_due, no_catalogue, room_of
from skalds_streams.core.membership import Members
from skalds_streams.core.placement import Load
from skalds_streams.core.row import Row

PERIOD_S = 1.0
SOON_S = 0.2
"""Pause when tasks wait for others to have left a drained skald."""
AGAIN_MS = 5_000
MOST_AT_ONCE = 1_000

log = structlog.get_logger(__name__)


class Decided(Protocol):
    """What the timer looks at: a journal, or what stands for one where there is no Kafka."""

    @property
    def opened(self) -> asyncio.Event:
        """Set while its rows are all there is."""

    @property
    def rows(self) -> Mapping[str, Row]:
        """Its tasks."""

    @property
    def load(self) -> Load:
        """What it has placed."""


class DueTimer:
    """The loop over this process's rows."""

    def __init__(
        self,
        journals: Iterable[Decided],
        members: Members,
        forwarder: Forwarder,
        now_ms: Callable[[], int],
        *,
        retention_ms: int = RETENTION_MS,
        catalogue: Catalogue = no_catalogue,
    ) -> None:
        """retention_ms: how long a row outlives its task's end. catalogue: asked for tasks that only have an id."""
        self._retention_ms, self._catalogue = retention_ms, catalogue
        self._journals, self._members, self._forwarder, self._now_ms = journals, members, forwarder, now_ms
        self._said: dict[tuple[str, str, int, int], int] = {}
        self._wake = asyncio.Event()
        self._held_back = False

    def wake(self) -> None:
        """Membership has changed: look now."""
        self._wake.set()

    async def run(self, is_ready: Callable[[], bool]) -> None:
        """Look for ever. `is_ready`: heartbeats are read to their end, so that nobody is missed."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(SOON_S if self._held_back else PERIOD_S):
                    await self._wake.wait()
            self._wake.clear()
            if not is_ready():
                continue
            try:
                await self._look()
            except (ClientError, TimeoutError, OSError) as error:
                log.warning("timers.not_written", error=repr(error))

    def _due(self, journal: Decided, now_ms: int, room: Room) -> Iterator[Due]:
        rows = list(journal.rows.values())
        return find_due(rows, self._members, journal.load, now_ms, self._retention_ms, room, self._catalogue)

    async def _look(self) -> None:
        now_ms = self._now_ms()
        self._said = {key: at_ms for key, at_ms in self._said.items() if abs(now_ms - at_ms) < AGAIN_MS}
        docs = [(due.task_id, _document(due, now_ms)) for due in islice(self._unsaid(now_ms), MOST_AT_ONCE)]
        if docs:
            await self._forwarder.send_reports(docs)
        if (
            len(docs) == MOST_AT_ONCE
        ):  # a node that died had more tasks than that: they must not wait for the next second
            self._wake.set()

    def _unsaid(self, now_ms: int) -> Iterator[Due]:
        journals = [journal for journal in self._journals if journal.opened.is_set()]
        rows = (row for journal in journals for row in journal.rows.values())
        room = room_of(rows, self._members, [journal.load for journal in journals], now_ms)
        for journal in journals:
            for due in self._due(journal, now_ms, room):
                key = (due.kind, due.task_id, due.epoch, due.attempt + due.revision)
                if key not in self._said:
                    self._said[key] = now_ms
                    yield due
        self._held_back = room.held_back > 0


def _document(due: Due, now_ms: int) -> dict[str, Any]:
    task = {"task": due.task} if due.task is not None else {}
    return {
        **task,
        "v": 1,
        "kind": due.kind,
        "task_id": due.task_id,
        "epoch": due.epoch,
        "incarnation": due.incarnation,
        "attempt": due.attempt,
        "revision": due.revision,
        "deadline_at_ms": due.deadline_at_ms,
        "reason": due.reason,
        "at_ms": now_ms,
    }
