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


class Roll:
    """See the module."""

    def __init__(self, hold_beats: int) -> None:
        self._hold_beats = hold_beats
        self._skalds: dict[str, str] = {}
        """Live incarnation → skald id."""
        self._numbers: dict[str, int] = {}
        self._since: dict[tuple[str, str], int] = {}
        """(one, other) → beats of the one since the last of the other."""
        self._holding: dict[str, dict[str, int]] = {}
        """Skald that is waited for → beats of each other since."""
        self.died: dict[str, int] = {}
        """Incarnation → the offset at which it was dead."""
        self.holds: dict[str, list[list[int]]] = {}
        """Skald id → [first offset, first offset beyond] of each time that it was waited for."""
        self.drained: set[str] = set()

    def take(self, offset: int, value: bytes) -> None:
        """The next record."""
        doc: dict[str, Any] = orjson.loads(value)
        skald_id = doc["skald_id"]
        if "kind" in doc:
            here = skald_id in self._skalds.values()
            (self.drained.add if doc["kind"] == "drain" and here else self.drained.discard)(skald_id)
            return
        incarnation = doc["incarnation"]
        if incarnation in self.died:
            return
        if incarnation not in self._skalds:
            self._skalds[incarnation] = skald_id
            self.drained.discard(skald_id)
            self._stop_waiting(skald_id, offset)
        for other in self._skalds:
            self._since[other, incarnation] = 0
        if doc["n"] > self._numbers.get(incarnation, 0):
            self._numbers[incarnation] = doc["n"]
            self._count(incarnation, offset)
        for former in doc.get("replaces") or ():
            self._bury(former, offset)
        if doc.get("state") in ("leaving", "holding"):
            self._bury(incarnation, offset)
            if doc["state"] == "holding":
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

    def _bury(self, incarnation: str, offset: int) -> None:
        self.died.setdefault(incarnation, offset)
        self._skalds.pop(incarnation, None)

    def is_waited_for(self, skald_id: str, seen: int) -> bool:
        """Whether it was, for one who had read the log up to and with the offset `seen`."""
        return any(begin <= seen < end for begin, end in self.holds.get(skald_id, ()))

    def was_dead(self, incarnation: str, seen: int) -> bool:
        """The same of its death."""
        return self.died.get(incarnation, FOR_EVER) <= seen

    @property
    def live(self) -> Mapping[str, str]:
        """Incarnation → skald id."""
        return self._skalds
