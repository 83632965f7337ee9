"""What a plan has of leases: how long they are, clocks that drift and jump, machines that are frozen, cut off or lost
for longer than one, skalds that are drained or stopped and waited for, and classes that keep running.

Times of faults are drawn in leases, and most worlds have short ones, so that virtual time stays short.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from skalds_streams.testing.simulator.machines import DRIFT

KEEP = "Keep"
"""A class whose workers run on without a lease (on_disconnect="keep")."""
LEASE_FAULTS = (
    "drift",
    "jump",
    "long_pause",
    "freeze",
    "long_partition",
    "long_outage",
    "long_stop",
    "lose",
    "drain",
    "keep",
    "deaf",
)
DOES = {"long_pause": "pause", "long_partition": "partition", "long_outage": "outage", "long_stop": "stop"}
"""Fault → what is done, if it has another name."""
LEASES = (0.5, 1.0, 2.0, 5.0)
JUMP_MS = 3_600_000
LONGEST_WORLD_S = 25.0


@dataclass(slots=True)
class Hardships:
    """What was drawn. `actions`: (at, do, how)."""

    faults: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of the plan."""
    actions: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)


class HardshipScript:
    """Draws them for a world of this size."""

    def __init__(self, rng: random.Random, processes: int, duration_s: float) -> None:
        self._rng, self._processes, self._duration_s = rng, processes, duration_s
        self._found = Hardships()

    def write(self) -> Hardships:
        rng, found = self._rng, self._found
        density = rng.choice((0.0, 0.15, 0.3, 0.5))
        found.faults = [name for name in LEASE_FAULTS if rng.random() < density]
        lease_s = rng.choice((3.0, 4.0, 6.0, 10.0, 20.0)) if found.faults else 20.0
        self._lease_s, self._hold_s = lease_s, rng.choice((0.2, 0.75, 0.75, 2.0)) * lease_s
        if found.faults and lease_s * 2.5 <= LONGEST_WORLD_S:
            self._duration_s = max(self._duration_s, lease_s * 2.5)
        found.settings = {
            "lease_ms": int(lease_s * 1000),
            "hold_ms": int(self._hold_s * 1000),
            "duration_s": self._duration_s,
            "drift": DRIFT if "drift" in found.faults else 0.0,
        }
        for fault in found.faults:
            self._fault(fault)
        return found

    def _fault(self, fault: str) -> None:
        rng = self._rng
        if fault == "drain":
            for _ in range(rng.randint(1, 3)):
                self._drain()
        elif fault == "jump":
            for _ in range(rng.randint(1, 3)):
                self._add("jump", {**self._process(), "by_ms": rng.choice((-1, 1)) * rng.choice((60_000, JUMP_MS))})
        elif fault == "lose":
            for _ in range(1 if self._processes < 4 else rng.randint(1, 2)):
                self._add("lose", {**self._process(), "way": rng.choice(("power", "cut", "stop"))})
        elif fault == "long_stop":
            for _ in range(rng.randint(1, 2)):
                self._add("stop", {**self._process(), "for_s": round(self._hold_s * rng.choice((0.1, 0.5, 1.5)), 3)})
        elif fault == "deaf":
            self._deaf()
        elif fault not in ("drift", "keep"):
            for _ in range(rng.randint(1, 2)):
                self._absence(DOES.get(fault, fault))

    def _absence(self, do: str) -> None:
        """Somebody is away for longer than a lease, or for a little less."""
        rng = self._rng
        how: dict[str, Any] = {"for_s": round(self._lease_s * rng.choice(LEASES) * rng.uniform(0.85, 1.15), 3)}
        if do != "outage":
            how |= self._process()
            if rng.random() < 0.3:
                how |= {"at_beat": True, "for_s": round(self._lease_s * rng.uniform(0.88, 1.2), 3)}
        self._add(do, how)

    def _drain(self) -> None:
        how = self._process()
        at = self._add("drain", how)
        if self._rng.random() < 0.5:
            self._add("undrain", how, at)

    def _deaf(self) -> None:
        """One reads heartbeats late, another is started again meanwhile, and partitions move."""
        rng, deaf = self._rng, self._process()
        at = self._add("deaf", {**deaf, "for_s": round(rng.uniform(4.0, 8.0), 3)})
        other = {"process": rng.randrange(self._processes), "for_s": 0.5, "at_callback": 0}
        self._found.actions.append((round(at + rng.uniform(0.0, 0.5), 3), "kill", other))
        for _ in range(2):
            moves = (round(at + rng.uniform(2.0, 5.0), 3), "rebalance", {"pick": 0})
            self._found.actions.append(moves)

    def _process(self) -> dict[str, Any]:
        return {"process": self._rng.randrange(self._processes)}

    def _add(self, do: str, how: dict[str, Any], after: float = 0.5) -> float:
        at = round(self._rng.uniform(after, max(after, self._duration_s * 0.7)), 3)
        self._found.actions.append((at, do, how))
        return at


def keep_running(rng: random.Random, how: dict[str, Any]) -> None:
    """An assign, perhaps of a class that keeps running."""
    if rng.random() < 0.5:
        how["class"] = KEEP
