"""Hosts that many runs share, as real processes: whose output, stop and end is whose, and who has the blame. What they
have in common with hosts of one run: test_hosts.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from skalds_streams.skald.exits import STUCK_WITH_GIL, ExitInfo, error_of
from skalds_streams.skald.hosts import HostPool, RunSpec
from skalds_streams.skald.shared import HostedRun
from tests.integration.test_hosts import (
    LEASE_MS,
    Events,
    ended,
    leased,
    lines,
    logs_of,
    nothing_is_left,
    runs,
    started,
    until,
)

__all__ = ["nothing_is_left"]

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


async def begin(
    pool: HostPool, tmp_path: Path, task_id: str, class_name: str = "SharedLoop", epoch: int = 3, **attachments: Any
) -> tuple[HostedRun, Events]:
    """A run that signs in a file of its name."""
    events = Events()
    given = {"file": str(tmp_path / task_id), **attachments}
    run = await pool.run(RunSpec(task_id, class_name, epoch, given, 1), events)
    assert isinstance(run, HostedRun)
    return run, events


async def begin_trouble(pool: HostPool, tmp_path: Path, trouble: str) -> tuple[HostedRun, Events]:
    """Beside others, and about to make trouble."""
    run, events = await begin(pool, tmp_path, "bad", "Shared", trouble=trouble)
    await until(lambda: lines(tmp_path / "bad"), "the worker's main")
    return run, events


def log_of(tmp_path: Path, name: str) -> list[str]:
    """Its lines, without time and label."""
    return [line.split(" ", 2)[2] for line in lines(tmp_path / "logs" / name)]


async def stop(run: HostedRun, release_s: float = 0.5, terminate_s: float = 0.5) -> ExitInfo:
    async with asyncio.timeout(30):
        return await run.stop("cancel", release_s=release_s, terminate_s=terminate_s)


async def test_runs_share_a_host_and_nothing_else(tmp_path: Path) -> None:
    async with started(logs=logs_of(tmp_path)) as pool:
        begun = await asyncio.gather(*(begin(pool, tmp_path, f"t{at}", speed=at) for at in range(1, 6)))
        for _, events in begun:
            await events.wait("running")
        assert len({run.pid for run, _ in begun}) == 1
        first, told = begun[0]
        await first.update(2, {"speed": 9, "file": str(tmp_path / "other")})
        await told.wait("applied")

        assert await stop(first) == ExitInfo(0, "exit 0")

        assert (lines(tmp_path / "other"), lines(tmp_path / "t2")) == (["released"], [])
        assert told.ops == ["running", "applied", "stopped"]
        assert all(events.ops == ["running"] for _, events in begun[1:])
        again, told = await begin(pool, tmp_path, "t1", epoch=4, speed=7)
        await told.wait("running")
        assert again.pid == begun[1][0].pid
        for run, _ in [(again, told), *begun[1:]]:
            await stop(run)
        await until(lambda: not runs(again.pid), "the end of a host without runs")
        await pool.stop()
    written = log_of(tmp_path, "t1.log")
    said = ["speed 1", "speed 9", "== the run has ended: stopped"]
    assert written == ["== the run begins", *said, "== the run begins", "speed 7", "== the run has ended: stopped"]
    assert "speed 2" in log_of(tmp_path, "t2.log")


async def test_a_run_has_its_state_numbers_and_epoch(tmp_path: Path) -> None:
    async with started(logs=logs_of(tmp_path)) as pool:
        begun = []
        for number, name in enumerate(("one", "two"), 7):
            events = Events()
            spec = RunSpec(name, "SharedKeeper", 3, {}, 1, state=f'{{"number":{number}}}')
            begun.append((await pool.run(spec, events), events, number + 1))
        for _, events, number in begun:
            assert (await events.wait("saved"))["state"] == f'{{"number":{number}}}'
            assert (await events.wait("metrics"))["values"] == {"number": number}
            assert {frame["op"] for frame in events.seen} == {"running", "saved", "metrics"}
        run, events, _ = begun[0]
        run.take_epoch(9)
        await run.update(2, {})
        await events.wait("applied")
        await until(lambda: "epoch 9" in log_of(tmp_path, "one.log"), "its line")
        assert lines(tmp_path / "logs" / "one.log")[-1].endswith(" one@9 epoch 9")
        await begun[1][0].update(2, {})
        await until(lambda: "epoch 3" in log_of(tmp_path, "two.log"), "the other's line")


async def test_what_a_run_prints_is_in_its_log_and_what_is_nobodys_in_the_hosts(tmp_path: Path) -> None:
    async with started(logs=logs_of(tmp_path, words={"password"})) as pool:
        await begin(pool, tmp_path, "quiet")
        await begin(pool, tmp_path, "talks", "SharedTalker", password="canary-4711")
        await until(lambda: lines(tmp_path / "talks"), "the worker's sign")
        await pool.stop()
    own = ["print", "stderr", "INFO root: logging", "a task", "a thread says ***", "a child says ***"]
    assert log_of(tmp_path, "talks.log")[1:-1] == [*own, "INFO worker.SharedTalker: logger"]
    assert log_of(tmp_path, "quiet.log")[1:-1] == ["speed 1"]
    of_host = log_of(tmp_path, "shared-hosts.out")
    assert {"nobody's ***", "from C ***"} <= {*of_host}
    assert "canary" not in "".join(path.read_text() for path in (tmp_path / "logs").iterdir())


@pytest.mark.parametrize(("trouble", "reason"), [("fault", "signal 11 (SIGSEGV)"), ("exit", "exit code 3")])
async def test_a_host_that_a_run_has_crashed_is_no_crash_of_the_others(
    tmp_path: Path, trouble: str, reason: str
) -> None:
    async with started(logs=logs_of(tmp_path)) as pool:
        good, events = await begin(pool, tmp_path, "good")
        await events.wait("running")
        bad, _ = await begin_trouble(pool, tmp_path, trouble)
        info, other = await ended(bad), await ended(good)
        assert (info.reason, info.excuse) == (reason, "")
        assert other.excuse == f"its host ended because of task bad beside it: {reason}"
        assert events.ops == ["running"]
        assert ("Fatal Python error: Segmentation fault" in await bad.last_lines()) == (trouble == "fault")
        assert await good.last_lines() == ["speed 1"]
        again, events = await begin(pool, tmp_path, "good", epoch=4)  # at once, elsewhere
        await events.wait("running")
        assert again.pid != good.pid


async def test_a_host_that_somebody_has_killed_is_a_crash_of_all(tmp_path: Path) -> None:
    async with started() as pool:
        begun = [await begin(pool, tmp_path, name) for name in ("one", "two")]
        for _, events in begun:
            await events.wait("running")
        os.kill(begun[0][0].pid, signal.SIGKILL)
        for run, _ in begun:
            info = await ended(run)
            assert (info.reason, info.excuse) == ("signal 9 (SIGKILL)", "")


async def test_sys_exit_in_a_task_of_a_run_ends_that_run(tmp_path: Path) -> None:
    async with started() as pool:
        good, _ = await begin(pool, tmp_path, "good")
        bad, events = await begin_trouble(pool, tmp_path, "leave")
        assert await ended(bad) == ExitInfo(0, "exit 0")
        failed = events.seen[-1]
        assert (failed["op"], failed["error"]["type"], failed["error"]["message"]) == ("failed", "SystemExit", "7")
        assert lines(tmp_path / "bad") == ["main", "released"]
        assert not good.ended
        await stop(good)


# Stops


@pytest.mark.parametrize("trouble", ["be_deaf_once", "be_deaf", "stay_in_a_thread"])
async def test_a_run_that_does_not_stop_takes_its_host_down_after_the_others_were_released(
    tmp_path: Path, trouble: str
) -> None:
    async with started() as pool:
        good, events = await begin(pool, tmp_path, "good")
        await events.wait("running")
        bad, _ = await begin_trouble(pool, tmp_path, trouble)
        info = await stop(bad, terminate_s=20 if trouble == "be_deaf_once" else 0.5)
        if trouble == "be_deaf_once":
            assert (bad.steps, info) == (["cancelled again after 0.5 s"], ExitInfo(0, "exit 0"))
            assert not good.ended
            await stop(good)
            return
        other = await ended(good)
    assert bad.steps == ["cancelled again after 0.5 s", "SIGKILL of its host after 0.5 s"]
    assert (info.reason, info.excuse) == ("signal 9 (SIGKILL)", "")
    assert other.excuse == "its host ended because of task bad beside it: it did not stop in 1 s"
    assert (events.ops[-1], lines(tmp_path / "good")) == ("stopped", ["released"])


async def test_who_holds_up_the_loop_is_to_blame_when_another_can_not_be_stopped(tmp_path: Path) -> None:
    async with started() as pool:
        good, events = await begin(pool, tmp_path, "good")
        third, _ = await begin(pool, tmp_path, "third")
        await events.wait("running")
        bad, _ = await begin_trouble(pool, tmp_path, "block")
        await stop(good, release_s=1.0)
        info, other = await ended(bad), await ended(third)
    error = error_of(info, bad.steps)
    assert (error["reason"], error["message"].startswith("it held up the event loop for ")) == ("stall", True)
    assert error["message"].endswith(" task good beside it could not be stopped")
    assert "in stay_here" in error["traceback"][1], error["traceback"]
    assert other.excuse.startswith("its host ended because of task bad beside it: it held up the event loop")


async def test_a_run_has_ended_when_what_it_has_spawned_is_gone(tmp_path: Path) -> None:
    async with started() as pool:
        good, _ = await begin(pool, tmp_path, "good")
        bad, _ = await begin_trouble(pool, tmp_path, "spawn_family")
        await until(lambda: len(lines(tmp_path / "bad")) == 3, "its programs")
        family = [int(line) for line in lines(tmp_path / "bad")[1:]]
        assert await stop(bad, release_s=20) == ExitInfo(0, "exit 0")
        assert not any(runs(pid) for pid in family)
        assert not good.ended
        await stop(good)


async def test_a_run_that_is_over_and_can_not_be_ended_takes_its_host_down(tmp_path: Path) -> None:
    async with started() as pool:
        good, _ = await begin(pool, tmp_path, "good")
        bad, events = await begin_trouble(pool, tmp_path, "stay_in_a_thread")
        await ended(bad)
        assert (events.ops[-1], bad.steps) == (
            "finished",
            ["SIGKILL of its host: a call in a thread that does not return"],
        )
        assert "it was over, but a call in a thread" in (await ended(good)).excuse


# Watches


async def test_who_holds_up_the_loop_is_stuck_and_not_who_is_watched(tmp_path: Path) -> None:
    async with started() as pool:
        watched, events = await begin(pool, tmp_path, "watched", "SharedWatched")
        await events.wait("running")
        bad, told = await begin_trouble(pool, tmp_path, "block")
        error = (await told.wait("stalled"))["error"]
        assert (error["type"], error["reason"]) == ("HeldUpItsHost", "stall")
        assert "task watched beside it could not go on" in error["message"]
        assert "in stay_here" in error["traceback"][1]
        await stop(bad)
        assert "task bad beside it" in (await ended(watched)).excuse
        assert events.ops == ["running"]


async def test_who_holds_the_gil_beside_a_watched_run_is_known(tmp_path: Path) -> None:
    async with started() as pool:
        watched, events = await begin(pool, tmp_path, "watched", "SharedWatched")
        await events.wait("running")
        bad, _ = await begin_trouble(pool, tmp_path, "hold_the_gil")
        info = await ended(bad)
        assert (info.reason, info.kind) == (STUCK_WITH_GIL, "stall")
        assert "in hold_the_gil" in error_of(info)["traceback"][1]
        assert "task bad beside it" in (await ended(watched)).excuse


async def test_a_shared_host_ends_by_its_lease_and_who_held_the_gil_is_to_blame(tmp_path: Path) -> None:
    async with leased() as (pool, _):
        good, events = await begin(pool, tmp_path, "good")
        await events.wait("running")
        bad, _ = await begin_trouble(pool, tmp_path, "hold_the_gil")
        info, other = await ended(bad), await ended(good)
        assert (info.kind, info.excuse, other.kind) == ("lease", "", "lease")
        assert "task bad beside it" in other.excuse
        assert LEASE_MS < 60_000, "or it would have come to an end by itself"
