"""What is said of a command, or refused, because nobody has the class that it names."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from skalds_streams.cli.foresight import ClassMissingError, judge
from skalds_streams.core.row import Row
from tests.unit.test_replay_timeline import World

WAITS = {"cam-1": "cam-1: no skald has class Nope now: it will wait"}


def rows(world: World) -> Mapping[str, Row]:
    world.assign("cam-1", {"fps": 30})
    world.report("cam-1", "Running", version=1)
    return world.state.rows


def test_a_run_is_not_stopped_for_a_class_that_nobody_has() -> None:
    world = World()
    world.beat("b", "b1", classes={}, not_loadable=["shop.Nope"])
    with pytest.raises(ClassMissingError) as told:
        judge([("cam-1", "Nope", False)], rows(world), world.members)
    assert str(told.value) == (
        "task cam-1: no skald has class Nope, so this would only stop its Cam; --force sends it all the same;"
        " it is not loadable on b, whose status page says why; there are: Cam"
    )
    assert judge([("cam-1", "Nope", True)], rows(world), world.members) == WAITS


def test_what_does_not_run_will_wait() -> None:
    world = World()
    assert judge([("cam-1", "Nope", False)], {}, world.members) == WAITS
    kept = rows(world)
    world.command("task.assign", "cam-1", action="pause")
    world.report("cam-1", "Stopped")
    assert judge([("cam-1", "Nope", False)], kept, world.members) == WAITS


def test_a_run_of_the_same_class_is_let_alone() -> None:
    world = World()
    assert judge([("cam-1", "Cam", False)], rows(world), world.members) == {}
