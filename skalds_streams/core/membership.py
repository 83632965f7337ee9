"""Who is there: a fold over the heartbeat log. The log is the clock; no time of day enters.

Rules: an incarnation is one life of a skald process under one id. It is dead for good when a later incarnation names it
in `replaces` (its machine's lock proves that its workers are gone) or when it said `leaving`, after its last worker
was reaped. One that only falls silent is not dead; it is merely not given new tasks. The document arrives whole on
change and every 30 s; short beats in between keep what is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from skalds_streams.core.redact import EVERYTHING
from skalds_streams.core.row import Json

BEATS_KEPT = 13
SILENT_BEATS = 5
"""Beats of one other skald after which a silent one gets no new tasks (about 10 s)."""


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
}


class Members:
    """The fold. `apply` is the only way in; everything else reads."""

    def __init__(self) -> None:
        self._live: dict[str, Member] = {}
        self._dead: dict[str, str] = {}
        self._beats: dict[str, deque[int]] = {}
        self._secret: dict[str, tuple[str, ...]] = {}
        self._silent_before = -1
        """Some member has beaten SILENT_BEATS times from this offset on."""
        self.offset = -1
        """Offset of the last heartbeat applied."""

    def apply(self, doc: Json, offset: int, at_ms: int = 0) -> bool:
        """Take one heartbeat. Returns whether who is there, or what somebody can run, has changed.

        Raises ValueError, and changes nothing, for a document whose fields are not what placement relies on.
        """
        self.offset = max(self.offset, offset)
        incarnation, skald_id = doc.get("incarnation"), doc.get("skald_id")
        if not isinstance(incarnation, str) or not isinstance(skald_id, str) or incarnation in self._dead:
            return False
        before = self._live.get(incarnation)
        member = _heard(before or Member(skald_id, incarnation), doc, offset, at_ms)
        self._live[incarnation] = member
        beats = self._beats.setdefault(incarnation, deque(maxlen=BEATS_KEPT))
        beats.append(offset)
        if len(beats) >= SILENT_BEATS:
            self._silent_before = max(self._silent_before, beats[-SILENT_BEATS])
        self._note_secrets(member)
        changed = before is None or _described(before) != _described(member)
        for former in member.replaces:
            if former not in self._dead:
                self._bury(former, f"replaced by {incarnation}")
                changed = True
        if member.state == "leaving":
            self._bury(incarnation, "left")
            changed = True
        return changed

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

    def is_dead(self, incarnation: str) -> bool:
        """Whether this incarnation can run nothing any more. Final."""
        return incarnation in self._dead

    def why_dead(self, incarnation: str) -> str | None:
        return self._dead.get(incarnation)

    def get(self, incarnation: str) -> Member | None:
        """The member, while it is not dead."""
        return self._live.get(incarnation)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._live.values())

    def __len__(self) -> int:
        return len(self._live)

    def beats_missed(self, member: Member) -> int:
        """Beats that the most talkative other member has appended since this one's last, at most BEATS_KEPT."""
        most = 0
        for incarnation, offsets in self._beats.items():
            if incarnation != member.incarnation:
                most = max(most, sum(1 for offset in offsets if offset > member.last_offset))
        return most

    def is_silent(self, member: Member) -> bool:
        """Whether some other has beaten SILENT_BEATS times since this member's last beat."""
        return member.last_offset < self._silent_before


def _heard(member: Member, doc: Json, offset: int, at_ms: int) -> Member:
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
    if "not_loadable" in known:
        known["not_loadable"] = tuple(known["not_loadable"])
    running = doc.get("running", member.running)
    return replace(member, **known, n=doc.get("n", 0), last_offset=offset, running=running, at_ms=at_ms)


def _are_paths(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(path, str) for path in value)


def _described(member: Member) -> tuple[object, ...]:
    return (
        member.state,
        dict(member.classes),
        member.not_loadable,
        dict(member.labels),
        member.capacity,
        member.web,
        member.role,
    )
