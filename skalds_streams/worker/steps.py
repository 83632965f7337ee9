"""Which of the runs that share a process is at work: the loop of a shared host, and the word of memory that says it.

Rules: whatever a run starts on the loop belongs to it, known by a context variable that its tasks and threads inherit.
While a task of a run is in a step (between two awaits), the run's number is in the marker: memory that the skald has
mapped, too, so that it is known also when the process dies in that step, or never comes out of it. Callbacks
(`call_later`) and threads of `threading` are nobody's.
"""

from __future__ import annotations

import asyncio
import mmap
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skalds_streams.worker.shared_run import SharedRun

MARKER_BYTES = 16
"""The number of the run that is in a step, 0 for none, and since when, in ns of CLOCK_MONOTONIC."""

CURRENT: ContextVar[SharedRun | None] = ContextVar("skalds_run", default=None)


class Marker:
    """Written by the host's main thread, read by anybody who has the file."""

    __slots__ = ("_memory", "_words")

    def __init__(self, fd: int) -> None:
        """fd: a file of MARKER_BYTES at least; it may be closed afterwards."""
        self._memory = mmap.mmap(fd, MARKER_BYTES)
        self._words = memoryview(self._memory).cast("Q")

    def enter(self, number: int) -> None:
        """A step of this run begins."""
        words = self._words
        words[1] = time.monotonic_ns()
        words[0] = number

    def leave(self) -> None:
        """It is over."""
        self._words[0] = 0

    def read(self) -> tuple[int, float]:
        """The run that is in a step, 0 for none, and for how many seconds."""
        number, since_ns = self._words[0], self._words[1]
        return number, max(time.monotonic_ns() - since_ns, 0) / 1e9 if number else 0.0

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._memory.close()


class Step(Coroutine[Any, Any, Any]):
    """A coroutine of a run, whose steps are marked. To others it is the coroutine itself."""

    __slots__ = ("_coroutine", "_marker", "_run")

    def __init__(self, coroutine: Any, marker: Marker, run: SharedRun) -> None:
        self._coroutine, self._marker, self._run = coroutine, marker, run

    def send(self, value: Any) -> Any:
        """One step."""
        self._marker.enter(self._run.number)
        try:
            return self._coroutine.send(value)
        except (SystemExit, KeyboardInterrupt) as error:  # asyncio would end the loop with it, for everybody
            self._run.leave(error)
            raise asyncio.CancelledError from None
        finally:
            self._marker.leave()

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> Any:
        """One step that begins with an exception."""
        self._marker.enter(self._run.number)
        try:
            return self._coroutine.throw(kind if value is None else value)
        except (SystemExit, KeyboardInterrupt) as error:  # as above
            self._run.leave(error)
            raise asyncio.CancelledError from None
        finally:
            self._marker.leave()

    def close(self) -> None:
        """As of any coroutine."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        result: Generator[Any, Any, Any] = self._coroutine.__await__()
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)


class SharedLoop(asyncio.SelectorEventLoop):
    """Knows which run a task, or a call in a thread, belongs to."""

    def __init__(self, marker: Marker) -> None:
        super().__init__()
        self._marker = marker
        self.set_task_factory(self._make_task)

    def _make_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        context: Context | None = options.get("context")
        run = CURRENT.get() if context is None else context.get(CURRENT)
        if run is None:
            return asyncio.Task(coroutine, loop=loop, **options)
        task = asyncio.Task(Step(coroutine, self._marker, run), loop=loop, **options)
        run.note(task)
        return task

    def run_in_executor(  # type: ignore[override]  # typeshed's has a type variable for each argument
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """A run's own threads, so that one whose calls block takes none from its neighbours."""
        run = CURRENT.get()
        if run is None:
            future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        else:
            future = super().run_in_executor(executor or run.threads(), run.call, func, *args)
        return future
