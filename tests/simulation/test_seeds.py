"""Worlds of a fixed range of seeds: no rule is broken in any."""

from __future__ import annotations

import os

import pytest

from skalds_streams.testing.simulator import histories
from skalds_streams.testing.simulator.runs import tally

SEEDS = int(os.environ.get("SKALDS_SIMULATION_SEEDS", "2000"))

FAULTS = (
    "kill",
    "pause",
    "partition",
    "outage",
    "stop",
    "twin",
    "rebalance",
    "freeze",
    "lose",
    "drain",
    "undrain",
    "jump",
    "deaf",
    "lease.lapsed",
    "retention",
    "deleted before it was applied",
    "journal.deadletter",
    "journal.fenced",
    "journal.fetched",
    "journal.outcome_unknown",
)


@pytest.mark.timeout(600)
def test_no_seed_breaks_a_rule() -> None:
    found = tally(range(SEEDS), jobs=2)
    assert not found.failed, "\n".join(
        f"{item.violation}\n    {histories.command(item.seed)}" for item in found.failed[:10]
    )
    for fault in FAULTS:
        assert found.seen[fault] > SEEDS // 200, f"{fault} hardly ever happens: the worlds are too tame"
