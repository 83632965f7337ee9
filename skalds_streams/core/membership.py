"""Who is there: a fold over the heartbeat log. The log is the clock; no time of day enters.

Rules: an incarnation is one life of a skald process under one id. It is dead for good
- when some one other has appended DEATH_BEATS differently numbered heartbeats after its last: a heartbeat is sent one
  beat after the former was acknowledged, so at least DEATH_BEATS - 1 beats have passed on the other's clock;
- when a later incarnation names it in `replaces`: its machine's lock proves that its workers are gone;
- when it said `leaving` or `holding`, after its last worker was reaped. What a holding one ran is free, but reserved
  for its skald id until another has appended `hold_beats` more.
Nothing is appended while the broker is away, so nobody ages in an outage. One that falls silent gets no new tasks long
before it is dead. The document arrives whole on change and every 30 s; short beats in between keep what is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile

from skalds_streams.core.redact import EVERYTHING
from skalds_streams.core.row import Json

DEATH_BEATS = 13
"""ceil((lease + 2 beats) / beat) + 1, a lease being 10 beats: the last of them is appended at least 12 beats after the
dead one's last beat was sent, and the kernel ends its workers after 11 (`skald.lease`)."""
SILENT_BEATS = 5
"""Beats of one other skald after which a silent one gets no new tasks (about 10 s)."""
HOLD_BEATS = 9
"""Default of `hold_beats`: 15 s of 2 s each, and one."""


@dataclass(frozen=True, slots=True)
class Member:
    """One incarnation as its heartbeats describe it. Offsets are those of the heartbeat topic."""

    skald_id: str
    incarnation: str
    n: int = 0
    last_offset: int = -1
    running: int = 0
    state: str = "up"
    classes: Mapping[str, str] = field(default_factory=dict)
    """Class name → digest of its parameters' schema."""
    secret: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class name → paths of its secret parameters (`core.redact`); a class without any is not in it."""
    not_loadable: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    """Tasks that run on there without a row that says so: there is room for them."""
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: int = 0
    web: str = ""
    role: str = "both"
    version: str = ""
    settings_hash: str = ""
    cluster: str = ""
    replaces: tuple[str, ...] = ()
    """Incarnations that have ended before this one began. A heartbeat names one, a list, or none."""
    at_ms: int = 0
    """Time of the last beat's record: shown to people, never decided upon."""


GOING = {"leaving": "left", "holding": "left, and comes back"}
"""State of a last heartbeat → why its sender is dead."""

ASKED = {"drain": "draining", "undrain": "up"}
"""What a person may ask of a skald, by a record of this `kind` → the state that follows."""

_DOCUMENT = {
    "state": str,
    "classes": Mapping,
    "secret": Mapping,
    "labels": Mapping,
    "capacity": int,
    "web": str,
    "role": str,
    "version": str,
    "settings_hash": str,
    "cluster": str,
    "replaces": str | list | None,
    "not_loadable": list | tuple,
    "kept": list | tuple,
}


class Members:
    """The fold. `apply` is the only way in; everything else reads."""

    def __init__(self, hold_beats: int = HOLD_BEATS) -> None:
        self._hold_beats = hold_beats
        self._live: dict[str, Member] = {}
        """In the order of their last beats."""
        self._dead: dict[str, str] = {}
        self._beats: dict[str, deque[int]] = {}
        self._clock = ""
        """Whose beats the dead are counted by."""
        self._passed = dict.fromkeys((SILENT_BEATS, DEATH_BEATS, hold_beats), -1)
        """Number of beats → the highest offset after which some one member has appended as many, that one included."""
        self._reserved: dict[str, int] = {}
        self._drained: set[str] = set()
        """Ids of skalds that a person has drained."""
        self.first_offset = -1
        self._secret: dict[str, tuple[str, ...]] = {}
        self.offset = -1
        """Offset of the last heartbeat applied."""

    def apply(self, doc: Json, offset: int, at_ms: int = 0) -> bool:
        """Take one heartbeat. Returns whether who is there, or what somebody can run, has changed.

        Raises ValueError for a document whose fields are not what placement relies on; then its sender is alive, and
        described as before.
        """
        self.offset = max(self.offset, offset)
        if self.first_offset < 0:
            self.first_offset = offset
        incarnation, skald_id = doc.get("incarnation"), doc.get("skald_id")
        if doc.get("kind") in ASKED and isinstance(skald_id, str):
            return self._ask(skald_id, str(doc["kind"]))
        if not isinstance(incarnation, str) or not isinstance(skald_id, str) or incarnation in self._dead:
            return False
        before = self._live.pop(incarnation, None)
        member = replace(before or Member(skald_id, incarnation), last_offset=offset, at_ms=at_ms)
        self._live[incarnation] = member
        if before is None:
            self._reserved.pop(skald_id, None)
            self._drained.discard(skald_id)
        changed = False
        if self._count(incarnation, doc.get("n"), before, offset):
            changed |= self._pass_time()
        heard = _heard(member, doc)
        if skald_id in self._drained and heard.state == "up":
            heard = replace(heard, state="draining")
        self._live[incarnation] = heard
        self._note_secrets(heard)
        changed |= before is None or _described(before) != _described(heard)
        for former in heard.replaces:
            if former not in self._dead:
                self._bury(former, f"replaced by {incarnation}")
                changed = True
        if heard.state in GOING:
            self._bury(incarnation, GOING[heard.state])
            if heard.state == "holding":
                self._reserved[skald_id] = offset
            changed = True
        return changed

    def _ask(self, skald_id: str, what: str) -> bool:
        """A person drains a skald, or takes that back. It says so itself as soon as it has read it."""
        members = [member for member in self._live.values() if member.skald_id == skald_id]
        if what == "drain" and members:
            self._drained.add(skald_id)
        else:
            self._drained.discard(skald_id)
        for member in members:
            self._live[member.incarnation] = replace(member, state=ASKED[what])
        return bool(members)

    def _count(self, incarnation: str, n: object, before: Member | None, offset: int) -> bool:
        """Count a beat, once: a repetition has the number of a former one."""
        if not isinstance(n, int) or (before is not None and n <= before.n):
            return False
        beats = self._beats.setdefault(incarnation, deque(maxlen=max(self._passed)))
        beats.append(offset)
        for number, passed in self._passed.items():
            if len(beats) >= number and beats[-number] > passed:
                self._passed[number] = beats[-number]
                self._clock = incarnation if number == DEATH_BEATS else self._clock
        return True

    def _pass_time(self) -> bool:
        """Bury those whose last beat is so many beats ago, and end reservations. Whether there were any."""
        passed = self._passed[DEATH_BEATS]
        gone = list(takewhile(lambda member: member.last_offset < passed, self._live.values()))
        for member in gone:
            self._bury(member.incarnation, f"silent for {DEATH_BEATS} heartbeats of {self._clock}")
        over = [skald_id for skald_id, since in self._reserved.items() if since < self._passed[self._hold_beats]]
        for skald_id in over:
            del self._reserved[skald_id]
        return bool(gone or over)

    def _note_secrets(self, member: Member) -> None:
        """Remembered beyond a member's end, as parameters are still shown then. What was secret once remains so."""
        for name in member.classes:
            known, said = self._secret.get(name), member.secret.get(name, ())
            if known is None or not set(said) <= set(known):
                self._secret[name] = tuple(sorted({*(known or ()), *said}))

    @property
    def secrets(self) -> Mapping[str, tuple[str, ...]]:
        """Class name → paths of its secret parameters, of every class that was ever described."""
        return self._secret

    def secret_paths(self, class_name: str | None) -> tuple[str, ...]:
        """Which parameters of a class are secret; all of them as long as nobody has described it."""
        return self._secret.get(class_name or "", EVERYTHING)

    def _bury(self, incarnation: str, why: str) -> None:
        self._dead[incarnation] = why
        self._live.pop(incarnation, None)
        self._beats.pop(incarnation, None)

    def is_dead(self, incarnation: str, known_at: int = -1) -> bool:
        """Whether this incarnation can run nothing any more. Final.

        known_at: an offset at which it was known to be there. One that the log as far as it is kept does not name
        counts as last seen at its first offset.
        """
        if incarnation in self._dead:
            return True
        unknown = incarnation not in self._live and 0 <= known_at <= self.offset
        return unknown and self.first_offset < self._passed[DEATH_BEATS]

    def is_drained(self, skald_id: str) -> bool:
        """Whether a person has drained it. Its restart ends that."""
        return skald_id in self._drained

    def is_reserved(self, skald_id: str) -> bool:
        """Whether what this skald ran is kept for it: it has said that it comes back."""
        return skald_id in self._reserved

    def why_dead(self, incarnation: str) -> str | None:
        return self._dead.get(incarnation) or ("not in the heartbeats" if incarnation not in self._live else None)

    def get(self, incarnation: str) -> Member | None:
        """The member, while it is not dead."""
        return self._live.get(incarnation)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._live.values())

    def __len__(self) -> int:
        return len(self._live)

    def beats_missed(self, member: Member) -> int:
        """Beats that the most talkative other member has appended since this one's last, at most DEATH_BEATS."""
        most = 0
        for incarnation, offsets in self._beats.items():
            if incarnation != member.incarnation:
                most = max(most, sum(1 for offset in offsets if offset > member.last_offset))
        return most

    def is_silent(self, member: Member) -> bool:
        """Whether some other has beaten SILENT_BEATS times since this member's last beat."""
        return member.last_offset < self._passed[SILENT_BEATS]


def _heard(member: Member, doc: Json) -> Member:
    """The member as this heartbeat says it is."""
    known = {name: doc[name] for name in _DOCUMENT if name in doc}
    wrong = [name for name, value in known.items() if not isinstance(value, _DOCUMENT[name])]
    wrong += [name for name in ("n", "running") if not isinstance(doc.get(name, 0), int)]
    if "replaces" in known:
        said = known["replaces"] or ()
        known["replaces"] = (said,) if isinstance(said, str) else tuple(said)
        wrong += ["replaces"] * (not all(isinstance(name, str) for name in known["replaces"]))
    if isinstance(known.get("secret"), Mapping):
        wrong += ["secret"] * (not all(map(_are_paths, known["secret"].values())))
    if wrong:
        raise ValueError(f"wrong type: {', '.join(wrong)}")
    if "secret" in known:
        known["secret"] = {name: tuple(paths) for name, paths in known["secret"].items()}
    for name in ("not_loadable", "kept"):
        if name in known:
            known[name] = tuple(known[name])
    return replace(member, **known, n=max(doc.get("n", 0), member.n), running=doc.get("running", member.running))


def _are_paths(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(path, str) for path in value)


def _described(member: Member) -> tuple[object, ...]:
    return (
        member.state,
        dict(member.classes),
        member.not_loadable,
        member.kept,
        dict(member.labels),
        member.capacity,
        member.web,
        member.role,
    )
