"""Whose time a worker in a test lives by, and how the test moves it.

`drive` is the one way: wait until something is so, and let at most so many seconds pass. By a `RealClock` they pass by
themselves. A `VirtualClock` belongs to a worker on a thread of its own whose event loop (`VirtualLoop`) stands still
whenever nothing is ready; then, and only while a test drives, its time jumps to the next timer. Rules:

- Between two jumps the test looks at its condition, while the worker stands still. So it sees every moment.
- Time does not jump while the worker waits for more than time: while its loop watches a socket or a pipe, or a thread
  works for it (`run_in_executor`). Then it passes as it really does. A jump would time out an answer that is under way.
- Only the loop's clock is virtual: `asyncio.sleep`, `asyncio.timeout`, `loop.time()`. `time.time()` and `time.sleep()`
  are the machine's.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

POLL_S = 0.01
"""How often a condition is looked at that no news tells of."""
SLICE_S = 0.05
"""While time really passes, the worker's clock is set at least so often."""
DRIVE_MOST_S = 60.0
"""Real time that a test waits which does not say how long."""
BUSY_MOST_S = 30.0
"""Real time that a worker may be busy without waiting for anything, before a test that waits gives up."""
ROUNDING_S = 1e-6


class Killed(BaseException):
    """Ends the worker's thread, as SIGKILL ends a process: none of its code runs after it."""


class RealClock:
    """The machine's time, since this object was made."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._began = time.monotonic()

    @property
    def now(self) -> float:
        """In seconds."""
        return time.monotonic() - self._began

    def tell(self) -> None:
        """Something has happened: look at the conditions. On the test's loop."""
        self._news.set()

    async def drive(
        self,
        enough: Callable[[], object],
        within_s: float | None = None,
        *,
        jumps: Callable[[], bool] = lambda: True,
        busy_most_s: float = BUSY_MOST_S,
    ) -> bool:
        """Wait until `enough` says so; False when within_s are over. The other arguments: see `VirtualClock`."""
        del jumps, busy_most_s
        end_at = self.now + (DRIVE_MOST_S if within_s is None else within_s)
        while not enough():
            if self.now >= end_at:
                return False
            await self.wait_for_news()
        return True

    async def wait_for_news(self) -> None:
        """At most POLL_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._news.wait()
        self._news.clear()


@dataclass(frozen=True, slots=True)
class Pause:
    """The worker's loop has nothing ready. `number` tells one pause from the next."""

    number: int
    next_at: float
    """When its next timer is due; infinite for none."""
    flows: bool
    """It waits for more than time."""


class VirtualClock(RealClock):
    """See the module. Made and driven on the test's loop; the worker's thread comes in by `pause`."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._now = 0.0
        self._lock = threading.Lock()
        self._number = 0
        self._paused: Pause | None = None
        self._worker_loop: VirtualLoop | None = None
        self.killed = False
        """Nothing of the worker runs any more."""
        self.on_pause: Callable[[], None] = lambda: None
        """Called in the worker's thread before it waits, and when it goes on."""

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self._now

    def begin(self) -> None:
        """For another run: time goes on where it was."""
        self.killed, self._paused, self._worker_loop = False, None, None

    def make_loop(self) -> VirtualLoop:
        """The loop of the worker's thread."""
        self._worker_loop = VirtualLoop(self)
        return self._worker_loop

    async def drive(
        self,
        enough: Callable[[], object],
        within_s: float | None = None,
        *,
        jumps: Callable[[], bool] = lambda: True,
        busy_most_s: float = BUSY_MOST_S,
    ) -> bool:
        """Wait until `enough` says so; False when so much virtual time is over (None: DRIVE_MOST_S of real time), when
        nothing is left to wait for, or when the worker is busy for busy_most_s of real time. jumps: whether time may
        move now.
        """
        began = busy_since = time.monotonic()
        end_at = math.inf if within_s is None else self.now + within_s
        while not enough():
            if within_s is None and began + DRIVE_MOST_S <= time.monotonic():
                return False
            pause = self._paused
            if pause is not None and jumps():
                busy_since = time.monotonic()
                if self.now >= end_at:
                    return False
                to = min(pause.next_at, end_at)
                if not pause.flows and math.isinf(to):
                    return False
                if not pause.flows:
                    self._jump(pause, to)
            elif busy_since + busy_most_s <= time.monotonic():
                return False
            await self.wait_for_news()
        return True

    def disturb(self) -> None:
        """The worker has been told something: it goes on, and may wait for something else, before time does."""
        with self._lock:
            self._number += 1
        self._paused = None
        self._wake()

    def kill(self) -> None:
        """As soon as the worker waits, or goes on after it has, it ends."""
        self.killed = True
        self._wake()

    def _jump(self, pause: Pause, to: float) -> None:
        """Unless the worker has gone on by itself."""
        self._paused = None
        with self._lock:
            if pause.number != self._number:
                return
            self._now = max(self._now, to)
        self._wake()

    def _wake(self) -> None:
        if self._worker_loop is not None:
            with suppress(RuntimeError):  # it is closed
                self._worker_loop.call_soon_threadsafe(_nothing)

    # -- in the worker's thread

    def pause(self, timeout_s: float | None, flows: bool, wait: Callable[[float | None], Any]) -> Any:
        """Wait for events, for the test to move time, or, when time really passes, for that. What `wait` returns."""
        self.on_pause()
        self._end_if_killed()
        with self._lock:
            self._number += 1
            now = self._now
            pause = Pause(self._number, math.inf if timeout_s is None else now + timeout_s, flows)
        self._post(self._take_pause, pause)
        began = time.monotonic()
        ready = wait(min(SLICE_S, timeout_s or SLICE_S) if flows else None)
        with self._lock:
            self._number += 1
            if flows:
                passed = now + time.monotonic() - began
                self._now = min(max(self._now, passed), pause.next_at)
        self._post(self._end_pause, pause)
        self._end_if_killed()
        self.on_pause()
        return ready

    def _end_if_killed(self) -> None:
        if self.killed:
            raise Killed

    def _post(self, callback: Callable[[Pause], None], pause: Pause) -> None:
        with suppress(RuntimeError):  # the test's loop is closed
            self._loop.call_soon_threadsafe(callback, pause)

    def _take_pause(self, pause: Pause) -> None:
        self._paused = pause
        self.tell()

    def _end_pause(self, pause: Pause) -> None:
        if self._paused is pause:
            self._paused = None


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, by a clock that a test moves."""

    def __init__(self, clock: VirtualClock) -> None:
        self._virtual = clock
        self._at_work = 0
        """Calls that run in threads."""
        super().__init__(_Selector(clock, lambda: self._at_work > 0))
        self._clock_resolution = ROUNDING_S

    def time(self) -> float:
        return self._virtual.now

    def run_in_executor(  # type: ignore[override]  # typeshed's has a type variable for each argument
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        self._at_work += 1
        future.add_done_callback(self._end_work)
        return future

    def _end_work(self, _future: asyncio.Future[Any]) -> None:
        self._at_work -= 1


class _Selector(selectors.EpollSelector):
    """Of a VirtualLoop."""

    def __init__(self, clock: VirtualClock, is_at_work: Callable[[], bool]) -> None:
        super().__init__()
        self._clock, self._is_at_work = clock, is_at_work

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        flows = len(self.get_map()) > 1 or self._is_at_work()  # one is the loop's own, by which threads wake it
        return self._clock.pause(timeout, flows, super().select)


def _nothing() -> None:
    """What a loop is woken with."""
