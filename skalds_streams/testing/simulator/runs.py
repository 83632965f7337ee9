"""Many worlds: in several processes, with what they found and how fast they were."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context

from skalds_streams.testing.simulator.plan import draw
from skalds_streams.testing.simulator.world import Result, run

CHUNK = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed came to, small enough to be sent between processes."""

    seed: int
    rule: str | None
    violation: str | None
    digest: str
    cpu_s: float
    virtual_s: float
    records: int
    acts: int
    margin_beats: float | None
    seen: dict[str, int]


@dataclass(slots=True)
class Tally:
    """The sum of many outcomes."""

    seeds: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    records: int = 0
    acts: int = 0
    margin_beats: float | None = None
    """The smallest of all."""
    margin_seed: int | None = None
    seen: Counter[str] = field(default_factory=Counter)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.virtual_s += outcome.virtual_s
        self.cpu_s += outcome.cpu_s
        self.records += outcome.records
        self.acts += outcome.acts
        if outcome.margin_beats is not None and (self.margin_beats is None or outcome.margin_beats < self.margin_beats):
            self.margin_beats, self.margin_seed = outcome.margin_beats, outcome.seed
        self.seen.update(outcome.seen)
        if outcome.violation is not None:
            self.failed.append(outcome)


def play(seed: int) -> Outcome:
    """Run the world of one seed."""
    begun = time.process_time()
    result: Result = run(draw(seed))
    return Outcome(
        seed=seed,
        rule=result.rule,
        violation=result.violation,
        digest=result.digest,
        cpu_s=time.process_time() - begun,
        virtual_s=result.seconds,
        records=result.records,
        acts=result.acts,
        margin_beats=result.margin_beats,
        seen=result.seen,
    )


def play_all(seeds: Iterable[int], jobs: int = 1) -> Iterator[Outcome]:
    """Outcomes in the order of the seeds."""
    if jobs <= 1:
        yield from map(play, seeds)
        return
    with get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(play, seeds, CHUNK)


def tally(seeds: Iterable[int], jobs: int = 1, on_each: Callable[[Tally], object] = lambda so_far: None) -> Tally:
    """Run them all."""
    found = Tally()
    for outcome in play_all(seeds, jobs):
        found.add(outcome)
        on_each(found)
    return found
