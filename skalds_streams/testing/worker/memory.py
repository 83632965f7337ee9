"""A host in memory: the worker lives on a thread of the test's process, by a virtual clock.

Rules: to an actor it is what `skald.host.Host` is. It sends what the worker saves when a host would, by the worker's
clock. A stop cancels what is `async`; what is not can't be interrupted here, and after its budgets is given up.
SIGKILL is a loop that never goes on: no handler, no `finally` runs; a thread that is busy then gets `Killed`, and is
left behind when that does not help. There are no limits here: neither `memory_max` nor `stall_s`, nor a lease.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import wait
from contextlib import suppress
from typing import Any

from skalds_streams.skald.exits import ExitInfo
from skalds_streams.skald.host import RunSpec
from skalds_streams.testing.worker.clock import Killed, VirtualClock
from skalds_streams.worker.baseclass import BaseTaskWorker
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.outcome import OWN_FRAME
from skalds_streams.worker.registry import WorkerClass
from skalds_streams.worker.run import Run
from skalds_streams.worker.saving import SAVE_EVERY_S
from skalds_streams.worker.secrets import SecretPolicy, Secrets
from skalds_streams.worker.stall import awaited
from skalds_streams.worker.stopper import Stopper

BUSY_LEAST_S = 2.0
"""Real time that a stop leaves to code that is busy, however short the class's budgets are: machines are slow."""
END_S = 1.0
"""What a killed thread gets to be gone, twice."""
LOOK_S = 0.05


class ThreadStopper(Stopper):
    """A stop without signals: it cancels what the worker's loop awaits."""

    def install(self) -> None:
        """Nothing: the test's signals are its own."""

    def request(self) -> None:
        """Ask for the stop, from any thread."""
        self.requested = True
        self.on_request()
        task = self._task
        if task is not None:
            with suppress(RuntimeError):  # its loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)


class MemoryRun(Run):
    """A run whose loop goes by a virtual clock, and of which nothing runs once it is killed."""

    def __init__(self, *args: Any, clock: VirtualClock, **options: Any) -> None:
        super().__init__(*args, **options)
        self._clock = clock
        self.is_beside = False
        """An update handler waits on main's loop."""
        self.left: list[asyncio.Task[Any]] = []
        """Tasks that never go on. They are kept: what closes them runs their `finally`."""

    @property
    def worker(self) -> BaseTaskWorker[Any] | None:
        """None before it is made."""
        return self._worker

    @property
    def metrics(self) -> dict[str, float | None]:
        """What the worker has set."""
        gauges = self._worker._gauges if self._worker is not None else None
        return gauges.values if gauges is not None else {}

    def bury(self) -> None:
        """Close what was killed, when nobody looks any more."""
        for task in self.left:
            coroutine = task.get_coro()
            if isinstance(coroutine, Coroutine):
                with suppress(BaseException):
                    coroutine.close()
        self.left.clear()

    def _guarded(self, awaitable: Awaitable[Any]) -> Coroutine[Any, Any, None]:
        if self._clock.killed:
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            raise Killed
        return super()._guarded(awaitable)

    def _runner_run(self, coroutine: Any) -> Any:
        if self._runner is None:
            self._runner = asyncio.Runner(loop_factory=self._clock.make_loop)
        return super()._runner_run(coroutine)

    async def _release(self) -> None:
        if not self._clock.killed:
            await super()._release()

    def _log_ignored(self, where: str, error: BaseException) -> None:
        if not self._clock.killed:
            super()._log_ignored(where, error)

    def _close_loop(self) -> None:
        if not self._clock.killed:
            super()._close_loop()
        if self._clock.killed and self._runner is not None:
            loop = self._runner.get_loop()
            self.left += asyncio.all_tasks(loop)
            for task in self.left:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            loop.close()

    def _await_beside_main(self, awaitable: Awaitable[Any]) -> None:
        loop = self._main_loop
        if loop is None:
            super()._await_beside_main(awaitable)
            return
        answer = asyncio.run_coroutine_threadsafe(self._finish_beside(awaitable), loop)
        while not self._clock.killed:
            if wait([answer], LOOK_S).done:
                answer.result()
                return
        raise Killed

    async def _finish_beside(self, awaitable: Awaitable[Any]) -> None:
        self.is_beside = True
        try:
            await awaitable
        finally:
            self.is_beside = False


class MemoryHost:
    """See the module. All methods belong to the test's loop."""

    def __init__(
        self,
        described: WorkerClass,
        policy: SecretPolicy,
        spec: RunSpec,
        on_event: Callable[[Frame], None],
        clock: VirtualClock,
    ) -> None:
        self.steps: list[str] = []
        self.pid = os.getpid()
        self._spec, self._on_event, self._clock = spec, on_event, clock
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[ExitInfo] = self._loop.create_future()
        self._lock = threading.Lock()
        self._closed = False
        self._state_sent: str | None = None
        self._save_lock = threading.Lock()
        self._save_waits, self._save_at = False, clock.now
        """When what waits is due, or the next may go."""
        self._stopper = ThreadStopper()
        self._later: list[asyncio.TimerHandle] = []
        self.run = MemoryRun(
            described,
            spec.frame(),
            send=self._send,
            stopper=self._stopper,
            secrets=Secrets(policy, described.secret),
            on_saved=self._on_saved,
            clock=clock,
        )
        clock.begin()
        clock.on_pause = self._look_at_saved
        self._thread = threading.Thread(target=self._live, name=f"worker {spec.task_id}", daemon=True)

    @property
    def awaited(self) -> list[str]:
        """Where its coroutine waits, innermost first, without our own frames."""
        return [line for line in awaited(self._stopper.guarded) if not OWN_FRAME.match(line)]

    def begin(self) -> None:
        """Let it run."""
        self._thread.start()

    async def update(self, version: int, attachments: dict[str, Any] | None) -> None:
        """Hand new parameters over."""
        self.run.update({"op": "update", "version": version, "attachments": attachments})

    async def last_lines(self) -> list[str]:
        """What it logs goes where the test's logs go."""
        return []

    async def stop(self, _reason: str, *, release_s: float, terminate_s: float) -> ExitInfo:
        """As `Host.stop`; the budgets are virtual seconds while it waits, real ones while it is busy."""
        self._request()
        self._send_saved()
        if not await self._ends_within(release_s):
            self.steps.append(f"SIGTERM after {release_s:g} s")
            self._request()
            if not await self._ends_within(terminate_s):
                self.steps.append(f"SIGKILL after {terminate_s:g} s")
                self.kill()
        return await self.wait_ended()

    async def wait_ended(self) -> ExitInfo:
        """Until its thread is gone, or given up."""
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """As SIGKILL."""
        self._close()
        self._clock.kill()
        if not (self._ended.done() or self._loop.is_closed()):  # its thread says when it is gone
            self._later += [
                self._loop.call_later(END_S, self._interrupt),
                self._loop.call_later(2 * END_S, self._end, ExitInfo.of(signal.SIGKILL)),
            ]

    def abandon(self) -> None:
        """Kill it, for a test whose loop does not run any more."""
        self._close()
        self._clock.kill()
        self._thread.join(END_S)
        if self._thread.is_alive():
            self._interrupt()
            self._thread.join(END_S)
        self.run.bury()

    def _request(self) -> None:
        self._stopper.request()
        self._clock.disturb()

    async def _ends_within(self, seconds: float) -> bool:
        return await self._clock.drive(self._ended.done, seconds, busy_most_s=max(seconds, BUSY_LEAST_S))

    def _interrupt(self) -> None:
        if self._thread.is_alive() and self._thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(Killed))

    def _end(self, info: ExitInfo) -> None:
        for handle in self._later:
            handle.cancel()
        if not self._ended.done():
            self._ended.set_result(info)
        self._clock.tell()

    # -- from any thread

    def _live(self) -> None:
        """The worker's thread."""
        with suppress(Killed):
            last = self.run.execute()
            self._send_saved()
            self._send(last, last=True)
        status = signal.SIGKILL if self._clock.killed else 0
        self._post(self._end, ExitInfo.of(status))

    def _send(self, frame: Frame, *, last: bool = False) -> None:
        with self._lock:
            if not self._closed:
                self._closed = last
                self._post(self._take, frame)

    def _close(self) -> None:
        with self._lock:
            self._closed = True

    def _take(self, frame: Frame) -> None:
        """On the test's loop."""
        self._on_event(frame)
        self._clock.tell()

    def _post(self, callback: Callable[[Any], None], value: Any) -> None:
        with suppress(RuntimeError):  # the test's loop is closed
            self._loop.call_soon_threadsafe(callback, value)

    def _on_saved(self) -> None:
        with self._save_lock:
            if not self._save_waits:
                self._save_waits, self._save_at = True, max(self._save_at, self._clock.now)
        self._look_at_saved()

    def _look_at_saved(self) -> None:
        """Send what is saved if its time has come. It is looked at before the worker goes on, so what is there now is
        what was there then.
        """
        with self._save_lock:
            if self._save_waits and self._clock.now >= self._save_at:
                self._save_waits, self._save_at = False, self._save_at + SAVE_EVERY_S
                self._send_saved()

    def _send_saved(self) -> None:
        state = self.run.saved
        if state is not None and state != self._state_sent:
            self._state_sent = state
            self._send({"op": "saved", "state": state})
