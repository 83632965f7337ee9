"""What a process waits for that does not end in time: the last line in its log is for whoever asks why.

For use once, just before the process ends itself: it looks at all objects there are.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, CoroutineType, FrameType
from typing import Any

TASKS_MOST = 40


def hanging() -> list[str]:
    """A line for each asyncio task that is not done, of every loop, and for each thread: its name, and where it is,
    the outermost call first.
    """
    tasks = [item for item in gc.get_objects() if isinstance(item, asyncio.Task) and not item.done()]
    frames = sys._current_frames()
    threads = [(thread.name, frames[thread.ident]) for thread in threading.enumerate() if thread.ident in frames]
    return [
        *(f"task {task.get_name()}: {' > '.join(_awaits(task.get_coro()))}" for task in tasks[:TASKS_MOST]),
        *(f"thread {name}: {' > '.join(reversed(list(_calls(frame))))}" for name, frame in threads),
    ]


def _awaits(awaited: Any) -> Iterator[str]:
    """From a coroutine down to what it waits for."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is None:
            if not isinstance(awaited, CoroutineType):
                yield type(awaited).__name__
            return
        yield _place(frame.f_code, frame.f_lineno)
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)


def _calls(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield _place(frame.f_code, frame.f_lineno)
        frame = frame.f_back


def _place(code: CodeType, line: int) -> str:
    return f"{code.co_qualname} ({Path(code.co_filename).name}:{line})"
