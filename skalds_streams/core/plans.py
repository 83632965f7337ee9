"""What would happen: the production decisions (`decide`, `find_due`, `choose`) run on copies of rows and members.
Nothing is sent from here and nothing given is changed.

Rules: the rows' weights count where a heartbeat has not caught up with them; what a plan has placed counts for what it
places next, what it has taken away frees no room; tasks go by priority, then by id. Coordinators decide later, for a
partition each, by newer heartbeats: with three skalds or more, they may pick another of several that can take a task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

from skalds_streams.core import events
from skalds_streams.core.decide import Context, decide
from skalds_streams.core.due import find_due
from skalds_streams.core.membership import Member, Members
from skalds_streams.core.moves import NOT_MOVED, let_go
from skalds_streams.core.placement import Load, choose, refusal, survey, units_at
from skalds_streams.core.row import Cause, Json, Release, Row, Status, Wanted

_CAUSE = Cause("Plan", "", -1, -1, 0)
_IMAGINED = "\0imagined"
"""An incarnation that no skald has."""


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one task. `source`: the skald that has it, None for one that waits."""

    task_id: str
    source: str | None
    target: str | None = None
    """The skald that takes it. None: it stays where it is, or waits if that skald is gone."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Without a target: why each skald can't take it; "*" stands for all of them."""


class Imagined:
    """A cluster to try decisions on."""

    def __init__(self, rows: Iterable[Row], members: Members, now_ms: int = 0) -> None:
        self.members, self.load, self._now_ms = members, Load(), now_ms
        held = Counter[str]()
        for row in rows:
            if row.holder is not None:
                held[row.holder.incarnation] += row.units
        for member in members:
            unheard = held[member.incarnation] - member.running
            if unheard > 0:
                self.load.note(member.incarnation, members.offset, unheard)

    def used(self, member: Member) -> int:
        """Units of its capacity that a member uses now."""
        return member.running + self.load.extra(member)

    def after(self, row: Row, *happens: Callable[[Row], events.Event]) -> Row:
        """The row after these events. What they place is counted."""
        context = Context(self._now_ms, partial(choose, members=self.members, load=self.load))
        for event in happens:
            decision = decide(row, event(row), context)
            row = decision.row or row
            if decision.choice is not None and decision.choice.incarnation is not None:
                self.load.note(decision.choice.incarnation, decision.choice.members_offset, row.units)
        return row

    def why_not(self, row: Row, source: str | None) -> Mapping[str, str]:
        """Why each skald but the one that has it can't take a task."""
        if row.recipient is not None and row.recipient == source:
            return {"*": f"it is pinned to {source}"}
        _, waiting = survey(let_go(row), self.members, self.load)
        reasons = {skald_id: reason for skald_id, reason in waiting.items() if skald_id != source}
        return reasons or {"*": "no other skald is here"}


# -- the four questions ------------------------------------------------------------------------------------------------


def plan_drain(rows: Collection[Row], members: Members, skald_id: str, now_ms: int = 0) -> list[Step]:
    """Who would take the tasks of a skald that is drained, and which would run on there."""
    cluster = Imagined(rows, after_heartbeats(members, {"kind": "drain", "skald_id": skald_id}), now_ms)
    return [_drained(cluster, row, skald_id, now_ms) for row in _in_order(_held_by(rows, skald_id))]


def _drained(cluster: Imagined, row: Row, source: str, now_ms: int) -> Step:
    leaves = row.release is not None
    if not leaves:
        due = next(find_due([row], cluster.members, cluster.load, now_ms), None)
        if due is None or due.kind != "Drain":
            reasons = {"*": due.reason} if due is not None else cluster.why_not(row, source)
            return Step(row.task_id, source, None, reasons)
    after = cluster.after(row, *(() if leaves else (_of_run(events.Drain),)), _of_run(events.Stopped))
    return _step(row.task_id, source, after)


def plan_loss(rows: Collection[Row], members: Members, skald_id: str, now_ms: int = 0) -> list[Step]:
    """Who would take the tasks of a skald that is gone for good, and which would wait."""
    live = [member.incarnation for member in members if member.skald_id == skald_id]
    gone = {"skald_id": skald_id, "incarnation": _IMAGINED, "n": 1, "replaces": live}
    imagined = after_heartbeats(members, {**gone, "state": "up"}, {**gone, "n": 2, "state": "leaving"})
    cluster = Imagined(rows, imagined, now_ms)
    steps: list[Step] = []
    for row in _in_order(rows):
        if row.holder is not None and row.holder.skald_id == skald_id and row.wanted is Wanted.RUN:
            steps.append(_step(row.task_id, skald_id, cluster.after(row, _of_run(events.Lost))))
        elif row.is_waiting and row.last_skald == skald_id and not row.retry_at_ms:
            steps.append(_step(row.task_id, None, cluster.after(row, _retry)))
    return steps


def plan_undrain(rows: Collection[Row], members: Members, skald_id: str, now_ms: int = 0) -> list[Step]:
    """Which of the tasks that wait would be placed when a skald takes tasks again."""
    cluster = Imagined(rows, after_heartbeats(members, {"kind": "undrain", "skald_id": skald_id}), now_ms)
    waiting = [row for row in _in_order(rows) if row.is_waiting and not row.retry_at_ms]
    steps = [_step(row.task_id, None, cluster.after(row, _retry)) for row in waiting]
    return [step for step in steps if step.target is not None]


def plan_move(
    rows: Collection[Row], members: Members, task_ids: Iterable[str], to: str | None = None, now_ms: int = 0
) -> list[Step]:
    """Where these tasks, all of them in `rows`, would run if they were moved. to: to this skald or not at all."""
    cluster = Imagined(rows, members, now_ms)
    by_id = {row.task_id: row for row in rows}
    return [_moved(cluster, by_id[task_id], to) for task_id in task_ids]


def _moved(cluster: Imagined, row: Row, to: str | None) -> Step:
    source = row.holder.skald_id if row.holder is not None else None

    if row.wanted is Wanted.RUN and not row.is_terminal and (row.recipient is None or row.recipient != source):
        able, _ = survey(let_go(row), cluster.members, cluster.load)
        others = [member.skald_id for member, _ in able if member.skald_id != source]
        if to is not None and to != source and to not in others:
            return Step(row.task_id, source, None, {to: cluster.why_not(row, source).get(to, "is not here")})
        if not others:
            return Step(row.task_id, source, None, cluster.why_not(row, source))
    asked = cluster.after(row, lambda row: events.Assign(row.task_id, _CAUSE, release=Release.MOVE, to=to))
    if asked.note is not None and asked.note.startswith(NOT_MOVED):
        return Step(row.task_id, source, None, {"*": asked.note.removeprefix(NOT_MOVED)})
    return _step(row.task_id, source, cluster.after(asked, _of_run(events.Stopped)) if source is not None else asked)


# -- evening the load out ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Share:
    """How much of a skald is used while a plan is made. `taken` counts what came and not what went."""

    member: Member
    used: int
    taken: int

    @property
    def part(self) -> float:
        """Of its capacity, 0 to 1."""
        return self.used / self.member.capacity


def shares(rows: Collection[Row], members: Members) -> list[Share]:
    """The skalds that can be given tasks now, by id, with what they use."""
    cluster = Imagined(rows, members)
    usable = [
        member
        for member in members
        if member.state == "up"
        and member.role != "coordinator"
        and member.capacity > 0
        and not members.is_silent(member)
    ]
    used = [(member, cluster.used(member)) for member in usable]
    return sorted((Share(member, units, units) for member, units in used), key=lambda share: share.member.skald_id)


def spread(found: Collection[Share]) -> float:
    """The part of its capacity that the fullest uses, less that of the emptiest."""
    parts = [share.part for share in found]
    return max(parts) - min(parts) if parts else 0.0


def plan_balance(rows: Collection[Row], members: Members, most: int | None = None) -> list[Step]:
    """The fewest moves, at most `most`, after which none more evens the load out.

    Only tasks that run and are not pinned are moved. Each move goes from one that uses a greater part of its capacity
    to one that uses a smaller, and both stay between what they were.
    """
    found = shares(rows, members)
    groups = _groups(rows, found)
    steps: list[Step] = []
    while most is None or len(steps) < most:
        best = min(_gains(groups, found), default=None, key=lambda gain: gain[0])
        if best is None:
            break
        _, source, target, key = best
        row = groups[source.member.incarnation, key].pop()
        units = units_at(row, target.member)
        source.used -= row.units
        target.used += units
        target.taken += units
        steps.append(Step(row.task_id, source.member.skald_id, target.member.skald_id))
    return steps


_Key = tuple[str | None, tuple[tuple[str, str], ...] | None, int | None, int]
_Groups = Mapping[tuple[str, _Key], list[Row]]
_Gain = tuple[tuple[float, str, str, str], Share, Share, _Key]


def _groups(rows: Iterable[Row], found: Collection[Share]) -> _Groups:
    """What can be moved, alike ones together, the next one last: the lowest priority, then the first id."""
    known = {share.member.incarnation for share in found}
    groups: dict[tuple[str, _Key], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.priority, row.task_id), reverse=True):
        holder = row.holder
        if holder is None or holder.incarnation not in known or row.recipient is not None:
            continue
        if row.status is Status.RUNNING and row.wanted is Wanted.RUN and row.release is None:
            requires = None if row.requires is None else tuple(sorted(row.requires.items()))
            key = (row.class_name, requires, row.weight, row.units)
            groups.setdefault((holder.incarnation, key), []).append(row)
    return groups


def _gains(groups: _Groups, found: Collection[Share]) -> Iterator[_Gain]:
    """(what it is worth, from, to, which group) of each move that gains something; less is better."""
    by_incarnation = {share.member.incarnation: share for share in found}
    for (incarnation, key), alike in groups.items():
        source = by_incarnation[incarnation]
        for target in found:
            if not alike or target is source or refusal(alike[-1], target.member, target.taken, silent=False):
                continue
            gain = _gain(source, target, alike[-1].units, units_at(alike[-1], target.member))
            if gain is not None:
                order = (gain, source.member.skald_id, target.member.skald_id, alike[-1].task_id)
                yield order, source, target, key


def _gain(source: Share, target: Share, leaves: int, comes: int) -> float | None:
    """By how much a move changes the sum of used²/capacity; None when it does not even the two out.

    leaves, comes: what the task takes at the one and at the other.
    """
    left = (source.used - leaves) / source.member.capacity
    grown = (target.used + comes) / target.member.capacity
    if left < target.part or grown > source.part:
        return None
    change = comes * (grown + target.part) - leaves * (source.part + left)
    return change if change < -1e-9 else None


# -- helpers -----------------------------------------------------------------------------------------------------------


def after_heartbeats(members: Members, *docs: Json) -> Members:
    """A copy of the members to which these records have come."""
    imagined = deepcopy(members)
    for doc in docs:
        imagined.apply(doc, members.offset)
    return imagined


def _held_by(rows: Iterable[Row], skald_id: str) -> Iterator[Row]:
    for row in rows:
        if row.holder is not None and row.holder.skald_id == skald_id and row.wanted is Wanted.RUN:
            yield row


def _in_order(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (-row.priority, row.task_id))


def _step(task_id: str, source: str | None, after: Row) -> Step:
    if after.holder is not None:
        return Step(task_id, source, after.holder.skald_id)
    return Step(task_id, source, None, dict(after.waiting or {}))


def _of_run(kind: Callable[..., events.Event]) -> Callable[[Row], events.Event]:
    """A report of the run that the row names."""

    def event(row: Row) -> events.Event:
        holder = row.holder
        return kind(row.task_id, _CAUSE, holder.epoch if holder else 0, holder.incarnation if holder else "")

    return event


def _retry(row: Row) -> events.Event:
    return events.Retry(row.task_id, _CAUSE, row.epoch, row.attempt)
