"""The ownership row: what is wanted of a task and who holds it. The truth of the system, one JSON document a task on
the changelog.

Rules: a row is a value (frozen; changed by `dataclasses.replace` in `core.decide` only); `revision` rises by one at
every change; `epoch` never falls; a holder is in the row from placement until it is known to have ended. What may
follow what is in `core.transitions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from operator import itemgetter
from typing import Any

FORMAT = 1
"""Version of the document, field `v`."""

NAME_MAX_CHARS = 512
"""Of a class, a skald, an incarnation."""

Json = Mapping[str, Any]


class Status(StrEnum):
    """Lifecycle of a task, in upstream's spelling."""

    CREATED = "Created"
    ASSIGNING = "Assigning"
    RUNNING = "Running"
    PAUSED = "Paused"
    FINISHED = "Finished"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


TERMINAL = frozenset({Status.FINISHED, Status.FAILED, Status.CANCELLED})


class Wanted(StrEnum):
    """What the last command asks for."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class Release(StrEnum):
    """Why a holder is asked to stop although the task is wanted."""

    RESTART = "restart"
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Holder:
    """One run: which incarnation of which skald, under which epoch, placed when heartbeats up to offset `seen` were
    known.
    """

    skald_id: str
    incarnation: str
    epoch: int
    seen: int = field(default=-1, compare=False)


@dataclass(frozen=True, slots=True)
class Cause:
    """The record that changed a row. `at_ms` is the record's time, `reason` the sender's free text."""

    kind: str
    topic: str
    partition: int
    offset: int
    at_ms: int
    reason: str | None = None


NO_CAUSE = Cause("none", "", -1, -1, 0)


@dataclass(frozen=True, slots=True)
class Control:
    """A cancel, pause, resume or restart, and what became of it: `topic`, `partition` and `offset` of the record that
    asked for it, its time, and when it was applied, or by what it was superseded. Until then it is open.

    `epoch`, `version`: the run that it was applied to, and the parameters which that had: for cancel and pause the one
    that has ended (0 if there was none), for resume and restart the one whose main method has begun.
    """

    topic: str
    partition: int
    offset: int
    asked_at_ms: int
    applied_at_ms: int = 0
    epoch: int = 0
    version: int = 0
    superseded_by: Cause | None = None

    @property
    def place(self) -> tuple[str, int, int]:
        """The record that asked: (topic, partition, offset)."""
        return (self.topic, self.partition, self.offset)

    @property
    def took_ms(self) -> int | None:
        """From asked to applied, None when it is not. Clocks of two machines may differ by more than it took."""
        return max(self.applied_at_ms - self.asked_at_ms, 0) if self.applied_at_ms else None

    @property
    def is_open(self) -> bool:
        """Whether it is neither applied nor superseded."""
        return self.applied_at_ms == 0 and self.superseded_by is None


@dataclass(frozen=True, slots=True)
class Row:
    """See the module. Times are integer milliseconds since the epoch; 0 means never."""

    task_id: str
    class_name: str | None = None
    recipient: str | None = None
    requires: Mapping[str, str] | None = None
    """Labels that its skald must have, `weight` the units of capacity it takes, `max_restarts` the tries after a crash.
    None: the task's document does not say, so its class decides."""
    weight: int | None = None
    priority: int = 0
    max_restarts: int | None = None
    of_class: Json | None = None
    """What its class said on the skald that it was placed on last, as far as a run needs it and it is not the default
    (`core.options`). It stays as it was until the next placement."""
    wanted: Wanted = Wanted.CANCEL
    holder: Holder | None = None
    epoch: int = 0
    first_epoch: int = 0
    """Epoch of the first run that belongs together with the next: of what earlier ones left, nothing counts."""
    revision: int = 0
    status: Status = Status.CREATED
    release: Release | None = None
    attachments: Json | None = None
    attachments_version: int = 0
    unanswered: Mapping[str, Json] = field(default_factory=dict)
    """Parameters by version while an update is under way: those that run, those sent and not answered. Else empty."""
    applied_version: int = 0
    applied_at_ms: int = 0
    refused: Json | None = None
    """The last refused update: {"version", "at_ms", "error"}; gone when a later one is applied."""
    assign_at_ms: int = 0
    cancel_at_ms: int = 0
    update_at_ms: int = 0
    """Time of the parameters. Equal to `assign_at_ms` when the last assign brought them."""
    cancel_applied_at_ms: int = 0
    controls: Mapping[str, Control] = field(default_factory=dict)
    """The last cancel, pause, resume and restart, by that name (`core.control`)."""
    attempt: int = 0
    """Crashes since the last stable minute."""
    retry_at_ms: int = 0
    deadline_at_ms: int = 0
    """When a task that still runs or waits is cancelled."""
    running_since_ms: int = 0
    last_skald: str | None = None
    move_to: str | None = None
    """Skald that the next placement prefers, once."""
    moved_from: str | None = None
    """Skald that the next placement passes over, if another can take the task."""
    error: Json | None = None
    """{"type", "message", "field"?, "traceback": [lines], "reason"?, "output"?: [lines]} of the last crash or failure;
    output is what it printed last."""
    waiting: Mapping[str, str] | None = None
    """Why each skald can't take it: {skald id: reason}; None when not waiting."""
    forwarded: Mapping[str, int] = field(default_factory=dict)
    """Last applied offset of each origin "topic/partition" whose records were forwarded here."""
    why: Cause = NO_CAUSE
    note: str | None = None
    """What became of the cause when it did not take effect, e.g. "superseded by cancel at 1795528037269"."""
    updated_at_ms: int = 0

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def is_waiting(self) -> bool:
        """Wanted, but held by nobody."""
        return self.wanted is Wanted.RUN and self.holder is None and not self.is_terminal

    @property
    def units(self) -> int:
        """What it takes of a skald's capacity, as placed last."""
        return self.weight or int((self.of_class or {}).get("weight", 1))

    @property
    def is_over(self) -> bool:
        """Whether the next assign begins anew: what earlier runs left does not count for it. After a failure it does:
        to assign the task again is to try again.
        """
        return self.status is Status.FINISHED or self.wanted is Wanted.CANCEL

    def to_doc(self) -> dict[str, Any]:
        """The JSON document. Inverse of `from_doc`."""
        doc: dict[str, Any] = {"v": FORMAT}
        for name in _NAMES:
            value = getattr(self, name)
            doc[name] = _plain(value) if isinstance(value, Holder | Cause) else value
        doc["controls"] = {name: _control_doc(control) for name, control in self.controls.items()}
        return doc

    def public_doc(self) -> dict[str, Any]:
        """The document without the parameters, which may hold secrets."""
        doc = self.to_doc()
        del doc["attachments"], doc["unanswered"]
        return doc

    @classmethod
    def from_doc(cls, doc: Json) -> Row:
        """Read a document. Raises ValueError for a newer format or a document that is no row.

        Unknown fields are ignored.
        """
        version = doc.get("v")
        if not isinstance(version, int) or version > FORMAT:
            raise ValueError(f"row format {version!r} is newer than {FORMAT}, the newest that this version knows")
        try:
            return _quick(doc)
        except KeyError:  # written by a version that had fewer fields, or more statuses
            values = {name: doc[name] for name in _NAMES if name in doc}
        if "of_class" not in values:  # of a version in which these two had a default of their own
            values = {name: value for name, value in values.items() if (name, value) not in _UNSAID}
        if "task_id" not in values:
            raise ValueError("a row without task_id")
        for name, read in _READERS.items():
            if values.get(name) is not None:
                values[name] = read(values[name])
        return cls(**values)


def _quick(doc: Json) -> Row:
    """A row of a document that has every field: recovery is mostly this. The constructor of a frozen dataclass takes
    three times as long.
    """
    row = object.__new__(Row)
    for assign, value in zip(_ASSIGN, _VALUES(doc), strict=True):
        assign(row, value)
    for name, assign, read in _READ:
        value = doc[name]
        if value is not None:
            assign(row, read(value))
    return row


@lru_cache(maxsize=10_000)
def _holder(skald_id: str, incarnation: str, epoch: int, seen: int = -1) -> Holder:
    """Many rows have the same one."""
    return Holder(skald_id, incarnation, epoch, seen)


def _cause(kind: str, topic: str, partition: int, offset: int, at_ms: int, reason: str | None = None) -> Cause:
    cause = object.__new__(Cause)
    for assign, value in zip(_ASSIGN_CAUSE, (kind, topic, partition, offset, at_ms, reason), strict=True):
        assign(cause, value)
    return cause


def _plain(value: Holder | Cause | Control) -> dict[str, Any]:
    return {item.name: getattr(value, item.name) for item in fields(value)}


def _control_doc(control: Control) -> dict[str, Any]:
    by = control.superseded_by
    return {**_plain(control), "superseded_by": _plain(by) if by is not None else None}


def _controls(docs: Json) -> dict[str, Control]:
    return {name: _control(doc) for name, doc in docs.items()}


def _control(doc: Json) -> Control:
    values = {name: doc[name] for name in _CONTROL_NAMES if name in doc}
    if values.get("superseded_by") is not None:
        values["superseded_by"] = _cause(**values["superseded_by"])
    return Control(**values)


_NAMES = tuple(item.name for item in fields(Row))
_CONTROL_NAMES = tuple(item.name for item in fields(Control))
_READERS: Mapping[str, Any] = {
    "wanted": Wanted,
    "status": Status,
    "release": Release,
    "holder": lambda doc: _holder(**doc),
    "why": lambda doc: _cause(**doc),
    "controls": _controls,
}
_UNSAID: tuple[tuple[str, object], ...] = (("weight", 1), ("requires", {}))
_VALUES = itemgetter(*_NAMES)
_ASSIGN = tuple(getattr(Row, name).__set__ for name in _NAMES)
_QUICK_READERS = {
    **_READERS,
    "wanted": {str(item): item for item in Wanted}.__getitem__,
    "status": {str(item): item for item in Status}.__getitem__,
    "release": {str(item): item for item in Release}.__getitem__,
}
_READ = tuple((name, getattr(Row, name).__set__, read) for name, read in _QUICK_READERS.items())
_ASSIGN_CAUSE = tuple(getattr(Cause, item.name).__set__ for item in fields(Cause))
