"""One of many runs in a process: its worker lives in tasks on the loop of all of them.

Rules: main and every other method are on the loop; what is not `async` holds up the others while it lasts. A stop
cancels the task that is in a method of the worker. The run is over only when all its tasks are done, its calls in
threads have returned, and the programs that it has spawned are gone, with their process groups: until then another run
of the same task must not begin. Nothing here waits without an end but for that; the skald counts the time.

What does not live here: the order of the methods (`life`), the process and the socket (`shared`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, TypeVar

from skalds_streams.worker import outcome
from skalds_streams.worker.baseclass import BaseTaskWorker
from skalds_streams.worker.children import Children
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.life import LOOSE_TASKS_S, UPDATES_PENDING_MAX, Life
from skalds_streams.worker.registry import WorkerClass
from skalds_streams.worker.secrets import Secrets
from skalds_streams.worker.stall import Watch, awaited
from skalds_streams.worker.steps import CURRENT
from skalds_streams.worker.stopper import Stopper
from skalds_streams.worker.text_pipe import TextPipe

T = TypeVar("T")

END_POLL_S = 0.005
END_POLL_MAX_S = 0.1


class Nothing:
    """To be awaited by who has nothing to wait for."""

    def __await__(self) -> Generator[Any, Any, None]:
        yield from ()


NOTHING = Nothing()


class LoopStopper(Stopper):
    """A stop without signals. On the loop."""

    def __init__(self) -> None:
        """Without what only signals need."""
        self.requested = False
        self.on_request: Callable[[], None]
        self._armed = False
        self._task: asyncio.Task[Any] | None = None

    def install(self) -> None:
        """Nothing: signals are the host's."""

    def request(self) -> None:
        """Cancel what is guarded now; what comes later does not begin."""
        self.requested = True
        self.on_request()
        if self._task is not None:
            self._task.cancel()


class SharedRun(Life):
    """See the module. All methods belong to the loop, but for those that say otherwise."""

    _posting = threading.RLock()
    """Of all runs: an older state must not come after a newer one, and nothing after the end."""

    def __init__(
        self,
        worker_class: WorkerClass,
        frame: Frame,
        *,
        send: Callable[[Frame], None],
        secrets: Secrets,
        ring: Callable[[SharedRun], None],
        output: TextPipe | None,
    ) -> None:
        """ring: told, from any thread, that there is something to `post`. output: takes what it prints."""
        watch = Watch(worker_class.stall_s) if worker_class.stall_s > 0 else None
        super().__init__(
            worker_class,
            frame,
            send=self.say,
            stopper=LoopStopper(),
            secrets=secrets,
            watch=watch,
            on_saved=self._on_news,
        )
        self.number: int = frame["number"]
        """By which the skald knows it."""
        self.task_id: str = frame["task_id"]
        self.output = output
        self.clean = secrets.clean
        self.watch = watch
        self.stall_error: dict[str, Any] | None = None
        """It is known to be stuck."""
        self.tasks: set[asyncio.Task[Any]] | None = None
        """What its worker has begun on the loop and is not done; None when it never has."""
        self._is_own = False
        self._say, self._ring = send, ring
        self._rung = False
        self._state_sent: str | None = None
        self._updates: list[Frame] = []
        self._updating: asyncio.Task[None] | None = None
        self._is_main_there = False
        self._exit: BaseException | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._calls = 0
        self._is_over = False
        self._context = copy_context()
        self._context.run(CURRENT.set, self)

    def begin(self, on_end: Callable[[SharedRun, Frame], None]) -> None:
        """Let it live. on_end: gets its last frame when nothing of it is left."""
        self._on_end = on_end
        self._task = self._create_task(self.live())
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Frame]) -> None:
        with self._posting:
            self.post()
            self._is_over = True
        if task.cancelled() or (error := task.exception()) is not None:  # a defect of ours: the run has an end, too
            text = "cancelled" if task.cancelled() else repr(error)
            last: Frame = {"op": "failed", "error": outcome.simple("HostError", text), "retryable": True}
        else:
            last = task.result()
        if last["op"] == "stopped" and self.stall_error is not None:
            last = {"op": "failed", "error": self.stall_error, "retryable": True}
        self._on_end(self, last)

    def stop(self) -> None:
        """Ask it to end; asked again, what swallowed the first cancellation is cancelled once more."""
        self._stopper.request()

    def update(self, frame: Frame) -> None:
        """Take new parameters; answered by "applied" or "refused" once main has begun."""
        self._updates = [*self._updates, frame][-UPDATES_PENDING_MAX:]
        self._look_at_updates()

    def leave(self, error: BaseException) -> None:
        """A task of it wants the process to end: it is the run that does."""
        self._exit = self._exit or error
        if self._stopper._task is not None:
            self._stopper._task.cancel()

    @property
    def context(self) -> Context:
        """In which what is called is known to be its own."""
        return self._context

    @property
    def waits_at(self) -> list[str]:
        """Where main waits, innermost first. From any thread."""
        return awaited(self._stopper.guarded)

    def stalled(self, dump: str) -> dict[str, Any]:
        """Main is stuck: the error document that says where. dump: of all threads, "" if it is in none."""
        assert self.watch is not None
        self.watch.end()
        self.stall_error = outcome.stalled(self.watch.stall_s, dump, self.waits_at)
        return self.stall_error

    def note(self, task: asyncio.Task[Any]) -> None:
        """A task is made in its name."""
        if self._is_own:
            return
        if self.tasks is None:
            self.tasks = set()
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # -- from any thread

    def say(self, frame: Frame) -> None:
        """Send a frame; nothing when it is over."""
        with self._posting:
            if not self._is_over:
                self._say(frame)

    def post(self) -> None:
        """Send the numbers and the state that were set last, if they are not sent yet."""
        self._rung = False
        worker = self._worker
        if worker is None:
            return
        with self._posting:
            if worker._gauges is not None:
                worker._gauges.flush()
            state = worker._saved
            if state is not None and state != self._state_sent:
                self._state_sent = state
                self._send({"op": "saved", "state": state})

    def call(self, func: Callable[..., Any], *args: Any) -> Any:
        """In a thread: a call of this run."""
        if self._is_over:
            raise CancelledError
        with self._posting:
            self._calls += 1
        try:
            return self._context.copy().run(func, *args)
        finally:
            with self._posting:
                self._calls -= 1

    def threads(self) -> ThreadPoolExecutor:
        """Its own."""
        self._threads = self._threads or ThreadPoolExecutor(thread_name_prefix=self.task_id)
        return self._threads

    def _on_news(self) -> None:
        if not self._rung:
            self._rung = True
            self._ring(self)

    # -- what `Life` asks for

    def _equip(self, worker: BaseTaskWorker[Any]) -> None:
        worker._attach(self._send, self._on_news)
        worker._output_fd = self.output.fd if self.output is not None else None

    def _outcome_of(self, awaitable: Awaitable[Any] | None) -> Awaitable[BaseException | None]:
        # No coroutine: what a worker waits in for days should not be deeper than it must.
        return NOTHING if awaitable is None else self._beside_this(_guarded_outcome(self._stopper, awaitable))

    def _settle(self, error: BaseException | None) -> None:
        if self._exit is not None and not self._stopper.requested:
            raise self._exit
        super()._settle(error)

    def _beside_this(self, coroutine: Coroutine[Any, Any, BaseException | None]) -> asyncio.Task[BaseException | None]:
        """In a task of its own, so that a cancellation is the worker's alone; what it raises is its result."""
        return self._create_task(coroutine)

    def _create_task(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """One of ours, which is known to end before the run does."""
        self._is_own = True
        try:
            return asyncio.get_running_loop().create_task(coroutine, context=self._context)
        finally:
            self._is_own = False

    async def _await_beside(self, awaitable: Awaitable[Any]) -> None:
        await awaitable

    async def _await_release(self, awaitable: Awaitable[Any]) -> None:
        error = await self._beside_this(_outcome(awaitable))
        if error is not None:
            raise error

    def _begin_updates(self, _worker: BaseTaskWorker[Any]) -> None:
        self._is_main_there = True
        self._look_at_updates()

    def _look_at_updates(self) -> None:
        if self._is_main_there and self._updates and self._updating is None:
            loop = asyncio.get_running_loop()
            self._updating = loop.create_task(self._apply_updates(), context=self._context)

    async def _apply_updates(self) -> None:
        """One after the other, beside main."""
        assert self._worker is not None
        try:
            while self._is_main_there and self._updates:
                answer = await self._apply(self._worker, self._updates.pop(0))
                if self._is_main_there:
                    self._send(answer)
        finally:
            self._updating = None

    def _end_updates(self) -> None:
        self._is_main_there = False

    async def _end_what_is_left(self, last: Frame) -> None:
        """Let tasks that the worker left behind run their cleanup, kill its programs, and wait for all."""
        await self._cancel_tasks(LOOSE_TASKS_S)
        linger_at, pause_s = time.monotonic() + max(self._class.release_s, LOOSE_TASKS_S), END_POLL_S
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        while left := self._what_is_left():
            with suppress(asyncio.CancelledError):  # a worker may cancel every task that it finds
                await self._cancel_tasks(pause_s)
                await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, END_POLL_MAX_S)
            if time.monotonic() >= linger_at:
                linger_at = float("inf")
                self._send({"op": "lingers", "what": left, "last": last})  # its process has to go
        if (children := self._children) is not None:
            children.end()

    @property
    def _children(self) -> Children | None:
        return self._worker._children if self._worker is not None else None

    def _what_is_left(self) -> str:
        """In words; "" for nothing."""
        if self.tasks:
            return "a task that does not take its cancellation"
        if self._calls:
            return "a call in a thread that does not return"
        if (children := self._children) is not None and children.kill():
            return "a program that it has spawned does not end"
        return ""

    async def _cancel_tasks(self, timeout_s: float) -> None:
        tasks = list(self.tasks or ())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)


async def _outcome(awaitable: Awaitable[Any]) -> BaseException | None:
    """What it raises: asyncio lets no SystemExit of a task by without ending its loop."""
    try:
        await awaitable
    except BaseException as error:  # noqa: BLE001  # it is raised again by whoever waits
        return error
    return None


async def _guarded_outcome(stopper: Stopper, awaitable: Awaitable[Any]) -> BaseException | None:
    """The same, so that a stop cancels it. `Stopper.guard` would be one frame more of each worker that waits."""
    stopper.begin_guard()
    try:
        if stopper.requested:
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            return asyncio.CancelledError()
        await awaitable
    except BaseException as error:  # noqa: BLE001  # as above
        return error
    finally:
        stopper.disarm()
    return None
