"""The zygote and its hosts as real processes, through the pool: runs, updates, all ways to end, nothing left behind."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from skalds_streams.core import events as core_events
from skalds_streams.core.decide import Context, decide
from skalds_streams.core.placement import Choice
from skalds_streams.core.row import NO_CAUSE, Holder, Row, Status, Wanted
from skalds_streams.edge.states import LocalStates
from skalds_streams.errors import HostError
from skalds_streams.skald import host as host_module
from skalds_streams.skald.exits import RAN_OUT, REAPER_KILLED, STUCK_WITH_GIL, ZYGOTE_LOST, error_of
from skalds_streams.skald.hosts import ExitInfo, Host, HostPool, RunSpec
from skalds_streams.skald.lease import Lease, boottime_ms
from skalds_streams.skald.logs import TaskLogs
from skalds_streams.skald.reporter import Reporter
from skalds_streams.skald.ring import LogFiles
from skalds_streams.skald.supervisor import Supervisor
from skalds_streams.topics import Topics
from skalds_streams.view.cluster import ClusterView
from skalds_streams.worker.kernel import group_is_empty

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

MODULE = "tests.integration.host_workers"
WAIT_S = 20.0
LEASE_MS = 1_000


class Events:
    """What a host sent, to be waited for."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self._news = asyncio.Event()

    def __call__(self, frame: dict[str, Any]) -> None:
        self.seen.append(frame)
        self._news.set()

    @property
    def ops(self) -> list[str]:
        return [frame["op"] for frame in self.seen]

    async def wait(self, op: str) -> dict[str, Any]:
        """The first frame of this kind."""
        async with asyncio.timeout(WAIT_S):
            while op not in self.ops:
                self._news.clear()
                await self._news.wait()
        return self.seen[self.ops.index(op)]


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that no event tells of."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110  # processes and files have no event
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"not in {WAIT_S:g} s: {what}")


def runs(pid: int) -> bool:
    """The process exists and can still run code."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def open_fds() -> set[str]:
    return {f"{entry.name} {entry.readlink()}" for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


def sockets_of(pid: int) -> set[str]:
    links = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.add(str(entry.readlink()))
    return {link for link in links if link.startswith("socket:")}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Descriptors and processes are the same after each test as before."""
    fds, children = open_fds(), {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert open_fds() == fds
    assert {child.pid for child in psutil.Process().children(recursive=True)} == children


@asynccontextmanager
async def started(*modules: str, **options: Any) -> AsyncIterator[HostPool]:
    pool = HostPool(modules=modules or (MODULE,), **options)
    await pool.start()
    try:
        yield pool
    finally:
        async with asyncio.timeout(WAIT_S):
            await pool.stop()


async def begin(pool: HostPool, class_name: str, tmp_path: Path, **attachments: Any) -> tuple[Host, Events]:
    events = Events()
    spec = RunSpec(
        task_id="t1",
        class_name=class_name,
        epoch=3,
        attachments=attachments,
        version=1,
    )
    return await pool.run(spec, events), events


async def ended(host: Host) -> ExitInfo:
    async with asyncio.timeout(WAIT_S):
        return await host.wait_ended()


async def stop(host: Host, release_s: float = WAIT_S, terminate_s: float = WAIT_S) -> ExitInfo:
    async with asyncio.timeout(2 * WAIT_S):
        return await host.stop("cancelled", release_s=release_s, terminate_s=terminate_s)


def logs_of(tmp_path: Path, max_bytes: int = 1_000_000, **options: Any) -> TaskLogs:
    return TaskLogs(LogFiles(tmp_path / "logs", max_bytes=max_bytes, most=10), **options)


def printed(tmp_path: Path) -> list[str]:
    """What is in the log of the task, without times, label and lines of ours."""
    found: list[str] = []
    for half in ("t1.log.1", "t1.log"):
        for line in lines(tmp_path / "logs" / half):
            at, label, text = line.split(" ", 2)
            assert (len(at), label) == (len("2026-11-25T15:40:01.123Z"), "t1@3")
            found += [text] if not text.startswith("== ") else []
    return found


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def reaper_of(host: Host) -> int:
    """The process that ends what is left of a host."""
    return psutil.Process(host.pid).ppid()


async def child_of(file: Path) -> int:
    await until(lambda: lines(file), "the worker's child")
    return int(lines(file)[0])


# Runs and updates


@pytest.mark.parametrize("class_name", ["Loop", "AsyncLoop", "SharedLoop"])
async def test_run_update_refuse_stop(tmp_path: Path, class_name: str) -> None:
    file = tmp_path / "sign"
    async with started(logs=logs_of(tmp_path)) as pool:
        host, events = await begin(pool, class_name, tmp_path, speed=2, file=str(file))
        assert await events.wait("running") == {"op": "running", "version": 1}
        await until(lambda: printed(tmp_path) == ["speed 2"], "main's first line")
        await host.update(2, {"speed": 5, "file": str(file)})
        assert await events.wait("applied") == {"op": "applied", "version": 2}
        await host.update(3, {"speed": 50})
        refused = await events.wait("refused")
        assert (refused["version"], refused["error"]["field"]) == (3, "speed")

        assert await stop(host) == ExitInfo(0, "exit 0")

        assert (events.ops[-1], host.steps) == ("stopped", [])
        assert lines(file) == ["released"]
        assert await host.last_lines() == printed(tmp_path) == ["speed 2", "speed 5"]


@pytest.mark.parametrize("class_name", ["Once", "SharedOnce"])
async def test_a_run_that_ends_by_itself(tmp_path: Path, class_name: str) -> None:
    async with started() as pool:
        host, events = await begin(pool, class_name, tmp_path)
        assert await ended(host) == ExitInfo(0, "exit 0")
        assert events.ops == ["running", "finished"]
        await host.update(2, {})  # too late, and no error


async def test_an_output_that_cannot_be_written_does_not_stop_the_worker(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    async with started(logs=logs_of(tmp_path)) as pool:
        host, _ = await begin(pool, "Talker", tmp_path, file=str(tmp_path / "sign"))
        await until(lambda: lines(tmp_path / "sign"), "the worker's sign")
        await stop(host)
        assert "print" in await host.last_lines(), "the crash report has them all the same"


async def test_all_that_a_worker_prints_is_in_its_log_whoever_prints_it(tmp_path: Path) -> None:
    async with started(logs=logs_of(tmp_path, words={"password"})) as pool:
        file = tmp_path / "sign"
        host, _ = await begin(pool, "Talker", tmp_path, file=str(file), password="canary-4711")
        await until(lambda: lines(file), "the worker's sign")
        os.kill(host.pid, signal.SIGSEGV)
        assert (await ended(host)).reason == "signal 11 (SIGSEGV)"
        last_lines = await host.last_lines()
    for text in ("print", "stderr", "INFO root: logging", "INFO worker.Talker: logger", "a child says ***", "from C"):
        assert text in printed(tmp_path)
    assert "Fatal Python error: Segmentation fault" in printed(tmp_path)
    assert last_lines == printed(tmp_path)
    whole = (tmp_path / "logs" / "t1.log").read_text()
    assert "canary-4711" not in whole
    assert whole.splitlines()[-1].endswith(" t1@3 == the run has ended: signal 11 (SIGSEGV)")


@pytest.mark.parametrize("class_name", ["Teller", "SharedTeller"])
async def test_an_error_is_in_the_log_and_secrets_of_an_update_are_masked(tmp_path: Path, class_name: str) -> None:
    async with started(logs=logs_of(tmp_path, words={"password"})) as pool:
        host, events = await begin(pool, class_name, tmp_path, password="canary-1")
        await events.wait("running")
        await host.update(2, {"password": "canary-2"})
        await ended(host)
        last_lines = await host.last_lines()
    assert last_lines == ["told ***", "told ***"]
    assert printed(tmp_path)[-1] == "ValueError: no login with ***"
    assert lines(tmp_path / "logs" / "t1.log")[-1].endswith("== the run has ended: failed")
    assert "canary" not in (tmp_path / "logs" / "t1.log").read_text()


async def test_a_worker_that_prints_without_end_takes_no_more_than_its_share(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    async with started(logs=logs_of(tmp_path, max_bytes=200_000)) as pool:
        file = tmp_path / "sign"
        host, _ = await begin(pool, "Chatter", tmp_path, file=str(file))
        await until(lambda: len(lines(file)) >= 5, "50 MB are printed")
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 200_000
        os.kill(host.pid, signal.SIGSEGV)
        await ended(host)
        last_lines = await host.last_lines()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 200_000
    assert "Fatal Python error: Segmentation fault" in last_lines, "the end is always there"
    assert last_lines == printed(tmp_path)[-len(last_lines) :]


async def test_somebody_who_keeps_the_output_open_holds_up_nobody(tmp_path: Path) -> None:
    file = tmp_path / "sign"
    async with started(logs=logs_of(tmp_path)) as pool:
        host, _ = await begin(pool, "SaysBefore", tmp_path, file=str(file))
        await until(lambda: lines(file), "the worker has printed")
        writer = os.open(f"/proc/{host.pid}/fd/1", os.O_WRONLY)  # out of the reaper's reach, as with `sudo`
        try:
            await stop(host)
            assert await host.last_lines() == ["before"]
        finally:
            os.close(writer)


async def test_a_module_that_raises_at_import_leaves_the_others_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_workers.py").write_text("raise RuntimeError('no camera driver')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with started("broken_workers", MODULE) as pool:
        assert pool.catalogue.not_loadable.keys() == {"broken_workers"}
        assert "no camera driver" in pool.catalogue.not_loadable["broken_workers"]
        assert pool.catalogue.classes["Deaf"]["release_s"] == 0.3
        host, events = await begin(pool, "Loop", tmp_path)
        await events.wait("running")
        await stop(host)


async def test_an_unknown_class_and_a_frame_too_large_are_errors(tmp_path: Path) -> None:
    async with started() as pool:
        with pytest.raises(HostError, match="class Nobody is not loaded"):
            await begin(pool, "Nobody", tmp_path)
        with pytest.raises(HostError, match="frame 'run' has"):
            await begin(pool, "Loop", tmp_path, file="x" * (1 << 20))
        host, events = await begin(pool, "Loop", tmp_path)  # the spare is still good
        await events.wait("running")
        with pytest.raises(HostError, match="frame 'update' has"):
            await host.update(2, {"file": "x" * (1 << 20)})
        await stop(host)


# Ways to end


@pytest.mark.parametrize("class_name", ["Crash", "SharedCrash"])
async def test_a_crash_says_where(tmp_path: Path, class_name: str) -> None:
    async with started() as pool:
        host, events = await begin(pool, class_name, tmp_path)
        assert await ended(host) == ExitInfo(0, "exit 0")
        failed = events.seen[-1]
        assert (failed["op"], failed["retryable"], failed["error"]["message"]) == (
            "failed",
            True,
            "the lens {fell} off",
        )
        assert any("host_workers.py" in line for line in failed["error"]["traceback"])


async def test_a_worker_that_wants_more_memory_than_its_class_allows_fails_and_says_so(tmp_path: Path) -> None:
    async with started() as pool:
        host, events = await begin(pool, "Hungry", tmp_path)
        assert await ended(host) == ExitInfo(0, "exit 0")
        failed = events.seen[-1]
        assert (failed["op"], failed["retryable"], failed["error"]["reason"]) == ("failed", True, "memory")
        assert failed["error"]["message"] == "the class allows its workers 300 MiB (memory_max)"
        assert any("eaten.append" in line for line in failed["error"]["traceback"])


async def test_a_worker_that_makes_progress_is_left_alone(tmp_path: Path) -> None:
    async with started() as pool:
        host, events = await begin(pool, "Progressing", tmp_path)
        assert await ended(host) == ExitInfo(0, "exit 0")
        assert events.ops == ["running", "finished"]


@pytest.mark.parametrize(
    ("class_name", "where"),
    [("Stuck", "in wait_for_a_frame"), ("AsyncStuck", "in wait_for_a_page"), ("SharedStuck", "in wait_for_a_page")],
)
async def test_a_worker_that_is_stuck_says_where_and_is_stopped(tmp_path: Path, class_name: str, where: str) -> None:
    file = tmp_path / "sign"
    async with started() as pool:
        host, events = await begin(pool, class_name, tmp_path, file=str(file))
        stalled = await events.wait("stalled")
        assert await stop(host) == ExitInfo(0, "exit 0")
    assert events.seen[-1] == {"op": "failed", "error": stalled["error"], "retryable": True}
    error = stalled["error"]
    assert (error["type"], error["reason"]) == ("Stalled", "stall")
    assert error["message"] == "main has not called self.progress() for 0.3 s (stall_s)"
    assert error["traceback"][0].startswith("Main ")
    assert any(where in line for line in error["traceback"])
    assert "skalds_streams/worker" not in "".join(error["traceback"])
    assert lines(file) == ["released"]


async def test_a_worker_that_is_stuck_and_deaf_is_killed(tmp_path: Path) -> None:
    async with started() as pool:
        host, events = await begin(pool, "DeafAndStuck", tmp_path)
        await events.wait("stalled")
        assert (await stop(host, release_s=0.2, terminate_s=0.1)).status == signal.SIGKILL
    assert events.ops == ["running", "stalled"]


async def test_a_worker_that_is_stuck_with_the_gil_says_where_and_is_killed(tmp_path: Path) -> None:
    async with started() as pool:
        host, events = await begin(pool, "StuckWithTheGil", tmp_path)
        info = await ended(host)
    assert (info.status, info.reason, info.kind) == (signal.SIGKILL, STUCK_WITH_GIL, "stall")
    assert error_of(info)["traceback"][0].startswith("Main ")
    assert "in wait_for_a_frame" in error_of(info)["traceback"][1]
    assert events.ops == ["running"]


async def test_exit_codes_and_signals_are_named(tmp_path: Path) -> None:
    async with started(logs=logs_of(tmp_path)) as pool:
        host, events = await begin(pool, "ExitCode", tmp_path)
        info = await ended(host)
        assert (info.reason, info.kind) == ("exit code 3", "exit_code")
        assert events.ops == ["running"]

        host, _ = await begin(pool, "Segfault", tmp_path)
        info = await ended(host)
        assert (info.reason, info.kind) == ("signal 11 (SIGSEGV)", "signal")
        assert info.peak_bytes > 1 << 20
        assert "Fatal Python error: Segmentation fault" in await host.last_lines()

        host, events = await begin(pool, "Loop", tmp_path)
        await events.wait("running")
        os.kill(host.pid, signal.SIGKILL)
        assert await ended(host) == ExitInfo(9, "signal 9 (SIGKILL)")


@pytest.mark.parametrize("class_name", ["Loop", "SharedLoop"])
async def test_sigterm_from_outside_is_a_stop(tmp_path: Path, class_name: str) -> None:
    file = tmp_path / "sign"
    async with started() as pool:
        host, events = await begin(pool, class_name, tmp_path, file=str(file))
        await events.wait("running")
        os.kill(host.pid, signal.SIGTERM)
        assert await ended(host) == ExitInfo(0, "exit 0")
        assert (events.ops[-1], lines(file)) == ("stopped", ["released"])


@pytest.mark.parametrize("class_name", ["SlowStart", "SharedSlowStart"])
async def test_a_stop_during_initialize(tmp_path: Path, class_name: str) -> None:
    file = tmp_path / "sign"
    async with started() as pool:
        host, events = await begin(pool, class_name, tmp_path, file=str(file))
        await until(lambda: lines(file), "initialize")
        assert await stop(host) == ExitInfo(0, "exit 0")
        assert (events.ops, lines(file)) == (["stopped"], ["initializing", "released"])


async def test_a_stop_right_after_the_run(tmp_path: Path) -> None:
    async with started() as pool:
        host, events = await begin(pool, "Loop", tmp_path)
        assert await stop(host) == ExitInfo(0, "exit 0")
        assert events.ops[-1] == "stopped"


async def test_a_deaf_worker_and_its_child_are_killed_within_the_budgets(tmp_path: Path) -> None:
    file = tmp_path / "sign"
    async with started() as pool:
        host, events = await begin(pool, "Deaf", tmp_path, file=str(file))
        child = await child_of(file)
        before = asyncio.get_running_loop().time()

        info = await stop(host, release_s=0.3, terminate_s=0.2)

        assert info == ExitInfo(9, "signal 9 (SIGKILL)")
        assert host.steps == ["SIGTERM after 0.3 s", "SIGKILL after 0.2 s"]
        assert 0.5 <= asyncio.get_running_loop().time() - before < 2.0
        assert not runs(child)
        assert events.ops == ["running"]


async def test_sigterm_interrupts_a_worker_that_swallowed_the_stop(tmp_path: Path) -> None:
    file = tmp_path / "sign"
    async with started() as pool:
        host, events = await begin(pool, "DeafToTheFirst", tmp_path, file=str(file))
        await until(lambda: lines(file), "main")
        assert await stop(host, release_s=0.3) == ExitInfo(0, "exit 0")
        assert (host.steps, events.ops[-1]) == (["SIGTERM after 0.3 s"], "stopped")


async def test_a_stopped_process_is_killed(tmp_path: Path) -> None:
    async with started() as pool:
        host, events = await begin(pool, "Loop", tmp_path)
        await events.wait("running")
        os.kill(host.pid, signal.SIGSTOP)
        assert (await stop(host, release_s=0.1, terminate_s=0.1)).reason == "signal 9 (SIGKILL)"


@pytest.mark.parametrize("class_name", ["WithChild", "Fork"])
async def test_what_a_worker_started_ends_with_it(tmp_path: Path, class_name: str) -> None:
    file = tmp_path / "sign"
    async with started() as pool:
        host, _ = await begin(pool, class_name, tmp_path, file=str(file))
        child = await child_of(file)
        if class_name == "WithChild":
            os.kill(host.pid, signal.SIGKILL)
        await ended(host)
        assert not runs(child)
        assert group_is_empty(host.pid)


async def test_what_a_worker_forked_ends_with_it_though_nobody_is_awake_to_kill_it(tmp_path: Path) -> None:
    file = tmp_path / "sign"
    async with started() as pool:
        host, _ = await begin(pool, "ForkAndStay", tmp_path, file=str(file))
        await until(lambda: len(lines(file)) == 2, "the child and its child")
        family = [int(line) for line in lines(file)]
        assert pool.zygote_pid is not None
        os.kill(pool.zygote_pid, signal.SIGSTOP)
        os.kill(reaper_of(host), signal.SIGSTOP)  # woken up by the skald, when this loop goes on
        try:
            os.kill(host.pid, signal.SIGKILL)
            deadline = time.monotonic() + 5
            while any(runs(pid) for pid in family):  # this loop, the skald's, stands still, too
                assert time.monotonic() < deadline
        finally:
            os.kill(pool.zygote_pid, signal.SIGCONT)
        await ended(host)


def is_free(lock: Path) -> bool:
    """Nobody who has inherited the locked descriptor is alive."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.mark.parametrize("end", ["stop", "kill host", "kill reaper", "kill zygote", "kill zygote and host"])
async def test_what_leaves_the_process_group_of_a_worker_ends_before_the_worker_is_said_to(
    tmp_path: Path, end: str
) -> None:
    file, lock = tmp_path / "sign", tmp_path / "sign.lock"
    async with started() as pool:
        host, _ = await begin(pool, "Runaways", tmp_path, file=str(file))
        await until(lambda: lines(file), "the worker's programs")
        assert not is_free(lock)
        if end == "stop":
            assert await stop(host) == ExitInfo(0, "exit 0")
        else:
            victims = {"host": host.pid, "reaper": reaper_of(host), "zygote": pool.zygote_pid or 0}
            for name, pid in victims.items():
                if name in end:
                    os.kill(pid, signal.SIGKILL)
            info = await ended(host)
            assert (
                info.reason
                in {
                    "kill host": ["signal 9 (SIGKILL)"],
                    "kill reaper": [REAPER_KILLED],
                    "kill zygote": [ZYGOTE_LOST],
                    "kill zygote and host": ["signal 9 (SIGKILL)", ZYGOTE_LOST],
                }[end]
            )
        assert is_free(lock)


async def test_what_left_the_process_group_of_a_worker_does_not_outlive_a_killed_skald(tmp_path: Path) -> None:
    file, lock = tmp_path / "sign", tmp_path / "sign.lock"
    async with other_skald("Runaways", file) as (skald, pids):
        await until(lambda: lines(file), "the worker's programs")
        skald.kill()
        await until(lambda: is_free(lock) and not any(runs(pid) for pid in pids), "the end of everything")


async def test_orphans_of_a_worker_are_reaped_while_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "sign"
    async with started() as pool:
        host, _ = await begin(pool, "Littering", tmp_path, file=str(file))
        await until(lambda: lines(file), "the worker's programs")
        reaper = psutil.Process(reaper_of(host))
        await until(lambda: [child.pid for child in reaper.children(recursive=True)] == [host.pid], "no zombies")
        await stop(host)


async def test_a_reaper_that_stands_still_is_woken_up(tmp_path: Path) -> None:
    async with started() as pool:
        host, events = await begin(pool, "Loop", tmp_path)
        await events.wait("running")
        os.kill(reaper_of(host), signal.SIGSTOP)
        assert await stop(host) == ExitInfo(0, "exit 0")


async def test_a_host_that_lingers_after_its_last_frame_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "LINGER_S", 0.1)
    async with started() as pool:
        host, events = await begin(pool, "Loop", tmp_path)
        await events.wait("running")
        host._on_frame({"op": "finished"})  # as if it had said so
        assert (await ended(host)).reason == "signal 9 (SIGKILL)"
        assert host.steps == ["SIGKILL: alive 0.1 s after its last frame"]


# The zygote, the spares, the skald


async def test_a_killed_zygote_takes_its_hosts_down_and_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "sign"
    async with started() as pool:
        first = pool.zygote_pid
        assert first is not None
        host, _ = await begin(pool, "WithChild", tmp_path, file=str(file))
        child = await child_of(file)
        shared, events = await begin(pool, "SharedLoop", tmp_path)
        await events.wait("running")

        os.kill(first, signal.SIGKILL)

        assert await ended(host) == await ended(shared) == ExitInfo(None, "zygote lost")
        assert not runs(host.pid)
        assert not runs(child)
        again, events = await begin(pool, "Loop", tmp_path)  # waits for the new zygote
        await events.wait("running")
        assert pool.zygote_pid not in (None, first)
        await stop(again)


async def test_while_the_zygote_stands_still_what_runs_runs_on_and_a_start_waits(tmp_path: Path) -> None:
    async with started() as pool:
        running = [await begin(pool, "Loop", tmp_path) for _ in range(2)]  # all that was ready
        assert pool.zygote_pid is not None
        os.kill(pool.zygote_pid, signal.SIGSTOP)
        try:
            starts = [asyncio.create_task(begin(pool, "Loop", tmp_path)) for _ in range(4)]  # more than are ready
            for host, events in running:
                await host.update(2, {"speed": 5})
                await events.wait("applied")
            assert not all(start.done() for start in starts)
        finally:
            os.kill(pool.zygote_pid, signal.SIGCONT)
        for host, events in [*running, *(await asyncio.gather(*starts))]:
            await events.wait("running")
            assert await stop(host) == ExitInfo(0, "exit 0")


async def test_a_lost_zygote_costs_a_task_none_of_its_restarts(tmp_path: Path) -> None:
    """From the signal to the row: supervisor, pool and hosts are real, decisions take the place of the log."""
    view, said = ClusterView(Topics.named(app="x"), {}), list[tuple[str, int]]()

    def show(row: Row) -> None:
        view._state.rows["t1"] = row
        for changes in view._subscribers:
            changes.note_task("t1")

    def say(kind: str, task_id: str, epoch: int, **more: Any) -> None:
        said.append((kind, epoch))
        more = {name: value for name, value in more.items() if name in ("version", "error", "retryable", "elsewhere")}
        event = getattr(core_events, kind)(task_id, NO_CAUSE, epoch, "a1", **more)
        choice = Choice("a", "a1")
        decided = decide(view.rows["t1"], event, Context(now_ms=1_000, choose=lambda row: choice)).row
        if decided is not None:
            show(decided)

    async with started() as pool:
        lease = Lease(600_000, 60_000, pool.renew)
        lease.renew(boottime_ms())
        supervisor = Supervisor(
            view,
            pool,
            cast("Reporter", SimpleNamespace(say=say)),
            LocalStates("a", lambda: 0),
            lease,
            skald_id="a",
            incarnation="a1",
        )
        following = asyncio.create_task(supervisor.run())
        await asyncio.sleep(0)
        placed = Holder("a", "a1", 1)
        show(Row("t1", "Loop", wanted=Wanted.RUN, status=Status.ASSIGNING, holder=placed, epoch=1, max_restarts=0))
        await until(lambda: said == [("Running", 1)], "the worker runs")
        assert pool.zygote_pid is not None
        os.kill(pool.zygote_pid, signal.SIGKILL)
        await until(lambda: len(said) == 3, "it runs again, by another zygote")
        assert said == [("Running", 1), ("Stopped", 1), ("Running", 2)]
        row = view.rows["t1"]
        assert (row.status, row.attempt, row.retry_at_ms, row.error) == (Status.RUNNING, 0, 0, None)
        await supervisor.close()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_dead_spares_are_not_used_and_are_replaced(tmp_path: Path) -> None:
    async with started() as pool:
        await until(lambda: len(pool.idle_pids) == 2, "two spares")
        dead = pool.idle_pids
        for pid in dead:
            psutil.Process(pid).kill()
        psutil.wait_procs([psutil.Process(pid) for pid in dead if runs(pid)], timeout=WAIT_S)
        host, events = await begin(pool, "Loop", tmp_path)
        await events.wait("running")
        assert host.pid not in dead
        await until(lambda: len(pool.idle_pids) == 2 and not {*dead} & {*pool.idle_pids}, "two new spares")
        await stop(host)


async def test_a_host_without_its_skald_kills_itself(tmp_path: Path) -> None:
    async with started() as pool:
        host, events = await begin(pool, "Loop", tmp_path)
        await events.wait("running")
        host._channel.close()
        assert (await ended(host)).reason == "signal 9 (SIGKILL)"


@asynccontextmanager
async def other_skald(class_name: str, file: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[int]]]:
    """A pool in a process of its own, with one worker; its pid first, then those of zygote, worker and two spares."""
    script = f"""
        import asyncio, sys
        from skalds_streams.skald.hosts import HostPool, RunSpec

        async def main():
            pool = HostPool(modules=["{MODULE}"])
            await pool.start()
            spec = RunSpec("t1", "{class_name}", 1, {{"file": "{file}"}}, 1)
            host = await pool.run(spec, lambda frame: None)
            while len(pool.idle_pids) < 2:
                await asyncio.sleep(0.005)
            print("pids:", pool.zygote_pid, host.pid, *pool.idle_pids, file=sys.stderr, flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
    """
    skald = await asyncio.create_subprocess_exec(sys.executable, "-c", dedent(script), stderr=asyncio.subprocess.PIPE)
    try:
        assert skald.stderr is not None
        async with asyncio.timeout(WAIT_S):
            while not (line := await skald.stderr.readline()).startswith(b"pids:"):
                assert line, "what its worker prints may come before"
            pids = [int(pid) for pid in line.split()[1:]]
        assert len(pids) == 4
        yield skald, pids
    finally:
        if skald.returncode is None:
            skald.kill()
        await skald.wait()
        assert skald.stderr is not None
        async with asyncio.timeout(WAIT_S):  # its hosts hold the pipe, too: a loop that ends before them leaves it open
            await skald.stderr.read()


async def test_nothing_outlives_a_killed_skald(tmp_path: Path) -> None:
    file = tmp_path / "sign"
    async with other_skald("WithChild", file) as (skald, pids):
        pids.append(await child_of(file))
        skald.kill()
        await until(lambda: not any(runs(pid) for pid in pids), "the end of zygote, hosts and child")


async def test_hosts_do_not_outlive_the_zygote_even_if_the_skald_is_frozen(tmp_path: Path) -> None:
    async with other_skald("AsyncLoop", tmp_path / "sign") as (skald, (zygote, *hosts)):
        skald.send_signal(signal.SIGSTOP)
        os.kill(zygote, signal.SIGKILL)
        await until(lambda: not any(runs(pid) for pid in hosts), "the end of the hosts")


async def test_the_lock_is_held_until_the_last_host_is_gone(tmp_path: Path) -> None:
    lock_file = tmp_path / "lock"
    lock = lock_file.open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    async with started(lock_fd=lock.fileno(), spares=0) as pool:
        host, events = await begin(pool, "Loop", tmp_path)
        await events.wait("running")
        lock.close()
        assert not is_free(lock_file)
        os.kill(host.pid, signal.SIGKILL)
        await ended(host)
        assert is_free(lock_file)


async def test_twenty_starts_at_once_leave_nothing(tmp_path: Path) -> None:
    async with started() as pool:
        await until(lambda: len(pool.idle_pids) == 2, "two spares")
        before = open_fds()
        begun = await asyncio.gather(*(begin(pool, "Loop", tmp_path) for _ in range(20)))
        for _, events in begun:
            await events.wait("running")
        assert len({host.pid for host, _ in begun}) == 20

        await asyncio.gather(*(stop(host) for host, _ in begun))

        await until(lambda: len(pool.idle_pids) == 2, "two spares")
        assert len(open_fds()) == len(before)
        assert pool.zygote_pid is not None
        zygote = psutil.Process(pool.zygote_pid)
        left = {*pool.idle_pids, *(psutil.Process(pid).ppid() for pid in pool.idle_pids)}
        assert len(left) == 4
        await until(
            lambda: {child.pid for child in zygote.children(recursive=True)} == left, "spares and their reapers"
        )
        assert len(zygote.open_files()) == 0
        await until(lambda: zygote.num_fds() <= 8, "no descriptor of a host")


async def test_hosts_do_not_hold_each_others_sockets(tmp_path: Path) -> None:
    async with started() as pool:
        await until(lambda: len(pool.idle_pids) == 2, "two spares")
        assert pool.zygote_pid is not None
        await until(lambda: all(len(sockets_of(pid)) == 1 for pid in pool.idle_pids), "hosts with one socket each")
        first, second = (sockets_of(pid) for pid in pool.idle_pids)
        assert not first & second
        others = [pool.zygote_pid, *(psutil.Process(pid).ppid() for pid in pool.idle_pids)]
        await until(lambda: not any(sockets_of(pid) & (first | second) for pid in others), "others let go of them")


async def test_a_zygote_that_ends_at_import_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving_workers.py").write_text("import os; os._exit(4)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = HostPool(modules=["leaving_workers"])
    with pytest.raises(HostError, match="ended with exit code 4"):
        await pool.start()
    await pool.stop()


async def test_the_pool_can_be_stopped_with_workers_and_started_again(tmp_path: Path) -> None:
    async with started() as pool:
        host, events = await begin(pool, "Loop", tmp_path)
        await events.wait("running")
        await pool.stop()
        assert (await ended(host)).reason == "signal 9 (SIGKILL)"
        with pytest.raises(HostError, match="stopped"):
            await begin(pool, "Loop", tmp_path)
        await pool.start()
        host, events = await begin(pool, "Loop", tmp_path)
        await events.wait("running")


async def test_the_examples_run(tmp_path: Path) -> None:
    async with started("examples.workers", logs=logs_of(tmp_path)) as pool:
        assert (sorted(pool.catalogue.classes), pool.catalogue.not_loadable) == (["Camera", "Counter", "Flaky"], {})
        counter, counted = await begin(pool, "Counter", tmp_path, until=3, every_s=0.01)
        assert await ended(counter) == ExitInfo(0, "exit 0")
        assert [op for op in counted.ops if op != "saved"] == ["running", "finished"]
        assert counted.seen[-2] == {"op": "saved", "state": '{"number":3}'}, "the last state comes before the end"

        camera, events = await begin(
            pool, "Camera", tmp_path, rtspUrl="rtsp://viewer:s3cret@192.0.2.7/entrance", fps=100
        )
        await events.wait("running")
        await camera.update(2, {"fps": 120})
        await events.wait("applied")
        await stop(camera)

        flaky, failed = await begin(pool, "Flaky", tmp_path, mean_lifetime_s=0.001)
        await ended(flaky)
        assert failed.seen[-1]["error"]["type"] == "ConnectionError"
    written = (tmp_path / "logs" / "t1.log").read_text()
    assert "t1@3 INFO worker.Counter: counted to the end: 3" in written
    assert "fps 100 -> 120" in written
    assert "s3cret" not in written


# The lease


async def renewing(pool: HostPool, lease_ms: int) -> None:
    """What a skald with a valid lease does."""
    while True:
        pool.renew(boottime_ms() + lease_ms)
        await asyncio.sleep(lease_ms / 10_000)


@asynccontextmanager
async def leased(lease_ms: int = LEASE_MS) -> AsyncIterator[tuple[HostPool, asyncio.Task[None]]]:
    async with started() as pool:
        pool.renew(boottime_ms() + lease_ms)
        task = asyncio.create_task(renewing(pool, lease_ms))
        try:
            yield pool, task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_worker_lives_as_long_as_its_lease_is_renewed(tmp_path: Path) -> None:
    async with leased() as (pool, renewals):
        host, _ = await begin(pool, "Loop", tmp_path)
        begun_ms = boottime_ms()
        await until(lambda: boottime_ms() > begun_ms + 2 * LEASE_MS, "two leases have passed")
        assert not host.ended
        renewals.cancel()
        last_ms = boottime_ms()
        assert (await ended(host)).status == signal.SIGKILL
        assert boottime_ms() < last_ms + 2 * LEASE_MS


async def test_a_worker_that_is_stopped_for_longer_than_its_lease_never_wakes_up(tmp_path: Path) -> None:
    async with leased() as (pool, _):
        host, events = await begin(pool, "Loop", tmp_path)
        await events.wait("running")
        os.kill(host.pid, signal.SIGSTOP)
        info = await ended(host)
        assert (info.status, info.reason, info.kind) == (signal.SIGKILL, RAN_OUT, "lease")


async def test_a_worker_that_holds_the_gil_for_longer_than_its_lease_ends(tmp_path: Path) -> None:
    async with leased() as (pool, _):
        host, _ = await begin(pool, "HoldsTheGil", tmp_path)
        info = await ended(host)
        assert (info.status, info.reason, info.kind) == (signal.SIGKILL, RAN_OUT, "lease")


@pytest.mark.parametrize("prefix", ["", "Shared"])
async def test_a_class_that_keeps_running_has_no_lease(tmp_path: Path, prefix: str) -> None:
    async with leased() as (pool, renewals):
        kept, _ = await begin(pool, prefix + "Keeper", tmp_path)
        other, _ = await begin(pool, prefix + "Loop", tmp_path)
        renewals.cancel()
        await ended(other)
        assert not kept.ended
        await stop(kept)


async def test_a_run_that_begins_after_its_lease_runs_nothing(tmp_path: Path) -> None:
    async with started() as pool:
        pool.renew(boottime_ms() - 1)
        host, events = await begin(pool, "Loop", tmp_path)
        assert (await ended(host)).status == signal.SIGKILL
        assert events.ops == []
