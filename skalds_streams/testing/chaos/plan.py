"""Which faults, in which order, for how long: drawn from a seed, pure.

Rules: a deck of all kinds is shuffled and dealt, then shuffled again, so that a run has every kind before any comes a
third time. Times are in leases, so that a short lease makes a short run: with the default of 20 s a fault comes every
10 to 30 s.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PACE_LEASES = (0.5, 1.5)
STOPS = (0.5, 1.0, 2.0, 5.0)
ABSENCES = (0.0, 0.0, 3.0)
"""How long a killed process is away, in leases: mostly it is started again at once."""

KINDS: dict[str, Sequence[float]] = {
    "kill skald": ABSENCES,
    "kill coordinator": ABSENCES,
    "kill machine": ABSENCES,
    "kill zygote": (0.0,),
    "kill host": (0.0,),
    "kill broker": (0.0, 0.5),
    "stop skald": STOPS,
    "stop coordinator": STOPS,
    "stop machine": STOPS,
    "stop zygote": STOPS,
    "stop host": STOPS,
    "stop broker": STOPS,
    "drop link": STOPS,
    "delay link": STOPS,
    "half-open link": STOPS,
    "restart skald": (0.0,),
    "restart broker": (0.0,),
    "kill redis": STOPS,
    "stop redis": STOPS,
    "fill disk": STOPS,
    "jump clock": STOPS,
}
"""Kind → how many leases it may last. "skald" is a node's main process, "machine" all of a node's processes,
"coordinator" the main process that decides for most partitions; "stop" is SIGSTOP and, at the end, SIGCONT.
"clock" is the wall clock of all of a node's processes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `pause_s`: how long to wait before it. `pick`: 0 to 1, chooses among the targets there are then."""

    number: int
    kind: str
    lasts_s: float
    pause_s: float
    pick: float


def draw(seed: int, lease_s: float, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[Fault]:
    """Faults without end; the same seed gives the same ones."""
    dice = random.Random(seed)
    deck: list[str] = []
    number = 0
    while True:
        if not deck:
            deck = list(kinds)
            dice.shuffle(deck)
        kind = deck.pop()
        number += 1
        yield Fault(
            number,
            kind,
            lasts_s=dice.choice(KINDS[kind]) * lease_s,
            pause_s=dice.uniform(*PACE_LEASES) * lease_s,
            pick=dice.random(),
        )
