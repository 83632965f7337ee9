"""A second opinion on `core.membership`: who is there, whose return is waited for, and who is drained, by the
heartbeat log.

Told every record at the moment at which it is appended. Kept as counters of pairs (how many beats of one since the last
of another), not as offsets, so that it goes wrong in another way than the product if it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

BEATS_TO_DEATH = 13
"""ceil((lease + 2 beats) / beat) + 1, as the design has it."""
FOR_EVER = 2**62
LAST_WORDS = ("leaving", "holding")
"""Who begins with one of them, as it has only waited so far, takes no part."""


class Roll:
    """See the module."""

    def __init__(self, hold_beats: int) -> None:
        self._hold_beats = hold_beats
        self._skalds: dict[str, str] = {}
        """Live incarnation → skald id."""
        self._numbers: dict[str, int] = {}
        self._takes_part: dict[str, bool] = {}
        """Incarnation → whether it was heard in another state than waiting."""
        self._standing: dict[str, str] = {}
        """Skald id → the living incarnation that has it."""
        self._since: dict[tuple[str, str], int] = {}
        """(one, other) → beats of the one since the last of the other."""
        self._holding: dict[str, dict[str, int]] = {}
        """Skald that is waited for → beats of each other since."""
        self.died: dict[str, int] = {}
        """Incarnation → the offset at which it was dead."""
        self.holds: dict[str, list[list[int]]] = {}
        """Skald id → [first offset, first offset beyond] of each time that it was waited for."""
        self.drained: dict[str, str] = {}
        """Skald id → the process that was drained, by the name that all its incarnations begin with."""
        self._drains: dict[str, list[list[int]]] = {}
        """Skald id → [first offset, first offset beyond] of each drain."""
        self._ran_on: dict[str, list[tuple[int, frozenset[str]]]] = {}
        """Incarnation → (offset, what it said runs on there without a lease) of each whole heartbeat."""

    def take(self, offset: int, value: bytes) -> None:
        """The next record."""
        doc: dict[str, Any] = orjson.loads(value)
        skald_id = doc["skald_id"]
        if "kind" in doc:
            self._end_drain(skald_id, offset)
            if doc["kind"] == "drain" and skald_id in self._skalds.values():
                self.drained[skald_id] = _process(self._standing.get(skald_id, ""))
                self._drains.setdefault(skald_id, []).append([offset, FOR_EVER])
            return
        incarnation = doc["incarnation"]
        if incarnation in self.died:
            return
        self._skalds[incarnation] = skald_id
        for other in self._skalds:
            self._since[other, incarnation] = 0
        if doc["n"] > self._numbers.get(incarnation, 0):
            self._numbers[incarnation] = doc["n"]
            self._count(incarnation, offset)
        if "kept" in doc:
            self._ran_on.setdefault(incarnation, []).append((offset, frozenset(doc["kept"])))
        for former in doc.get("replaces") or ():
            self._bury(former, offset)
        self._place(incarnation, skald_id, doc.get("state"), offset)

    def _place(self, incarnation: str, skald_id: str, state: str | None, offset: int) -> None:
        """Of several that live under one id the first stands for it; one that waits for that stands for nothing."""
        took_part = self._takes_part.get(incarnation, False)
        self._takes_part[incarnation] = took_part or state not in (None, "waiting")
        if not took_part and self._takes_part[incarnation] and skald_id not in self._standing:
            self._standing[skald_id] = incarnation
            if state not in LAST_WORDS:
                if self.drained.get(skald_id) != _process(incarnation):
                    self._end_drain(skald_id, offset)
                self._stop_waiting(skald_id, offset)
        if state in LAST_WORDS:
            stood = self._standing.get(skald_id) == incarnation
            self._bury(incarnation, offset)
            if state == "holding" and stood and skald_id not in self._standing:
                self._stop_waiting(skald_id, offset)  # one that waited for its place, and is now waited for instead
                self._holding[skald_id] = {}
                self.holds.setdefault(skald_id, []).append([offset, FOR_EVER])

    def _count(self, incarnation: str, offset: int) -> None:
        for other in list(self._skalds):
            if other != incarnation:
                pair = incarnation, other
                self._since[pair] = self._since.get(pair, 0) + 1
                if self._since[pair] >= BEATS_TO_DEATH:
                    self._bury(other, offset)
        for skald_id, beats in list(self._holding.items()):
            beats[incarnation] = beats.get(incarnation, 0) + 1
            if beats[incarnation] >= self._hold_beats:
                self._stop_waiting(skald_id, offset)

    def _stop_waiting(self, skald_id: str, offset: int) -> None:
        if self._holding.pop(skald_id, None) is not None:
            self.holds[skald_id][-1][1] = offset

    def _end_drain(self, skald_id: str, offset: int) -> None:
        if self.drained.pop(skald_id, None) is not None:
            self._drains[skald_id][-1][1] = offset

    def _bury(self, incarnation: str, offset: int) -> None:
        self.died.setdefault(incarnation, offset)
        skald_id = self._skalds.pop(incarnation, None)
        if skald_id is not None and self._standing.get(skald_id) == incarnation:
            del self._standing[skald_id]
            heirs = [name for name, of in self._skalds.items() if of == skald_id and self._takes_part.get(name)]
            if heirs:
                self._standing[skald_id] = heirs[0]

    def is_waited_for(self, skald_id: str, seen: int) -> bool:
        """Whether it was, for one who had read the log up to and with the offset `seen`."""
        return any(begin <= seen < end for begin, end in self.holds.get(skald_id, ()))

    def was_drained(self, skald_id: str, seen: int) -> bool:
        """The same of its drain."""
        return any(begin <= seen < end for begin, end in self._drains.get(skald_id, ()))

    def ran_on(self, incarnation: str, task_id: str, seen: int) -> bool:
        """Whether it had said so of this task last."""
        said = [tasks for offset, tasks in self._ran_on.get(incarnation, ()) if offset <= seen]
        return bool(said) and task_id in said[-1]

    def was_dead(self, incarnation: str, seen: int) -> bool:
        """The same of its death."""
        return self.died.get(incarnation, FOR_EVER) <= seen

    @property
    def live(self) -> Mapping[str, str]:
        """Incarnation → skald id."""
        return self._skalds


def _process(incarnation: str) -> str:
    """What a process is called before its lease lapses for the first time; then "+1", "+2" … follow."""
    return incarnation.partition("+")[0]
