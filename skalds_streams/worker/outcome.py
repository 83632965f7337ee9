"""What a failed run or a refused update says: the error document {"type", "message", "field", "traceback", "reason"}.

Type and message are for people and may be anything; `reason` is a Reason, for programs. Rules: making it never raises,
whatever the exception's own __str__ does. The message has at most MESSAGE_MAX_BYTES, the traceback is its last
TRACEBACK_LINES lines without our own frames. Values of parameters are not repeated: they may be secrets.
"""

from __future__ import annotations

import traceback
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

MESSAGE_MAX_BYTES = 2048
ELLIPSIS = "…".encode()
TRACEBACK_LINES = 20
TRACEBACK_LINE_MAX_CHARS = 500


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
    MEMORY = "memory"
    """MemoryError, or the kernel's OOM killer."""
    NODE = "node"
    """Nothing that the worker did: its node could not start it, or go on with it."""


_OWN_FILES = str(Path(__file__).parent)


def describe(error: BaseException) -> dict[str, Any]:
    """The document for what user code raised."""
    return {
        "type": type(error).__name__,
        "message": message_of(error),
        "field": None,
        "traceback": _last_lines(error),
        "reason": _reason(error),
    }


def describe_invalid(error: ValidationError) -> dict[str, Any]:
    """The document for parameters that do not fit the model. `field` is the first wrong one, as a dotted location."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    located = [(".".join(str(part) for part in problem["loc"]), problem["msg"]) for problem in problems]
    return {
        "type": "ValidationError",
        "message": clip("; ".join(f"{field}: {text}" if field else text for field, text in located)),
        "field": located[0][0] or None,
        "traceback": [],
        "reason": Reason.PARAMETERS.value,
    }


def simple(kind: str, message: str, reason: Reason = Reason.NODE) -> dict[str, Any]:
    """The document for something that is wrong without an exception."""
    return {"type": kind, "message": clip(message), "field": None, "traceback": [], "reason": reason.value}


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return Reason.MEMORY.value
    return Reason.EXIT_CODE.value if isinstance(error, SystemExit) else Reason.EXCEPTION.value


def message_of(error: BaseException) -> str:
    """str(error), clipped."""
    try:
        return clip(str(error))
    except Exception:  # noqa: BLE001  # a user's __str__ may raise
        return f"<{type(error).__name__} without a readable message>"


def clip(text: str) -> str:
    """At most MESSAGE_MAX_BYTES of valid UTF-8."""
    data = text.encode("utf-8", "replace")
    if len(data) <= MESSAGE_MAX_BYTES:
        return data.decode()
    return data[: MESSAGE_MAX_BYTES - len(ELLIPSIS)].decode("utf-8", "ignore") + ELLIPSIS.decode()


def _last_lines(error: BaseException) -> list[str]:
    try:
        text = "".join(traceback.format_exception(type(error), error, _without_own(error.__traceback__)))
    except Exception:  # noqa: BLE001  # a user's __str__ or a strange __cause__ may raise
        return []
    lines = text.encode("utf-8", "replace").decode().splitlines()
    return [line[:TRACEBACK_LINE_MAX_CHARS] for line in lines[-TRACEBACK_LINES:]]


def _without_own(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first line of user code on."""
    start = trace
    while start is not None and not _is_user_code(start.tb_frame.f_code.co_filename):
        start = start.tb_next
    return start or trace


def _is_user_code(filename: str) -> bool:
    return not filename.startswith(_OWN_FILES) and "asyncio" not in Path(filename).parts
