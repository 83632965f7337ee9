"""Who is there: a fold over the heartbeat log. The log is the clock; no time of day enters.

Rules: an incarnation is one life of a skald process under one id. It is dead for good
- when some one other has appended DEATH_BEATS differently numbered heartbeats after its last: a heartbeat is sent one
  beat after the former was acknowledged, so at least DEATH_BEATS - 1 beats have passed on the other's clock;
- when a later incarnation names it in `replaces`: its machine's lock proves that its workers are gone;
- when it said `leaving` or `holding`, after its last worker was reaped. What a holding one ran is free, but reserved
  for its skald id until another has appended `hold_beats` more.
Of several living incarnations of one id one stands: the first that took part; those that wait (state `waiting`), and
those that came while another stood, get nothing, free nothing and end no drain. A drain is of a process: it ends with
`undrain` or with the next process, not with a lapse, after which the same one goes on (`lapses`). Beats are counted
only of those who have our lease, as a beat is a tenth of it; one with another lease is dead after as many beats as
make up its own. Nothing is appended while the broker is away, so nobody ages in an outage. One that falls silent gets
no new tasks long before it is dead. The document arrives whole on change and every 30 s, else a short beat.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import takewhile
from typing import TypeGuard

from skalds_streams.core.member import WAITING as WAITING
from skalds_streams.core.member import Member as Member
from skalds_streams.core.member import described, heard_as
from skalds_streams.core.redact import EVERYTHING
from skalds_streams.core.row import NAME_MAX_CHARS, Json

DEATH_BEATS = 13
"""ceil((lease + 2 beats) / beat) + 1, a lease being 10 beats: the last of them is appended at least 12 beats after the
dead one's last beat was sent, and the kernel ends its workers after 11 (`skald.lease`)."""
SILENT_BEATS = 5
"""Beats of one other skald after which a silent one gets no new tasks (about 10 s)."""
DEATH_BEATS_MOST = 10_000
"""Of one with the longest lease, counted by one with the shortest."""
HOLD_BEATS = 9
"""Default of `hold_beats`: 15 s of 2 s each, and one."""


def former_of(replaces: tuple[str, ...], lapses: int) -> tuple[str, ...]:
    """The incarnations that a process was itself, of all that it replaces."""
    return replaces[max(len(replaces) - lapses, 0) :]


GOING = {"leaving": "left", "holding": "left, and comes back"}
"""State of a last heartbeat → why its sender is dead."""

ASKED = {"drain": "draining", "undrain": "up"}
"""What a person may ask of a skald, by a record of this `kind` → the state that follows."""


class Members:
    """The fold. `apply` is the only way in; everything else reads."""

    def __init__(self, hold_beats: int = HOLD_BEATS, agreed: Mapping[str, object] | None = None) -> None:
        """agreed: the settings of this process that all must share, `lease_ms` among them."""
        self._hold_beats, self._agreed = hold_beats, dict(agreed or {})
        self._live: dict[str, Member] = {}
        """In the order of their last beats."""
        self._of_id: dict[str, set[str]] = {}
        """Skald id → its living incarnations: one, as a rule."""
        self._dead: dict[str, str] = {}
        self._beats: dict[str, deque[int]] = {}
        self._clock = ""
        """Whose beats the dead are counted by."""
        self._deaths = {DEATH_BEATS}
        """Numbers of beats that make a death: one a lease that was seen."""
        self._passed = dict.fromkeys((SILENT_BEATS, DEATH_BEATS, hold_beats), -1)
        """Number of beats → the highest offset after which some one member has appended as many, that one included."""
        self._reserved: dict[str, int] = {}
        self._drained: dict[str, str] = {}
        """Id of a skald that a person has drained → the incarnation that was meant."""
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
        if not _is_name(incarnation) or not _is_name(skald_id) or incarnation in self._dead:
            return False
        before = self._live.pop(incarnation, None)
        member = replace(before or Member(skald_id, incarnation, since=offset), last_offset=offset, at_ms=at_ms)
        self._live[incarnation] = member
        self._of_id.setdefault(member.skald_id, set()).add(incarnation)
        changed = False
        if self._count(member, doc, before):
            changed |= self._pass_time()
        heard = heard_as(member, doc)
        if member.waits and not heard.waits:
            heard = replace(heard, since=offset)
        self._live[incarnation] = heard
        self._death_beats(heard)
        self._note_secrets(heard)
        for former in heard.replaces:
            if former not in self._dead:
                self._bury(former, f"replaced by {incarnation}")
                changed = True
        if (before is None or before.waits) and self.stands(heard):
            self._begin(heard)
        if skald_id in self._drained and heard.state == "up":
            heard = self._live[incarnation] = replace(heard, state="draining")
        changed |= before is None or described(before) != described(heard)
        if heard.state in GOING:
            stood = self.stands(heard)
            self._bury(incarnation, GOING[heard.state])
            heir = self.standing(skald_id)
            if heard.state == "holding" and stood and (heir is None or heir.waits):
                self._reserved[skald_id] = offset
            changed = True
        return changed

    def _ask(self, skald_id: str, what: str) -> bool:
        """A person drains a skald, or takes that back. It says so itself as soon as it has read it."""
        member = self.standing(skald_id)
        if what == "drain" and member is not None:
            self._drained[skald_id] = "" if member.waits else member.incarnation
        else:
            self._drained.pop(skald_id, None)
        if member is not None and not member.waits:
            self._live[member.incarnation] = replace(member, state=ASKED[what])
        return member is not None

    def _count(self, member: Member, doc: Json, before: Member | None) -> bool:
        """Count a beat, once: a repetition has the number of a former one."""
        n, agreed = doc.get("n"), doc.get("agreed", member.agreed)
        if not isinstance(n, int) or (before is not None and n <= before.n):
            return False
        if not isinstance(agreed, Mapping) or self._lease_of(agreed) != self._lease_of(self._agreed):
            return False
        beats = self._beats.get(member.incarnation)
        if beats is None or beats.maxlen != max(self._passed):
            beats = self._beats[member.incarnation] = deque(beats or (), maxlen=max(self._passed))
        beats.append(member.last_offset)
        for number, passed in self._passed.items():
            if len(beats) >= number and beats[-number] > passed:
                self._passed[number] = beats[-number]
                self._clock = member.incarnation if number == DEATH_BEATS else self._clock
        return True

    def _lease_of(self, agreed: Mapping[str, object]) -> float:
        """Of one that does not say: ours."""
        ours = self._agreed.get("lease_ms")
        theirs = agreed.get("lease_ms", ours)
        return float(theirs) if ours and isinstance(theirs, int) and theirs > 0 else 1.0

    def _death_beats(self, member: Member) -> int:
        """How many beats of another make its death: of ours, as many as make up its lease and two beats of it."""
        share = self._lease_of(member.agreed) / self._lease_of(self._agreed)
        if share == 1:
            return DEATH_BEATS
        number = min(math.ceil(share * (DEATH_BEATS - 1)) + 1, DEATH_BEATS_MOST)
        if number not in self._deaths:
            self._deaths.add(number)
            self._passed.setdefault(number, -1)
        return number

    def _pass_time(self) -> bool:
        """Bury those whose last beat is so many beats ago, and end reservations. Whether there were any."""
        passed = max(self._passed[number] for number in self._deaths)
        gone: list[tuple[Member, int]] = []
        for member in takewhile(lambda member: member.last_offset < passed, self._live.values()):
            number = self._death_beats(member)
            if member.last_offset < self._passed[number]:
                gone.append((member, number))
        for member, number in gone:
            self._bury(member.incarnation, f"silent for {number} heartbeats of {self._clock}")
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
        self._beats.pop(incarnation, None)
        member = self._live.get(incarnation)
        if member is None:
            return
        stood = self.stands(member)
        del self._live[incarnation]
        self._of_id[member.skald_id].discard(incarnation)
        heir = self.standing(member.skald_id)
        if heir is None:
            del self._of_id[member.skald_id]
        elif stood:
            self._begin(heir)

    def is_dead(self, incarnation: str, known_at: int = -1) -> bool:
        """Whether this incarnation can run nothing any more. Final.

        known_at: an offset at which it was known to be there. One that the log as far as it is kept does not name
        counts as last seen at its first offset.
        """
        if incarnation in self._dead:
            return True
        unknown = incarnation not in self._live and 0 <= known_at <= self.offset
        return unknown and self.first_offset < self._passed[DEATH_BEATS]

    def _begin(self, member: Member) -> None:
        """It stands now. Unless it waits it takes part: nothing waits for its return any more, and a drain is over, if
        another process was drained.
        """
        if member.waits or member.state in GOING:
            return
        self._reserved.pop(member.skald_id, None)
        drained = self._drained.pop(member.skald_id, None)
        if drained in (*former_of(member.replaces, member.lapses), member.incarnation):
            self._drained[member.skald_id] = member.incarnation

    def of_id(self, skald_id: str) -> list[Member]:
        """The living incarnations of a skald id, the one that stands first."""
        members = [self._live[incarnation] for incarnation in self._of_id.get(skald_id, ())]
        return sorted(members, key=lambda member: (member.waits, member.since))

    def standing(self, skald_id: str) -> Member | None:
        """The one that the id belongs to; it may still wait, when it has not learnt yet that it need not."""
        return next(iter(self.of_id(skald_id)), None)

    def stands(self, member: Member) -> bool:
        return len(self._of_id[member.skald_id]) == 1 or self.of_id(member.skald_id)[0] is member

    def differing(self, member: Member) -> tuple[str, ...]:
        """Names of settings that all must share, of which it has others than this process."""
        mine, theirs = self._agreed, member.agreed
        return tuple(sorted(name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]))

    def is_drained(self, skald_id: str) -> bool:
        """Whether a person has drained it. Its restart ends that, a lapse does not."""
        return skald_id in self._drained

    def drained_as(self, skald_id: str) -> str | None:
        """The incarnation that was drained; it may have ended since."""
        return self._drained.get(skald_id)

    def is_reserved(self, skald_id: str) -> bool:
        """Whether what this skald ran is kept for it: it has said that it comes back."""
        return skald_id in self._reserved

    @property
    def reserved(self) -> tuple[str, ...]:
        """Ids of the skalds that are expected back."""
        return tuple(sorted(self._reserved))

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


def _is_name(value: object) -> TypeGuard[str]:
    """A name that a row can hold."""
    return isinstance(value, str) and len(value) <= NAME_MAX_CHARS
