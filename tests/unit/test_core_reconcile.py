"""Rows and runs in, actions out."""

from __future__ import annotations

from dataclasses import replace

from skalds_streams.core.reconcile import Adopt, Push, Run, SayStopped, Start, Stop, reconcile, reconcile_task
from skalds_streams.core.row import Holder, Release, Row, Status, Wanted

ROW = Row(
    "t",
    class_name="Cam",
    wanted=Wanted.RUN,
    status=Status.ASSIGNING,
    holder=Holder("a", "a1", 3),
    epoch=3,
    attachments_version=2,
)


def test_a_row_of_ours_starts_once() -> None:
    assert reconcile_task("t", ROW, None, 0, "a1") == Start(ROW)
    assert reconcile_task("t", ROW, Run(3, 2), 0, "a1") is None


def test_a_row_of_our_former_incarnation_is_not_ours() -> None:
    assert reconcile_task("t", ROW, None, 0, "a2") is None
    assert reconcile_task("t", ROW, Run(3, 2), 0, "a2") == Stop("t", 3, "not held here")


def test_an_epoch_that_ended_here_never_starts_again() -> None:
    assert reconcile_task("t", ROW, None, 3, "a1") is None


def test_newer_parameters_are_pushed_and_another_epoch_stops_the_run() -> None:
    assert reconcile_task("t", ROW, Run(3, 1), 0, "a1") == Push(ROW)
    assert reconcile_task("t", ROW, Run(2, 2), 0, "a1") == Stop("t", 2, "another epoch")


def test_what_is_not_to_run_is_stopped_or_answered() -> None:
    cancelled = replace(ROW, wanted=Wanted.CANCEL)
    moving = replace(ROW, release=Release.MOVE)
    assert reconcile_task("t", cancelled, Run(3, 2), 0, "a1") == Stop("t", 3, "cancel")
    assert reconcile_task("t", moving, Run(3, 2), 0, "a1") == Stop("t", 3, "move")
    assert reconcile_task("t", cancelled, None, 0, "a1") == SayStopped("t", 3, "cancel")
    assert reconcile_task("t", cancelled, Run(3, 2, stopping=True), 0, "a1") is None


def test_a_run_without_a_row_is_stopped() -> None:
    assert list(reconcile({}, {"t": Run(3, 2)}, {}, "a1")) == [Stop("t", 3, "task is gone")]


def test_everything_held_or_running_is_looked_at() -> None:
    rows = {"t": ROW, "other": replace(ROW, task_id="other", holder=Holder("b", "b1", 3))}
    assert list(reconcile(rows, {}, {}, "a1")) == [Start(ROW)]


def test_a_run_without_a_lease_is_adopted_unless_its_task_is_of_another_class_now() -> None:
    kept = Run(2, 2, 2, kept_by="a", class_name="Cam")
    assert reconcile_task("t", ROW, kept, 0, "a1") == Adopt(ROW)
    assert reconcile_task("t", replace(ROW, holder=None), kept, 0, "a1") is None
    other = replace(ROW, class_name="Feed")
    assert reconcile_task("t", other, kept, 0, "a1") == Stop("t", 2, "another class")
    assert reconcile_task("t", replace(other, holder=None), kept, 0, "a1") == Stop("t", 2, "another class")


def test_a_run_without_a_lease_is_adopted_only_with_the_parameters_that_its_row_has() -> None:
    kept = Run(2, 2, 1, kept_by="a", class_name="Cam")
    assert reconcile_task("t", ROW, kept, 0, "a1") == Stop("t", 2, "other parameters")
    assert reconcile_task("t", ROW, replace(kept, accepted=-1), 0, "a1") == Stop("t", 2, "other parameters")
    refused = replace(ROW, applied_version=1, refused={"version": 2, "at_ms": 5, "error": {}})
    assert reconcile_task("t", refused, kept, 0, "a1") == Adopt(refused), "the row went back to what runs"
    assert reconcile_task("t", replace(refused, attachments_version=3), kept, 0, "a1") == Stop(
        "t", 2, "other parameters"
    )


def test_a_run_without_a_lease_ends_when_its_task_is_for_another_skald() -> None:
    kept = Run(2, 2, 2, kept_by="a", class_name="Cam")
    waiting = replace(ROW, holder=None, recipient="b")
    assert reconcile_task("t", waiting, kept, 0, "a1") == Stop("t", 2, "recipient is b")
    assert reconcile_task("t", replace(waiting, recipient="a"), kept, 0, "a1") is None
