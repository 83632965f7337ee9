"""What this skald says of its runs, kept in order and sent until the broker has it.

Nothing is dropped: an unsent Stopped would leave a task held for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.proxy.reports import ReportSink

AGAIN_S = 0.5
MOST_AT_ONCE = 500

log = structlog.get_logger(__name__)


class Reporter:
    """A queue before skald.report. Its length is bounded by what runs here: a run says a handful of things."""

    def __init__(self, sender: ReportSink, *, skald_id: str, incarnation: str, now_ms: Callable[[], int]) -> None:
        self._sender, self._skald_id, self._incarnation, self._now_ms = sender, skald_id, incarnation, now_ms
        self._queue: deque[tuple[str, dict[str, Any]]] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def begin_anew(self, incarnation: str) -> None:
        """What is said from now on is said by this incarnation."""
        self._incarnation = incarnation

    def say(self, kind: str, task_id: str, epoch: int, **more: Any) -> None:
        """Queue a report. `more`: version, error, retryable, steps, reason."""
        doc = {
            "v": 1,
            "kind": kind,
            "task_id": task_id,
            "epoch": epoch,
            "skald_id": self._skald_id,
            "incarnation": self._incarnation,
            "at_ms": self._now_ms(),
            **more,
        }
        self._queue.append((task_id, doc))
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled, in order."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch = [self._queue[at] for at in range(min(MOST_AT_ONCE, len(self._queue)))]
                try:
                    await self._sender.send_reports(batch)
                except (ClientError, OSError, TimeoutError) as error:
                    log.warning("reporter.again", waiting=len(self._queue), error=repr(error))
                    await asyncio.sleep(AGAIN_S)
                    continue
                for _ in batch:
                    self._queue.popleft()
            self._idle.set()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything said is with the broker. False after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
