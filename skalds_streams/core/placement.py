"""Which skald gets a task: a pure function of the row, who is there, and how much each has.

A recipient pins. Otherwise, among those that have the class, the labels and the room: the one that a move names, the
one that held the task last, then rendezvous hashing weighted by free capacity, so that a node that comes or goes moves
few tasks. A task that is moved goes back only when nobody else can take it. Nobody capable: the reason per skald, for
people.

Labels and weight are the task's, where its document says them, else its class's, by that skald's own description.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from skalds_streams.core.membership import Member, Members
from skalds_streams.core.row import Json, Row

TRIES_ON_ONE_SKALD = 5
REASONS_MOST = 100
"""Skalds of which a waiting row says why they can't take its task: the first ones, and how many more there are."""
REASON_MAX_CHARS = 500
EXPECTED_BACK = "is expected back"
"""Why a task waits for one skald although others may be able to take it."""
BY_CLASS = ", by its class"
"""Said of a need that the task's own document does not have."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a task goes, or why it must wait. `members_offset`: heartbeats up to this offset were known; `of_class`:
    what its class says there, for the row.
    """

    skald_id: str | None = None
    incarnation: str | None = None
    waiting: Mapping[str, str] = field(default_factory=dict)
    members_offset: int = -1
    of_class: Json | None = None

    def units(self, row: Row) -> int:
        """What the task takes where it goes."""
        return replace(row, of_class=self.of_class).units


class Load:
    """Placements that heartbeats can't show yet: those made since a member's last beat was seen. One object a
    partition.
    """

    def __init__(self, *others: Load) -> None:
        """others: what they know counts, too."""
        self._others = others
        self._placed: dict[str, list[tuple[int, int]]] = {}

    def note(self, incarnation: str, members_offset: int, weight: int) -> None:
        """A task of this weight was placed while heartbeats up to `members_offset` were known."""
        self._placed.setdefault(incarnation, []).append((members_offset, weight))

    def extra(self, member: Member) -> int:
        """Weight placed on a member since its last beat."""
        others = sum(load.extra(member) for load in self._others)
        placed = self._placed.get(member.incarnation)
        if not placed:
            return others
        recent = [item for item in placed if item[0] >= member.last_offset]
        self._placed[member.incarnation] = recent
        return others + sum(weight for _, weight in recent)


def choose(row: Row, members: Members, load: Load) -> Choice:
    """Pick a skald for a row that is waiting."""
    offset = members.offset
    if row.class_name is None:
        return Choice(waiting={"*": "no Task document: the class of this task is not known yet"}, members_offset=offset)
    if row.last_skald is not None and members.is_reserved(row.last_skald) and row.recipient in (None, row.last_skald):
        return Choice(waiting={row.last_skald: EXPECTED_BACK}, members_offset=offset)
    able, waiting = survey(row, members, load)
    if row.recipient is not None and row.recipient not in waiting and not able:
        waiting = {row.recipient: "recipient is not here"}
    if not able:
        return Choice(waiting=_told(waiting) or {"*": "no skald is here"}, members_offset=offset)
    best = _best(row, able)
    of_class = best.options_of(row.class_name).of_run
    return Choice(best.skald_id, best.incarnation, members_offset=offset, of_class=of_class)


def _told(waiting: Mapping[str, str]) -> dict[str, str]:
    """As much of the reasons as a row keeps. By id: who beats next would change the choice of any other order."""
    told = {skald_id: waiting[skald_id][:REASON_MAX_CHARS] for skald_id in sorted(waiting)[:REASONS_MOST]}
    more = len(waiting) - len(told)
    return {**told, "*": f"and {more} more that can't take it"} if more else told


def survey(row: Row, members: Members, load: Load) -> tuple[list[tuple[Member, int]], dict[str, str]]:
    """(who can take the task, with its free capacity; why each other skald can't)."""
    waiting: dict[str, str] = {}
    able: list[tuple[Member, int]] = []
    for member in members:
        if not members.stands(member):
            continue  # another has its id: what keeps that one from taking the task is the reason
        used = member.running + load.extra(member)
        reason = refusal(row, member, used, silent=members.is_silent(member))
        if reason is None and members.differing(member):
            reason = "has other settings"
        if reason is None:
            able.append((member, member.capacity - used))
        else:
            waiting[member.skald_id] = reason
    return able, waiting


def refusal(row: Row, member: Member, used: int, *, silent: bool) -> str | None:
    """Why this member can't take the task now; None when it can. What runs on there has its room already."""
    if row.recipient is not None and member.skald_id != row.recipient:
        return f"recipient is {row.recipient}"
    if member.role == "coordinator":
        return "runs no workers"
    kept = row.task_id in member.kept
    if member.state != "up" and not (kept and member.state == "draining"):
        return member.state
    if row.class_name not in member.classes:
        broken = is_not_loadable(row.class_name, member)
        return f"class {row.class_name} is not loadable there" if broken else f"no class {row.class_name}"
    options = member.options_of(row.class_name)
    needed = options.requires if row.requires is None else row.requires
    missing = [f"{name}={value}" for name, value in sorted(needed.items()) if member.labels.get(name) != value]
    if missing:
        return "lacks label " + ", ".join(missing) + (BY_CLASS if row.requires is None else "")
    if used + units_at(row, member) > member.capacity and not kept:
        by_class = row.weight is None and options.weight > 1
        return f"full {used}/{member.capacity}" + (f": it takes {options.weight}{BY_CLASS}" if by_class else "")
    if silent:
        return "silent"
    return None


def is_not_loadable(class_name: str | None, member: Member) -> bool:
    """Whether the member says so of the class, which it names with its module."""
    return any(name.rpartition(".")[2] == class_name for name in member.not_loadable)


def units_at(row: Row, member: Member) -> int:
    """What a task would take of a skald's capacity there."""
    return row.weight or member.options_of(row.class_name).weight


def _best(row: Row, able: list[tuple[Member, int]]) -> Member:
    for member, _ in able:
        if member.skald_id == row.move_to:
            return member
    tired = row.last_skald if row.attempt and row.attempt % TRIES_ON_ONE_SKALD == 0 else None
    fresh = [item for item in able if item[0].skald_id not in (tired, row.moved_from)] or able
    for member, _ in fresh:
        if member.skald_id == row.last_skald:
            return member
    return max(fresh, key=lambda item: (_score(row.task_id, item[0].skald_id, item[1]), item[0].incarnation))[0]


def _score(task_id: str, skald_id: str, free: int) -> float:
    """Weighted rendezvous hash: the share of tasks that a skald wins is proportional to its free capacity."""
    digest = hashlib.blake2b(f"{task_id}\0{skald_id}".encode(), digest_size=8).digest()
    unit = (int.from_bytes(digest, "big") + 0.5) / 2**64
    return -max(free, 1) / math.log(unit)
