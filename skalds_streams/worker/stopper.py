"""Interrupts user code on the main thread when the run is to stop.

The main thread's user code runs inside `with stopper:` (or as a coroutine through `guard`). A request (SIGTERM from
anyone, or `request()` from the I/O thread, which sends STOP_SIGNAL) then

- raises StopRun in code that is not async,
- cancels the coroutine; a further request raises StopRun there as well.

Outside of such a section a request is only remembered, and the next section does not begin: our own code, which may
be in the middle of a frame, is never interrupted. A second request within repeat_s is the same one (systemd signals a
whole control group at once).

A signal that arrives when the main thread is just about to block is delivered and yet interrupts nothing: Python runs
handlers only between two instructions. So the I/O thread calls `nudge` until the handler has run.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNAL = signal.SIGRTMIN + 4
"""Our own, so that a worker which handles or ignores SIGTERM can still be asked to stop."""
REPEAT_MAX_S = 1.0
NUDGE_S = 0.02


class StopRun(SystemExit):
    """Raised through user code by a stop. A SystemExit, as upstream's is, and as asyncio lets that through its loop."""


class Stopper:
    """One run's stop. `requested` never goes back to False."""

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        self.requested = False
        self.on_request = on_request
        self.repeat_s = REPEAT_MAX_S
        self._armed = False
        self._task: asyncio.Task[Any] | None = None
        self._interrupted_at: float | None = None
        self._handled = 0
        self._unhandled_since: int | None = None
        self._signalled_at = 0.0
        self._wakeup: socket.socket | None = None

    def install(self) -> None:
        """Take over SIGTERM and STOP_SIGNAL. Main thread only."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(STOP_SIGNAL, self._on_signal)

    def uninstall(self) -> None:
        """Let the signals mean again what they mean anywhere, unless user code has its own handlers by now."""
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGTERM, STOP_SIGNAL):
            if signal.getsignal(signum) == self._on_signal:
                signal.signal(signum, signal.SIG_DFL)

    def open_wakeup(self) -> socket.socket:
        """Readable when a signal has arrived: call `nudge` then. Kept open for the process's life."""
        self._wakeup, self._wakeup_end = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_end.fileno(), warn_on_full_buffer=False)
        return self._wakeup

    def request(self) -> None:
        """Ask for the stop, from any thread."""
        self._unhandled_since = self._handled
        self._signal_main_thread()

    def nudge(self) -> float | None:
        """See to it that the handler runs; I/O thread only. To be called again after so many seconds, or a wakeup."""
        arrived = self._drain_wakeup()
        if self._unhandled_since is None and arrived:
            self._unhandled_since = self._handled
            self._signalled_at = time.monotonic()
        if self._unhandled_since is None:
            return None
        if self._handled > self._unhandled_since:
            self._unhandled_since = None
            return None
        if time.monotonic() - self._signalled_at >= NUDGE_S:
            self._signal_main_thread()
        return NUDGE_S

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

    def begin_guard(self) -> None:
        """What the current task awaits is interrupted by a request, until `disarm`."""
        self._task = asyncio.current_task()

    async def guard(self, awaitable: Awaitable[Any]) -> Any:
        """Await it so that a request cancels it. To be run on the main thread's loop."""
        self.begin_guard()
        try:
            if self.requested:
                if asyncio.iscoroutine(awaitable):
                    awaitable.close()
                raise asyncio.CancelledError
            return await awaitable
        finally:
            self._task = None

    @property
    def guarded(self) -> Coroutine[Any, Any, Any] | None:
        """What `guard` awaits now, from the task's own coroutine on; None when it awaits nothing."""
        task = self._task
        coroutine = task.get_coro() if task is not None else None
        return coroutine if isinstance(coroutine, Coroutine) else None

    def _drain_wakeup(self) -> bool:
        """Whether one of our signals has arrived, and is still ours to handle."""
        if self._wakeup is None:
            return False
        with suppress(BlockingIOError):
            numbers = self._wakeup.recv(4096)
            return any(signal.getsignal(number) == self._on_signal for number in numbers)
        return False

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self._handled += 1
        self._drain_wakeup()
        self.requested = True
        self.on_request()
        now = time.monotonic()
        task = self._task
        if not (self._armed or task):
            return
        first = self._interrupted_at is None
        if self._interrupted_at is not None and now - self._interrupted_at < self.repeat_s:
            return
        self._interrupted_at = now
        if task and first:
            task.get_loop().call_soon_threadsafe(task.cancel)
        else:
            raise StopRun

    def _signal_main_thread(self) -> None:
        self._signalled_at = time.monotonic()
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, STOP_SIGNAL)
