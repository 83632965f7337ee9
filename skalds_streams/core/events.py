"""What can happen to one task: commands from outside, reports from skalds, and what the coordinator itself finds due.

An event names exactly one task and carries its cause. The wire shapes are in `model.codec`; many ids in one record
become many events there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skalds_streams.core.row import Cause, Json, Release, Wanted


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a Task document says of a task. None: not said, keep what is known."""

    class_name: str | None = None
    attachments: Json | None = None
    recipient: str | None = None
    requires: Mapping[str, str] | None = None
    weight: int | None = None
    priority: int | None = None
    max_restarts: int | None = None
    deadline_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """Base of what comes from outside.

    `origin` is "topic/partition" when the record was forwarded, with its offset there.
    """

    task_id: str
    cause: Cause
    origin: str | None = None
    origin_offset: int = -1


@dataclass(frozen=True, slots=True)
class Assign(Command):
    """The task is wanted: start it, or bring what runs in line. `then` is what is wanted after it: run or pause."""

    spec: TaskSpec = TaskSpec()
    then: Wanted = Wanted.RUN
    release: Release | None = None
    """Ask the holder to stop first, then place anew (action restart or move)."""
    resume: bool = False
    """It was said to be one (action resume). It does what any assign does; this is for its acknowledgement."""
    to: str | None = None
    """Of a move: the skald that is preferred this once. It pins nothing."""


@dataclass(frozen=True, slots=True)
class Cancel(Command):
    """The task is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Update(Command):
    """New parameters: all of them, or a merge patch (RFC 7386)."""

    attachments: Any = None
    merge: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Base of what is said of one run."""

    task_id: str
    cause: Cause
    epoch: int
    incarnation: str


@dataclass(frozen=True, slots=True)
class Running(Report):
    """The worker's main method begins, with parameters of this version."""

    version: int = 0


@dataclass(frozen=True, slots=True)
class Applied(Report):
    """The update handler accepted the parameters of this version."""

    version: int = 0


@dataclass(frozen=True, slots=True)
class Refused(Report):
    """The parameters of this version were not accepted; the former ones stay."""

    version: int = 0
    error: Json | None = None


@dataclass(frozen=True, slots=True)
class Ended(Report):
    """Base of what a skald says of a run's end; reaped. `steps`: how hard it was, e.g. ("SIGTERM after 5 s",)."""

    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stopped(Ended):
    """The run has ended because it was asked to, or because its node could not go on with it.

    `elsewhere`: who had it could not even begin, so another is to have it, if one can.
    """

    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Finished(Ended):
    """The worker's main method returned."""


@dataclass(frozen=True, slots=True)
class Failed(Ended):
    """The run ended by itself, badly."""

    error: Json | None = None
    retryable: bool = True


@dataclass(frozen=True, slots=True)
class Lost(Report):
    """The incarnation that held the task is dead. Written by a coordinator."""


@dataclass(frozen=True, slots=True)
class Drain(Report):
    """The skald that holds the task is drained, and another can take it. Written by a coordinator."""


@dataclass(frozen=True, slots=True)
class Retry:
    """A waiting task may be placed now: its back-off is over, or membership changed. Written by a coordinator."""

    task_id: str
    cause: Cause
    epoch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Deadline:
    """The task's deadline has passed. Written by a coordinator; `at_ms` is the deadline that it saw."""

    task_id: str
    cause: Cause
    at_ms: int


@dataclass(frozen=True, slots=True)
class Expired:
    """A task that ended long ago may be forgotten. Written by a coordinator; `revision` is the row that it saw."""

    task_id: str
    cause: Cause
    revision: int


@dataclass(frozen=True, slots=True)
class Found:
    """A catalogue has the document of a task that waits for one. Written by a coordinator."""

    task_id: str
    cause: Cause
    spec: TaskSpec


Event = (
    Assign
    | Cancel
    | Update
    | Running
    | Applied
    | Refused
    | Stopped
    | Finished
    | Failed
    | Lost
    | Drain
    | Retry
    | Deadline
    | Expired
    | Found
)
