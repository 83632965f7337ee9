"""Several incarnations of one id, and nodes with other settings: who stands, who waits, who gives up."""

from __future__ import annotations

from typing import Any

import pytest

from skalds_streams.core.admission import (
    OTHERS_BEATS,
    TAKE_OVER_BEATS,
    TWIN_BEATS,
    Obstacle,
    Patience,
    asks_to_take_over,
    differences,
    find_obstacle,
)
from skalds_streams.core.membership import DEATH_BEATS, Members
from skalds_streams.core.placement import Load, choose
from skalds_streams.core.row import Row, Status, Wanted

OURS = {"lease_ms": 20_000, "cluster": "default"}
CAM = {"classes": {"Cam": "h"}, "capacity": 8}


class Log:
    """A heartbeat log, and the fold over it."""

    def __init__(self, agreed: dict[str, Any] | None = None) -> None:
        self.members, self.end = Members(3, agreed), 0
        self._n: dict[str, int] = {}

    def beat(self, incarnation: str, skald_id: str = "a", times: int = 1, **more: Any) -> None:
        for _ in range(times):
            n = self._n[incarnation] = self._n.get(incarnation, 0) + 1
            self.members.apply({"skald_id": skald_id, "incarnation": incarnation, "n": n, **more}, self.end)
            self.end += 1


def task(**more: Any) -> Row:
    return Row("t", class_name="Cam", wanted=Wanted.RUN, status=Status.ASSIGNING, **more)


def test_the_first_of_two_stands_whatever_the_second_says() -> None:
    log = Log()
    log.beat("a1", state="up", **CAM)
    log.beat("a2", state="up", **CAM)
    log.beat("a1")
    standing = log.members.standing("a")
    assert standing is not None
    assert standing.incarnation == "a1"
    assert choose(task(), log.members, Load()).incarnation == "a1"
    obstacle = find_obstacle(log.members, "a", "a2")
    assert obstacle is not None
    assert obstacle.member.incarnation == "a1"
    assert find_obstacle(log.members, "a", "a1") is None


def test_a_reader_that_begins_in_the_middle_sees_the_same() -> None:
    log = Log()
    log.beat("a2", state="waiting", **CAM)
    log.beat("a1", **CAM)
    assert choose(task(), log.members, Load()).incarnation == "a1"


def test_one_that_waits_gets_nothing_ends_no_drain_and_frees_nothing() -> None:
    log = Log()
    log.beat("a1", state="up", **CAM)
    log.members.apply({"kind": "drain", "skald_id": "a"}, log.end)
    log.beat("a2", state="waiting", **CAM)
    assert log.members.is_drained("a")
    assert choose(task(), log.members, Load()).waiting == {"a": "draining"}
    log.beat("a1", state="holding")
    assert log.members.is_reserved("a")
    log.beat("a2", state="waiting")
    assert log.members.is_reserved("a"), "it does not know yet that it need not wait"
    assert choose(task(), log.members, Load()).waiting == {"a": "waiting"}
    assert find_obstacle(log.members, "a", "a2") is None
    log.beat("a2", state="up")
    assert not log.members.is_reserved("a")
    assert not log.members.is_drained("a")
    assert choose(task(), log.members, Load()).incarnation == "a2"


def test_one_that_came_too_early_begins_when_the_other_is_gone() -> None:
    log = Log()
    log.beat("a1", state="up", **CAM)
    log.beat("a2", state="up", **CAM)
    log.members.apply({"kind": "drain", "skald_id": "a"}, log.end)
    log.beat("a1", state="holding")
    assert not log.members.is_reserved("a")
    assert not log.members.is_drained("a")
    assert choose(task(), log.members, Load()).incarnation == "a2"


def test_one_that_gives_up_reserves_nothing() -> None:
    log = Log()
    log.beat("a1", state="up")
    log.beat("a2", state="waiting")
    log.beat("a2", state="holding")
    assert not log.members.is_reserved("a")
    assert not log.members.is_dead("a1")
    assert log.members.is_dead("a2")


def test_of_two_that_wait_the_first_is_next() -> None:
    log = Log()
    log.beat("a1", state="up")
    log.beat("a2", state="waiting")
    log.beat("a3", state="waiting")
    log.beat("a1", state="leaving")
    assert find_obstacle(log.members, "a", "a2") is None
    obstacle = find_obstacle(log.members, "a", "a3")
    assert obstacle is not None
    assert obstacle.member.incarnation == "a2"


def test_the_successor_on_the_same_machine_does_not_wait() -> None:
    log = Log()
    log.beat("a1", state="up")
    log.beat("a9", state="waiting")
    assert find_obstacle(log.members, "a", "a2", ["a1"]) is None
    log.beat("a2", state="up", replaces=["a1"])
    assert find_obstacle(log.members, "a", "a2") is None
    assert find_obstacle(log.members, "a", "a9") is not None


def test_one_that_was_counted_dead_finds_another_in_its_place() -> None:
    log = Log()
    log.beat("a1", state="up")
    log.beat("a2", state="waiting", times=DEATH_BEATS)
    assert log.members.is_dead("a1")
    assert find_obstacle(log.members, "a", "a2") is None
    log.beat("a2", state="up")
    for incarnation in ("a1", "a1+1"):
        obstacle = find_obstacle(log.members, "a", incarnation, ["a1"])
        assert obstacle is not None
        assert obstacle.member.incarnation == "a2"
    log.beat("a1+1", state="up", replaces=["a1"])
    assert find_obstacle(log.members, "a", "a2") is None
    assert find_obstacle(log.members, "a", "a1+1") is not None


@pytest.mark.parametrize(("take_over", "beats"), [(False, TWIN_BEATS), (True, TAKE_OVER_BEATS)])
def test_patience_ends_with_a_beat_of_the_other_after_so_many_own(take_over: bool, beats: int) -> None:
    log = Log()
    log.beat("a1", state="up")
    patience = Patience("a2", take_over)
    for _ in range(beats - 1):
        log.beat("a2", state="waiting")
        log.beat("a1")
        assert not patience.is_over(log.members, Obstacle(log.members.of_id("a")[0]))
    log.beat("a2", state="waiting")
    assert not patience.is_over(log.members, Obstacle(log.members.of_id("a")[0])), "it may have ended by now"
    log.beat("a1")
    assert patience.is_over(log.members, Obstacle(log.members.of_id("a")[0]))


def test_one_that_is_gone_is_never_given_up_on() -> None:
    log = Log()
    log.beat("a1", state="up")
    patience = Patience("a2")
    while (obstacle := find_obstacle(log.members, "a", "a2")) is not None:
        assert not patience.is_over(log.members, obstacle)
        log.beat("a2", state="waiting")
    assert log.members.get("a2") is not None
    assert log.end == DEATH_BEATS + 1


def test_only_one_that_waits_can_ask_for_the_place() -> None:
    log = Log()
    log.beat("a1", state="up", take_over=True)
    log.beat("a2", state="waiting")
    assert asks_to_take_over(log.members, "a", "a1") is None
    log.beat("a3", state="waiting", take_over=True)
    successor = asks_to_take_over(log.members, "a", "a1")
    assert successor is not None
    assert successor.incarnation == "a3"


def test_the_later_one_with_other_settings_ends_and_gets_no_task() -> None:
    log = Log(OURS)
    log.beat("a1", state="up", agreed=OURS, **CAM)
    assert find_obstacle(log.members, "a", "a1") is None
    log.beat("b1", "b", state="up", agreed={**OURS, "lease_ms": 4_000}, **CAM)
    assert find_obstacle(log.members, "a", "a1") is None
    choice = choose(task(recipient="b"), log.members, Load())
    assert choice.waiting["b"] == "has other settings"
    theirs = Log({**OURS, "lease_ms": 4_000})
    theirs.beat("a1", state="up", agreed=OURS)
    obstacle = find_obstacle(theirs.members, "b", "b1")
    assert obstacle is not None
    assert differences(obstacle, {"lease_ms": 4_000}) == "SKALDS_LEASE_MS is 4000 here and 20000 there"
    patience = Patience("b1")
    theirs.beat("b1", "b", times=OTHERS_BEATS, state="waiting", agreed={**OURS, "lease_ms": 4_000})
    assert not patience.is_over(theirs.members, obstacle)
    theirs.beat("a1")
    assert patience.is_over(theirs.members, Obstacle(theirs.members.of_id("a")[0], ("lease_ms",)))


def test_beats_of_a_shorter_lease_make_nobody_dead() -> None:
    log = Log(OURS)
    log.beat("a1", state="up", agreed=OURS)
    log.beat("b1", "b", times=500, state="waiting", agreed={**OURS, "lease_ms": 1_000})
    assert not log.members.is_dead("a1")
    log.beat("c1", "c", times=DEATH_BEATS, agreed=OURS)
    assert log.members.is_dead("a1")


@pytest.mark.parametrize(("theirs", "beats"), [(40_000, 25), (4_000, 4), (600_000, 361), (1_000, 2)])
def test_one_with_another_lease_is_dead_when_its_own_is_made_up(theirs: int, beats: int) -> None:
    """12 of its beats have passed for certain: each of ours but the first is one of our beats after the former."""
    log = Log(OURS)
    log.beat("a1", state="up", agreed={**OURS, "lease_ms": theirs})
    log.beat("b1", "b", times=beats - 1, agreed=OURS)
    assert not log.members.is_dead("a1")
    log.beat("b1", "b", agreed=OURS)
    assert log.members.is_dead("a1")
    assert (beats - 1) * OURS["lease_ms"] >= 12 * theirs


def test_who_has_not_said_its_settings_agrees() -> None:
    log = Log(OURS)
    log.beat("a1", state="up", **CAM)
    assert find_obstacle(log.members, "b", "b1") is None
    assert choose(task(), log.members, Load()).skald_id == "a"
