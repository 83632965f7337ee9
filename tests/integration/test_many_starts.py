"""Many starts leave nothing: no zombie, no orphan, no descriptor, in the skald as in the zygote.

400 starts in CI. `SKALDS_STARTS=1000 pytest tests/integration/test_many_starts.py` for more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from skalds_streams.skald.hosts import ExitInfo, Host, HostPool
from tests.integration.test_hosts import Events, begin, child_of, ended, open_fds, started, stop, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

STARTS = int(os.environ.get("SKALDS_STARTS", "400"))
AT_ONCE = 6


async def by_itself(host: Host, _events: Events, _file: Path) -> ExitInfo:
    return await ended(host)


async def by_a_stop(host: Host, events: Events, _file: Path) -> ExitInfo:
    await events.wait("running")
    return await stop(host)


async def by_a_kill_with_its_child(host: Host, _events: Events, file: Path) -> ExitInfo:
    await child_of(file)
    host.kill()
    return await ended(host)


ENDS: list[tuple[str, Callable[[Host, Events, Path], Awaitable[ExitInfo]], str]] = [
    ("Once", by_itself, "exit 0"),
    ("Crash", by_itself, "exit 0"),
    ("ExitCode", by_itself, "exit code 3"),
    ("Loop", by_a_stop, "exit 0"),
    ("WithChild", by_a_kill_with_its_child, "signal 9 (SIGKILL)"),
]
"""(class, how it comes to its end, what is said of it)."""


async def start_and_end(pool: HostPool, tmp_path: Path, number: int) -> None:
    class_name, end, reason = ENDS[number % len(ENDS)]
    file = tmp_path / str(number)
    host, events = await begin(pool, class_name, tmp_path, file=str(file))
    assert (await end(host, events, file)).reason == reason


def family(pool: HostPool) -> list[psutil.Process]:
    return psutil.Process(pool.zygote_pid).children(recursive=True)


async def settled(pool: HostPool) -> None:
    """Two spares and their reapers, and nothing else."""
    await until(lambda: len(pool.idle_pids) == 2 and len(family(pool)) == 4, "two spares with their reapers")


async def test_many_starts_leave_nothing(tmp_path: Path) -> None:
    me = psutil.Process()
    others = me.children()  # servers of the tests before
    async with started() as pool:
        assert pool.zygote_pid is not None
        zygote = psutil.Process(pool.zygote_pid)
        for number in range(len(ENDS)):
            await start_and_end(pool, tmp_path, number)
        await settled(pool)
        before = (len(open_fds()), me.num_threads(), len(pool._hosts))
        zygote_fds = zygote.num_fds()

        numbers = iter(range(len(ENDS), len(ENDS) + STARTS))

        async def some() -> None:
            for number in numbers:
                await start_and_end(pool, tmp_path, number)

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))

        await settled(pool)
        assert (len(open_fds()), me.num_threads(), len(pool._hosts)) == before
        await until(lambda: zygote.num_fds() == zygote_fds, "the zygote has as many descriptors as before")
        assert {child.status() for child in family(pool)}.isdisjoint({psutil.STATUS_ZOMBIE})
        assert [child for child in me.children() if child not in others] == [zygote]
