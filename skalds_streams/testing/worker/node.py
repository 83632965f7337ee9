"""What an actor asks of its node, in memory: hosts, reports, saved states, the log of a task, the policy of secrets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from skalds_streams.model.saved import Saved, StateKey
from skalds_streams.settings import Settings
from skalds_streams.skald.host import RunSpec
from skalds_streams.testing.worker.reports import Report, report_of
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.saving import decode_state, encode_state
from skalds_streams.worker.secrets import SecretPolicy

FORMAT = "%(levelname)s %(name)s: %(message)s"
"""As a host's."""


class SavedStates:
    """In memory, in place of the topic: to an actor it is a node's `skald.states.TaskStates`."""

    def __init__(self) -> None:
        self._saved: Saved | None = None

    @property
    def last(self) -> dict[str, Any] | None:
        """None when nothing was saved."""
        return decode_state(self._saved.text) if self._saved is not None and self._saved.text is not None else None

    def set(self, task_id: str, epoch: int, state: Mapping[str, Any] | BaseModel) -> None:
        """As if a run had saved it. Raises what `save` raises."""
        self.save(task_id, epoch, encode_state(state))

    async def find(self, _task_id: str, first_epoch: int) -> Saved | None:
        """What the next run of the same assign finds."""
        saved = self._saved
        return saved if saved is not None and saved.key.epoch >= first_epoch else None

    def save(self, task_id: str, epoch: int, text: str) -> None:
        """Keep this instead of what was saved before."""
        self._saved = Saved(StateKey(task_id, epoch), 1, time.time_ns() // 1_000_000, "test", text)

    async def flush(self, _task_id: str | None, _timeout_s: float) -> bool:
        """It is kept already."""
        return True

    def forget(self, _task_id: str) -> None:
        """Nothing is kept for a run."""


class LogLines(logging.Handler):
    """What a worker in this process logs by `self.logger`, from INFO on, as in a host."""

    def __init__(self, class_name: str, task_id: str) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._task_id = task_id
        self._logger = logging.getLogger(f"worker.{class_name}")
        self._level_before: int | None = None
        self.setFormatter(logging.Formatter(FORMAT))

    def open(self) -> None:
        """Take what comes. A level that the test has set stays."""
        self._level_before = self._logger.level
        if self._logger.level == logging.NOTSET:
            self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "task_id", None) == self._task_id:
            self.lines += self.format(record).splitlines()

    def close(self) -> None:
        """Leave the logger as it was."""
        if self._level_before is not None:
            self._logger.removeHandler(self)
            self._logger.setLevel(self._level_before)
            self._level_before = None
        super().close()


class Pool:
    """To an actor it is the node's pool of hosts."""

    def __init__(self, make: Callable[[RunSpec, Callable[[Frame], None]], Any]) -> None:
        self.run = make

    def keeps(self, _class_name: str) -> bool:
        return False


class ReportsTaken:
    """To an actor it is the node's reporter."""

    def __init__(self, take: Callable[[Report], None]) -> None:
        self._take = take

    def say(self, kind: str, _task_id: str, epoch: int, **more: Any) -> None:
        self._take(report_of(kind, epoch, more))


def default_policy() -> SecretPolicy:
    """By the defaults of its settings."""
    env, dirs, words = (
        str(Settings.model_fields[name].default).split(",") for name in ("secret_env", "secrets_dirs", "secret_names")
    )
    return SecretPolicy(env, dirs, words)
