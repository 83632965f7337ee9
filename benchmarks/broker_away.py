"""What becomes of running workers while Kafka is away: the broker is frozen, killed, or stopped in order, for a while
each, and comes back.

    .venv/bin/python -m benchmarks.broker_away --seconds 10 --seconds 15 --seconds 60

One line a fault: how long the broker's port did not answer (a start of the broker is part of it, so it is begun
sooner), how many of the workers ended, how much of the lease was left at the least, and, when they ended, how long
after the port answered again the last of them acted again. By the acts that the witness saw.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.failover import acting, in_a_directory, until_all_run
from skalds_streams.settings import LEASE_MS
from skalds_streams.testing.chaos.cluster import ChaosCluster, Node
from skalds_streams.testing.chaos.faults import in_thread
from skalds_streams.testing.witness import Report

LEFT = "skalds_lease_remaining_seconds"
WAYS = ("frozen", "killed", "stopped")
POLL_S = 0.1
CALM_S = 12.0
"""Between two faults: longer than half a lease, so that each begins with a whole one."""


async def least_left(node: Node, found: list[float]) -> None:
    """Note the lease that this node has left, until cancelled."""
    while True:
        _, text = await node.get("/metrics")
        found += [float(line.split()[-1]) for line in text.splitlines() if line.startswith(LEFT)]
        await asyncio.sleep(POLL_S)


async def away(cluster: ChaosCluster, way: str, seconds: float, start_s: float) -> float:
    """From its last moment there until its port answers again; how long a start of the broker took."""
    kafka = cluster.servers.kafka
    if way == "frozen":
        kafka.pause()
        await asyncio.sleep(seconds)
        kafka.resume()
        return start_s
    begun = time.monotonic()
    await in_thread(kafka.kill if way == "killed" else kafka.stop)
    await asyncio.sleep(max(seconds - start_s - (time.monotonic() - begun), 0))
    begun = time.monotonic()
    await in_thread(kafka.start)
    return time.monotonic() - begun


@dataclass(slots=True)
class Fault:
    """What was done and seen. `back_ns`: when the port answered again; `all_run_ns`: when all acted again."""

    way: str
    away_s: float
    back_ns: int
    all_run_ns: int
    ended: int
    left_s: float

    def line(self, report: Report, tasks: int) -> str:
        begun_ns = self.back_ns - int(self.away_s * 1e9)
        runs = [item for item in report.handovers if begun_ns < item.at_ns <= self.all_run_ns]
        last_s = max(((item.at_ns - self.back_ns) / 1e9 for item in runs), default=None)
        again = f", the last acted again {last_s:.1f} s after it was back" if self.ended and last_s is not None else ""
        left = f"{self.left_s:.1f} s of the lease left"
        return f"{self.way}, away for {self.away_s:.1f} s: {self.ended} of {tasks} workers ended, {left}{again}"


async def one(cluster: ChaosCluster, way: str, seconds: float, tasks: int, start_s: float) -> tuple[Fault, float]:
    """Do it, and see that all run again. Also how long a start of the broker took."""
    before = dict(cluster.seen().running)
    left: list[float] = []
    watching = [asyncio.create_task(least_left(node, left)) for node in cluster.nodes]
    begun_ns = time.monotonic_ns()
    start_s = await away(cluster, way, seconds, start_s)
    back_ns = time.monotonic_ns()
    await until_all_run(cluster, tasks, back_ns)
    all_run_ns = time.monotonic_ns()
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    after = cluster.seen().running
    ended = sum(after[task][0] != epoch for task, (epoch, _) in before.items())
    return Fault(way, (back_ns - begun_ns) / 1e9, back_ns, all_run_ns, ended, min(left, default=math.nan)), start_s


async def measure(directory: Path, seconds: Sequence[float], ways: Sequence[str], lease_ms: int, tasks: int) -> None:
    start_s, done = 3.0, list[Fault]()
    async with acting(directory, lease_ms=lease_ms, tasks=tasks) as cluster:
        for lasts_s in seconds:
            for way in ways:
                await asyncio.sleep(CALM_S)
                fault, start_s = await one(cluster, way, lasts_s, tasks, start_s)
                done.append(fault)
        report = cluster.end_witness()
    for fault in done:
        click.echo(fault.line(report, tasks))
    click.echo(f"overlaps: {report.overlaps}, smallest margin {report.margin_ms} ms")
    assert report.overlaps == 0, report.details


@click.command()
@click.option("--seconds", type=float, multiple=True, default=(10, 15, 60), show_default=True)
@click.option("--way", "ways", type=click.Choice(WAYS), multiple=True, default=WAYS, show_default=True)
@click.option("--lease-ms", type=int, default=LEASE_MS, show_default=True)
@click.option("--tasks", type=int, default=12, show_default=True)
def main(seconds: Sequence[float], ways: Sequence[str], lease_ms: int, tasks: int) -> None:
    """Measure, and print one line a fault."""
    in_a_directory(lambda directory: measure(directory, seconds, ways, lease_ms, tasks))


if __name__ == "__main__":
    main()
