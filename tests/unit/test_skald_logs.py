"""The thread that takes what workers print: whatever happens to it, no worker waits and no end goes unreported."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from skalds_streams.settings import Settings
from skalds_streams.skald import logs as logs_module
from skalds_streams.skald import output as output_module
from skalds_streams.skald.logs import RunOutput, TaskLogs
from skalds_streams.skald.ring import LogFiles, Ring

pytestmark = pytest.mark.anyio

PATIENCE_S = 20.0


@asynccontextmanager
async def started(tmp_path: Path, **options: Any) -> AsyncIterator[TaskLogs]:
    fds = set(os.listdir("/proc/self/fd"))
    logs = TaskLogs(LogFiles(tmp_path, max_bytes=100_000, most=10), **options)
    logs.start()
    try:
        yield logs
    finally:
        await logs.stop()
    assert set(os.listdir("/proc/self/fd")) == fds


def begun(logs: TaskLogs, task_id: str = "t", **parameters: Any) -> RunOutput:
    output = logs.open(task_id, 1, parameters)
    assert output is not None
    return output


async def printed(output: RunOutput, data: bytes) -> None:
    """As a worker would: it waits while the pipe is full."""
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.to_thread(os.write, output.writer, data)


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # a file has no event
            await asyncio.sleep(0.005)


def texts(logs: TaskLogs, task_id: str = "t") -> list[str]:
    return [line.decode().split(" ", 2)[2] for line in logs.files.tail(task_id, 1_000).lines]


async def test_lines_of_runs_side_by_side_and_one_after_the_other(tmp_path: Path) -> None:
    async with started(tmp_path) as logs:
        one, other = begun(logs), begun(logs, "u")
        await printed(one, b"first\n")
        await printed(other, b"other\n")
        one.finish("exit 0")
        assert await one.last_lines() == ["first"]
        again = begun(logs)
        await printed(again, b"second")
        again.finish("signal 9 (SIGKILL)", ["ValueError: no"])
        assert await again.last_lines() == ["second"]
        other.finish("exit 0")
    assert texts(logs) == [
        *("== the run begins", "first", "== the run has ended: exit 0"),
        *("== the run begins", "second", "ValueError: no", "== the run has ended: signal 9 (SIGKILL)"),
    ]
    assert texts(logs, "u")[1:-1] == ["other"]


async def test_a_run_that_is_not_finished_is_written_when_the_node_stops(tmp_path: Path) -> None:
    async with started(tmp_path) as logs:
        output = begun(logs)
        await printed(output, b"half a line")
        output.handed_over()
    assert texts(logs) == ["== the run begins", "half a line", "== the run has ended: the node has stopped"]


async def test_secrets_of_parameters_and_of_the_node_are_masked(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, kafka_password="kafka-pw", web_token="web-token", digest_key="")  # type: ignore[call-arg]  # pydantic-settings has it
    assert settings.secret_values == {"kafka-pw", "web-token"}
    async with started(tmp_path, words=["pin"], own_secrets=settings.secret_values) as logs:
        output = begun(logs, pin="first-pin")
        await printed(output, b"first-pin kafka-pw web-token\n")
        output.hide({"pin": "second-pin"})
        await printed(output, b"first-pin second-pin\n")
        output.finish("exit 0")
        assert await output.last_lines() == ["*** *** ***", "*** ***"]


async def test_a_disk_that_hangs_holds_no_report_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(logs_module, "LAST_LINES_WAIT_S", 0.05)
    monkeypatch.setattr(Ring, "append", lambda _self, _lines: hangs.wait(PATIENCE_S))
    async with started(tmp_path) as logs:
        output = begun(logs)
        await printed(output, b"last words\n")
        output.finish("exit 0")
        assert await output.last_lines() == []
        hangs.set()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a defect")])
async def test_what_can_not_be_written_stops_no_worker(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: Ring, _lines: bytes) -> None:
        raise error

    async with started(tmp_path) as logs:
        output, sibling = begun(logs), begun(logs, "sibling")
        await until(lambda: texts(logs) and texts(logs, "sibling"))
        with monkeypatch.context() as patch:
            patch.setattr(output.ring, "append", fail.__get__(output.ring))
            for _ in range(20):
                await printed(output, b"x" * 100_000 + b"\n")
        await printed(sibling, b"still here\n")
        for run in (output, sibling):
            run.finish("exit 0")
        assert await sibling.last_lines() == ["still here"]
        await output.last_lines()
    assert texts(logs, "sibling")[1] == "still here"


async def test_logs_of_tasks_that_nobody_wants_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "SWEEP_S", 0.02)
    wanted = {"t", "u"}
    async with started(tmp_path, is_wanted=wanted.__contains__, wanted_ids=lambda: wanted) as logs:
        output, other = begun(logs), begun(logs, "u")
        other.finish("exit 0")
        await until(lambda: len(texts(logs, "u")) == 2)
        wanted.clear()
        await until(lambda: not logs.files.exists("u"))
        assert logs.files.exists("t"), "it runs"
        output.finish("exit 0")
        await until(lambda: not logs.files.exists("t"))


async def test_no_descriptor_left_is_no_reason_not_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_flags: int) -> None:
        raise OSError(24, "Too many open files")

    async with started(tmp_path) as logs:
        with monkeypatch.context() as patch:
            patch.setattr(logs_module.os, "pipe2", full)
            assert logs.open("t", 1) is None


async def test_a_run_that_prints_a_line_now_and_then_is_not_looked_at_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread sleeps as long as nothing is printed and nothing waits."""
    settled: list[float] = []
    settle = output_module.Shaper.settle
    monkeypatch.setattr(
        output_module.Shaper, "settle", lambda self, *args: settled.append(args[0]) or settle(self, *args)
    )
    async with started(tmp_path) as logs:
        output = begun(logs)
        await printed(output, b"a line\n")
        await until(lambda: len(texts(logs)) == 2)
        before = len(settled)
        assert logs._pause_s() > 60
        await printed(output, b"another\n")
        await until(lambda: len(texts(logs)) == 3)
        assert 0 < len(settled) - before < 5
        output.finish("exit 0")
