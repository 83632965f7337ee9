"""Schedules that once broke a rule: they break none any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from skalds_streams.testing.simulator import histories
from skalds_streams.testing.simulator.world import run
from tests.simulation.planted import PLANTED

FILES = sorted((Path(__file__).parents[1] / "histories").glob("simulator-*.json"))
BUGS = {
    "simulator-35.json": "only_the_last_predecessor_is_replaced",
    "simulator-113.json": "forwarded_commands_are_sent_all_at_once",
    "simulator-11555.json": "transactions_follow_a_commit_that_was_asked_for_twice",
    "simulator-1624.json": "who_runs_on_takes_its_own_room",
    "simulator-late-first-beat.json": "a_first_beat_that_is_acknowledged_late_is_no_lapse",
    "simulator-freed-too-early.json": "the_kernel_timer_is_two_beats_late",
    "simulator-522.json": "a_refused_update_stays_for_the_next_run",
    "simulator-67.json": "a_worker_that_ends_with_the_lease_of_its_node_has_crashed",
}
"""Files whose bug is still known, as a planted one."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_kept_history_breaks_no_rule(path: Path) -> None:
    result = run(histories.load(path))
    assert result.violation is None, result.violation


@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_kept_history_still_shows_its_bug(name: str) -> None:
    path = Path(__file__).parents[1] / "histories" / name
    with PLANTED[BUGS[name]]():
        assert run(histories.load(path)).violation is not None
