"""What the property tests draw: histories of moves, a move being an event told by how it relates to the row it meets.

A history is decoded from bytes, sixteen a move: drawing every field by a strategy of its own took most of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from skalds_streams.core import events
from skalds_streams.core.decide import Context
from skalds_streams.core.placement import Choice
from skalds_streams.core.row import Cause, Release, Row, Wanted

MOVE_BYTES = 16
MOVES_MOST = 20
EPOCH_FLOOR, REVISION_FLOOR = 2, 7
COMMANDS = ("assign", "cancel", "update")
OURS = ("retry", "deadline", "expired", "found")
"""Kinds that coordinators write."""
REPORTS: dict[str, Any] = {
    "running": events.Running,
    "applied": events.Applied,
    "refused": events.Refused,
    "stopped": events.Stopped,
    "finished": events.Finished,
    "failed": events.Failed,
    "lost": events.Lost,
}


@dataclass(frozen=True)
class Move:
    """One event. Numbers are relative to the row, so that reports hit their run often, but not always.

    `epoch`, `attempt`, `version`: added to the row's; `mine`: from the incarnation that holds it; `to`: whom placement
    picks.
    """

    kind: str
    at_ms: int = 0
    now_ms: int = 0
    spec: events.TaskSpec = field(default_factory=events.TaskSpec)
    then: Wanted = Wanted.RUN
    release: Release | None = None
    resume: bool = False
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

    def context(self, epoch_floor: int = EPOCH_FLOOR, revision_floor: int = REVISION_FLOOR) -> Context:
        """What decide may know when this move is made."""
        choice = Choice(self.to, f"{self.to}1") if self.to else Choice(waiting={"a": "full 8/8"})
        return Context(self.now_ms, lambda row: choice, epoch_floor, revision_floor)

    def event(self, row: Row | None, offset: int) -> events.Event:
        """The event for a row as it stands."""
        cause = Cause(self.kind.title(), f"task.{self.kind}", 0, offset, self.at_ms)
        origin: dict[str, Any] = (
            {} if self.origin is None else {"origin": self.origin, "origin_offset": self.origin_offset}
        )
        if self.kind == "assign":
            release = self.release
            return events.Assign(
                "t", cause, spec=self.spec, then=self.then, release=release, resume=self.resume, **origin
            )
        if self.kind == "cancel":
            return events.Cancel("t", cause, **origin)
        if self.kind == "update":
            return events.Update("t", cause, attachments=self.parameters, merge=self.merge, **origin)
        epoch, attempt = (row.epoch, row.attempt) if row else (0, 0)
        if self.kind == "retry":
            return events.Retry("t", cause, epoch + self.epoch, attempt + self.attempt)
        if self.kind == "deadline":
            return events.Deadline("t", cause, (row.deadline_at_ms if row else 0) + self.epoch)
        if self.kind == "expired":
            return events.Expired("t", cause, (row.revision if row else 0) + self.epoch)
        if self.kind == "found":
            return events.Found("t", cause, self.spec)
        return self._report(row, cause, epoch + self.epoch)

    def _report(self, row: Row | None, cause: Cause, epoch: int) -> events.Event:
        holder = row.holder if row else None
        more: dict[str, Any] = {}
        if self.kind in ("running", "applied", "refused"):
            more["version"] = max((row.attachments_version if row else 0) + self.version, 0)
        if self.kind == "failed":
            more["retryable"] = self.retryable
        report: events.Event = REPORTS[self.kind](
            "t", cause, epoch, holder.incarnation if holder and self.mine else "z9", **more
        )
        return report


_KINDS = (*COMMANDS, *COMMANDS, *OURS, "running", *REPORTS)
_PARAMETERS: Sequence[dict[str, Any]] = (
    {},
    {"fps": 1},
    {"fps": 2, "url": "u"},
    {"url": None},
    {"fps": {"x": 1, "y": None}},
    {"fps": {"y": [1]}, "deep": {"a": {"b": None}}},
)
_SPECS = (
    events.TaskSpec(),
    events.TaskSpec(class_name="Cam", attachments={"fps": 30}),
    events.TaskSpec(class_name="Cam", attachments={"fps": 30}, max_restarts=0),
    events.TaskSpec(class_name="Feed", recipient="b", weight=2, deadline_at_ms=2_000),
    events.TaskSpec(recipient="a", requires={"gpu": "yes"}, attachments={}),
    events.TaskSpec(class_name="Cam", priority=3, max_restarts=1, attachments={"fps": 1, "url": "u"}),
)
_OFTEN_0 = (0, 0, 0, 0, 0, 0, 1, -1)


def _pick(choices: Sequence[Any], byte: int) -> Any:
    return choices[byte % len(choices)]


def move_of(data: bytes) -> Move:
    """A move from MOVE_BYTES bytes. Times reach from before the epoch to ahead of our clock."""
    return Move(
        kind=_pick(_KINDS, data[0]),
        at_ms=int.from_bytes(data[1:3], "big") % 6_000 - 50,
        now_ms=int.from_bytes(data[3:5], "big") % 5_000 or 1,  # 0 is never
        spec=_pick(_SPECS, data[5]),
        then=_pick((Wanted.RUN, Wanted.RUN, Wanted.PAUSE), data[6]),
        release=_pick((None, None, None, Release.RESTART, Release.MOVE), data[7]),
        parameters=_pick(_PARAMETERS, data[8]),
        merge=bool(data[9] & 1),
        retryable=bool(data[9] & 2),
        resume=data[9] & 12 == 12,
        origin=_pick((None, None, "task.assign/3", "task.cancel/1"), data[10]),
        origin_offset=data[11] % 20,
        epoch=_pick(_OFTEN_0, data[12]),
        attempt=_pick(_OFTEN_0, data[12] >> 4),
        mine=data[13] % 4 > 0,
        version=_pick(_OFTEN_0, data[14]),
        to=_pick(("a", "b", "a", "b", "c", None), data[15]),
    )


def _moves_of(data: bytes) -> list[Move]:
    return [move_of(data[at : at + MOVE_BYTES]) for at in range(0, len(data) - MOVE_BYTES + 1, MOVE_BYTES)]


def _command_of(data: bytes) -> Move:
    return replace(move_of(data), kind=_pick(COMMANDS, data[0]))


MOVES = st.binary(min_size=MOVE_BYTES, max_size=MOVE_BYTES).map(move_of)
COMMAND_MOVES = st.binary(min_size=MOVE_BYTES, max_size=MOVE_BYTES).map(_command_of)
HISTORIES = st.binary(max_size=MOVE_BYTES * MOVES_MOST).map(_moves_of)
LONG_HISTORIES = st.binary(min_size=MOVE_BYTES * MOVES_MOST, max_size=MOVE_BYTES * MOVES_MOST).map(_moves_of)
PARAMETERS = st.sampled_from(_PARAMETERS)
