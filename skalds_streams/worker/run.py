"""One run that has the process for itself: the worker's methods are called on the main thread, `async` ones on a loop
of their own there. A stop is a signal.

What does not live here: the order of the methods (`life`), runs that share a loop (`shared_run`).
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from skalds_streams.worker import outcome
from skalds_streams.worker.baseclass import BaseTaskWorker
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.life import LOOSE_TASKS_S, UPDATES_PENDING_MAX, Life
from skalds_streams.worker.registry import WorkerClass
from skalds_streams.worker.stall import StallWatch, awaited
from skalds_streams.worker.stopper import REPEAT_MAX_S, Stopper

T = TypeVar("T")


class Run(Life):
    """One run of one worker. `execute` on the main thread, `update` from any."""

    def __init__(
        self,
        worker_class: WorkerClass,
        frame: Frame,
        *,
        send: Callable[[Frame], None],
        stopper: Stopper,
        watch: StallWatch | None = None,
        **options: Any,
    ) -> None:
        """See `Life`."""
        super().__init__(worker_class, frame, send=send, stopper=stopper, watch=watch, **options)
        self._stall_watch = watch
        self._runner: asyncio.Runner | None = None
        self._main_loop: asyncio.AbstractEventLoop | None = None
        self._main_over = False
        self._updates: queue.Queue[Frame | None] = queue.Queue(UPDATES_PENDING_MAX)
        # The SIGTERM that follows a stop comes after release_s: it must count as a second request.
        stopper.repeat_s = min(REPEAT_MAX_S, 0.9 * worker_class.release_s)

    def execute(self) -> Frame:
        """Run it all. Main thread only."""
        return _driven(self.live())

    def update(self, frame: Frame) -> None:
        """Take new parameters; answered by "applied" or "refused" once main has begun."""
        self._enqueue(frame)

    def stalled(self) -> dict[str, Any]:
        """Main is stuck: the error document that says where. Not from the main thread."""
        assert self._stall_watch is not None
        dump = self._stall_watch.take_down()
        return outcome.stalled(self._stall_watch.stall_s, dump, awaited(self._stopper.guarded))

    def _enqueue(self, frame: Frame | None) -> None:
        while True:
            try:
                self._updates.put_nowait(frame)
                return
            except queue.Full:
                with suppress(queue.Empty):
                    self._updates.get_nowait()

    async def _outcome_of(self, awaitable: Awaitable[Any] | None) -> BaseException | None:
        if awaitable is None:
            return None
        try:
            self._runner_run(self._guarded(awaitable))
        except asyncio.CancelledError as error:
            return error
        return None

    async def _guarded(self, awaitable: Awaitable[Any]) -> None:
        self._main_loop = asyncio.get_running_loop()
        try:
            await self._stopper.guard(awaitable)
        finally:
            self._main_loop = None

    def _runner_run(self, coroutine: Any) -> Any:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(coroutine)

    async def _await_release(self, awaitable: Awaitable[Any]) -> None:
        self._runner_run(_finish(awaitable))

    async def _end_what_is_left(self, _last: Frame) -> None:
        self._close_loop()
        if self._worker is not None:
            if self._worker._children is not None:
                self._worker._children.end()
            if self._worker._gauges is not None:
                self._worker._gauges.end()

    def _close_loop(self) -> None:
        """Let tasks that an async worker left behind run their cleanup, for a limited time."""
        if self._runner is None:
            return
        try:
            self._runner.run(_cancel_loose_tasks())
        except BaseException as error:  # noqa: BLE001  # user code may raise anything
            self._log_ignored("tasks left behind", error)
        # Not Runner.close(): that waits, without a limit, for threads that asyncio.to_thread started.
        self._runner.get_loop().close()

    def _begin_updates(self, worker: BaseTaskWorker[Any]) -> None:
        threading.Thread(target=self._apply_updates, args=(worker,), name="updates", daemon=True).start()

    def _end_updates(self) -> None:
        self._main_over = True
        self._enqueue(None)

    def _apply_updates(self, worker: BaseTaskWorker[Any]) -> None:
        """The updates' own thread: one after the other, beside main."""
        while not self._main_over:
            frame = self._updates.get()
            if frame is None:
                return
            self._send(_driven(self._apply(worker, frame)))

    async def _await_beside(self, awaitable: Awaitable[Any]) -> None:
        self._await_beside_main(awaitable)

    def _await_beside_main(self, awaitable: Awaitable[Any]) -> None:
        """On the worker's loop while main runs there, else on a loop of its own."""
        loop = self._main_loop
        if loop is None:
            asyncio.run(_finish(awaitable))
        else:
            asyncio.run_coroutine_threadsafe(_finish(awaitable), loop).result()


def _driven(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that waits for nothing by itself: here all its waiting is done by a loop within it."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("a run of its own waits for no loop")


async def _finish(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def _cancel_loose_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=LOOSE_TASKS_S)
    await asyncio.get_running_loop().shutdown_asyncgens()
