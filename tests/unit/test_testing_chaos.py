"""The parts of chaos that need no cluster: the plan of a seed, the link that can be cut, the verdict."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from skalds_streams.devcluster.ports import free_port
from skalds_streams.testing.chaos import disk, processes
from skalds_streams.testing.chaos.link import Link
from skalds_streams.testing.chaos.plan import KINDS, PACE_LEASES, draw
from skalds_streams.testing.chaos.verdict import Outcome, as_doc, total
from skalds_streams.testing.witness import Report

NUMBER = len(KINDS)


def test_a_seed_is_a_plan_and_every_kind_comes_before_any_comes_again() -> None:
    plans = [list(itertools.islice(draw(seed, 4.0), 3 * NUMBER)) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    for at in range(0, 3 * NUMBER, NUMBER):
        assert Counter(fault.kind for fault in plans[0][at : at + NUMBER]) == Counter(list(KINDS))
    for fault in plans[0]:
        assert fault.lasts_s / 4.0 in KINDS[fault.kind]
        assert PACE_LEASES[0] * 4 <= fault.pause_s <= PACE_LEASES[1] * 4


def test_with_the_default_lease_a_fault_comes_every_10_to_30_seconds() -> None:
    assert [20 * leases for leases in PACE_LEASES] == [10, 30]


@asynccontextmanager
async def echoing() -> AsyncIterator[Link]:
    """A link to a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionResetError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    link = Link(free_port(), server.sockets[0].getsockname()[1])
    await link.start()
    try:
        yield link
    finally:
        await link.stop()
        server.close()


async def says(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], text: bytes, within_s: float) -> bytes:
    streams[1].write(text)
    async with asyncio.timeout(within_s):
        return await streams[0].read(100)


@pytest.mark.anyio
async def test_a_link_passes_holds_slows_and_cuts() -> None:
    async with echoing() as link:
        streams = await asyncio.open_connection("127.0.0.1", link.port)
        assert await says(streams, b"1", 5) == b"1"
        link.half_open()
        with pytest.raises(TimeoutError):
            await says(streams, b"2", 0.2)
        link.heal()
        assert await says(streams, b"", 5) == b"2"
        link.delay(0.1)
        begun = asyncio.get_running_loop().time()
        assert await says(streams, b"3", 5) == b"3"
        assert asyncio.get_running_loop().time() - begun >= 0.2
        link.heal()
        link.drop()
        with pytest.raises(ConnectionResetError):
            await says(streams, b"4", 5)
        streams[1].close()
        with pytest.raises(ConnectionResetError):
            await says(await asyncio.open_connection("127.0.0.1", link.port), b"5", 5)
        link.heal()
        streams = await asyncio.open_connection("127.0.0.1", link.port)
        assert await says(streams, b"6", 5) == b"6"
        streams[1].close()


def test_a_run_that_saw_too_little_fails() -> None:
    seen = Outcome(1, 4000, seconds=60, faults={"kill host": 10})
    seen.take_report(Report(acts=5_000, margin_ms=12.4), tasks=10, lease_s=4)
    assert seen.failures == []
    assert seen.line == "faults: 10, overlaps: 0, lost: 0, margin_ms: 12"
    blind = Outcome(1, 4000, seconds=60, faults={"kill host": 5})
    blind.take_report(Report(acts=599), tasks=10, lease_s=4)
    assert blind.failures == ["the witness saw only 599 acts of at least 600", "only 5 faults of at least 6"]
    assert blind.line.endswith("margin_ms: none")
    overlapped = Outcome(1, 4000, seconds=60, faults={"kill host": 10})
    overlapped.take_report(Report(acts=5_000, overlaps=1, details=["t: twice"]), tasks=10, lease_s=4)
    assert overlapped.failures == ["overlap: t: twice"]


def test_runs_add_up() -> None:
    runs = [
        Outcome(1, 4000, seconds=1800, faults={"kill host": 2}, acts=5, margin_ms=30.0),
        Outcome(2, 4000, seconds=1800, faults={"kill host": 1}, acts=6, overlaps=1, lost=2, failures=["x"]),
    ]
    assert total([as_doc(item, at="now") for item in runs]) == (
        "2 runs, 1.00 h, 11 acts, 1 failed; faults: 3, overlaps: 1, lost: 2, margin_ms: 30"
    )


def test_only_a_disk_of_its_own_is_filled(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no disk of its own"):
        disk.fill(tmp_path)


def test_a_family_is_found_and_what_carries_a_mark() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, "CHAOS_TEST": "2f6c"}
    )
    try:
        assert child.pid in [item.pid for item in processes.family(os.getpid())]
        assert [item.pid for item in processes.marked("CHAOS_TEST=2f6c")] == [child.pid]
        before = processes.descriptors(os.getpid())
        with socket.socket():
            assert processes.descriptors(os.getpid()) == before + 1
    finally:
        child.communicate(b"\n")
    assert processes.marked("CHAOS_TEST=2f6c") == []
