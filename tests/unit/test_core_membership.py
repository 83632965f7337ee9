"""Heartbeats in, members out; and where a task goes."""

from __future__ import annotations

from typing import Any

import pytest

from skalds_streams.core.due import find_due
from skalds_streams.core.membership import DEATH_BEATS, SILENT_BEATS, Members
from skalds_streams.core.placement import Load, choose
from skalds_streams.core.row import Holder, Release, Row, Status, Wanted


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
    up(members, "e", 4, classes={}, not_loadable=["shop.Other", "shop.Cam"])
    up(members, "f", 5, classes={}, not_loadable=["shop.WebCam", "shop"])
    choice = choose(waiting_row(requires={"gpu": "yes"}), members, Load())
    assert choice.waiting == {
        "a": "lacks label gpu=yes",
        "b": "no class Cam",
        "c": "lacks label gpu=yes",
        "d": "draining",
        "e": "class Cam is not loadable there",
        "f": "no class Cam",
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


@pytest.mark.parametrize("state", ["up", "draining"])
def test_a_worker_that_ran_on_has_its_room_where_it_runs(state: str) -> None:
    members = Members()
    up(members, "a", 0, capacity=1, state=state, kept=["t"])
    beat(members, "a", 1, n=2, running=1)
    assert choose(waiting_row(last_skald="a"), members, Load()).incarnation == "a1"
    assert choose(Row("u", class_name="Cam"), members, Load()).skald_id is None
    assert beat(members, "a", 2, n=3, running=1, kept=[])
    assert choose(waiting_row(last_skald="a"), members, Load()).skald_id is None


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


# -- death by counted heartbeats


def beats(members: Members, skald: str, count: int, start: int) -> int:
    """`count` heartbeats of a skald from offset `start` on. Returns the next offset."""
    member = members.get(f"{skald}1")
    first = member.n + 1 if member is not None else 1
    for number in range(count):
        beat(members, skald, start + number, n=first + number)
    return start + count


def test_thirteen_heartbeats_of_one_other_are_a_death_and_twelve_are_not() -> None:
    members = Members()
    up(members, "a", 0)
    at = beats(members, "b", DEATH_BEATS - 1, 1)
    assert not members.is_dead("a1")
    beats(members, "b", 1, at)
    assert members.is_dead("a1")
    assert members.why_dead("a1") == "silent for 13 heartbeats of b1"
    up(members, "a", at + 2, n=2)
    assert members.is_dead("a1"), "death is final"
    assert members.get("a1") is None


def test_heartbeats_of_different_others_do_not_add_up() -> None:
    members = Members()
    up(members, "a", 0)
    at = 1
    for skald in ("b", "c", "d"):
        at = beats(members, skald, DEATH_BEATS - 1, at)
    assert not members.is_dead("a1")


def test_a_repeated_heartbeat_counts_once() -> None:
    members = Members()
    up(members, "a", 0)
    for offset in range(4, 4 * DEATH_BEATS):
        beat(members, "b", offset, n=offset // 4)
    assert not members.is_dead("a1")


def test_one_that_goes_on_is_not_dead_however_fast_another_is() -> None:
    members = Members()
    at = 0
    for n in range(1, 20):
        beat(members, "a", at, n=n)
        at = beats(members, "b", DEATH_BEATS - 1, at + 1)
    assert not members.is_dead("a1")


def test_nobody_dies_in_a_log_to_which_nothing_is_appended() -> None:
    members = Members()
    up(members, "a", 0)
    up(members, "b", 1)
    assert [member.skald_id for member in members] == ["a", "b"]


def test_a_holder_that_the_log_does_not_name_any_more_is_dead_after_as_many() -> None:
    members = Members()
    at = beats(members, "b", DEATH_BEATS, 100)
    assert not members.is_dead("gone1", known_at=50), "one of them was its last sight"
    beats(members, "b", 1, at)
    assert members.is_dead("gone1", known_at=50)
    assert not members.is_dead("new1", known_at=at + 5), "placed with heartbeats that we have not read yet"


def test_a_malformed_document_is_a_sign_of_life() -> None:
    members = Members()
    up(members, "a", 0)
    for offset in range(1, 3 * DEATH_BEATS, 2):
        beat(members, "b", offset, n=offset)
        with pytest.raises(ValueError, match="capacity"):
            beat(members, "a", offset + 1, n=offset, capacity="many")
    assert not members.is_dead("a1")


# -- holding and draining


def test_what_a_holding_skald_ran_waits_for_it_and_then_goes_on_elsewhere() -> None:
    members = Members(hold_beats=3)
    up(members, "a", 0)
    up(members, "b", 1)
    beat(members, "a", 2, n=2, state="holding")
    row = waiting_row(last_skald="a")
    assert members.is_dead("a1")
    assert choose(row, members, Load()).waiting == {"a": "is expected back"}
    assert choose(waiting_row(), members, Load()).skald_id == "b"
    at = beats(members, "b", 2, 3)
    assert choose(row, members, Load()).skald_id is None
    beats(members, "b", 1, at)
    assert choose(row, members, Load()).skald_id == "b"


def test_the_return_of_a_holding_skald_ends_the_wait() -> None:
    members = Members()
    up(members, "a", 0)
    beat(members, "a", 1, n=2, state="holding")
    members.apply(
        {"skald_id": "a", "incarnation": "a2", "n": 1, "state": "up", "classes": {"Cam": "h"}, "capacity": 8}, 2
    )
    assert choose(waiting_row(last_skald="a"), members, Load()).incarnation == "a2"


def held_row(skald: str = "a", **more: Any) -> Row:
    return Row(
        "t",
        class_name="Cam",
        wanted=Wanted.RUN,
        status=Status.RUNNING,
        holder=Holder(skald, f"{skald}1", 3, 0),
        epoch=3,
        **more,
    )


def due_kinds(row: Row, members: Members) -> list[str]:
    return [due.kind for due in find_due([row], members, Load(), 1_000)]


def test_a_drained_skald_gives_its_tasks_to_who_can_take_them() -> None:
    members = Members()
    up(members, "a", 0)
    assert members.apply({"kind": "drain", "skald_id": "a"}, 1)
    assert members.is_drained("a")
    assert due_kinds(held_row(), members) == [], "nobody else is there: it runs on"
    up(members, "b", 2)
    assert due_kinds(held_row(), members) == ["Drain"]
    assert due_kinds(held_row(recipient="a"), members) == []
    assert due_kinds(held_row(release=Release.MOVE), members) == []
    assert choose(waiting_row(recipient="a"), members, Load()).waiting == {
        "a": "draining",
        "b": "recipient is a",
    }
    beat(members, "a", 3, n=2, state="up")
    assert due_kinds(held_row(), members) == ["Drain"], "it has not read it yet"
    members.apply({"kind": "undrain", "skald_id": "a"}, 4)
    assert due_kinds(held_row(), members) == []
    assert choose(waiting_row(recipient="a"), members, Load()).skald_id == "a"


def test_a_restart_ends_a_drain() -> None:
    members = Members()
    up(members, "a", 0)
    members.apply({"kind": "drain", "skald_id": "a"}, 1)
    members.apply({"skald_id": "a", "incarnation": "a2", "n": 1, "state": "up", "replaces": "a1"}, 2)
    assert not members.is_drained("a")


def test_a_lapse_ends_no_drain_and_undrain_does() -> None:
    """After a network cut, the same process goes on as another incarnation: twice, of which the first was not heard."""
    members = Members()
    up(members, "a", 0, replaces=["a0"])
    members.apply({"kind": "drain", "skald_id": "a"}, 1)
    for offset in range(2, 2 + DEATH_BEATS):
        up(members, "b", offset, n=offset)
    assert members.is_dead("a1")
    lapsed = {"skald_id": "a", "n": 1, "state": "up", "classes": {"Cam": "h"}, "capacity": 8}
    members.apply({**lapsed, "incarnation": "a3", "replaces": ["a0", "a1", "a2"], "lapses": 2}, 20)
    assert members.is_drained("a")
    assert choose(waiting_row(recipient="a"), members, Load()).waiting["a"] == "draining"
    members.apply({**lapsed, "incarnation": "a4", "replaces": ["a0", "a1", "a2", "a3"], "lapses": 3}, 21)
    assert members.is_drained("a")
    members.apply({"kind": "undrain", "skald_id": "a"}, 22)
    members.apply({**lapsed, "incarnation": "a5", "replaces": ["a0", "a1", "a2", "a3", "a4"], "lapses": 4}, 23)
    assert choose(waiting_row(recipient="a"), members, Load()).skald_id == "a"


def test_a_restart_ends_a_drain_also_of_a_process_that_has_lapsed_before_it_took_part() -> None:
    members = Members()
    up(members, "a", 0)
    members.apply({"kind": "drain", "skald_id": "a"}, 1)
    doc = {"skald_id": "a", "incarnation": "a3", "n": 1, "state": "up", "replaces": ["a1", "a2"], "lapses": 1}
    members.apply(doc, 2)
    assert not members.is_drained("a"), "it was a2 that lapsed, and a1 that was drained"


def test_a_drain_of_nobody_changes_nothing() -> None:
    members = Members()
    assert not members.apply({"kind": "drain", "skald_id": "x"}, 0)
    assert not members.is_drained("x")


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
    member = members.get("a1")
    assert member is not None
    assert (dict(member.classes), dict(member.secret)) == ({}, {}), "it is alive, and that is all that is known of it"
