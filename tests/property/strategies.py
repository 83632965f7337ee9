"""What the property tests draw from: tasks, moves (an event told by how it relates to the row), records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from skalds_streams.core import events
from skalds_streams.core.decide import Context
from skalds_streams.core.placement import Choice
from skalds_streams.core.row import Cause, Release, Row, Wanted

SKALDS = ("a", "b", "c")
NOW = st.integers(0, 5_000)
TIMES = st.integers(-50, 6_000)
"""Of records: also from before the epoch and from ahead of our clock."""
NAMES = st.sampled_from(["fps", "url", "x"])
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.text(max_size=3))
PARAMETERS = st.dictionaries(NAMES, st.one_of(VALUES, st.dictionaries(NAMES, VALUES, max_size=2)), max_size=3)
SPECS = st.builds(
    events.TaskSpec,
    class_name=st.sampled_from([None, "Cam", "Feed"]),
    attachments=st.none() | PARAMETERS,
    recipient=st.sampled_from([None, None, *SKALDS]),
    requires=st.none() | st.dictionaries(st.sampled_from(["gpu"]), st.sampled_from(["yes", "no"]), max_size=1),
    weight=st.none() | st.integers(1, 3),
    priority=st.none() | st.integers(0, 10),
    max_restarts=st.none() | st.integers(0, 2),
)
COMMANDS = ("assign", "cancel", "update")
REPORTS = (
    events.Running,
    events.Applied,
    events.Refused,
    events.Stopped,
    events.Finished,
    events.Failed,
    events.Lost,
)


@dataclass(frozen=True)
class Move:
    """One event, told by how it relates to the row that it meets: so that reports hit their run often, but not always.

    `epoch`: added to the row's; `version`: added to that of the row's parameters; `to`: whom placement picks.
    """

    kind: str
    at_ms: int = 0
    now_ms: int = 0
    spec: events.TaskSpec = events.TaskSpec()
    then: Wanted = Wanted.RUN
    release: Release | None = None
    parameters: Any = None
    merge: bool = False
    origin: str | None = None
    origin_offset: int = 0
    epoch: int = 0
    mine: bool = True
    version: int = 0
    retryable: bool = True
    attempt: int = 0
    to: str | None = "a"

    def context(self) -> Context:
        """What decide may know when this move is made."""
        choice = Choice(self.to, f"{self.to}1") if self.to else Choice(waiting={"a": "full 8/8"})
        return Context(now_ms=self.now_ms, choose=lambda row: choice, epoch_floor=2, revision_floor=7)

    def event(self, row: Row | None, offset: int) -> events.Event:
        """The event for a row as it stands."""
        cause = Cause(self.kind.title(), f"task.{self.kind}", 0, offset, self.at_ms)
        origin: dict[str, Any] = (
            {} if self.origin is None else {"origin": self.origin, "origin_offset": self.origin_offset}
        )
        if self.kind == "assign":
            return events.Assign("t", cause, spec=self.spec, then=self.then, release=self.release, **origin)
        if self.kind == "cancel":
            return events.Cancel("t", cause, **origin)
        if self.kind == "update":
            return events.Update("t", cause, attachments=self.parameters, merge=self.merge, **origin)
        epoch = (row.epoch if row else 0) + self.epoch
        if self.kind == "retry":
            return events.Retry("t", cause, epoch, (row.attempt if row else 0) + self.attempt)
        return self._report(row, cause, epoch)

    def _report(self, row: Row | None, cause: Cause, epoch: int) -> events.Event:
        kind = next(item for item in REPORTS if item.__name__.lower() == self.kind)
        holder = row.holder if row else None
        incarnation = holder.incarnation if holder and self.mine else "z9"
        more: dict[str, Any] = {}
        if kind in (events.Running, events.Applied, events.Refused):
            more["version"] = max((row.attachments_version if row else 0) + self.version, 0)
        if kind is events.Failed:
            more["retryable"] = self.retryable
        cause = Cause(kind.__name__, cause.topic, cause.partition, cause.offset, cause.at_ms)
        return kind("t", cause, epoch, incarnation, **more)


_OFTEN = st.sampled_from([0, 0, 0, 0, 1, -1])
MOVES = st.builds(
    Move,
    kind=st.sampled_from([*COMMANDS, *COMMANDS, "retry", *(item.__name__.lower() for item in REPORTS)]),
    at_ms=TIMES,
    now_ms=NOW,
    spec=SPECS,
    then=st.sampled_from([Wanted.RUN, Wanted.RUN, Wanted.PAUSE]),
    release=st.sampled_from([None, None, None, Release.RESTART, Release.MOVE]),
    parameters=PARAMETERS,
    merge=st.booleans(),
    origin=st.sampled_from([None, None, "task.assign/3", "task.cancel/1"]),
    origin_offset=st.integers(0, 20),
    epoch=_OFTEN,
    mine=st.sampled_from([True, True, True, False]),
    version=_OFTEN,
    retryable=st.booleans(),
    attempt=_OFTEN,
    to=st.sampled_from([*SKALDS, *SKALDS, None]),
)
