"""One skald process as its heartbeats describe it, and how one is read. What follows from them is `membership`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from skalds_streams.core.options import DEFAULT, ClassOptions
from skalds_streams.core.row import Json

WAITING = "waiting"
"""State of one that does not take part yet: another has its id, or other settings."""


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
    options: Mapping[str, ClassOptions] = field(default_factory=dict)
    """Class name → its options; a class that has only defaults is not in it."""
    not_loadable: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    """Tasks that run on there without a row that says so: there is room for them."""
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: int = 0
    web: str = ""
    role: str = "both"
    version: str = ""
    settings_hash: str = ""
    agreed: Mapping[str, object] = field(default_factory=dict)
    """The settings that all must share, by name. Empty when it has not said."""
    cluster: str = ""
    host: str = ""
    """Name of its machine, for people."""
    take_over: bool = False
    """Asks the one that has its id to end."""
    since: int = -1
    """Offset of the beat with which it began to take part; of its first, as long as it waits."""
    replaces: tuple[str, ...] = ()
    """Incarnations that have ended before this one began. A heartbeat names one, a list, or none."""
    lapses: int = 0
    """How often the lease of its process has lapsed: so many of the last of `replaces` were this process."""
    at_ms: int = 0
    """Time of the last beat's record: shown to people, never decided upon."""

    @property
    def waits(self) -> bool:
        """Whether it says that it does not take part yet."""
        return self.state == WAITING

    def options_of(self, class_name: str | None) -> ClassOptions:
        """As this skald describes the class."""
        return self.options.get(class_name or "", DEFAULT)


_DOCUMENT = {
    "state": str,
    "classes": Mapping,
    "secret": Mapping,
    "options": Mapping,
    "labels": Mapping,
    "capacity": int,
    "web": str,
    "role": str,
    "version": str,
    "settings_hash": str,
    "agreed": Mapping,
    "cluster": str,
    "host": str,
    "take_over": bool,
    "replaces": str | list | None,
    "lapses": int,
    "not_loadable": list | tuple,
    "kept": list | tuple,
}


def heard_as(member: Member, doc: Json) -> Member:
    """The member as this heartbeat says it is. Raises ValueError for a wrong type."""
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
    if "options" in known:  # raises ValueError for wrong ones
        known["options"] = {str(name): ClassOptions.from_doc(item) for name, item in known["options"].items()}
    if "secret" in known:
        known["secret"] = {name: tuple(paths) for name, paths in known["secret"].items()}
    for name in ("not_loadable", "kept"):
        if name in known:
            known[name] = tuple(known[name])
    return replace(member, **known, n=max(doc.get("n", 0), member.n), running=doc.get("running", member.running))


def _are_paths(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(path, str) for path in value)


def described(member: Member) -> tuple[object, ...]:
    """What others act upon: who can run what, and how."""
    return (
        member.state,
        dict(member.classes),
        member.options,
        member.not_loadable,
        member.kept,
        dict(member.labels),
        member.capacity,
        member.web,
        member.role,
        member.take_over,
        member.agreed,
    )
