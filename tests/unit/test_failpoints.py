"""Failpoints: nothing when unset, what was said at the time that was said, and a clear word on what is wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from skalds_streams import failpoints
from skalds_streams.errors import ConfigError, JournalError
from skalds_streams.failpoints import POINTS, VARIABLE, Failpoint, FailpointError, arm, parse_failpoint, reach

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(failpoints, "_armed", None)
    monkeypatch.delenv(VARIABLE, raising=False)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


async def test_nothing_happens_when_it_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for point in POINTS:
        await reach(point)
    monkeypatch.setenv(VARIABLE, "before_decide:raise")
    await reach("before_decide")


async def test_the_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "before_decide:raise")
    with pytest.raises(FailpointError, match="failpoint before_decide, time 1"):
        await reach("before_decide")
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(FailpointError, match="failpoint before_decide, time 2"):
        await reach("before_decide")
    await reach("after_decide")


async def test_with_a_number_only_that_time() -> None:
    arm("after_commit@3:raise, after_commit@1:sleep:0.001")
    await reach("after_commit")
    await reach("after_commit")
    with pytest.raises(FailpointError):
        await reach("after_commit")
    for _ in range(5):
        await reach("after_commit")


async def test_each_is_counted_for_itself_even_if_another_raises_first() -> None:
    arm("after_ack@1:raise,after_ack@2:raise")
    for _ in range(2):
        with pytest.raises(FailpointError):
            await reach("after_ack")
    await reach("after_ack")


async def test_sleep_waits() -> None:
    arm("in_recovery:sleep:0.05")
    begun_s = time.monotonic()
    await reach("in_recovery")
    assert time.monotonic() - begun_s >= 0.05


def test_the_error_is_one_of_unknown_outcome() -> None:
    assert issubclass(FailpointError, JournalError)


@pytest.mark.parametrize(
    ("text", "failpoint"),
    [
        ("in_transaction:kill", Failpoint("in_transaction", 0, "kill")),
        ("in_transaction@3:stop", Failpoint("in_transaction", 3, "stop")),
        ("while_opening@12:raise", Failpoint("while_opening", 12, "raise")),
        ("after_ack:sleep:2", Failpoint("after_ack", 0, "sleep", 2.0)),
    ],
)
def test_what_can_be_said(text: str, failpoint: Failpoint) -> None:
    assert parse_failpoint(text) == failpoint


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("before_lunch:kill", f"there is no failpoint 'before_lunch', only {', '.join(POINTS)}"),
        ("after_ack", "'after_ack': an action is missing"),
        ("after_ack:explode", "'explode' is no action; kill, stop, raise or sleep:SECONDS"),
        ("after_ack:kill:now", "'kill:now' is no action"),
        ("after_ack:sleep", "'sleep' is no action"),
        ("after_ack:sleep:soon", "'sleep:soon' is no action"),
        ("after_ack:sleep:nan", "'sleep:nan' is no action"),
        ("after_ack:sleep:-1", "'sleep:-1' is no action"),
        ("after_ack:sleep:9999999", "'sleep:9999999' is no action"),
        ("after_ack@0:kill", "after @ comes a number from 1 on, e.g. after_ack@3:kill"),
        ("after_ack@:kill", "after @ comes a number from 1 on"),
        ("after_ack@two:kill", "after @ comes a number from 1 on"),
    ],
)
async def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        parse_failpoint(text)
    assert str(caught.value).startswith(VARIABLE)
    monkeypatch.setenv(VARIABLE, f"before_decide:kill,{text}")
    with pytest.raises(ConfigError):
        await reach("before_decide")


def _process(text: str) -> subprocess.Popen[bytes]:
    code = (
        "import asyncio; from skalds_streams.failpoints import reach; asyncio.run(reach('after_ack')); print('lives')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, VARIABLE: text}, stdout=subprocess.PIPE, cwd=ROOT
    )


def test_kill_ends_the_process_at_once() -> None:
    process = _process("after_ack:kill")
    said, _ = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    assert b"failpoint.reached" in said
    assert b"lives" not in said


def test_stop_stops_it_until_it_is_continued() -> None:
    process = _process("after_ack:stop")
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=20)
    assert (process.returncode, b"lives" in said) == (0, True)


def test_every_point_is_in_the_code_once() -> None:
    text = "".join(path.read_text() for path in (ROOT / "skalds_streams/coordinator").glob("*.py"))
    assert sorted(re.findall(r'await reach\("(\w+)"\)', text)) == sorted(POINTS)
