"""What a class says of where it runs and how it is tried again: the default, judged by each skald's own description."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import orjson
import pytest

from skalds_streams.core import events
from skalds_streams.core.decide import Context, decide
from skalds_streams.core.due import find_due
from skalds_streams.core.membership import Members
from skalds_streams.core.options import DEFAULT, ClassOptions
from skalds_streams.core.placement import Load, choose
from skalds_streams.core.plans import plan_balance, plan_drain, plan_move
from skalds_streams.core.row import Cause, Holder, Row, Status, Wanted
from skalds_streams.model.documents import decode_row, encode_row
from skalds_streams.web.words import policy_words

CAUSE = Cause("Assign", "task.assign", 0, 0, 1_000)


def up(members: Members, skald_id: str, options: dict[str, Any] | None = None, **more: Any) -> Members:
    doc = {"skald_id": skald_id, "incarnation": f"{skald_id}1", "n": 1, "state": "up", "classes": {"Cam": "h"}}
    described = {"options": {"Cam": options}} if options is not None else {}
    members.apply({**doc, "capacity": 4, **described, **more}, members.offset + 1)
    return members


def assigned(members: Members, load: Load | None = None, **spec: Any) -> Row:
    event = events.Assign("t", CAUSE, spec=events.TaskSpec(class_name="Cam", **spec))
    row = decide(None, event, Context(5_000, partial(choose, members=members, load=load or Load()))).row
    assert row is not None
    return row


def failed(row: Row, members: Members, now_ms: int) -> Row:
    assert row.holder is not None
    event = events.Failed("t", replace(CAUSE, kind="Failed"), row.holder.epoch, row.holder.incarnation)
    after = decide(row, event, Context(now_ms, partial(choose, members=members, load=Load()))).row
    assert after is not None
    return after


def test_labels_of_the_class_are_needed_where_its_task_says_none() -> None:
    members = up(up(Members(), "a", {"requires": {"gpu": "yes"}}), "b")
    assert assigned(members).holder == Holder("b", "b1", 1), "b describes the class without a need"
    alone = up(Members(), "a", {"requires": {"gpu": "yes", "zone": "x"}}, labels={"zone": "x"})
    assert assigned(alone).waiting == {"a": "lacks label gpu=yes, by its class"}
    assert assigned(alone, requires={"zone": "y"}).waiting == {"a": "lacks label zone=y"}
    assert assigned(alone, requires={}).holder is not None, "its document says that it needs none"


def test_the_weight_of_the_class_is_what_it_takes_there_and_a_task_that_says_one_wins() -> None:
    members, load = up(Members(), "a", {"weight": 3}), Load()
    row = assigned(members)
    assert (row.weight, row.units, row.of_class) == (None, 3, {"weight": 3})
    load.note("a1", members.offset, row.units)
    assert assigned(members, load).waiting == {"a": "full 3/4: it takes 3, by its class"}
    small = assigned(members, load, weight=1)
    assert (small.holder is not None, small.units) == (True, 1)
    assert assigned(members, load, weight=2).waiting == {"a": "full 3/4"}


def test_a_run_keeps_the_policy_that_it_was_placed_with() -> None:
    members = up(Members(), "a", {"max_restarts": 1, "backoff_first_ms": 10_000, "backoff_most_ms": 15_000})
    row = failed(assigned(members), members, 6_000)
    assert 9_000 <= row.retry_at_ms - 6_000 <= 11_000
    row = replace(row, retry_at_ms=0, holder=Holder("a", "a1", 1), status=Status.ASSIGNING)
    changed = up(Members(), "a", {"max_restarts": 9})
    assert failed(row, changed, 7_000).status is Status.FAILED, "of a run that is there nothing changes"
    retried = failed(replace(row, of_class={"backoff_first_ms": 10_000, "backoff_most_ms": 15_000}), changed, 7_000)
    assert 13_500 <= retried.retry_at_ms - 7_000 <= 16_500


def test_a_number_of_restarts_in_the_document_wins() -> None:
    members = up(Members(), "a", {"max_restarts": 0})
    assert failed(assigned(members), members, 6_000).status is Status.FAILED
    assert failed(assigned(members, max_restarts=1), members, 6_000).status is Status.ASSIGNING
    endless = up(Members(), "a")
    assert failed(assigned(endless, max_restarts=0), endless, 6_000).status is Status.FAILED


def test_a_long_back_off_is_waited_for_and_one_of_a_wrong_clock_is_not() -> None:
    members = up(Members(), "a", {"backoff_first_ms": 3_600_000, "backoff_most_ms": 3_600_000})
    row = failed(assigned(members), members, 6_000)
    assert list(find_due([row], members, Load(), 7_000)) == []
    assert [due.kind for due in find_due([row], members, Load(), row.retry_at_ms)] == ["Retry"]
    assert [due.kind for due in find_due([row], members, Load(), row.retry_at_ms - 4_000_000)] == ["Retry"]


def test_a_waiting_task_is_placed_when_a_skald_describes_its_class_anew() -> None:
    """A rolling upgrade: the same skald, a new process, with a class that needs less."""
    members = up(Members(), "a", {"requires": {"gpu": "yes"}})
    row = assigned(members)
    described = {"classes": {"Cam": "h"}, "options": {"Cam": {}}, "capacity": 4, "state": "up"}
    assert members.apply({"skald_id": "a", "incarnation": "a1", "n": 2, **described}, members.offset + 1)
    assert [due.reason for due in find_due([row], members, Load(), 6_000)] == ["a can take it"]


def test_plans_go_by_the_description_of_who_would_take_it() -> None:
    members = up(up(up(Members(), "a"), "b", {"weight": 3}), "c", {"requires": {"gpu": "yes"}})
    rows = [held("t1"), held("t2")]
    steps = plan_drain(rows, members, "a")
    assert [(step.task_id, step.target) for step in steps] == [("t1", "b"), ("t2", None)]
    assert steps[1].reasons == {"b": "full 3/4: it takes 3, by its class", "c": "lacks label gpu=yes, by its class"}
    assert plan_move(rows[:1], members, ["t1"], "c")[0].reasons == {"c": "lacks label gpu=yes, by its class"}
    heavy = up(up(Members(), "a"), "b", {"weight": 4})
    assert plan_balance(rows, heavy) == [], "there it would fill all that there is"
    assert len(plan_balance(rows, up(up(Members(), "a"), "b"))) == 1


def held(task_id: str) -> Row:
    row = Row(task_id, class_name="Cam", wanted=Wanted.RUN, status=Status.RUNNING, last_skald="a")
    return replace(row, holder=Holder("a", "a1", 1, 0), epoch=1, revision=2)


@pytest.mark.parametrize(
    "options",
    [
        {"weight": 0}, {"weight": True}, {"weight": "2"}, {"weight": 10_001}, {"max_restarts": -1},
        {"requires": ["gpu"]}, {"requires": {"gpu": 1}}, {"requires": {"g" * 513: "1"}},
        {"requires": {str(n): "" for n in range(65)}},
        {"backoff_first_ms": 99}, {"backoff_first_ms": 9, "backoff_most_ms": 8}, {"backoff_most_ms": 86_400_001},
        {"backoff_most_ms": None}, [], "x",
    ],
)  # fmt: skip
def test_a_heartbeat_with_options_that_cannot_be_changes_no_description(options: Any) -> None:
    members = up(Members(), "a", {"weight": 2})
    with pytest.raises(ValueError, match="options"):
        up(members, "a", options)
    member = members.get("a1")
    assert member is not None
    assert member.options_of("Cam").weight == 2


def test_what_is_said_is_what_is_read() -> None:
    options = ClassOptions({"gpu": "yes"}, 2, 0, 2_000, 3_000)
    assert ClassOptions.from_doc(orjson.loads(orjson.dumps(options.to_doc()))) == options
    assert (DEFAULT.to_doc(), DEFAULT.of_run) == ({}, None)
    assert ClassOptions.from_doc({"requires": {"gpu": "yes"}, "of a later version": 1}).of_run is None


def test_a_row_of_a_version_that_knew_no_options_of_classes_says_nothing_of_them() -> None:
    row = held("t1")
    doc = orjson.loads(encode_row(row))
    del doc["of_class"]
    assert decode_row(orjson.dumps({**doc, "weight": 1, "requires": {}})) == row
    said = decode_row(orjson.dumps({**doc, "weight": 2, "requires": {"gpu": "yes"}}))
    assert (said.weight, said.requires) == (2, {"gpu": "yes"})
    assert decode_row(encode_row(replace(row, weight=1, requires={}))) == replace(row, weight=1, requires={})


def test_what_counts_is_told_with_who_said_it() -> None:
    members = up(up(Members(), "a", {"requires": {"gpu": "yes"}, "weight": 2, "max_restarts": 3}), "b")
    row = replace(held("t1"), of_class={"weight": 2, "backoff_most_ms": 5_000})
    assert policy_words(row, members) == {
        "labels": "gpu=yes on a; none on b, by its class",
        "weight": "2, by its class",
        "restarts": "for ever",
        "pauses": "1 s to 5 s, by its class",
    }
    waiting = Row("t2", class_name="Cam", max_restarts=1)
    alike = up(Members(), "a", {"requires": {"gpu": "yes"}, "weight": 2, "max_restarts": 3})
    assert [*policy_words(waiting, alike).values()] == ["gpu=yes, by its class", "2, by its class", "at most 1", ""]
    said = replace(waiting, requires={}, weight=1, max_restarts=None)
    assert [*policy_words(said, alike).values()] == ["", "1", "at most 3, by its class", ""]
    assert [*policy_words(Row("t3"), alike).values()] == ["", "1", "for ever", ""]
