"""The background tasks of a process: one that raises ends the process, with the error in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger(__name__)


class Background:
    """See the module. `spawn` from the loop; `close` at the end."""

    def __init__(self, on_fatal: Callable[[BaseException], object]) -> None:
        """on_fatal: ends the process with this error."""
        self._on_fatal = on_fatal
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it until it ends or `close` cancels it."""
        task = asyncio.create_task(self._guarded(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # one that was cancelled before it began was never awaited
        return task

    async def _guarded(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # the edge of a background task: whatever it raises ends the process, loudly
            log.exception("task.failed", task=name)
            self._on_fatal(error)

    async def close(self) -> None:
        """Cancel all, and wait for their ends."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
