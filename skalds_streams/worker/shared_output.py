"""What many runs in one process print, each into its own log.

Rules: whose it is says the context in which it is printed, which tasks and `asyncio.to_thread` inherit, or the log
record, which names the task. A run's secrets are masked in its own output, and those of all runs in what is nobody's.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from skalds_streams.worker.shared_run import SharedRun
from skalds_streams.worker.steps import CURRENT

Runs = Mapping[str, SharedRun]


def share_output(runs: Runs) -> None:
    """Let what Python prints go to the run that prints it."""
    for stream in (sys.stdout, sys.stderr):
        setattr(stream, "write", partial(_write, stream.write, runs))  # noqa: B010  # mypy: a method


def _write(write: Callable[[str], int], runs: Runs, text: Any) -> int:
    run = CURRENT.get()
    if run is not None and run.output is not None and isinstance(text, str):
        run.output.write(run.clean(text))
    else:
        write(_without_secrets(runs, text) if isinstance(text, str) else text)
    return len(text)


def _without_secrets(runs: Runs, text: str) -> str:
    for run in list(runs.values()):
        text = run.clean(text)
    return text


class RunLogs(logging.StreamHandler[Any]):
    """For the root logger."""

    def __init__(self, runs: Runs) -> None:
        super().__init__(sys.stderr)
        self._runs = runs

    def emit(self, record: logging.LogRecord) -> None:
        """To whom it names, if nobody is known to log it, as in a thread."""
        run = self._runs.get(getattr(record, "task_id", "")) if CURRENT.get() is None else None
        if run is None:
            super().emit(record)
            return
        token = CURRENT.set(run)
        try:
            super().emit(record)
        finally:
            CURRENT.reset(token)
