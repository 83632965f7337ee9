"""Heartbeats in, members out; and where a task goes."""

from __future__ import annotations

from typing import Any

import pytest

from skalds_streams.core.due import find_due
from skalds_streams.core.membership import SILENT_BEATS, Members
from skalds_streams.core.placement import Load, choose
from skalds_streams.core.row import Holder, Row, Status, Wanted


def beat(members: Members, skald: str, offset: int, n: int = 1, **more: Any) -> bool:
    doc = {"skald_id": skald, "incarnation": f"{skald}1", "n": n, "running": 0, **more}
    return members.apply(doc, offset)


def up(members: Members, skald: str, offset: int, **more: Any) -> bool:
    return beat(members, skald, offset, **{"classes": {"Cam": "h"}, "capacity": 8, "state": "up", **more})


def waiting_row(**more: Any) -> Row:
    return Row("t", class_name="Cam", wanted=Wanted.RUN, status=Status.ASSIGNING, **more)


def test_a_short_beat_keeps_what_the_document_said() -> None:
    members = Members()
    assert up(members, "a", 0)
    assert not beat(members, "a", 1, n=2, running=3)
    member = members.get("a1")
    assert member is not None
    assert (member.running, member.capacity, dict(member.classes)) == (3, 8, {"Cam": "h"})


def test_replaces_and_leaving_are_death_and_death_is_final() -> None:
    members = Members()
    up(members, "a", 0)
    members.apply({"skald_id": "a", "incarnation": "a2", "n": 1, "replaces": "a1", "state": "up"}, 1)
    assert members.is_dead("a1")
    up(members, "a", 2)
    assert members.get("a1") is None
    up(members, "b", 3, state="leaving")
    assert members.is_dead("b1")


def test_one_heartbeat_may_replace_several() -> None:
    members = Members()
    members.apply({"skald_id": "a", "incarnation": "a3", "n": 1, "replaces": ["a1", "a2"], "state": "up"}, 1)
    assert (members.is_dead("a1"), members.is_dead("a2"), members.is_dead("a3")) == (True, True, False)


def test_a_silent_member_is_not_dead_but_gets_nothing() -> None:
    members = Members()
    up(members, "a", 0)
    for offset in range(1, SILENT_BEATS + 1):
        up(members, "b", offset, n=offset)
    assert not members.is_dead("a1")
    assert choose(waiting_row(recipient="a"), members, Load()).waiting["a"] == "silent"


def test_odd_heartbeats_change_nothing() -> None:
    members = Members()
    assert not members.apply({}, 0)
    assert not members.apply({"skald_id": 3, "incarnation": None}, 1)
    assert len(members) == 0


def test_reasons_are_told_per_skald() -> None:
    members = Members()
    up(members, "a", 0, running=8)
    up(members, "b", 1, classes={})
    up(members, "c", 2, labels={"gpu": "no"})
    up(members, "d", 3, state="draining")
    choice = choose(waiting_row(requires={"gpu": "yes"}), members, Load())
    assert choice.waiting == {
        "a": "lacks label gpu=yes",
        "b": "no class Cam",
        "c": "lacks label gpu=yes",
        "d": "draining",
    }
    assert choose(waiting_row(), Members(), Load()).waiting == {"*": "no skald is here"}
    assert choose(waiting_row(recipient="z"), Members(), Load()).waiting == {"z": "recipient is not here"}


def test_placements_since_the_last_beat_count_as_load() -> None:
    members, load = Members(), Load()
    up(members, "a", 5, capacity=2)
    for _ in range(2):
        choice = choose(waiting_row(), members, load)
        assert choice.incarnation == "a1"
        load.note("a1", choice.members_offset, 1)
    assert choose(waiting_row(), members, load).waiting == {"a": "full 2/2"}
    beat(members, "a", 6, n=2, running=1)
    assert choose(waiting_row(), members, load).incarnation == "a1"


def test_stickiness_and_another_skald_after_five_tries() -> None:
    members = Members()
    up(members, "a", 0)
    up(members, "b", 1)
    assert choose(waiting_row(last_skald="b"), members, Load()).skald_id == "b"
    assert choose(waiting_row(last_skald="b", attempt=5), members, Load()).skald_id == "a"


def test_load_spreads_by_free_capacity() -> None:
    members = Members()
    up(members, "small", 0, capacity=10)
    up(members, "large", 1, capacity=90)
    picked = [choose(Row(f"t{n}", class_name="Cam"), members, Load()).skald_id for n in range(1000)]
    assert 850 < picked.count("large") < 950


def test_due_finds_lost_runs_over_backoffs_and_tasks_that_could_go() -> None:
    members = Members()
    up(members, "a", 0)
    up(members, "b", 1, state="leaving")
    held = Row("held", class_name="Cam", wanted=Wanted.RUN, status=Status.RUNNING, holder=Holder("b", "b1", 3), epoch=3)
    backing_off = waiting_row(attempt=2, retry_at_ms=5_000)
    could_go = Row(
        "go", class_name="Cam", wanted=Wanted.RUN, status=Status.ASSIGNING, waiting={"*": "no skald is here"}
    )
    done = Row("done", status=Status.FINISHED, wanted=Wanted.RUN)
    found = list(find_due([held, backing_off, could_go, done], members, Load(), 4_000))
    assert [(due.kind, due.task_id, due.epoch) for due in found] == [("Lost", "held", 3), ("Retry", "go", 0)]
    assert [due.task_id for due in find_due([backing_off], members, Load(), 5_000)] == ["t"]
    stuck = waiting_row(waiting={"a": "no class Cam", "x": "no"})
    assert [due.reason for due in find_due([stuck], Members(), Load(), 0)] == ["reasons changed"]


def test_secret_parameters_are_remembered_and_those_of_unknown_classes_are_all() -> None:
    members = Members()
    assert members.secret_paths("Cam") == members.secret_paths(None) == ("*",)
    up(members, "a", 0, classes={"Cam": "h", "Counter": "h"}, secret={"Cam": ["pin"]})
    assert (members.secret_paths("Cam"), members.secret_paths("Counter")) == (("pin",), ())
    beat(members, "a", 1, n=2)
    up(members, "b", 2, secret={"Cam": ["login.code"]})
    up(members, "a", 3, state="leaving")
    assert members.secret_paths("Cam") == ("login.code", "pin")


@pytest.mark.parametrize("secret", [["pin"], {"Cam": "pin"}, {"Cam": [1]}, {"Cam": None}])
def test_a_heartbeat_with_nonsense_for_secrets_is_refused(secret: Any) -> None:
    members = Members()
    with pytest.raises(ValueError, match="secret"):
        up(members, "a", 0, secret=secret)
    assert len(members) == 0
