"""What a failed run or a refused update says: the error document {"type", "message", "field", "traceback", "reason"}.

Type and message are for people and may be anything; `reason` is a Reason, for programs. Rules: making it never raises,
whatever the exception's own __str__ does. The message has at most MESSAGE_MAX_BYTES, the traceback is its last
TRACEBACK_LINES lines without our own frames. Values of parameters are not repeated: they may be secrets. `clean` takes
secrets out of a text; it comes before any cut, which could leave the half of one.
"""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

MESSAGE_MAX_BYTES = 2048
ELLIPSIS = "…".encode()
TRACEBACK_LINES = 20
TRACEBACK_LINE_MAX_CHARS = 500
STACK_LINES = 40
"""Of all threads of a worker that is stuck."""


class Reason(StrEnum):
    """What ended a run, or refused an update."""

    EXCEPTION = "exception"
    """User code raised."""
    PARAMETERS = "parameters"
    """The parameters do not fit the class's model."""
    EXIT_CODE = "exit_code"
    """The process left by itself, without a word: `os._exit`, or `sys.exit(3)`."""
    SIGNAL = "signal"
    """A signal ended the process: a crash in C code, or somebody's kill."""
    LEASE = "lease"
    """The worker's lease ran out: it held the GIL, or stood still."""
    STALL = "stall"
    """Main made no progress for longer than its class allows."""
    MEMORY = "memory"
    """MemoryError, or the kernel's OOM killer."""
    NODE = "node"
    """Nothing that the worker did: its node could not start it, or go on with it."""


Clean = Callable[[str], str]

_OWN_FILES = str(Path(__file__).parent)
OWN_FRAME = re.compile(rf'  File "({re.escape(_OWN_FILES)}/|{re.escape(threading.__file__)}"|<frozen runpy>)')
_STEP_FRAME = re.compile(rf'  File "{re.escape(_OWN_FILES)}/steps\.py"')
"""Below it are the loop and the host of all."""
_LIBRARY_FRAME = re.compile(rf'  File "({re.escape(str(Path(threading.__file__).parent))}/(?!site-packages/)|<frozen )')


def describe(error: BaseException, clean: Clean = str) -> dict[str, Any]:
    """The document for what user code raised."""
    return {
        "type": type(error).__name__,
        "message": message_of(error, clean),
        "field": None,
        "traceback": _last_lines(error, clean),
        "reason": _reason(error),
    }


def describe_invalid(error: ValidationError, clean: Clean = str) -> dict[str, Any]:
    """The document for parameters that do not fit the model. `field` is the first wrong one, as a dotted location."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    located = [(".".join(str(part) for part in problem["loc"]), problem["msg"]) for problem in problems]
    return {
        "type": "ValidationError",
        "message": clip(clean("; ".join(f"{field}: {text}" if field else text for field, text in located))),
        "field": located[0][0] or None,
        "traceback": [],
        "reason": Reason.PARAMETERS.value,
    }


def simple(kind: str, message: str, reason: Reason = Reason.NODE) -> dict[str, Any]:
    """The document for something that is wrong without an exception."""
    return {"type": kind, "message": clip(message), "field": None, "traceback": [], "reason": reason.value}


def stalled(stall_s: float, dump: str, awaited: Sequence[str] = ()) -> dict[str, Any]:
    """The document for a worker that is stuck. dump: its stacks as faulthandler writes them; awaited: where its
    coroutine waits, if main is one.
    """
    text = f"main has not called self.progress() for {stall_s:g} s (stall_s)"
    waits = [line for line in awaited if not OWN_FRAME.match(line)]
    lines = [*(["Main awaits (most recent call first):", *waits] if waits else []), *stacks(dump)]
    return {**simple("Stalled", text, Reason.STALL), "traceback": _cut(lines[:STACK_LINES])}


def held_up(held_s: float, task_id: str, dump: str = "") -> dict[str, Any]:
    """The document for a worker that has held up the event loop which it shares. task_id: whom it held up."""
    text = f"it held up the event loop of its host for {held_s:.1f} s: task {task_id} beside it could not go on"
    return {**simple("HeldUpItsHost", text, Reason.STALL), "traceback": _cut(stacks(dump)[:STACK_LINES])}


def stacks(dump: str) -> list[str]:
    """What faulthandler wrote, for people: the main thread first, without our own frames, and without other threads
    that are in no code but Python's library: they wait for work.
    """
    threads: list[list[str]] = []
    for line in dump.splitlines():
        if line.endswith("(most recent call first):"):
            threads.append([])
        elif threads and line.startswith("  "):
            threads[-1].append(line)
    lines = []
    for number, thread in enumerate(reversed(threads)):  # it writes the oldest thread, which is main, last
        thread = list(takewhile(lambda frame: not _STEP_FRAME.match(frame), thread))
        while thread and OWN_FRAME.match(thread[-1]):
            thread.pop()
        if thread and not (number and all(_LIBRARY_FRAME.match(frame) for frame in thread)):
            lines += [f"{'Another' if number else 'Main'} thread (most recent call first):", *thread]
    return lines


def _cut(lines: Sequence[str]) -> list[str]:
    return [line[:TRACEBACK_LINE_MAX_CHARS] for line in lines]


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return Reason.MEMORY.value
    return Reason.EXIT_CODE.value if isinstance(error, SystemExit) else Reason.EXCEPTION.value


def message_of(error: BaseException, clean: Clean = str) -> str:
    """str(error), cleaned and clipped."""
    try:
        return clip(clean(str(error)))
    except Exception:  # noqa: BLE001  # a user's __str__ may raise
        return f"<{type(error).__name__} without a readable message>"


def clip(text: str) -> str:
    """At most MESSAGE_MAX_BYTES of valid UTF-8."""
    data = text.encode("utf-8", "replace")
    if len(data) <= MESSAGE_MAX_BYTES:
        return data.decode()
    return data[: MESSAGE_MAX_BYTES - len(ELLIPSIS)].decode("utf-8", "ignore") + ELLIPSIS.decode()


def _last_lines(error: BaseException, clean: Clean) -> list[str]:
    try:
        text = "".join(traceback.format_exception(type(error), error, _without_own(error.__traceback__)))
    except Exception:  # noqa: BLE001  # a user's __str__ or a strange __cause__ may raise
        return []
    lines = clean(text).encode("utf-8", "replace").decode().splitlines()
    return _cut(lines[-TRACEBACK_LINES:])


def _without_own(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first line of user code on."""
    start = trace
    while start is not None and not _is_user_code(start.tb_frame.f_code.co_filename):
        start = start.tb_next
    return start or trace


def _is_user_code(filename: str) -> bool:
    return not filename.startswith(_OWN_FILES) and "asyncio" not in Path(filename).parts
