"""What a run says of itself, as a test sees it: the reports that a node would send, one small value each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOLD_LINES = 20
"""Of a worker's log, in a failed test."""


@dataclass(frozen=True, slots=True)
class Error:
    """Why a run failed, or an update was refused. The words of `reason` are those of `worker.outcome.Reason`."""

    type: str
    message: str
    field: str | None = None
    """The first wrong parameter, dotted, as the document spells it."""
    reason: str = "exception"
    traceback: tuple[str, ...] = ()

    @classmethod
    def of(cls, document: Mapping[str, Any] | None) -> Error:
        """From the error document."""
        told = document or {}
        return cls(
            type=str(told.get("type")),
            message=str(told.get("message")),
            field=told.get("field"),
            reason=str(told.get("reason")),
            traceback=tuple(told.get("traceback") or ()),
        )

    def __str__(self) -> str:
        """The traceback if there is one: it ends with type and message."""
        return "\n".join(self.traceback) or f"{self.type}: {self.message}"


@dataclass(frozen=True, slots=True)
class Running:
    """Main has begun, with the parameters of this version."""

    epoch: int
    version: int


@dataclass(frozen=True, slots=True)
class Applied:
    """The update handler has taken the parameters of this version."""

    epoch: int
    version: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The parameters of this version were not taken; the worker goes on with those that it had."""

    epoch: int
    version: int
    error: Error

    @property
    def field(self) -> str | None:
        """The first wrong parameter."""
        return self.error.field


@dataclass(frozen=True, slots=True)
class Finished:
    """Main has returned."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The run is over, and nobody had asked for it. retryable: the task would be started again."""

    epoch: int
    error: Error
    retryable: bool


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run was stopped. steps: what had to be done, e.g. "SIGTERM after 5 s"; empty when it stopped by itself."""

    epoch: int
    reason: str
    steps: tuple[str, ...] = ()


Report = Running | Applied | Refused | Finished | Failed | Stopped


def report_of(kind: str, epoch: int, more: Mapping[str, Any]) -> Report:
    """What a node's reporter is given, as a value."""
    if kind == "Running":
        return Running(epoch, more["version"])
    if kind == "Applied":
        return Applied(epoch, more["version"])
    if kind == "Refused":
        return Refused(epoch, more["version"], Error.of(more["error"]))
    if kind == "Finished":
        return Finished(epoch)
    if kind == "Failed":
        return Failed(epoch, Error.of(more["error"]), more["retryable"])
    return Stopped(epoch, more["reason"], tuple(more["steps"]))


def told(end: Report | None, waited: str, awaited: Sequence[str], log: Sequence[str]) -> str:
    """What became of a worker, for a test that has failed. awaited: where its main waits; log: its lines."""
    lines = [f"it did not come in {waited}; the worker goes on, or waits for ever"]
    if isinstance(end, Failed):
        lines = [f"the worker has failed: {end.error.type}: {end.error.message}", str(end.error)]
    elif end is not None:
        lines = [f"the worker has ended: {end}"]
    elif awaited:
        lines += ["main awaits (most recent call first):", *awaited]
    if log:
        lines += ["its last lines:", *log[-TOLD_LINES:]]
    return "\n".join(lines)
