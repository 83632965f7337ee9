"""How long tasks stand still when their node is drained: all of them are on one of two nodes, and go to the other.

    .venv/bin/python -m benchmarks.drain --tasks 30 --times 5

One line a drain: for how long a task did not act, by the acts that the witness saw, and how long the command took.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.failover import acting, in_a_directory, until_all_run
from skalds_streams.settings import LEASE_MS
from skalds_streams.testing.chaos.cluster import ChaosCluster

CODE = "from skalds_streams.cli import main; main(prog_name='skalds-streams')"
NODES = ("a", "b")


@dataclass(frozen=True, slots=True)
class Drain:
    """A command that was done. Times in ns of CLOCK_MONOTONIC."""

    node: str
    begun_ns: int
    ended_ns: int


async def command(cluster: ChaosCluster, *args: str) -> None:
    """Run `skalds-streams` and see that it succeeds."""
    host, _, port = cluster.bootstrap.partition(":")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CODE, *args),
        env={**cluster.environment, "KAFKA_HOST": host, "KAFKA_PORT": port},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, f"{args}: {said.decode()}"


async def drain(cluster: ChaosCluster, node: str, tasks: int) -> Drain:
    """Drain it, wait until all act, and let it take tasks again."""
    begun_ns = time.monotonic_ns()
    await command(cluster, "drain", node)
    ended_ns = time.monotonic_ns()
    await until_all_run(cluster, tasks, ended_ns)
    await command(cluster, "undrain", node)
    await asyncio.sleep(cluster.lease_s / 5)  # two beats: until its own heartbeats do not say "draining" any more
    return Drain(node, begun_ns, ended_ns)


async def measure(directory: Path, *, times: int, lease_ms: int, tasks: int) -> None:
    async with acting(directory, lease_ms=lease_ms, tasks=tasks, nodes=NODES) as cluster:
        await drain(cluster, NODES[0], tasks)  # now all are on the other one
        done = [await drain(cluster, NODES[(number + 1) % 2], tasks) for number in range(times)]
        report = cluster.end_witness()
    for item in done:
        gaps = [
            handover.gap_ms
            for handover in report.handovers
            if handover.before == item.node and item.begun_ns < handover.at_ns <= item.ended_ns + 5 * 10**9
        ]
        assert len(gaps) == tasks, f"{len(gaps)} of {tasks} tasks moved"
        took_s = (item.ended_ns - item.begun_ns) / 1e9
        print(
            f"{item.node} drained of {len(gaps)} tasks in {took_s:.1f} s: a task stood still for"
            f" {statistics.median(gaps):.0f} ms (median), {max(gaps):.0f} ms (worst)"
        )
    print(f"overlaps: {report.overlaps}, smallest margin {report.margin_ms:.0f} ms")
    assert report.overlaps == 0, report.details


@click.command()
@click.option("--times", type=int, default=5, show_default=True)
@click.option("--lease-ms", type=int, default=LEASE_MS, show_default=True)
@click.option("--tasks", type=int, default=30, show_default=True)
def main(times: int, lease_ms: int, tasks: int) -> None:
    """Measure, and print one line a drain."""
    in_a_directory(lambda directory: measure(directory, times=times, lease_ms=lease_ms, tasks=tasks))


if __name__ == "__main__":
    main()
