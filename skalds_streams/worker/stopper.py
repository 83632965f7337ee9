"""Interrupts user code on the main thread when the run is to stop.

The main thread's user code runs inside `with stopper:` (or as a coroutine through `guard`). A request (SIGTERM from
anyone, or `request()` from the I/O thread, which sends STOP_SIGNAL) then

- raises StopRun in code that is not async,
- cancels the coroutine; a further request raises StopRun there as well.

Outside of such a section a request is only remembered, and the next section does not begin: our own code, which may
be in the middle of a frame, is never interrupted. A second request within REPEAT_S is the same one (systemd signals a
whole control group at once).
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNAL = signal.SIGRTMIN + 4
"""Our own, so that a worker which handles or ignores SIGTERM can still be asked to stop."""
REPEAT_S = 1.0


class StopRun(SystemExit):
    """Raised through user code by a stop. A SystemExit, as upstream's is, and as asyncio lets that through its loop."""


class Stopper:
    """One run's stop. `requested` never goes back to False."""

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        self.requested = False
        self.on_request = on_request
        self._armed = False
        self._task: asyncio.Task[Any] | None = None
        self._interrupted_at: float | None = None

    def install(self) -> None:
        """Take over SIGTERM and STOP_SIGNAL. Main thread only."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(STOP_SIGNAL, self._on_signal)

    def request(self) -> None:
        """Ask for the stop, from any thread."""
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, STOP_SIGNAL)

    def __enter__(self) -> None:
        self._armed = True
        if self.requested:
            self._armed = False
            raise StopRun

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._armed = False

    def disarm(self) -> None:
        """From here on nothing is interrupted. For the one place where StopRun may have left a section half closed."""
        self._armed = False
        self._task = None

    async def guard(self, awaitable: Awaitable[Any]) -> Any:
        """Await it so that a request cancels it. To be run on the main thread's loop."""
        self._task = asyncio.current_task()
        try:
            if self.requested:
                if asyncio.iscoroutine(awaitable):
                    awaitable.close()
                raise asyncio.CancelledError
            return await awaitable
        finally:
            self._task = None

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self.requested = True
        self.on_request()
        now = time.monotonic()
        task = self._task
        if not (self._armed or task):
            return
        first = self._interrupted_at is None
        if self._interrupted_at is not None and now - self._interrupted_at < REPEAT_S:
            return
        self._interrupted_at = now
        if task and first:
            task.get_loop().call_soon_threadsafe(task.cancel)
        else:
            raise StopRun
