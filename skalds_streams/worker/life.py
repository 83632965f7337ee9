"""The life of one worker, whatever it runs in: validate → construct → initialize → before → "running" → main → after →
release.

Rules: `live()` returns the last frame (finished, stopped or failed) and lets nothing out that user code raised. A run
that was asked to stop is "stopped", whatever main made of it; one whose main had returned by then is "finished".
release is called exactly once, if `initialize` has begun; what the worker spawned is killed after it. After the last
frame nothing is sent any more.

What does not live here: how methods of the worker are called, awaited and interrupted (`run`, `shared_run`), sockets,
the log file, the end of the process (`host`, `shared`).
"""

from __future__ import annotations

import asyncio
import inspect
import signal
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, ValidationError

from skalds_streams.worker import memory, outcome
from skalds_streams.worker.baseclass import AFTER, BEFORE, MAIN, RELEASE, UPDATE, BaseTaskWorker, NonRetryableError
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.registry import WorkerClass
from skalds_streams.worker.saving import decode_state
from skalds_streams.worker.secrets import SecretPolicy, Secrets, UnresolvedSecretError
from skalds_streams.worker.stall import Watch
from skalds_streams.worker.stopper import Stopper, StopRun

UPDATES_PENDING_MAX = 16
"""Updates that wait while a handler is busy. Above, the oldest goes unanswered: each replaces the one before."""
LOOSE_TASKS_S = 1.0
"""What tasks that an async worker left behind get to handle their cancellation."""


class Life(ABC):
    """One run of one worker."""

    def __init__(
        self,
        worker_class: WorkerClass,
        frame: Frame,
        *,
        send: Callable[[Frame], None],
        stopper: Stopper,
        secrets: Secrets | None = None,
        watch: Watch | None = None,
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
        stopper.on_request = self._on_stop

    @property
    def saved(self) -> str | None:
        """What the worker has saved last, as JSON text. May be read from any thread."""
        return self._worker._saved if self._worker is not None else None

    def take_epoch(self, epoch: int) -> None:
        """The run goes on under another epoch, which is the worker's fencing token from now on."""
        self._frame["epoch"] = epoch
        if self._worker is not None:
            self._worker.epoch = epoch

    async def live(self) -> Frame:
        """All of it."""
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
        last = await self._until_main_is_over(data)
        self._stopper.disarm()
        self._end_updates()
        await self._release()
        await self._end_what_is_left(last)
        return last

    # -- how it is done

    @abstractmethod
    def _outcome_of(self, awaitable: Awaitable[Any] | None) -> Awaitable[BaseException | None]:
        """Await it, if there is something, so that a stop interrupts it; the error, if it is not raised at once."""

    @abstractmethod
    async def _await_beside(self, awaitable: Awaitable[Any]) -> None:
        """Await what an update handler returned, beside main."""

    @abstractmethod
    async def _await_release(self, awaitable: Awaitable[Any]) -> None:
        """Await it to its end."""

    def _equip(self, worker: BaseTaskWorker[Any]) -> None:
        """The worker is made, and was told nothing yet."""
        worker._attach(self._send, None)

    @abstractmethod
    def _begin_updates(self, worker: BaseTaskWorker[Any]) -> None:
        """Main begins: updates are applied from now on, those that have come before, too."""

    @abstractmethod
    def _end_updates(self) -> None:
        """Main is over: none is applied any more."""

    @abstractmethod
    async def _end_what_is_left(self, last: Frame) -> None:
        """After the release: tasks, programs, metrics."""

    # -- the order

    async def _until_main_is_over(self, data: BaseModel) -> Frame:
        """Everything before the release."""
        try:
            worker = self._construct()
            self._settle(await self._outcome_of(self._call(worker.initialize, data)))
            self._settle(await self._outcome_of(self._call(worker._handler(BEFORE))))
            if self._stopper.requested:
                return {"op": "stopped"}
            self._send({"op": "running", "version": self._frame["version"]})
            self._begin_updates(worker)
            if self._watch is not None:
                worker._watch = self._watch
                self._watch.begin()
            try:
                self._settle(await self._outcome_of(self._call(worker._handler(MAIN))))
            finally:
                if self._watch is not None:
                    self._watch.end()
        except BaseException as error:  # noqa: BLE001  # user code may raise anything, and a stop is one
            self._stopper.disarm()
            return self._ended_by(error)
        if self._stopper.requested:
            return {"op": "stopped"}
        worker.is_done = True
        try:
            self._settle(await self._outcome_of(self._call(worker._handler(AFTER))))
        except BaseException as error:  # noqa: BLE001  # as above
            self._log_ignored(AFTER, error)
        return {"op": "finished"}

    def _call(self, hook: Callable[..., Any] | None, *args: object) -> Awaitable[Any] | None:
        """Call a method of the worker so that a stop interrupts it; what there is to await then."""
        if hook is None:
            return None
        with self._stopper:
            result = hook(*args)
        return result if inspect.isawaitable(result) else None

    def _settle(self, error: BaseException | None) -> None:
        """Raise it, or what it means."""
        if isinstance(error, asyncio.CancelledError) and self._stopper.requested:
            raise StopRun
        if error is not None:
            raise error

    async def _release(self) -> None:
        handler = self._worker._handler(RELEASE) if self._worker else None
        if handler is None:
            return
        signum = int(signal.SIGTERM) if self._stopper.requested else 0
        try:
            result = handler(*_release_arguments(handler, signum))
            if inspect.isawaitable(result):
                await self._await_release(result)
        except BaseException as error:  # noqa: BLE001  # as above
            self._log_ignored(RELEASE, error)

    async def _apply(self, worker: BaseTaskWorker[Any], frame: Frame) -> Frame:
        """Apply an update; the answer."""
        handler, version = worker._handler(UPDATE), frame["version"]
        if handler is None:
            text = f"{worker.task_type} has no @{UPDATE}: its parameters change only when the task is restarted"
            error = outcome.simple("NoUpdateHandler", text, outcome.Reason.PARAMETERS)
            return {"op": "refused", "version": version, "error": error}
        try:
            result = handler(self._validated(frame["attachments"]))
            if inspect.isawaitable(result):
                await self._await_beside(result)
        except BaseException as error:  # noqa: BLE001  # user code may raise anything; main goes on
            return {"op": "refused", "version": version, "error": self._told(error)}
        return {"op": "applied", "version": version}

    # -- its parts

    def _former_state(self) -> dict[str, Any] | None:
        text = self._frame.get("state")
        return None if text is None else decode_state(text)

    def _validated(self, attachments: dict[str, Any] | None) -> BaseModel:
        """With the values that references stand for. Raises UnresolvedSecretError, and what a model raises."""
        return self._class.validate(self._secrets.resolve(attachments or {}))

    def _construct(self) -> BaseTaskWorker[Any]:
        with self._stopper:
            worker = self._class.worker_type._create(
                self._frame["task_id"], epoch=self._frame["epoch"], state=self._state, on_saved=self._on_saved
            )
        self._worker = worker
        self._frame = {key: self._frame[key] for key in ("task_id", "epoch", "version")}  # the rest has been used
        self._equip(worker)
        worker.is_done = self._stopper.requested
        return worker

    def _on_stop(self) -> None:
        if self._worker is not None:
            self._worker.is_done = True

    # -- its words

    def _told(self, error: BaseException) -> dict[str, Any]:
        """The error document of parameters that were not taken."""
        if isinstance(error, UnresolvedSecretError):
            return {**outcome.simple("UnresolvedSecretError", str(error)), "field": error.field}
        if isinstance(error, ValidationError):
            return outcome.describe_invalid(error, self._secrets.clean)
        return outcome.describe(error, self._secrets.clean)

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

    def _log_ignored(self, where: str, error: BaseException) -> None:
        if self._worker is not None:
            self._worker.logger.error("error in %s, ignored", where, exc_info=error)


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
