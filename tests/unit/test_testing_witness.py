"""The witness's judge: each kind of overlap is found, none is invented. Its line: what is said arrives, with its
times.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skalds_streams.testing.witness import Act, Judge, Report, Sayer, read_report

MS = 1_000_000


def act(at_ms: float, epoch: int = 1, pid: int = 10, **more: object) -> Act:
    """An act that lasts no time."""
    at_ns = int(at_ms * MS)
    fields = {"task": "t", "actor": pid, "number": 1, "said_ns": at_ns, "arrived_ns": at_ns, **more}
    return Act(epoch=epoch, pid=pid, **fields)  # type: ignore[arg-type]


def judged(*things: object) -> Report:
    """Acts, deaths (a pid) and cancels (task, epoch) in order."""
    judge = Judge()
    for thing in things:
        if isinstance(thing, Act):
            judge.act(thing)
        elif isinstance(thing, int):
            judge.died(thing)
        else:
            judge.cancelled(*thing)  # type: ignore[misc]
    return judge.report()


def test_runs_that_follow_each_other_overlap_nowhere() -> None:
    report = judged(
        act(0), act(50, number=2), 10, act(80, 2, 11), act(90, 2, 11, number=2), 11, act(500, 4, 12, skald="b")
    )
    assert (report.overlaps, report.details, report.missed) == (0, [], 0)
    assert (report.acts, report.runs, report.deaths) == (5, 3, 2)
    assert (report.margin_ms, report.margin_elsewhere_ms) == (30, 410)
    assert [item.gap_ms for item in report.handovers] == [30, 410]


def test_an_act_of_an_older_epoch_after_one_of_a_newer() -> None:
    report = judged(act(0), 10, act(50, 2, 11), act(60, 1, 10, number=2))
    assert report.by_kind == {"older epoch after a newer": 1}


def test_runs_that_share_a_process_are_judged_by_their_acts() -> None:
    report = judged(act(0, shared=True), act(50, 2, shared=True), act(80, 3, 11), 10)
    assert (report.by_kind, report.margin_ms) == ({}, 30), "the process of the first two may live on"
    late = act(50, 2, shared=True, said_ns=20 * MS)
    assert judged(act(0, shared=True, arrived_ns=30 * MS), late).by_kind == {"begun": 1}
    assert judged(act(0, shared=True), act(50, 2, 11), act(90, 1, shared=True)).overlaps == 1
    assert judged(act(0, shared=True), act(50, 1, 11, shared=True)).by_kind == {"two processes": 1}


def test_two_processes_under_one_epoch() -> None:
    report = judged(act(0), 10, act(50, 1, 11))
    assert report.by_kind == {"two processes": 1}


def test_a_child_that_the_worker_forked_is_no_second_process() -> None:
    report = judged(act(0), act(10, 1, 10, actor=20, sayer="child"), act(20, number=2))
    assert (report.overlaps, report.missed) == (0, 0)


def test_an_older_process_that_still_lives() -> None:
    report = judged(act(0), act(50, 2, 11))
    assert report.by_kind == {"older process lives": 1}


def test_a_child_of_an_older_run_that_still_lives() -> None:
    report = judged(act(0), act(10, 1, 10, actor=20, sayer="child"), 10, act(50, 2, 11))
    assert report.by_kind == {"older process lives": 1}


def test_a_grandchild_that_outlives_two_runs_is_found_each_time() -> None:
    report = judged(act(0), act(1, 1, 10, actor=20, sayer="child"), 10, act(50, 2, 11), 11, act(90, 3, 12))
    assert report.by_kind == {"older process lives": 2}


def test_an_act_that_began_before_the_older_run_s_last_was_over() -> None:
    report = judged(act(0, arrived_ns=100 * MS), 10, act(99, 2, 11, arrived_ns=101 * MS))
    assert report.by_kind == {"begun": 1}
    assert report.margin_ms == -1


def test_an_act_after_the_cancel_was_applied() -> None:
    report = judged(act(0), ("t", 1), act(50, number=2))
    assert report.by_kind == {"act after the cancel was applied": 1}


def test_a_task_that_is_assigned_again_after_a_cancel_may_act() -> None:
    report = judged(act(0), 10, ("t", 1), act(50, 2, 11), ("u", 7), ("t", 1), act(60, 2, 11, number=2))
    assert report.overlaps == 0


def test_a_process_that_goes_on_under_another_epoch_is_one_run() -> None:
    report = judged(act(0), act(50, 2), act(100, 2, number=2))
    assert (report.overlaps, report.margin_ms) == (0, None)


def test_tasks_do_not_disturb_each_other() -> None:
    assert judged(act(0, 5, task="a"), act(1, 1, 11, task="b"), act(2, 5, task="a", number=2)).overlaps == 0


def test_acts_that_never_came_are_counted() -> None:
    assert judged(act(0), act(1, number=2), act(2, number=2), act(3, number=4)).missed == 1
    assert judged(act(0), act(1, number=1, sayer="update"), act(2, number=2)).missed == 0


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path, Path]]:
    """The process, its socket, its report."""
    path, report = tmp_path / "w.sock", tmp_path / "w.json"
    command = [sys.executable, "-m", "skalds_streams.testing.witness", "--socket", str(path), "--report", str(report)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 20
        while not report.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process, path, report
    finally:
        process.kill()
        process.wait()


def test_what_workers_say_arrives_and_deaths_are_seen(witness: tuple[subprocess.Popen[bytes], Path, Path]) -> None:
    process, path, report = witness
    sayer = Sayer(str(path))
    assert all(sayer.act("t", 1) for _ in range(500))
    child = os.fork()
    if child == 0:
        os._exit(0 if Sayer(str(path)).act("u", 1) else 1)
    assert os.waitpid(child, 0)[1] == 0
    other = Sayer(str(path))
    assert other.act("u", 2)
    other.close()
    assert sayer.cancelled("t", 1)
    assert sayer.act("t", 1)
    sayer.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    seen = read_report(report)
    assert (seen.acts, seen.missed, seen.tasks) == (503, 0, 2)
    assert seen.by_kind == {"act after the cancel was applied": 1}
    assert seen.deaths == 1
    (handover,) = seen.handovers
    assert handover.task == "u"
    assert 0 < handover.gap_ms < 10_000
    assert not path.exists()


def test_a_worker_whose_witness_is_gone_has_not_acted(witness: tuple[subprocess.Popen[bytes], Path, Path]) -> None:
    process, path, _ = witness
    sayer = Sayer(str(path))
    assert sayer.act("t", 1)
    process.kill()
    process.wait()
    assert not sayer.act("t", 1)
    sayer.close()


def test_a_witness_that_takes_nothing_in_makes_workers_wait_and_give_up(
    witness: tuple[subprocess.Popen[bytes], Path, Path],
) -> None:
    process, path, _ = witness
    process.send_signal(signal.SIGSTOP)
    sayer = Sayer(str(path))
    begun = time.monotonic()
    said = 0
    while sayer.act("t", 1):
        said += 1
        assert said < 100_000
    assert 0.9 < time.monotonic() - begun < 10
    process.send_signal(signal.SIGCONT)
    sayer.close()
