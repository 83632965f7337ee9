"""Writes what is due (Lost, Retry) to skald.report: when membership changes, and every second as a net.

The same thing is not written again while its answer may still be on its way; if it got lost, it is written again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import structlog
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.coordinator.journal import Forwarder, Journal
from skalds_streams.coordinator.journals import Journals
from skalds_streams.core.due import RETENTION_MS, Due, find_due
from skalds_streams.core.membership import Members

PERIOD_S = 1.0
AGAIN_MS = 5_000
MOST_AT_ONCE = 1_000

log = structlog.get_logger(__name__)


class DueTimer:
    """The loop over this process's rows."""

    def __init__(
        self,
        journals: Journals,
        members: Members,
        forwarder: Forwarder,
        now_ms: Callable[[], int],
        *,
        retention_ms: int = RETENTION_MS,
    ) -> None:
        """retention_ms: how long a row outlives its task's end."""
        self._retention_ms = retention_ms
        self._journals, self._members, self._forwarder, self._now_ms = journals, members, forwarder, now_ms
        self._said: dict[tuple[str, str, int, int], int] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Membership has changed: look now."""
        self._wake.set()

    async def run(self, is_ready: Callable[[], bool]) -> None:
        """Look for ever. `is_ready`: heartbeats are read to their end, so that nobody is missed."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S):
                    await self._wake.wait()
            self._wake.clear()
            if not is_ready():
                continue
            try:
                await self._look()
            except (ClientError, TimeoutError, OSError) as error:
                log.warning("timers.not_written", error=repr(error))

    def _due(self, journal: Journal, now_ms: int) -> Iterator[Due]:
        return find_due(list(journal.rows.values()), self._members, journal.load, now_ms, self._retention_ms)

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
        for journal in list(self._journals):
            if not journal.opened.is_set():
                continue
            for due in self._due(journal, now_ms):
                key = (due.kind, due.task_id, due.epoch, due.attempt + due.revision)
                if key not in self._said:
                    self._said[key] = now_ms
                    yield due


def _document(due: Due, now_ms: int) -> dict[str, Any]:
    return {
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
