"""Who keeps a process from taking part: another incarnation of its skald id, or somebody with other settings.

Rules: the log decides, not a clock. One that waits beats, so that those who are gone grow old by its beats; it gives up
only when the other has appended a beat after so many of its own, which nobody can who is gone. In the state `waiting`
it gets no tasks, and its beats do not count for those who have another lease (`core.membership`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from skalds_streams.core.membership import DEATH_BEATS, Member, Members

TWIN_BEATS = 20
"""Own beats, two leases, for which the other may live on: longer than the DEATH_BEATS after which it would be dead."""
TAKE_OVER_BEATS = 60
"""The same, when the other was asked to end: it stops its workers first."""
OTHERS_BEATS = 1
"""The same, when somebody has other settings: one that is alive does not end soon."""
assert TWIN_BEATS > DEATH_BEATS


@dataclass(frozen=True, slots=True)
class Obstacle:
    """`differing`: names of the settings in which the two differ; none when the other has our skald id."""

    member: Member
    differing: tuple[str, ...] = ()


def find_obstacle(members: Members, skald_id: str, incarnation: str, replaced: Sequence[str] = ()) -> Obstacle | None:
    """What keeps this incarnation from taking part, or would if it were there already; a twin first.

    replaced: incarnations that have ended, as it knows by its lock.
    """
    me = members.get(incarnation)
    for member in members.of_id(skald_id):
        if member is me:
            break
        if member.incarnation not in replaced and not (me is None and member.waits):
            return Obstacle(member)
    for member in members:
        if member is me or member.waits or member.incarnation in replaced:
            continue
        if me is not None and not me.waits and me.since < member.since:
            continue  # it came later: it is the one that ends
        differing = members.differing(member)
        if differing:
            return Obstacle(member, differing)
    return None


def outsiders(members: Members) -> Iterator[Obstacle]:
    """Who is there and takes no part: those with other settings than this process, and second processes of one id."""
    for member in members:
        differing = members.differing(member)
        if differing or not members.stands(member):
            yield Obstacle(member, differing)


def asks_to_take_over(members: Members, skald_id: str, incarnation: str) -> Member | None:
    """One that waits for this incarnation's end and asks for it."""
    waiting = (member for member in members.of_id(skald_id) if member.incarnation != incarnation)
    return next((member for member in waiting if member.waits and member.take_over), None)


@dataclass(slots=True)
class Patience:
    """Of one incarnation that waits: when has it waited long enough?"""

    incarnation: str
    take_over: bool = False
    _marks: dict[int, int] = field(default_factory=dict)
    """Number of own beats → offset of the last beat known when so many were sent."""

    def is_over(self, members: Members, obstacle: Obstacle) -> bool:
        """Whether the other has beaten after the beats that it was waited for: it lives, and will."""
        me = members.get(self.incarnation)
        if me is None:
            return False
        beats = OTHERS_BEATS if obstacle.differing else TAKE_OVER_BEATS if self.take_over else TWIN_BEATS
        if me.n >= beats:
            self._marks.setdefault(beats, me.last_offset)
        return beats in self._marks and obstacle.member.last_offset > self._marks[beats]


NAMES: Mapping[str, str] = {
    "app": "SKALDS_APP",
    "cluster": "SKALDS_CLUSTER",
    "topic_prefix": "SKALDS_TOPIC_PREFIX",
    "lease_ms": "SKALDS_LEASE_MS",
    "hold_ms": "SKALDS_HOLD_MS",
    "partitions": "KAFKA_TOPIC_PARTITIONS",
}


def where(member: Member) -> str:
    """ "incarnation 1a2b, http://10.0.0.1:6066, on machine cam-7"."""
    parts = [f"incarnation {member.incarnation}", member.web, f"on machine {member.host}" if member.host else ""]
    return ", ".join(part for part in parts if part)


def differences(obstacle: Obstacle, ours: Mapping[str, object]) -> str:
    """ "SKALDS_LEASE_MS is 20000 here and 4000 there, …"."""
    theirs, names = obstacle.member.agreed, obstacle.differing
    return ", ".join(f"{NAMES.get(name, name)} is {ours[name]} here and {theirs[name]} there" for name in names)
