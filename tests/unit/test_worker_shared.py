"""The parts of a shared host that need no process: who is in a step, what finds no room, who is stuck."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from skalds_streams.worker import shared, text_pipe
from skalds_streams.worker.children import Children
from skalds_streams.worker.registry import Registry
from skalds_streams.worker.secrets import SecretPolicy
from skalds_streams.worker.shared_run import SharedRun
from skalds_streams.worker.stall import Watch
from skalds_streams.worker.steps import CURRENT, MARKER_BYTES, Marker, SharedLoop
from skalds_streams.worker.text_pipe import TextPipe


@pytest.fixture
def marker() -> Iterator[Marker]:
    fd = os.memfd_create("marker")
    os.ftruncate(fd, MARKER_BYTES)
    made = Marker(fd)
    os.close(fd)
    yield made
    made.close()


# Steps


class Somebody:
    """As much of a run as the loop asks for."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.tasks: set[asyncio.Task[Any]] = set()
        self.errors: list[BaseException] = []

    def note(self, task: asyncio.Task[Any]) -> None:
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def leave(self, error: BaseException) -> None:
        self.errors.append(error)


def test_the_marker_names_the_run_whose_task_is_in_a_step(marker: Marker) -> None:
    seen: list[int] = []

    async def work(times: int) -> None:
        for _ in range(times):
            seen.append(marker.read()[0])
            await asyncio.sleep(0)

    async def main() -> None:
        assert marker.read() == (0, 0.0)
        tasks = []
        for number in (1, 2):
            token = CURRENT.set(cast("SharedRun", somebodies[number]))
            tasks.append(asyncio.create_task(asyncio.wait([asyncio.create_task(work(2))])))
            CURRENT.reset(token)
        await asyncio.gather(*tasks)

    somebodies = {number: Somebody(number) for number in (1, 2)}
    loop = SharedLoop(marker)
    loop.run_until_complete(main())
    loop.close()
    assert sorted(seen) == [1, 1, 2, 2]
    assert marker.read() == (0, 0.0)
    assert all(not item.tasks for item in somebodies.values())


def test_sys_exit_in_a_task_is_the_runs_and_the_loop_goes_on(marker: Marker) -> None:
    somebody = Somebody(1)

    async def leave() -> None:
        raise SystemExit(3)

    async def main() -> None:
        token = CURRENT.set(cast("SharedRun", somebody))
        task = asyncio.create_task(leave())
        CURRENT.reset(token)
        with suppress(asyncio.CancelledError):
            await task

    loop = SharedLoop(marker)
    loop.run_until_complete(main())
    loop.close()
    assert [type(error) for error in somebody.errors] == [SystemExit]


# What finds no room


def test_what_finds_no_room_in_time_is_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_pipe, "WAIT_S", 0.001)
    reader, writer = os.pipe()
    pipe = TextPipe(writer)
    pipe.write("x" * 200_000)
    taken = 0
    while taken < 200_000 and (got := len(os.read(reader, 200_000))):
        taken += got
        if got < 4096 or taken >= 65_536:
            break
    pipe.write("and on\n")
    said = os.read(reader, 200_000).decode()
    assert f"… {200_000 - taken} bytes are left out" in said
    assert said.endswith("and on\n")
    pipe.close()
    pipe.write("nobody reads it")
    assert os.read(reader, 10) == b""
    os.close(reader)


def test_a_group_that_a_program_has_left_is_killed_with_the_worker(tmp_path: Path) -> None:
    children = Children()
    file = tmp_path / "pid"
    children.spawn(["/bin/sh", "-c", f"sleep 600 & echo $! >{file}"]).wait()
    pid = int(file.read_text())
    assert children.kill()
    deadline = time.monotonic() + 20
    while children.kill():
        assert time.monotonic() < deadline
    children.end()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# Who is stuck


CALLS = ("arm", "disarm", "forget", "has_fired", "take_down")
"""What is asked of the kernel's timers, which would end this process."""


def _do_nothing(*_: object) -> str:
    return ""


class Judged:
    """A host without a process, its runs, and what it said of them."""

    def __init__(self, marker: Marker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "monotonic_ns", lambda: int(self.now * 1e9))
        self.said: list[tuple[str, str]] = []
        ours, self._theirs = socket.socketpair()
        monkeypatch.setattr(shared, "KernelWatch", lambda _fd: SimpleNamespace(**dict.fromkeys(CALLS, _do_nothing)))
        self.host = shared.SharedHost(ours, Registry(), SecretPolicy(), -1)
        self.host._marker, self.marker = marker, marker
        for number, (task_id, stall_s) in enumerate((("watched", 2.0), ("other", 0.0)), 1):
            watch = Watch(stall_s) if stall_s else None
            if watch is not None:
                watch.begin()
            self.host._runs[task_id] = cast("SharedRun", self._run(number, task_id, watch))

    def _run(self, number: int, task_id: str, watch: Watch | None) -> Any:
        run = SimpleNamespace(number=number, task_id=task_id, watch=watch, stall_error=None)
        run.stalled = lambda dump: watch.end() if watch is not None else None  # it is told once
        run.say = lambda frame: self.said.append((task_id, (frame["error"] or {}).get("type", "Stalled")))
        return _Hashable(run)

    def look(self, after_s: float) -> None:
        """The I/O thread looks, so much later."""
        self.now += after_s
        self.host._look_at_stalls()

    def close(self) -> None:
        self.host._sock.close()
        self._theirs.close()
        os.close(self.host._wake_fd)


class _Hashable:
    def __init__(self, run: Any) -> None:
        self.__dict__.update(run.__dict__)


@pytest.fixture
def judged(marker: Marker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judged]:
    made = Judged(marker, monkeypatch)
    yield made
    made.close()


def test_who_makes_no_progress_on_a_free_loop_is_stuck(judged: Judged) -> None:
    judged.look(1.9)
    assert judged.said == []
    judged.look(0.2)
    assert judged.said == [("watched", "Stalled")]
    judged.look(10)
    assert len(judged.said) == 1


def test_who_is_in_a_step_all_the_time_is_stuck_itself(judged: Judged) -> None:
    judged.marker.enter(1)
    judged.look(2.1)
    assert judged.said == [("watched", "Stalled")]


def test_who_was_held_up_all_the_time_is_not_stuck(judged: Judged) -> None:
    judged.marker.enter(2)
    judged.look(1.9)
    assert judged.said == []
    judged.look(0.2)
    assert judged.said == [("other", "HeldUpItsHost")]
    judged.look(2.1)
    assert len(judged.said) == 1, "it is told once"


def test_who_was_held_up_until_now_gets_its_turn(judged: Judged) -> None:
    judged.look(0.5)
    judged.marker.enter(2)
    judged.look(1.6)
    judged.marker.leave()
    judged.look(0.05)
    assert judged.said == []
    judged.look(shared.TURN_S)
    assert judged.said == [("watched", "Stalled")]
