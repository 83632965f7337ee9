"""More rows of `benchmarks.workers`: how fast several are stopped at once, what a crash-looping task costs its
neighbours, and how long a pause and a resume take.

A healthy worker ticks every TICK_S and notes how late each tick is, by CLOCK_MONOTONIC. So do all of them for WINDOW_S,
first alone, then with a task beside them that crashes at once, whenever it is tried again: after 1 s, 2 s, 4 s and so
on, as any task is.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from benchmarks.workers import Bench

CANCELS = 20
RELEASE_S = (0.1, 1.0)
"""The quickest and the slowest release handler of those that are cancelled at once."""
HEALTHY = 50
WINDOW_S = 20.0
SETTLE_S = 3.0
REST_S = 0.2
RESTARTS = "restarts of the healthy (must be 0)"

Rows = dict[str, list[float]]
"""Name → what was measured, in ms where the name says nothing else."""


def release_times(count: int) -> list[float]:
    """Evenly from the quickest to the slowest, in seconds."""
    quickest, slowest = RELEASE_S
    return [quickest + (slowest - quickest) * number / max(count - 1, 1) for number in range(count)]


async def cancels_at_once(bench: Bench, console: Console) -> Rows:
    """Until the last is gone. Beside it the slowest alone: as long as that is as good as it can be."""
    name, times = secrets.token_hex(3), release_times(CANCELS)
    console.print(f"{CANCELS} cancels at once, of workers that take {times[0]:g} to {times[-1]:g} s to release")
    alone = f"alone-{name}"
    await bench.start(alone, "Releasing", seconds=times[-1])
    own = await bench.cancel(alone)
    ids = [f"slow-{name}-{number}" for number in range(CANCELS)]
    await asyncio.gather(
        *(bench.start(task_id, "Releasing", seconds=seconds) for task_id, seconds in zip(ids, times, strict=True))
    )
    await asyncio.sleep(REST_S)
    last = max(await asyncio.gather(*(bench.cancel(task_id) for task_id in ids)))
    return {f"{CANCELS} cancels at once → last gone": [last], "the slowest of them alone": [own]}


async def pauses(bench: Bench, times: int, console: Console) -> Rows:
    """A pause until the process is gone, and a resume until main, one task after the other."""
    console.print(f"{times} pauses and resumes, one after the other")
    paused, resumed = [], []
    for _ in range(times):
        task_id = f"pause-{secrets.token_hex(3)}"
        await bench.start(task_id)
        await asyncio.sleep(REST_S)
        paused.append(await bench.pause(task_id))
        await asyncio.sleep(REST_S)
        resumed.append(await bench.resume(task_id))
        await asyncio.sleep(REST_S)
        await bench.cancel(task_id)
    return {"pause → gone": paused, "resume → main": resumed}


async def beside_a_crash_loop(bench: Bench, console: Console) -> Rows:
    """How late the healthy tick, without and with the other, and how many of them began anew."""
    name = secrets.token_hex(3)
    ids = [f"tick-{name}-{number}" for number in range(HEALTHY)]
    await bench.burst(ids, "Ticker")
    await asyncio.sleep(SETTLE_S)
    console.print(f"{HEALTHY} workers that tick, {WINDOW_S:g} s of it alone, and as long beside one that crashes")
    alone = await _window(bench, ids, 1)
    crash = f"crash-{name}"
    await bench.assign(crash, "Crasher")
    beside = await _window(bench, ids, 3)
    restarts = sum(bench.mains(task_id) - 1 for task_id in ids)
    found = {
        f"lateness of ticks, {HEALTHY} healthy workers": alone,
        "lateness beside a task that crash-loops": beside,
        "crashes of that task meanwhile": [float(bench.mains(crash))],
        RESTARTS: [float(restarts)],
    }
    await asyncio.gather(bench.drop(crash), *(bench.cancel(task_id) for task_id in ids))
    return found


async def _window(bench: Bench, ids: Sequence[str], number: int) -> list[float]:
    """What they have noted in a window. An update asks for it; the first drops what was noted before."""
    await bench.ticks(ids, number)
    await asyncio.sleep(WINDOW_S)
    return await bench.ticks(ids, number + 1)
