"""Events in, rows out: the rules of `core.decide`, one test a rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from skalds_streams.core import events
from skalds_streams.core.decide import Context, Decision, decide
from skalds_streams.core.invariants import check_step
from skalds_streams.core.placement import Choice
from skalds_streams.core.row import Cause, Release, Row, Status, Wanted

SPEC = events.TaskSpec(class_name="Cam", attachments={"fps": 30})


def cause(at_ms: int = 1_000, kind: str = "Assign", offset: int = 0, topic: str = "task.assign") -> Cause:
    return Cause(kind, topic, 0, offset, at_ms)


def context(now_ms: int = 5_000, to: str | None = "a", **waiting: str) -> Context:
    choice = Choice(to, f"{to}1") if to else Choice(waiting=waiting or {"a": "full 8/8"})
    return Context(now_ms=now_ms, choose=lambda row: choice)


def run(row: Row | None, *steps: tuple[events.Event, Context]) -> Row:
    for event, about in steps:
        decision = decide(row, event, about)
        assert decision.row is not None, decision.ignored
        check_step(row, decision.row)
        row = decision.row
    assert row is not None
    return row


def report(kind: type[Any], row: Row, **more: Any) -> Any:
    assert row.holder is not None
    return kind(
        row.task_id, cause(kind=kind.__name__, topic="skald.report"), row.holder.epoch, row.holder.incarnation, **more
    )


def assigned(**spec: Any) -> Row:
    values = {"class_name": "Cam", "attachments": {"fps": 30}, **spec}
    return run(None, (events.Assign("t", cause(), spec=events.TaskSpec(**values)), context()))


def running(**spec: Any) -> Row:
    row = assigned(**spec)
    return run(row, (report(events.Running, row, version=1), context(6_000)))


def test_assign_places_and_the_report_makes_it_run() -> None:
    row = assigned()
    assert (row.status, row.holder and row.holder.incarnation, row.epoch, row.revision) == (
        Status.ASSIGNING,
        "a1",
        1,
        1,
    )
    row = run(row, (report(events.Running, row, version=1), context(6_000)))
    assert (row.status, row.applied_version, row.running_since_ms) == (Status.RUNNING, 1, 6_000)


def test_a_new_row_starts_above_the_floors_of_its_partition() -> None:
    about = replace(context(), epoch_floor=7, revision_floor=90)
    row = run(None, (events.Assign("t", cause(), spec=SPEC), about))
    assert (row.epoch, row.revision) == (8, 91)


def test_nobody_capable_keeps_the_reason_per_skald_and_a_retry_places_it() -> None:
    row = run(None, (events.Assign("t", cause(), spec=SPEC), context(to=None, b="no class Cam")))
    assert (row.status, row.holder, row.waiting) == (Status.ASSIGNING, None, {"b": "no class Cam"})
    row = run(row, (events.Retry("t", cause(kind="Retry"), row.epoch, row.attempt), context()))
    assert (row.waiting, row.epoch) == (None, 1)


def test_a_holder_is_never_replaced_by_another_assign() -> None:
    row = running()
    again = run(row, (events.Assign("t", cause(9_000), spec=SPEC), context(10_000, to="b")))
    assert (again.holder, again.status) == (row.holder, Status.RUNNING)


def test_assign_of_a_running_task_is_an_update_of_its_parameters() -> None:
    row = running()
    spec = events.TaskSpec(class_name="Cam", attachments={"fps": 10})
    row = run(row, (events.Assign("t", cause(9_000), spec=spec), context(10_000)))
    assert (row.attachments, row.attachments_version, row.applied_version, row.release) == ({"fps": 10}, 2, 1, None)


def test_cancel_asks_the_holder_and_waits_for_its_end() -> None:
    row = running()
    row = run(row, (events.Cancel("t", cause(7_000)), context(8_000)))
    assert (row.wanted, row.status, row.holder is not None) == (Wanted.CANCEL, Status.RUNNING, True)
    row = run(row, (report(events.Stopped, row, steps=("SIGTERM after 5 s",)), context(9_000)))
    assert (row.status, row.holder, row.cancel_applied_at_ms, row.note) == (
        Status.CANCELLED,
        None,
        9_000,
        "SIGTERM after 5 s",
    )


def test_cancel_of_a_waiting_task_is_applied_at_once() -> None:
    row = run(
        None,
        (events.Assign("t", cause(), spec=SPEC), context(to=None)),
        (events.Cancel("t", cause(2_000)), context(3_000)),
    )
    assert (row.status, row.cancel_applied_at_ms, row.waiting) == (Status.CANCELLED, 3_000, None)


def test_a_cancel_before_its_assign_is_remembered() -> None:
    row = run(None, (events.Cancel("t", cause(2_000)), context()))
    assert row.status is Status.CANCELLED
    row = run(row, (events.Assign("t", cause(1_500), spec=SPEC), context()))
    assert (row.status, row.holder, row.note) == (Status.CANCELLED, None, "superseded by cancel at 2000")


def test_cancel_wins_a_tie_and_an_older_cancel_loses() -> None:
    tie = run(assigned(), (events.Cancel("t", cause(1_000)), context()))
    assert tie.wanted is Wanted.CANCEL
    older = run(assigned(), (events.Cancel("t", cause(999)), context()))
    assert (older.wanted, older.note) == (Wanted.RUN, "superseded by assign at 1000")


def test_a_coordinator_whose_clock_was_set_back_obeys_what_is_sent_after_what_others_have_applied() -> None:
    """Its clock shows 1 s, what the row has counted is of later: then the broker's times are all that there is."""
    row = run(assigned(), (events.Cancel("t", cause(7_000)), context(7_000)))
    row = run(row, (report(events.Stopped, row, steps=()), context(7_100)))
    row = run(row, (events.Assign("t", cause(7_500), spec=SPEC), context(1_000)))
    assert (row.wanted, row.note, row.assign_at_ms) == (Wanted.RUN, None, 7_500)
    row = run(row, (events.Cancel("t", cause(7_400)), context(1_100)))
    assert (row.wanted, row.note) == (Wanted.RUN, "superseded by assign at 7500")
    row = run(row, (events.Update("t", cause(7_600), attachments={"fps": 9}), context(1_200)))
    assert (row.attachments, row.update_at_ms) == ({"fps": 9}, 7_600)


def test_a_time_ahead_of_our_clock_counts_as_now() -> None:
    row = run(None, (events.Assign("t", cause(999_999), spec=SPEC), context(5_000)))
    assert row.assign_at_ms == 5_000


def test_inside_a_topic_the_offset_is_the_order_whatever_the_times_say() -> None:
    row = run(assigned(), (events.Cancel("t", cause(3_000)), context()), (events.Cancel("t", cause(2_000)), context()))
    assert row.cancel_at_ms == 3_000


def test_assign_after_a_cancel_that_still_waits_restarts_the_run() -> None:
    row = run(
        running(),
        (events.Cancel("t", cause(7_000)), context(8_000)),
        (events.Assign("t", cause(7_500), spec=SPEC), context(8_000)),
    )
    assert (row.wanted, row.release, row.holder is not None) == (Wanted.RUN, Release.RESTART, True)
    row = run(row, (report(events.Stopped, row), context(9_000, to="b")))
    assert (row.epoch, row.holder and row.holder.skald_id, row.status) == (2, "b", Status.ASSIGNING)


def test_a_changed_recipient_asks_the_holder_to_release() -> None:
    row = run(running(), (events.Assign("t", cause(9_000), spec=events.TaskSpec(recipient="b")), context(9_500)))
    assert (row.release, row.recipient) == (Release.MOVE, "b")


def test_pause_stops_and_resume_places_again() -> None:
    row = run(running(), (events.Assign("t", cause(9_000), then=Wanted.PAUSE), context(9_500)))
    row = run(row, (report(events.Stopped, row), context(9_600)))
    assert (row.status, row.holder) == (Status.PAUSED, None)
    row = run(row, (events.Assign("t", cause(9_700)), context(9_800)))
    assert (row.status, row.epoch) == (Status.ASSIGNING, 2)


@pytest.mark.parametrize("kind", [events.Stopped, events.Finished, events.Failed, events.Lost])
def test_a_report_of_another_run_changes_nothing(kind: type[Any]) -> None:
    row = running()
    for epoch, incarnation in ((row.epoch - 1, "a1"), (row.epoch, "a0")):
        event = kind("t", cause(), epoch, incarnation)
        assert decide(row, event, context()) == Decision(ignored="not of the present run")


def test_a_crash_backs_off_and_only_its_own_retry_places_it() -> None:
    row = running()
    row = run(row, (report(events.Failed, row, error={"type": "Boom", "message": "x"}), context(10_000)))
    assert (row.status, row.holder, row.attempt) == (Status.ASSIGNING, None, 1)
    assert 900 <= row.retry_at_ms - 10_000 <= 1_100
    assert decide(row, events.Retry("t", cause(), row.epoch, 0), context()).ignored == "not waiting for this"
    row = run(row, (events.Retry("t", cause(), row.epoch, 1), context(11_500)))
    assert (row.epoch, row.retry_at_ms, row.attempt) == (2, 0, 1)


def test_a_stable_minute_forgets_earlier_crashes() -> None:
    row = replace(running(), attempt=9)
    row = run(row, (report(events.Failed, row), context(6_000 + 60_000)))
    assert row.attempt == 1


def test_not_retryable_and_max_restarts_end_in_failed() -> None:
    row = running()
    failed = run(row, (report(events.Failed, row, retryable=False, error={"type": "V", "field": "fps"}), context()))
    assert (failed.status, failed.holder, failed.error) == (Status.FAILED, None, {"type": "V", "field": "fps"})
    limited = running(max_restarts=0)
    limited = run(limited, (report(events.Failed, limited), context()))
    assert limited.status is Status.FAILED


def test_loss_of_a_node_is_never_an_attempt() -> None:
    row = running()
    row = run(row, (report(events.Lost, row), context(9_000, to="b")))
    assert (row.attempt, row.epoch, row.holder and row.holder.skald_id) == (0, 2, "b")


def test_a_run_that_its_node_could_not_go_on_with_is_no_attempt_and_waits_for_nothing() -> None:
    row = running(max_restarts=0)
    row = run(row, (report(events.Stopped, row), context(9_000)))
    assert (row.status, row.attempt, row.retry_at_ms, row.epoch) == (Status.ASSIGNING, 0, 0, 2)
    row = run(row, (report(events.Stopped, row, elsewhere=True), context(9_500)))
    assert (row.status, row.attempt, row.retry_at_ms, row.epoch) == (Status.ASSIGNING, 0, 0, 3)


def test_a_crash_while_a_cancel_waits_is_its_end() -> None:
    row = run(running(), (events.Cancel("t", cause(7_000)), context(8_000)))
    row = run(row, (report(events.Failed, row), context(9_000)))
    assert row.status is Status.CANCELLED


def test_update_is_acknowledged_or_refused_by_version() -> None:
    row = run(running(), (events.Update("t", cause(7_000), attachments={"fps": 0}), context(8_000)))
    assert (row.attachments_version, row.applied_version) == (2, 1)
    refused = run(row, (report(events.Refused, row, version=2, error={"field": "fps"}), context(8_100)))
    assert refused.refused == {"version": 2, "at_ms": 8_100, "error": {"field": "fps"}}
    applied = run(refused, (report(events.Applied, row, version=2), context(8_200)))
    assert (applied.applied_version, applied.refused) == (2, None)


def test_a_refused_update_leaves_the_parameters_that_run_for_the_next_run_too() -> None:
    row = run(running(), (events.Update("t", cause(7_000), attachments={"fps": 0}), context(8_000)))
    assert row.unanswered == {"1": {"fps": 30}}
    row = run(row, (report(events.Refused, row, version=2), context(8_100)))
    assert (row.attachments, row.attachments_version, row.applied_version, row.unanswered) == ({"fps": 30}, 2, 1, {})
    row = run(row, (report(events.Lost, row), context(9_000)))
    assert row.attachments == {"fps": 30}


def test_of_two_updates_under_way_a_refused_second_brings_back_the_applied_first() -> None:
    row = run(
        running(),
        (events.Update("t", cause(7_000), attachments={"fps": 5}), context(8_000)),
        (events.Update("t", cause(7_001), attachments={"fps": 0}), context(8_000)),
    )
    assert row.unanswered == {"1": {"fps": 30}, "2": {"fps": 5}}
    row = run(row, (report(events.Applied, row, version=2), context(8_100)))
    assert row.unanswered == {"2": {"fps": 5}}
    row = run(row, (report(events.Refused, row, version=3), context(8_200)))
    assert (row.attachments, row.unanswered) == ({"fps": 5}, {})


def many_updates(count: int, size: int) -> Row:
    updates = [
        (events.Update("t", cause(7_000 + number), attachments={"fps": number, "text": "x" * size}), context(8_000))
        for number in range(2, count + 2)
    ]
    return run(running(), *updates)


def test_of_many_updates_under_way_a_refused_last_brings_back_the_applied_one() -> None:
    row = many_updates(40, 10)
    row = run(row, (report(events.Applied, row, version=3), context(8_100)))
    row = run(row, (report(events.Refused, row, version=row.attachments_version), context(8_200)))
    assert row.attachments == {"fps": 3, "text": "x" * 10}


def test_what_updates_under_way_keep_in_the_row_is_bounded() -> None:
    row = many_updates(40, 50_000)
    assert len(row.unanswered) == 6, "those that run, and what fits into the bound"
    assert min(row.unanswered, key=int) == "1"
    assert len(many_updates(200, 10).unanswered) == 65


def test_update_replaces_unless_merge_is_asked() -> None:
    row = running(attachments={"fps": 30, "url": "u"})
    assert run(row, (events.Update("t", cause(7_000), attachments={"fps": 5}), context(8_000))).attachments == {
        "fps": 5
    }
    merged = run(row, (events.Update("t", cause(7_000), attachments={"fps": 5}, merge=True), context(8_000)))
    assert merged.attachments == {"fps": 5, "url": "u"}


def test_an_update_before_its_assign_is_kept() -> None:
    row = run(None, (events.Update("t", cause(2_000), attachments={"fps": 7}), context()))
    assert (row.status, row.wanted) == (Status.CREATED, Wanted.CANCEL)
    row = run(row, (events.Assign("t", cause(1_000), spec=SPEC), context()))
    assert row.attachments == {"fps": 7}


def test_a_forwarded_command_counts_once() -> None:
    forwarded = events.Assign("t", cause(), origin="task.assign/3", origin_offset=17, spec=SPEC)
    row = run(None, (forwarded, context()))
    assert decide(row, forwarded, context()).ignored == "forwarded twice"


def test_finished_ends_it_and_an_assign_begins_anew() -> None:
    row = running()
    row = run(row, (report(events.Finished, row), context(9_000)))
    assert (row.status, row.holder) == (Status.FINISHED, None)
    row = run(row, (events.Assign("t", cause(10_000)), context(11_000)))
    assert (row.status, row.epoch, row.attachments) == (Status.ASSIGNING, 2, {"fps": 30})


def test_reports_of_an_unknown_task_are_ignored() -> None:
    assert decide(None, events.Stopped("t", cause(), 1, "a1"), context()).row is None


# -- which runs belong together


def ended(row: Row, kind: type[Any], at_ms: int, **more: Any) -> Row:
    return run(row, (report(kind, row, **more), context(at_ms)))


def again(row: Row, at_ms: int) -> Row:
    return run(row, (events.Assign("t", cause(at_ms)), context(at_ms)))


def test_runs_belong_together_until_the_task_is_finished_or_given_up() -> None:
    first = running()
    assert (first.first_epoch, first.epoch) == (1, 1)
    moved = ended(first, events.Lost, 7_000)
    assert (moved.first_epoch, moved.epoch) == (1, 2), "the node was lost"
    crashed = ended(first, events.Failed, 7_000, error=None, retryable=False)
    assert (crashed.status, again(crashed, 8_000).first_epoch) == (Status.FAILED, 1), "to assign again is to try again"
    finished = again(ended(first, events.Finished, 7_000), 8_000)
    assert (finished.first_epoch, finished.epoch) == (2, 2)
    asked = run(first, (events.Cancel("t", cause(7_000)), context(7_000)))
    cancelled = again(ended(asked, events.Stopped, 7_500), 8_000)
    assert (cancelled.first_epoch, cancelled.epoch) == (2, 2)


def test_an_assign_before_the_end_of_a_cancelled_run_begins_anew_too() -> None:
    asked = run(running(), (events.Cancel("t", cause(7_000)), context(7_000)))
    row = again(asked, 8_000)
    assert (row.epoch, row.first_epoch) == (1, 2), "the run that still ends is no part of it"
    assert ended(row, events.Stopped, 9_000).epoch == 2


def test_another_class_begins_anew() -> None:
    spec = events.TaskSpec(class_name="Other")
    row = run(running(), (events.Assign("t", cause(7_000), spec=spec), context(7_000)))
    assert (row.epoch, row.first_epoch, ended(row, events.Stopped, 8_000).epoch) == (1, 2, 2)
    same = events.TaskSpec(class_name="Cam", attachments={"fps": 1})
    assert run(running(), (events.Assign("t", cause(7_000), spec=same), context(7_000))).first_epoch == 1


def test_pause_keeps_runs_together_and_a_superseded_assign_changes_nothing() -> None:
    paused = run(running(), (events.Assign("t", cause(9_000), then=Wanted.PAUSE), context(9_500)))
    paused = ended(paused, events.Stopped, 9_600)
    assert again(paused, 9_700).first_epoch == 1
    asked = run(running(), (events.Cancel("t", cause(9_000)), context(9_000)))
    cancelled = ended(asked, events.Stopped, 9_500)
    assert again(cancelled, 8_000).first_epoch == 1
