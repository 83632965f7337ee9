"""What became of a cancel, pause, resume and restart: asked, by which record, and applied or superseded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest

from skalds_streams.core import control as core_control
from skalds_streams.core import events
from skalds_streams.core.control import CANCEL, PAUSE, RESTART, RESUME, broken_controls
from skalds_streams.core.row import Cause, Control, Release, Row, Status, Wanted
from tests.unit.test_core_decide import context, report, run, running

ASSIGN, CANCELS = "task.assign", "task.cancel"
TO_B = events.TaskSpec(recipient="b")


def assign(at_ms: int, offset: int, **more: Any) -> events.Assign:
    return events.Assign("t", Cause("Assign", ASSIGN, 0, offset, at_ms, "a secret reason"), **more)


def pause(at_ms: int, offset: int = 1) -> events.Assign:
    return assign(at_ms, offset, then=Wanted.PAUSE)


def restart(at_ms: int, offset: int = 1, **more: Any) -> events.Assign:
    return assign(at_ms, offset, release=Release.RESTART, **more)


def cancel(at_ms: int, offset: int = 1) -> events.Cancel:
    return events.Cancel("t", Cause("Cancel", CANCELS, 0, offset, at_ms))


def then(row: Row, *steps: tuple[events.Event, int]) -> Row:
    """The row after these events, each with the time of its batch."""
    for event, now_ms in steps:
        after = run(row, (event, context(now_ms)))
        assert not list(broken_controls(row, after))
        row = after
    return row


def begins(row: Row, now_ms: int, version: int = 1) -> Row:
    return then(row, (report(events.Running, row, version=version), now_ms))


def stops(row: Row, now_ms: int) -> Row:
    return then(row, (report(events.Stopped, row), now_ms))


def test_a_pause_is_applied_when_its_run_has_ended() -> None:
    row = then(running(), (pause(9_000, 17), 9_500))
    assert row.controls == {PAUSE: Control(ASSIGN, 0, 17, 9_000)}
    assert row.controls[PAUSE].is_open
    row = stops(row, 9_900)
    assert row.controls == {PAUSE: Control(ASSIGN, 0, 17, 9_000, applied_at_ms=9_900, epoch=1, version=1)}
    assert row.controls[PAUSE].took_ms == 900


def test_a_resume_is_applied_when_main_runs_again() -> None:
    paused = stops(then(running(), (pause(9_000), 9_500)), 9_900)
    row = then(paused, (assign(10_000, 2, resume=True), 10_100))
    assert row.controls == {PAUSE: paused.controls[PAUSE], RESUME: Control(ASSIGN, 0, 2, 10_000)}
    row = begins(row, 10_300)
    assert row.controls[RESUME] == Control(ASSIGN, 0, 2, 10_000, applied_at_ms=10_300, epoch=2, version=1)


def test_any_assign_of_a_paused_task_resumes_it_and_one_of_another_task_resumes_nothing() -> None:
    paused = stops(then(running(), (pause(9_000), 9_500)), 9_900)
    assert then(paused, (assign(10_000, 2), 10_100)).controls[RESUME].is_open
    assert then(running(), (assign(10_000, 2), 10_100)).controls == {}


def test_a_resume_of_what_runs_is_applied_at_once() -> None:
    row = then(running(), (assign(9_000, 2, resume=True), 9_500))
    assert row.controls == {RESUME: Control(ASSIGN, 0, 2, 9_000, applied_at_ms=9_500, epoch=1, version=1)}


def test_a_resume_that_comes_while_the_run_is_stopped_waits_for_the_next() -> None:
    row = then(running(), (pause(9_000), 9_100), (assign(9_200, 2, resume=True), 9_300))
    by = Cause("Assign", ASSIGN, 0, 2, 9_200)
    assert row.controls == {
        PAUSE: Control(ASSIGN, 0, 1, 9_000, superseded_by=by),
        RESUME: Control(ASSIGN, 0, 2, 9_200),
    }
    row = stops(row, 9_500)
    assert row.controls[RESUME].is_open
    row = begins(row, 9_700)
    assert (row.controls[RESUME].applied_at_ms, row.controls[RESUME].epoch) == (9_700, 2)


def test_a_restart_is_applied_by_the_next_run_and_not_by_the_one_that_goes() -> None:
    row = then(running(), (restart(9_000, 5), 9_100))
    assert row.controls == {RESTART: Control(ASSIGN, 0, 5, 9_000)}
    row = stops(row, 9_500)
    assert row.controls[RESTART].is_open
    row = begins(row, 9_800)
    assert row.controls == {RESTART: Control(ASSIGN, 0, 5, 9_000, applied_at_ms=9_800, epoch=2, version=1)}


def test_a_restart_of_a_run_that_has_not_begun_waits_for_the_next_too() -> None:
    row = run(None, (events.Assign("t", Cause("Assign", ASSIGN, 0, 0, 1_000), spec=events.TaskSpec("Cam")), context()))
    row = then(row, (restart(5_100), 5_200))
    row = then(row, (report(events.Running, row, version=0), 5_300))
    assert (row.status, row.controls[RESTART].is_open) == (Status.RUNNING, True)


def test_a_crash_on_the_way_leaves_a_restart_open() -> None:
    row = then(running(), (restart(9_000), 9_100))
    row = then(row, (report(events.Failed, row, error={"message": "x"}), 9_200))
    assert (row.controls[RESTART].is_open, row.epoch) == (True, 2)
    row = then(row, (report(events.Failed, row, error={"message": "x"}), 9_300))
    assert row.retry_at_ms > 9_300
    assert row.controls[RESTART].is_open
    row = then(row, (events.Retry("t", Cause("Retry", "skald.report", 0, 3, 11_000), 2, row.attempt), 11_000))
    assert begins(row, 11_100).controls[RESTART].epoch == 3


def test_a_cancel_is_told_in_the_same_way() -> None:
    row = then(running(), (cancel(9_000, 4), 9_100))
    assert row.controls == {CANCEL: Control(CANCELS, 0, 4, 9_000)}
    row = stops(row, 9_400)
    assert row.controls == {CANCEL: Control(CANCELS, 0, 4, 9_000, applied_at_ms=9_400, epoch=1, version=1)}


def test_a_later_command_supersedes_what_is_not_applied_and_nothing_else() -> None:
    paused = stops(then(running(), (pause(9_000), 9_100)), 9_200)
    row = then(paused, (restart(9_300, 2), 9_400), (cancel(9_500, 7), 9_600))
    assert row.controls[PAUSE] == paused.controls[PAUSE], "it was applied"
    assert row.controls[RESTART] == Control(ASSIGN, 0, 2, 9_300, superseded_by=Cause("Cancel", CANCELS, 0, 7, 9_500))
    assert row.controls[CANCEL].is_open
    assert stops(row, 9_900).controls[RESTART] == row.controls[RESTART]


@pytest.mark.parametrize("end", [events.Finished, events.Failed])
def test_an_end_that_nobody_asked_for_supersedes_what_waits_for_another_run(end: type[Any]) -> None:
    row = stops(then(running(), (restart(9_000), 9_100)), 9_200)
    more = {"retryable": False} if end is events.Failed else {}
    row = then(row, (report(end, row, **more), 9_300))
    by = row.controls[RESTART].superseded_by
    assert by is not None
    assert (row.is_terminal, by.kind, by.topic) == (True, end.__name__, "skald.report")


def test_a_task_that_finishes_before_its_pause_was_not_paused() -> None:
    row = then(running(), (pause(9_000), 9_100))
    row = then(row, (report(events.Finished, row), 9_200))
    by = row.controls[PAUSE].superseded_by
    assert by is not None
    assert (row.status, by.kind) == (Status.FINISHED, "Finished")


def test_a_pause_is_applied_by_the_loss_of_the_node_too() -> None:
    row = then(running(), (pause(9_000), 9_100))
    row = then(row, (report(events.Lost, row), 40_000))
    assert (row.status, row.controls[PAUSE].applied_at_ms) == (Status.PAUSED, 40_000)


def test_a_deadline_supersedes_a_pause_that_is_open() -> None:
    row = then(running(deadline_at_ms=9_200), (pause(9_000), 9_100))
    row = then(row, (events.Deadline("t", Cause("Deadline", "skald.report", 0, 8, 9_300), 9_200), 9_300))
    assert row.controls[PAUSE].superseded_by == Cause("Deadline", "skald.report", 0, 8, 9_300)


def test_what_loses_to_an_earlier_record_is_superseded_at_once() -> None:
    row = run(None, (cancel(5_000), context(5_100)), (restart(4_000, 3), context(5_200)))
    assert row.controls[CANCEL].applied_at_ms == 5_100
    assert row.controls[RESTART] == Control(ASSIGN, 0, 3, 4_000, superseded_by=Cause("Cancel", "", -1, -1, 5_000))


def test_a_copy_that_comes_too_late_does_not_hide_the_last_of_its_kind() -> None:
    row = stops(then(running(), (pause(9_000, 3), 9_100)), 9_200)
    late = assign(8_000, 99, then=Wanted.PAUSE, origin="task.assign/4", origin_offset=1)
    row = then(row, (late, 9_300))
    assert (row.note, row.controls[PAUSE].offset) == ("superseded by assign at 9000", 3)


def test_a_cancel_of_what_is_over_is_applied_at_once() -> None:
    row = then(running(), (report(events.Finished, running()), 9_000), (cancel(9_100), 9_200))
    assert (row.status, row.controls[CANCEL].applied_at_ms) == (Status.FINISHED, 9_200)


def test_a_time_ahead_of_our_clock_counts_as_now() -> None:
    assert then(running(), (pause(99_000), 9_500)).controls[PAUSE].asked_at_ms == 9_500


@pytest.mark.parametrize("end", [events.Stopped, events.Finished, events.Failed])
@pytest.mark.parametrize("asked", [None, pause(9_000), cancel(9_000), restart(9_000), assign(9_000, 1, spec=TO_B)])
def test_the_budgets_that_an_end_used_up_are_in_the_history(end: type[Any], asked: events.Event | None) -> None:
    row = then(running(), (asked, 9_100)) if asked is not None else running()
    row = then(row, (report(end, row, steps=("SIGTERM after 5 s", "SIGKILL after 2 s")), 9_900))
    assert row.note == "SIGTERM after 5 s, SIGKILL after 2 s"


@pytest.fixture
def a_defect() -> Iterator[None]:
    """Everything counts as applied when it is asked."""
    with patch.object(core_control, "_is_so", lambda name, row: True):
        yield


@pytest.mark.usefixtures("a_defect")
@pytest.mark.parametrize("asked", [pause(9_000), cancel(9_000), restart(9_000)])
def test_a_wrong_acknowledgement_is_found(asked: events.Event) -> None:
    before = running()
    after = run(before, (asked, context(9_100)))
    assert list(broken_controls(before, after))


def test_rows_of_a_version_without_them_are_read_and_what_a_later_one_adds_is_ignored() -> None:
    row = stops(then(running(), (pause(9_000), 9_100), (cancel(9_150), 9_160)), 9_200)
    doc = row.to_doc()
    assert Row.from_doc(doc) == row
    without = {key: value for key, value in doc.items() if key != "controls"}
    assert Row.from_doc(without).controls == {}
    more = {name: {**item, "new": 1} for name, item in doc["controls"].items()}
    assert Row.from_doc({**doc, "controls": more}) == row
    resumed = then(Row.from_doc(without), (assign(9_300, 4, resume=True), 9_400))
    assert set(resumed.controls) == {RESUME}
