"""The clock that chaos moves: what a node's processes then read, and what must stay as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from skalds_streams.testing.chaos import clock
from skalds_streams.testing.chaos.clock import JUMP_S, Clock

READER = """
import datetime, os, socket, sys, time
import orjson
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

def look():
    batch = DefaultRecordBatchBuilder(2, 0, False, -1, -1, 0, 10_000)
    return {
        "time": time.time(),
        "datetime": datetime.datetime.now(datetime.UTC).timestamp(),
        "aiokafka": batch.append(0, None, None, b"", []).timestamp / 1000,
        "monotonic": time.monotonic(),
        "boottime": time.clock_gettime(time.CLOCK_BOOTTIME),
    }

os.write(1, b"\\n")
if os.fork():
    os.wait()
else:
    for line in sys.stdin:
        os.write(1, orjson.dumps(look()) + b"\\n")
"""
"""Says what its clocks show, for each line that it is given: from a process that was forked, as a worker's is."""
SLACK_S = 600.0
"""More than a busy machine may need between two looks, and less than a jump."""


@pytest.fixture
def moved(tmp_path: Path) -> Clock:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    library = clock.prepare(tmp_path)
    assert library is not None
    return Clock(tmp_path / "node.clock", library)


@pytest.fixture
def reader(moved: Clock) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, **moved.environment}
    with subprocess.Popen(
        [sys.executable, "-c", READER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process
        process.communicate()


def look(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Clock → how far it is from ours, in seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    seen = orjson.loads(process.stdout.readline())
    monotonic, boottime = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
    ours = {"monotonic": monotonic, "boottime": boottime}
    return {name: value - ours.get(name, time.time()) for name, value in seen.items()}


def test_a_running_process_sees_the_jump_and_its_end(moved: Clock, reader: subprocess.Popen[bytes]) -> None:
    for seconds in (0, JUMP_S, -JUMP_S, 0):
        moved.move(seconds)
        seen = look(reader)
        for name in ("time", "datetime", "aiokafka"):
            assert seen[name] == pytest.approx(seconds, abs=SLACK_S)
        for name in ("monotonic", "boottime"):
            assert seen[name] == pytest.approx(0, abs=SLACK_S)


WAITER = """
import os, threading, time
from skalds_streams.worker.kernel import KillTimer

assert not threading.Event().wait(0.01)
lock = threading.Lock()
assert lock.acquire()
assert not lock.acquire(timeout=0.01)
KillTimer().arm(int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000) + 1500)
time.sleep(0.1)
os.write(1, b"lived")
time.sleep(600)
"""


@pytest.mark.parametrize("seconds", [JUMP_S, -JUMP_S])
def test_waits_and_the_timer_of_a_lease_are_not_moved(moved: Clock, seconds: int) -> None:
    moved.move(seconds)
    environment = {**os.environ, **moved.environment}
    done = subprocess.run([sys.executable, "-c", WAITER], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-9, b"lived"), done.stderr.decode()


def test_without_a_library_a_clock_says_nothing_to_its_node(tmp_path: Path) -> None:
    assert Clock(tmp_path / "node.clock", None).environment == {}


def test_without_a_compiler_no_clock_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert clock.prepare(tmp_path) is None
