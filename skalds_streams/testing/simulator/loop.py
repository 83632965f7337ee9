"""An event loop on virtual time. All processes of a world share it; each callback belongs to one of them.

Rules: ready callbacks run in the order in which they became ready; when none is, time jumps to the next timer; nothing
reads a real clock. A paused process's callbacks and timers wait until it is resumed; a killed one's never run again,
and its tasks are kept (not collected) until the world ends, so that no finaliser runs at a moment of the collector's
choice. Each process has a clock that may be fast or slow (`rates`): `time`, `call_at` and `call_later` go by it, `now`
and `at` by the world's own.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

WORLD = 0
"""Owner of what belongs to no process: the broker, the network, the hosts."""
OWNER: ContextVar[int] = ContextVar("simulated process", default=WORLD)
PRUNE_AT = 512
EVENTS_MOST = 400_000
ROUNDING_S = 1e-9
"""So that the moment in which a timer fires is never before the one that it was set to, by a clock that drifts."""


class Handle:
    """A callback that is due now, or at `at`."""

    __slots__ = ("args", "at", "callback", "context", "gone", "number", "owner")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Context) -> None:
        self.callback, self.args, self.context = callback, args, context
        self.owner = context.get(OWNER, WORLD)
        self.gone = False
        self.at = 0.0
        self.number = 0

    def cancel(self) -> None:
        self.gone = True

    def cancelled(self) -> bool:
        return self.gone

    def when(self) -> float:
        return self.at

    def __lt__(self, other: Handle) -> bool:
        return (self.at, self.number) < (other.at, other.number)


class VirtualLoop(asyncio.AbstractEventLoop):
    """See the module. `advance` is the only way to make it run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        """Callbacks run so far."""
        self.events_most = EVENTS_MOST
        """After so many it halts, also in one moment that does not end."""
        self.errors: list[str] = []
        self.halted = False
        """Set by a rule that was broken: nothing runs any more."""
        self.rates: dict[int, float] = {}
        """Owner → seconds of its clock in one of the world's; 1 for who is not in it."""
        self._ready: deque[Handle] = deque()
        self._timers: list[Handle] = []
        self._numbers = 0
        self._paused: dict[int, list[Handle]] = {}
        self._killed: set[int] = set()
        self._buried: list[Handle] = []
        """Callbacks of killed processes: without them their tasks could not even be cancelled when the world ends."""
        self._doomed: dict[int, tuple[int, Callable[[], None]]] = {}
        self._tasks: list[asyncio.Task[Any]] = []
        self._prune_at = PRUNE_AT
        self._closing = False

    # -- running

    def advance(self, until: float, enough: Callable[[], bool] | None = None) -> None:
        """Run what is due until virtual time `until`, or until `enough` says so (asked whenever nothing is ready)."""
        former = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            while True:
                while self._ready and not self.halted:
                    self._run(self._ready.popleft())
                if self.halted or (enough is not None and enough()):
                    return
                if not self._timers or self._timers[0].at > until:
                    self.now = max(self.now, until)
                    return
                self.now = max(self.now, self._timers[0].at)
                while self._timers and self._timers[0].at <= self.now:
                    self._ready.append(heapq.heappop(self._timers))
        finally:
            asyncio._set_running_loop(former)

    def _run(self, handle: Handle) -> None:
        if handle.gone:
            return
        if not self._closing:
            if handle.owner in self._killed:
                self._buried.append(handle)
                return
            if handle.owner in self._paused:
                self._paused[handle.owner].append(handle)
                return
        if self._doomed and handle.owner in self._doomed:
            self._approach(handle.owner)
        self.events += 1
        if self.events > self.events_most and not self._closing:
            self.halted = True
        try:
            handle.context.run(handle.callback, *handle.args)
        except Exception as error:  # noqa: BLE001  # the edge of every callback; the world's rules read `errors`
            self.errors.append(f"{handle.callback!r}: {error!r}")

    def after(self, owner: int, callbacks: int, then: Callable[[], None]) -> None:
        """Do something between two callbacks of a process, which may be due at the same time."""
        self._doomed[owner] = (callbacks, then)

    def _approach(self, owner: int) -> None:
        left, then = self._doomed.pop(owner)
        if left > 0:
            self._doomed[owner] = (left - 1, then)
        else:
            self.call_later(0.0, then, context=Context())

    def pause(self, owner: int) -> None:
        """SIGSTOP."""
        self._paused.setdefault(owner, [])

    def resume(self, owner: int) -> None:
        """SIGCONT: what became due meanwhile is due now, in the order in which it became so."""
        self._ready.extend(self._paused.pop(owner, ()))

    def kill(self, owner: int) -> None:
        """SIGKILL."""
        self._killed.add(owner)
        self._buried += self._paused.pop(owner, ())

    def dispose(self, rounds: int = 20) -> None:
        """End of the world: cancel every task, killed processes' too, and let them unwind."""
        self._closing, self.halted = True, False
        for owner in sorted(self._paused):
            self.resume(owner)
        self._ready.extend(self._buried)
        self.advance(self.now)  # a task that never began can't be cancelled without a warning of the interpreter
        for _ in range(rounds):
            pending = [task for task in self._tasks if not task.done()]
            if not pending:
                break
            for task in pending:
                task.cancel()
            self.advance(self.now + 30.0)
        self._ready.clear()
        self._timers.clear()
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.clear()

    # -- what asyncio asks of a loop

    def time(self) -> float:
        return self.now * self.rates.get(OWNER.get(), 1.0) if self.rates else self.now

    def call_soon(  # type: ignore[override]  # our own, lighter handle
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        handle = Handle(callback, args, context if context is not None else copy_context())
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        if self.rates:
            delay /= self._rate(context)
        return self.at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        if self.rates:
            when = when / self._rate(context) + ROUNDING_S
        return self.at(when, callback, *args, context=context)

    def _rate(self, context: Context | None) -> float:
        return self.rates.get(OWNER.get() if context is None else context.get(OWNER, WORLD), 1.0)

    def at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:
        """`call_at` by the world's clock."""
        handle = Handle(callback, args, context if context is not None else copy_context())
        self._numbers += 1
        handle.at, handle.number = when, self._numbers
        heapq.heappush(self._timers, handle)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        if len(self._tasks) > self._prune_at:
            self._tasks = [item for item in self._tasks if not item.done()]
            self._prune_at = max(PRUNE_AT, 2 * len(self._tasks))
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """No threads: the function runs now. One that gives a coroutine stands for a function that blocks."""
        result = func(*args)
        if asyncio.iscoroutine(result):
            return self.create_task(result)
        future = self.create_future()
        future.set_result(result)
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What was never retrieved is found by the collector at no fixed moment, so it is no part of a world."""

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """See `call_exception_handler`."""
