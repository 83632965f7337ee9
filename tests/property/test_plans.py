"""Plans hold what they say, whatever the cluster looks like."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from skalds_streams.core import events
from skalds_streams.core.decide import Context, decide
from skalds_streams.core.due import find_due
from skalds_streams.core.membership import Members
from skalds_streams.core.options import ClassOptions
from skalds_streams.core.placement import Load, choose, refusal, units_at
from skalds_streams.core.plans import Step, plan_balance, plan_drain, plan_loss, plan_move, shares, spread
from skalds_streams.core.row import Cause, Holder, Row, Status, Wanted

SKALDS = "abcd"
CLASSES = ("Cam", "Feed")
OPTIONS: tuple[dict[str, Any], ...] = ({}, {}, {"weight": 2}, {"weight": 3, "requires": {"gpu": "yes"}})
"""Each skald describes its classes in its own way."""
CAUSE = Cause("Stopped", "skald.report", 0, 0, 0)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Row], Members]:
    """Skalds with more or less room, and tasks that fit where they are."""
    members, rows = Members(), []
    for offset, skald_id in enumerate(SKALDS[: draw(st.integers(1, 4))]):
        capacity, number = draw(st.integers(0, 9)), 0
        doc = {"skald_id": skald_id, "incarnation": f"{skald_id}1", "n": 1, "capacity": capacity, "running": 0}
        doc |= {"classes": dict.fromkeys(draw(st.sampled_from((CLASSES, CLASSES, CLASSES[:1]))), "h")}
        doc |= {"labels": draw(st.sampled_from(({}, {"gpu": "yes"})))}
        doc |= {"options": {"Cam": draw(st.sampled_from(OPTIONS)), "Feed": draw(st.sampled_from(OPTIONS))}}
        used = 0
        while used < capacity and number < draw(st.integers(0, 9)):
            row = draw(_rows(f"{skald_id}{number}", skald_id))
            row = replace(row, of_class=ClassOptions.from_doc(doc["options"][row.class_name]).of_run)
            if used + row.units > capacity:
                break
            rows.append(row)
            used, number = used + row.units, number + 1
        members.apply({**doc, "running": draw(st.integers(0, used))}, offset)
    return rows, members


@st.composite
def _rows(draw: st.DrawFn, task_id: str, skald_id: str) -> Row:
    row = Row(task_id, class_name=draw(st.sampled_from(CLASSES)), wanted=Wanted.RUN, status=Status.RUNNING)
    row = replace(row, holder=Holder(skald_id, f"{skald_id}1", 1, 0), epoch=1, revision=1, last_skald=skald_id)
    return replace(
        row,
        weight=draw(st.sampled_from((None, None, 1, 2, 3))),
        priority=draw(st.integers(0, 1)),
        recipient=draw(st.sampled_from((None, None, None, skald_id))),
        requires=draw(st.sampled_from((None, {}, {"gpu": "yes"}))),
    )


CLUSTERS = clusters()


def check_fits(rows: list[Row], members: Members, steps: list[Step], *, leaving: str | None = None) -> None:
    """No skald gets more than it has room for, nor what it can't run."""
    by_id = {row.task_id: row for row in rows}
    by_skald = {member.skald_id: member for member in members}
    used = Counter[str]()
    for row in rows:
        assert row.holder is not None
        used[row.holder.skald_id] += row.units
    for step in steps:
        row = by_id[step.task_id]
        if step.target is None:
            assert step.reasons
            continue
        assert step.target not in (step.source, leaving)
        assert row.recipient in (None, step.target)
        member = by_skald[step.target]
        assert refusal(row, member, used[step.target], silent=False) is None
        used[step.target] += units_at(row, member)


@given(CLUSTERS)
def test_no_plan_gives_a_skald_more_than_it_can_take(cluster: tuple[list[Row], Members]) -> None:
    rows, members = cluster
    for skald_id in SKALDS:
        check_fits(rows, members, plan_drain(rows, members, skald_id), leaving=skald_id)
        check_fits(rows, members, plan_loss(rows, members, skald_id), leaving=skald_id)
    check_fits(rows, members, plan_move(rows, members, [row.task_id for row in rows]))
    check_fits(rows, members, plan_balance(rows, members))


@given(CLUSTERS)
def test_a_rebalance_never_makes_the_spread_worse(cluster: tuple[list[Row], Members]) -> None:
    rows, members = cluster
    # What a heartbeat says beyond the rows would stay where it is: here it says nothing.
    quiet = Members()
    for member in members:
        doc = {name: getattr(member, name) for name in ("skald_id", "incarnation", "classes", "labels", "capacity")}
        doc["options"] = {name: options.to_doc() for name, options in member.options.items()}
        quiet.apply({**doc, "n": 1}, member.last_offset)
    by_id = {row.task_id: row for row in rows}
    steps, last = plan_balance(rows, quiet), spread(shares(rows, quiet))
    for step in steps:
        assert step.target is not None
        moved = replace(by_id[step.task_id], holder=Holder(step.target, f"{step.target}1", 2, 0), epoch=2)
        target = next(member for member in quiet if member.skald_id == step.target)
        by_id[step.task_id] = replace(moved, of_class=target.options_of(moved.class_name).of_run)
        now = spread(shares(list(by_id.values()), quiet))
        assert now <= last + 1e-9
        last = now
    assert plan_balance(rows[::-1], quiet) == steps, "the order of the rows does not matter"


@given(CLUSTERS, st.sampled_from(SKALDS))
def test_tasks_go_where_the_plan_of_a_drain_says(cluster: tuple[list[Row], Members], skald_id: str) -> None:
    """When nothing else changes, and they stop in the plan's order."""
    rows, members = cluster
    steps = plan_drain(rows, members, skald_id)
    members.apply({"kind": "drain", "skald_id": skald_id}, members.offset)
    load, by_id = Load(), {row.task_id: row for row in rows}
    _note_unheard(rows, members, load)
    context = Context(0, partial(choose, members=members, load=load))
    for step in steps:
        row = by_id[step.task_id]
        due = [due.kind for due in find_due([row], members, load, 0)]
        assert due == (["Drain"] if step.target is not None else [])
        assert row.holder is not None
        if step.target is not None:
            for kind in (events.Drain, events.Stopped):
                assert row.holder is not None
                decision = decide(row, kind(row.task_id, CAUSE, row.holder.epoch, row.holder.incarnation), context)
                assert decision.row is not None
                row = decision.row
            assert row.holder is not None
            assert decision.choice is not None
            assert row.holder.skald_id == step.target
            load.note(row.holder.incarnation, members.offset, row.units)


def _note_unheard(rows: list[Row], members: Members, load: Load) -> None:
    for member in members:
        held = sum(row.units for row in rows if row.holder is not None and row.holder.skald_id == member.skald_id)
        load.note(member.incarnation, members.offset, max(held - member.running, 0))
