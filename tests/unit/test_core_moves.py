"""A move: where a task runs, never whether; and a drain that asks no more to leave than others have room for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from skalds_streams.core import events
from skalds_streams.core.decide import Context, decide
from skalds_streams.core.due import MOVES_AT_ONCE, STARTS_WITHIN_MS, find_due, room_of
from skalds_streams.core.invariants import check_step
from skalds_streams.core.membership import Members
from skalds_streams.core.placement import Load, choose
from skalds_streams.core.row import Cause, Holder, Release, Row, Status, Wanted

CAUSE = Cause("Assign", "task.assign", 0, 0, 1_000)


def members(*ids: str, **more: Any) -> Members:
    found = Members()
    for offset, skald_id in enumerate(ids):
        doc = {"skald_id": skald_id, "incarnation": f"{skald_id}1", "n": 1, "state": "up", "classes": {"Cam": "h"}}
        found.apply({**doc, "capacity": 8, **more}, offset)
    return found


def running(task_id: str = "t", skald: str = "a", **more: Any) -> Row:
    row = Row(task_id, class_name="Cam", wanted=Wanted.RUN, status=Status.RUNNING, last_skald=skald, assign_at_ms=900)
    return replace(row, holder=Holder(skald, f"{skald}1", 1, 0), epoch=1, revision=3, **more)


def after(row: Row, *happens: Any, here: Members, load: Load | None = None) -> Row:
    known = load or Load()
    for event in happens:
        decision = decide(row, event, Context(5_000, lambda row: choose(row, here, known)))
        assert decision.row is not None, decision.ignored
        check_step(row, decision.row)
        row = decision.row
    return row


def move(to: str | None = None, **more: Any) -> events.Assign:
    return events.Assign("t", CAUSE, release=Release.MOVE, to=to, **more)


def stopped(row: Row) -> events.Stopped:
    assert row.holder is not None
    cause = replace(CAUSE, kind="Stopped")
    return events.Stopped(row.task_id, cause, row.holder.epoch, row.holder.incarnation)


def where(row: Row) -> str | None:
    return row.holder.skald_id if row.holder is not None else None


@pytest.mark.parametrize("number", range(20))
def test_a_move_never_ends_where_it_began_whatever_the_hash_says(number: int) -> None:
    row = replace(running(), task_id=f"t{number}")
    here = members("a", "b", "c")
    asked = after(row, replace(move(), task_id=row.task_id), here=here)
    assert (asked.release, where(asked)) == (Release.MOVE, "a"), "the holder stops first"
    placed = after(asked, stopped(asked), here=here)
    assert where(placed) in ("b", "c")
    assert (placed.move_to, placed.moved_from) == (None, None)


@pytest.mark.parametrize("number", range(10))
def test_what_a_skald_could_not_begin_goes_to_another_and_back_only_when_nobody_else_can(number: int) -> None:
    row, here = replace(running(), task_id=f"t{number}", status=Status.ASSIGNING), members("a", "b", "c")
    given_back = replace(stopped(row), elsewhere=True)
    placed = after(row, given_back, here=here)
    assert where(placed) in ("b", "c")
    assert (placed.moved_from, where(after(row, given_back, here=members("a")))) == (None, "a")
    paused = after(replace(row, wanted=Wanted.PAUSE), given_back, here=here)
    assert (paused.status, paused.holder, paused.moved_from) == (Status.PAUSED, None, None)


@pytest.mark.parametrize("number", range(10))
def test_the_named_skald_is_preferred_once(number: int) -> None:
    row, here = replace(running(), task_id=f"t{number}"), members("a", "b", "c", "d")
    asked = after(row, replace(move("c"), task_id=row.task_id), here=here)
    placed = after(asked, stopped(asked), here=here)
    assert (where(placed), placed.recipient, placed.move_to) == ("c", None, None)
    lost = replace(stopped(placed), cause=replace(CAUSE, kind="Stopped"))
    elsewhere = after(placed, lost, here=members("a", "b", "d"))
    assert where(elsewhere) in ("a", "b", "d"), "it is not pinned"


def test_when_the_named_one_can_not_take_it_another_does_and_the_former_one_rather_than_nobody() -> None:
    row = running()
    asked = after(row, move("z"), here=members("a", "b"))
    assert where(after(asked, stopped(asked), here=members("a", "b"))) == "b"
    assert where(after(asked, stopped(asked), here=members("a"))) == "a"
    waits = after(asked, stopped(asked), here=members())
    assert (waits.move_to, waits.moved_from, waits.waiting) == ("z", "a", {"*": "no skald is here"})


@pytest.mark.parametrize(
    ("row", "note"),
    [
        (replace(running(), holder=None, status=Status.CANCELLED, wanted=Wanted.CANCEL), "it is not wanted"),
        (replace(running(), holder=None, status=Status.FINISHED), "it is not wanted"),
        (replace(running(), holder=None, status=Status.PAUSED, wanted=Wanted.PAUSE), "it is not wanted"),
        (replace(running(), wanted=Wanted.CANCEL), "it is not wanted"),
        (running(recipient="a"), "it is pinned to a"),
    ],
)
def test_a_move_alone_starts_nothing_and_stops_nothing(row: Row, note: str) -> None:
    moved = after(row, move("b"), here=members("a", "b"))
    assert replace(moved, note=None, revision=row.revision, why=row.why, updated_at_ms=0) == row
    assert moved.note == f"not moved: {note}"


def test_a_move_to_where_it_runs_does_not_stop_it() -> None:
    moved = after(running(), move("a"), here=members("a", "b"))
    assert (moved.release, moved.note) == (None, "not moved: a has it already")


def test_an_earlier_cancel_still_wins_over_a_move() -> None:
    row = after(running(), move("b"), here=members("a", "b"))
    assert row.assign_at_ms == 900
    cancelled = after(row, events.Cancel("t", replace(CAUSE, kind="Cancel", at_ms=950)), here=members("a", "b"))
    assert (cancelled.wanted, cancelled.release) == (Wanted.CANCEL, None)
    ended = after(cancelled, stopped(cancelled), here=members("a", "b"))
    assert (ended.status, ended.move_to, ended.moved_from) == (Status.CANCELLED, None, None)


def test_an_unknown_task_is_not_made_to_run_by_a_move() -> None:
    decision = decide(None, move("b"), Context(5_000, lambda row: choose(row, members("b"), Load())))
    assert decision.row is not None
    assert (decision.row.status, decision.row.holder) == (Status.CREATED, None)


def test_what_is_kept_for_a_node_that_comes_back_can_be_moved_away() -> None:
    here = members("a", "b")
    here.apply({"skald_id": "a", "incarnation": "a1", "n": 2, "state": "holding"}, 2)
    row = replace(running(), holder=None, status=Status.ASSIGNING)
    assert choose(row, here, Load()).waiting == {"a": "is expected back"}
    assert where(after(row, move(), here=here)) == "b"


def test_a_task_that_waits_goes_to_the_named_one() -> None:
    row = replace(running(), holder=None, status=Status.ASSIGNING, last_skald=None)
    assert where(after(row, move("c"), here=members("a", "b", "c", "d"))) == "c"


def test_a_move_of_a_described_task_is_an_assign_that_stops_it_first() -> None:
    spec = events.TaskSpec(class_name="Cam", attachments={"fps": 1})
    asked = after(running(), move("c", spec=spec), here=members("a", "b", "c"))
    assert (asked.release, asked.attachments) == (Release.MOVE, {"fps": 1})
    assert where(after(asked, stopped(asked), here=members("a", "b", "c"))) == "c"
    pinned = after(running(), move(spec=replace(spec, recipient="a")), here=members("a", "b"))
    assert pinned.release is None, "it is where it must be"


# -- drains and the room of others


def drained(capacity: int, *ids: str) -> Members:
    found = members("a", *ids, capacity=capacity)
    found.apply({"kind": "drain", "skald_id": "a"}, 50)
    return found


def test_a_drain_asks_no_more_to_leave_than_others_have_room_for() -> None:
    here, rows = drained(3, "b"), [running(f"t{number}") for number in range(5)]
    asked = [due.task_id for due in find_due(rows, here, Load(), 0)]
    assert asked == ["t0", "t1", "t2"]
    leaving = [replace(row, release=Release.MOVE) if row.task_id in asked[:2] else row for row in rows]
    room = room_of(leaving, here, [Load()], 0)
    assert [due.task_id for due in find_due(leaving, here, Load(), 0, room=room)] == ["t2"]


def test_placements_of_other_partitions_count_for_a_drain() -> None:
    here, other = drained(3, "b"), Load()
    other.note("b1", here.offset, 2)
    room = room_of([], here, [Load(), other], 0)
    found = [due for row in range(3) for due in find_due([running(f"t{row}")], here, Load(), 0, room=room)]
    assert [due.task_id for due in found] == ["t0"]


def test_a_drain_goes_a_few_at_a_time() -> None:
    here, rows = drained(99, "b"), [running(f"t{number:02}") for number in range(MOVES_AT_ONCE + 5)]
    room = room_of(rows, here, [], 0)
    assert len(list(find_due(rows, here, Load(), 0, room=room))) == MOVES_AT_ONCE
    assert room.held_back == 5
    asked = [replace(row, release=Release.MOVE) for row in rows[:3]]
    placed = replace(rows[3], holder=Holder("b", "b1", 2), epoch=2, status=Status.ASSIGNING, updated_at_ms=5_000)
    going = [*asked, placed, *rows[4:]]
    for now_ms, under_way in ((5_000, 4), (5_000 + STARTS_WITHIN_MS, 3)):
        room = room_of(going, here, [], now_ms)
        assert room.under_way == under_way
        assert len(list(find_due(going, here, Load(), now_ms, room=room))) == MOVES_AT_ONCE - under_way
