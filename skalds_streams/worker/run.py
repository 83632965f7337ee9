"""The life of one worker on the main thread: validate → construct → initialize → before → "running" → main → after →
release.

Rules: `execute()` returns the last frame (finished, stopped or failed) and lets nothing out that user code raised. A
run that was asked to stop is "stopped", whatever main made of it; one whose main had returned by then is "finished".
release is called exactly once, if `initialize` has begun; what the worker spawned is killed after it. After the last
frame nothing is sent any more.

What does not live here: sockets, the log file, the end of the process (`host`).
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from skalds_streams.worker import memory, outcome
from skalds_streams.worker.baseclass import AFTER, BEFORE, MAIN, RELEASE, UPDATE, BaseTaskWorker, NonRetryableError
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.registry import WorkerClass
from skalds_streams.worker.saving import decode_state
from skalds_streams.worker.secrets import SecretPolicy, Secrets, UnresolvedSecretError
from skalds_streams.worker.stall import StallWatch, awaited
from skalds_streams.worker.stopper import REPEAT_MAX_S, Stopper, StopRun

UPDATES_PENDING_MAX = 16
"""Updates that wait while a handler is busy. Above, the oldest goes unanswered: each replaces the one before."""
LOOSE_TASKS_S = 1.0
"""What tasks that an async worker left behind get to handle their cancellation."""


class Run:
    """One run of one worker. `execute` on the main thread, `update` from any."""

    def __init__(
        self,
        worker_class: WorkerClass,
        frame: Frame,
        *,
        send: Callable[[Frame], None],
        stopper: Stopper,
        secrets: Secrets | None = None,
        watch: StallWatch | None = None,
        on_saved: Callable[[], object] = lambda: None,
    ) -> None:
        """watch: is told when main begins, makes progress and ends. on_saved: called when the worker has saved
        something, from any thread; `saved` has it.
        """
        self._secrets = secrets or Secrets(SecretPolicy(), worker_class.secret)
        self._on_saved = on_saved
        self._class = worker_class
        self._frame = frame
        self._send = send
        self._stopper = stopper
        self._watch = watch
        self._state: dict[str, Any] | None = None
        self._worker: BaseTaskWorker[Any] | None = None
        self._runner: asyncio.Runner | None = None
        self._main_loop: asyncio.AbstractEventLoop | None = None
        self._main_over = False
        self._updates: queue.Queue[Frame | None] = queue.Queue(UPDATES_PENDING_MAX)
        stopper.on_request = self._on_stop
        # The SIGTERM that follows a stop comes after release_s: it must count as a second request.
        stopper.repeat_s = min(REPEAT_MAX_S, 0.9 * worker_class.release_s)

    def execute(self) -> Frame:
        """Run it all. Main thread only."""
        try:
            self._state = self._former_state()
        except (ValueError, TypeError) as error:
            text = f"what the last run saved can't be read: {error}. `skalds-streams state` shows, sets or resets it"
            return {"op": "failed", "error": outcome.simple("StateError", text), "retryable": False}
        try:
            data = self._validated(self._frame["attachments"])
        except UnresolvedSecretError as error:
            return {"op": "failed", "error": self._told(error), "retryable": error.retryable}
        except Exception as error:  # noqa: BLE001  # a user's validator may raise anything; trying again gives the same
            return {"op": "failed", "error": self._told(error), "retryable": False}
        last = self._live(data)
        self._stopper.disarm()
        self._main_over = True
        self._enqueue(None)
        self._release()
        self._close_loop()
        if self._worker is not None:
            self._worker._children.end()
            self._worker._gauges.end()
        return last

    @property
    def saved(self) -> str | None:
        """What the worker has saved last, as JSON text. May be read from any thread."""
        return self._worker._saved if self._worker is not None else None

    def update(self, frame: Frame) -> None:
        """Take new parameters; answered by "applied" or "refused" once main has begun."""
        self._enqueue(frame)

    def take_epoch(self, epoch: int) -> None:
        """The run goes on under another epoch, which is the worker's fencing token from now on."""
        self._frame["epoch"] = epoch
        if self._worker is not None:
            self._worker.epoch = epoch

    def _enqueue(self, frame: Frame | None) -> None:
        while True:
            try:
                self._updates.put_nowait(frame)
                return
            except queue.Full:
                with suppress(queue.Empty):
                    self._updates.get_nowait()

    def _former_state(self) -> dict[str, Any] | None:
        text = self._frame.get("state")
        return None if text is None else decode_state(text)

    def _validated(self, attachments: dict[str, Any] | None) -> BaseModel:
        """With the values that references stand for. Raises UnresolvedSecretError, and what a model raises."""
        return self._class.validate(self._secrets.resolve(attachments or {}))

    def _told(self, error: BaseException) -> dict[str, Any]:
        """The error document of parameters that were not taken."""
        if isinstance(error, UnresolvedSecretError):
            return {**outcome.simple("UnresolvedSecretError", str(error)), "field": error.field}
        if isinstance(error, ValidationError):
            return outcome.describe_invalid(error, self._secrets.clean)
        return outcome.describe(error, self._secrets.clean)

    def _live(self, data: BaseModel) -> Frame:
        """Everything before the release."""
        try:
            worker = self._construct()
            self._call(worker.initialize, data)
            self._call(worker._handler(BEFORE))
            if self._stopper.requested:
                return {"op": "stopped"}
            self._send({"op": "running", "version": self._frame["version"]})
            threading.Thread(target=self._apply_updates, args=(worker,), name="updates", daemon=True).start()
            self._main(worker)
        except BaseException as error:  # noqa: BLE001  # user code may raise anything, and a stop is one
            self._stopper.disarm()
            return self._ended_by(error)
        if self._stopper.requested:
            return {"op": "stopped"}
        worker.is_done = True
        try:
            self._call(worker._handler(AFTER))
        except BaseException as error:  # noqa: BLE001  # as above
            self._log_ignored(AFTER, error)
        return {"op": "finished"}

    def _main(self, worker: BaseTaskWorker[Any]) -> None:
        if self._watch is None:
            self._call(worker._handler(MAIN))
            return
        worker._watch = self._watch
        self._watch.begin()
        try:
            self._call(worker._handler(MAIN))
        finally:
            self._watch.end()

    def stalled(self) -> dict[str, Any]:
        """Main is stuck: the error document that says where. Not from the main thread."""
        assert self._watch is not None
        dump = self._watch.take_down()
        return outcome.stalled(self._watch.stall_s, dump, awaited(self._stopper.guarded))

    def _construct(self) -> BaseTaskWorker[Any]:
        with self._stopper:
            worker = self._class.worker_type._create(
                self._frame["task_id"], epoch=self._frame["epoch"], state=self._state, on_saved=self._on_saved
            )
        self._worker = worker
        worker._gauges.attach(self._send)
        worker.is_done = self._stopper.requested
        return worker

    def _ended_by(self, error: BaseException) -> Frame:
        if self._stopper.requested:
            if not isinstance(error, StopRun):
                self._log_ignored("main", error)
            return {"op": "stopped"}
        if isinstance(error, SystemExit) and not error.code:
            return {"op": "finished"}
        return {"op": "failed", "error": self._described(error), "retryable": not isinstance(error, NonRetryableError)}

    def _described(self, error: BaseException) -> dict[str, Any]:
        if not isinstance(error, MemoryError) or self._class.memory_max_bytes is None:
            return outcome.describe(error, self._secrets.clean)
        memory.use_reserve()
        most = f"the class allows its workers {memory.size_text(self._class.memory_max_bytes)} (memory_max)"
        described = outcome.describe(error, self._secrets.clean)
        return {**described, "message": ": ".join(text for text in (described["message"], most) if text)}

    def _call(self, hook: Callable[..., Any] | None, *args: object) -> None:
        """Call a method of the worker so that a stop interrupts it."""
        if hook is None:
            return
        with self._stopper:
            result = hook(*args)
        if not inspect.isawaitable(result):
            return
        try:
            self._runner_run(self._guarded(result))
        except asyncio.CancelledError:
            if self._stopper.requested:
                raise StopRun from None
            raise

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

    def _release(self) -> None:
        handler = self._worker._handler(RELEASE) if self._worker else None
        if handler is None:
            return
        signum = int(signal.SIGTERM) if self._stopper.requested else 0
        try:
            result = handler(*_release_arguments(handler, signum))
            if inspect.isawaitable(result):
                self._runner_run(_finish(result))
        except BaseException as error:  # noqa: BLE001  # as above
            self._log_ignored(RELEASE, error)

    def _close_loop(self) -> None:
        """Let tasks that an async worker left behind run their cleanup, for a limited time."""
        if self._runner is None:
            return
        try:
            self._runner.run(_cancel_loose_tasks())
        except BaseException as error:  # noqa: BLE001  # as above
            self._log_ignored("tasks left behind", error)
        # Not Runner.close(): that waits, without a limit, for threads that asyncio.to_thread started.
        self._runner.get_loop().close()

    def _on_stop(self) -> None:
        if self._worker is not None:
            self._worker.is_done = True

    def _log_ignored(self, where: str, error: BaseException) -> None:
        if self._worker is not None:
            self._worker.logger.error("error in %s, ignored", where, exc_info=error)

    def _apply_updates(self, worker: BaseTaskWorker[Any]) -> None:
        """The updates' own thread: one after the other, beside main."""
        while not self._main_over:
            frame = self._updates.get()
            if frame is None:
                return
            version = frame["version"]
            error = self._apply(worker, frame)
            if error is None:
                self._send({"op": "applied", "version": version})
            else:
                self._send({"op": "refused", "version": version, "error": error})

    def _apply(self, worker: BaseTaskWorker[Any], frame: Frame) -> dict[str, Any] | None:
        """The error document when the update is refused."""
        handler = worker._handler(UPDATE)
        if handler is None:
            return outcome.simple(
                "NoUpdateHandler",
                f"{worker.task_type} has no @{UPDATE}: its parameters change only when the task is restarted",
                outcome.Reason.PARAMETERS,
            )
        try:
            result = handler(self._validated(frame["attachments"]))
            if inspect.isawaitable(result):
                self._await_beside_main(result)
        except BaseException as error:  # noqa: BLE001  # user code may raise anything; main goes on
            return self._told(error)
        return None

    def _await_beside_main(self, awaitable: Awaitable[Any]) -> None:
        """On the worker's loop while main runs there, else on a loop of its own."""
        loop = self._main_loop
        if loop is None:
            asyncio.run(_finish(awaitable))
        else:
            asyncio.run_coroutine_threadsafe(_finish(awaitable), loop).result()


def _release_arguments(handler: Callable[..., Any], signum: int) -> tuple[object, ...]:
    """`(signum, None)` for handlers that take two arguments, as upstream's do on a stop; nothing otherwise."""
    signature = inspect.signature(handler)
    for arguments in [(signum, None), ()] if signum else [(), (signum, None)]:
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return arguments
    return ()


async def _finish(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def _cancel_loose_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=LOOSE_TASKS_S)
    await asyncio.get_running_loop().shutdown_asyncgens()
