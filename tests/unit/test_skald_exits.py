"""The error of a run whose process ended without a word, and whether the OOM killer ended it."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from skalds_streams.skald.exits import OOM_KILLED, RAN_OUT, REAPER_KILLED, ExitInfo, error_of
from skalds_streams.skald.oom import RECENT_S, OomKills
from skalds_streams.worker.outcome import Reason

KILLED = ExitInfo.of(signal.SIGKILL, 300 << 20)


@pytest.mark.parametrize(
    ("info", "reason", "type_", "text"),
    [
        (ExitInfo.of(0), "exit_code", "ExitCode", "the worker's process ended with exit code 0, without a word"),
        (ExitInfo.of(3 << 8), "exit_code", "ExitCode", "the worker's process ended with exit code 3, without a word"),
        (
            ExitInfo.of(signal.SIGSEGV, 10 << 20),
            "signal",
            "Signal",
            "the worker's process was ended by signal 11 (SIGSEGV); it had 10 MiB of memory at most",
        ),
        (ExitInfo.of(signal.SIGRTMIN + 1), "signal", "Signal", "the worker's process was ended by signal 35"),
        (replace(KILLED, reason=RAN_OUT, kind=Reason.LEASE), "lease", "LeaseRanOut", RAN_OUT),
        (
            replace(KILLED, reason=OOM_KILLED, kind=Reason.MEMORY),
            "memory",
            "OutOfMemory",
            f"{OOM_KILLED}; it had 300 MiB of memory at most",
        ),
        (ExitInfo(None, REAPER_KILLED), "node", "NodeFault", REAPER_KILLED),
    ],
)
def test_each_end_has_its_error(info: ExitInfo, reason: str, type_: str, text: str) -> None:
    error = error_of(info)
    assert (error["reason"], error["type"], error["message"]) == (reason, type_, text)


def test_what_the_node_did_is_said() -> None:
    assert "(SIGKILL: a frame is not JSON)" in error_of(KILLED, ["SIGKILL: a frame is not JSON"])["message"]


def test_an_oom_kill_is_recent_for_some_seconds(tmp_path: Path) -> None:
    file, now = tmp_path / "memory.events", 0.0
    file.write_text("low 0\noom 7\noom_kill 4\n")
    kills = OomKills([tmp_path / "none", file], clock=lambda: now)
    assert not kills.recent()
    now = 100.0
    kills.look()
    file.write_text("low 0\noom 7\noom_kill 5\n")
    kills.look()  # a beat that comes between the kill and the question
    assert kills.recent()
    now += RECENT_S + 1
    kills.look()
    now += RECENT_S + 1
    assert not kills.recent()


def test_where_nobody_counts_nothing_is_claimed(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("oom_kill many\n")
    kills = OomKills([tmp_path / "vmstat"])
    kills.look()
    assert not kills.recent()
