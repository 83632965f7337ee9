"""One seed, one world: twice in a process, and in processes whose hashes are salted differently."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from skalds_streams.testing.simulator.plan import Plan, draw
from skalds_streams.testing.simulator.runs import play
from skalds_streams.testing.simulator.world import run

SEEDS = (3, 29, 62, 139, 254, 863)
DIGESTS = "from skalds_streams.testing.simulator.runs import play; print(*(play(seed).digest for seed in {seeds}))"


def digests_elsewhere(salt: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS.format(seeds=SEEDS)],
        env={**os.environ, "PYTHONHASHSEED": salt},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.split()


def test_the_same_seed_twice_is_the_same_world() -> None:
    for seed in SEEDS:
        first, second = play(seed), play(seed)
        assert (first.digest, first.virtual_s, first.seen) == (second.digest, second.virtual_s, second.seen)


def test_another_salt_of_hashes_is_the_same_world() -> None:
    here = [play(seed).digest for seed in SEEDS]
    assert digests_elsewhere("1") == here
    assert digests_elsewhere("2") == here


def test_a_trace_changes_nothing() -> None:
    assert run(draw(29)).digest == run(draw(29), trace=True).digest


@pytest.mark.parametrize("seed", [0, 29])
def test_a_plan_survives_its_file(seed: int) -> None:
    assert Plan.from_doc(draw(seed).to_doc()) == draw(seed)


def test_seeds_differ() -> None:
    assert len({play(seed).digest for seed in range(10)}) == 10
