"""Plans: what would happen, by the production decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from skalds_streams.core.membership import Members
from skalds_streams.core.plans import (
    Step,
    plan_balance,
    plan_drain,
    plan_loss,
    plan_move,
    plan_undrain,
    shares,
    spread,
)
from skalds_streams.core.row import Holder, Release, Row, Status, Wanted


def up(members: Members, skald_id: str, **more: Any) -> Members:
    doc = {"skald_id": skald_id, "incarnation": f"{skald_id}1", "n": 1, "state": "up", "classes": {"Cam": "h"}}
    members.apply({**doc, "capacity": 4, **more}, members.offset + 1)
    return members


def three() -> Members:
    members = up(up(Members(), "a"), "b", capacity=2)
    return up(members, "c", classes={"Feed": "h"})


def held(task_id: str, skald_id: str = "a", **more: Any) -> Row:
    row = Row(task_id, class_name="Cam", wanted=Wanted.RUN, status=Status.RUNNING, last_skald=skald_id)
    return replace(row, holder=Holder(skald_id, f"{skald_id}1", 1, 0), epoch=1, revision=2, **more)


def waiting(task_id: str, **more: Any) -> Row:
    row = Row(task_id, class_name="Cam", wanted=Wanted.RUN, status=Status.ASSIGNING, revision=1)
    return replace(row, **more)


def brief(steps: Sequence[Step]) -> list[tuple[str, str | None, str | None]]:
    return [(step.task_id, step.source, step.target) for step in steps]


def test_a_drain_says_who_takes_what_and_what_stays_and_changes_nothing() -> None:
    members = three()
    rows = [held("t1"), held("t2"), held("t3"), held("pinned", recipient="a"), held("other", "c", class_name="Feed")]
    steps = plan_drain(rows, members, "a")
    assert brief(steps) == [("pinned", "a", None), ("t1", "a", "b"), ("t2", "a", "b"), ("t3", "a", None)]
    assert steps[0].reasons == {"*": "it is pinned to a"}
    assert steps[3].reasons == {"b": "full 2/2", "c": "no class Cam"}
    assert not members.is_drained("a")


def test_what_runs_by_the_rows_counts_though_no_heartbeat_says_so_yet() -> None:
    steps = plan_drain([held("t1"), held("t2"), held("there", "b")], three(), "a")
    assert brief(steps) == [("t1", "a", "b"), ("t2", "a", None)]


def test_the_highest_priority_gets_the_room() -> None:
    steps = plan_drain([held("t1", weight=2), held("t2", weight=2, priority=5)], three(), "a")
    assert brief(steps) == [("t2", "a", "b"), ("t1", "a", None)]


def test_what_is_on_its_way_is_in_the_plan_of_a_drain_and_what_is_cancelled_is_not() -> None:
    rows = [held("moving", release=Release.MOVE), held("restarting", release=Release.RESTART)]
    steps = plan_drain([*rows, held("cancelled", wanted=Wanted.CANCEL)], three(), "a")
    assert brief(steps) == [("moving", "a", "b"), ("restarting", "a", "b")]


def test_a_drain_without_anybody_else() -> None:
    (step,) = plan_drain([held("t")], up(Members(), "a"), "a")
    assert (step.target, step.reasons) == (None, {"*": "no other skald is here"})


def test_a_loss_says_who_takes_what_and_what_waits() -> None:
    rows = [held("t1"), held("t2"), held("t3"), held("pinned", recipient="a"), held("other", "c", class_name="Feed")]
    steps = plan_loss(rows, three(), "a")
    assert brief(steps) == [("pinned", "a", None), ("t1", "a", "b"), ("t2", "a", "b"), ("t3", "a", None)]
    assert steps[0].reasons == {"a": "recipient is not here"}
    assert steps[3].reasons == {"b": "full 2/2", "c": "no class Cam"}


def test_the_loss_of_a_node_that_is_expected_back_frees_what_is_kept_for_it() -> None:
    members = three()
    members.apply({"skald_id": "a", "incarnation": "a1", "n": 2, "state": "holding"}, 9)
    kept = waiting("kept", last_skald="a", waiting={"a": "is expected back"})
    assert brief(plan_loss([kept], members, "a")) == [("kept", None, "b")]
    assert members.is_reserved("a")


def test_an_undrain_lets_in_what_waits() -> None:
    members = up(Members(), "a")
    members.apply({"kind": "drain", "skald_id": "a"}, 5)
    rows = [waiting("t1"), waiting("t2", class_name="Feed"), held("there")]
    assert brief(plan_undrain(rows, members, "a")) == [("t1", None, "a")]


@pytest.mark.parametrize(
    ("row", "to", "target", "reasons"),
    [
        (held("t"), None, "b", {}),
        (held("t"), "b", "b", {}),
        (held("t"), "c", None, {"c": "no class Cam"}),
        (held("t"), "z", None, {"z": "is not here"}),
        (held("t"), "a", None, {"*": "a has it already"}),
        (held("t", recipient="a"), "b", None, {"*": "it is pinned to a"}),
        (held("t", recipient="a"), None, None, {"*": "it is pinned to a"}),
        (held("t", weight=3), None, None, {"b": "full 0/2", "c": "no class Cam"}),
        (replace(held("t"), holder=None, status=Status.FINISHED), None, None, {"*": "it is not wanted"}),
        (waiting("t"), "b", "b", {}),
        (waiting("t", class_name="Odd"), None, None, {"a": "no class Odd", "b": "no class Odd", "c": "no class Odd"}),
    ],
)
def test_a_move(row: Row, to: str | None, target: str | None, reasons: dict[str, str]) -> None:
    (step,) = plan_move([row], three(), ["t"], to)
    assert (step.target, step.reasons) == (target, reasons)


def test_moves_of_one_plan_know_of_each_other() -> None:
    rows = [held(f"t{number}") for number in range(4)]
    assert [step.target for step in plan_move(rows, three(), ["t0", "t1", "t2"])] == ["b", "b", None]


def test_a_rebalance_moves_as_few_as_make_it_even() -> None:
    members = up(up(Members(), "a", capacity=10), "b", capacity=10)
    rows = [held(f"t{number}") for number in range(8)]
    steps = plan_balance(rows, members)
    assert brief(steps) == [(f"t{number}", "a", "b") for number in range(4)]
    assert len(plan_balance(rows, members, most=1)) == 1
    assert plan_balance(rows[:1], members) == []


def test_a_rebalance_goes_by_capacity_and_leaves_what_is_pinned_or_does_not_run() -> None:
    members = up(up(Members(), "a", capacity=30), "b", capacity=10)
    rows = [held(f"t{number}") for number in range(8)]
    assert len(plan_balance(rows, members)) == 2
    fixed = [replace(row, recipient="a") for row in rows[:3]]
    fixed += [replace(row, status=Status.ASSIGNING) for row in rows[3:6]]
    fixed += [replace(row, release=Release.MOVE) for row in rows[6:]]
    assert plan_balance(fixed, members) == []


def test_a_rebalance_asks_only_who_can_take_it() -> None:
    members = up(up(up(Members(), "a"), "b", state="draining"), "c", classes={"Feed": "h"})
    assert plan_balance([held("t1"), held("t2")], members) == []
    rows = [held("t1", class_name="Feed", requires={"gpu": "yes"}), held("t2", class_name="Feed", priority=3)]
    assert brief(plan_balance(rows, members)) == [("t2", "a", "c")]


def test_shares_and_their_spread() -> None:
    members = up(up(Members(), "b", capacity=10, running=2), "a", capacity=4)
    found = shares([held("t1"), held("t2")], members)
    assert [(share.member.skald_id, share.used) for share in found] == [("a", 2), ("b", 2)]
    assert spread(found) == pytest.approx(0.3)
    assert spread([]) == 0
