"""How long the tasks of a node stand still: its process is killed and started again at once, and all its processes are
killed for good. By the acts that the witness saw, from the kill to the first act of each task's next run.

    python -m benchmarks.failover --times 5 --lease-ms 20000
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click

from skalds_streams.settings import LEASE_MS
from skalds_streams.testing.chaos import processes
from skalds_streams.testing.chaos.cluster import ChaosCluster, Node
from skalds_streams.testing.chaos.stream import Commands, classes_of

PATIENCE_S = 90.0
FRESH_NS = 500_000_000


async def until_all_run(cluster: ChaosCluster, tasks: int, after_ns: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        running = cluster.seen().running
        now = time.monotonic_ns()
        acting = [last for _, last in running.values() if last > after_ns and now - last < FRESH_NS + 500_000_000]
        if len(acting) == tasks:
            return
        assert time.monotonic() < deadline, running
        await asyncio.sleep(0.2)


async def held(cluster: ChaosCluster) -> dict[str, int]:
    return {node.name: sum(item.is_host for item in node.family()) if node.runs else 0 for node in cluster.nodes}


async def busiest(cluster: ChaosCluster) -> Node:
    counts = await held(cluster)
    return max(cluster.nodes, key=lambda node: counts[node.name])


@asynccontextmanager
async def acting(
    directory: Path, *, lease_ms: int, tasks: int, nodes: Sequence[str] = ("a", "b", "c")
) -> AsyncIterator[ChaosCluster]:
    """Nodes and so many tasks, all of which act."""
    dice = random.Random(1)  # noqa: S311  # the same in every run
    cluster = ChaosCluster(directory, nodes, lease_ms=lease_ms)
    try:
        await cluster.start()
        names = classes_of(tasks, dice, "Steady")
        commands = Commands(cluster.topics, cluster.bootstrap, directory / "ledger.jsonl", names, dice, lease_ms / 1000)
        await commands.start()
        try:
            await commands.assign_all()
            await until_all_run(cluster, tasks, 0)
        finally:
            await commands.stop()
        yield cluster
    finally:
        await cluster.stop()


async def measure(directory: Path, *, times: int, lease_ms: int, tasks: int) -> dict[str, list[tuple[str, int]]]:
    """Kind → (node, ns of the kill) of each."""
    kills: dict[str, list[tuple[str, int]]] = {"restarted at once": [], "machine lost": []}
    async with acting(directory, lease_ms=lease_ms, tasks=tasks) as cluster:
        for kind in kills:
            for _ in range(times):
                await asyncio.sleep(3)
                node = await busiest(cluster)
                kills[kind].append((node.name, time.monotonic_ns()))
                if kind == "machine lost":
                    processes.send([item.pid for item in node.family()], signal.SIGKILL)
                node.kill()
                if kind != "machine lost":
                    node.start()
                await asyncio.sleep(1)
                await until_all_run(cluster, tasks, kills[kind][-1][1] + 500_000_000)
                node.start()
                while not await node.is_ready():  # noqa: ASYNC110  # it is another process
                    await asyncio.sleep(0.1)
        report = cluster.end_witness()
    assert report.overlaps == 0, report.details
    for kind, done in kills.items():
        worst = []
        for name, at_ns in done:
            gaps = [
                (item.at_ns - at_ns) / 1e9
                for item in report.handovers
                if item.before == name
                and at_ns < item.at_ns < at_ns + PATIENCE_S * 1e9
                and item.at_ns - item.gap_ms * 1e6 < at_ns + 1e9
            ]
            if gaps:
                worst.append(max(gaps))
                print(f"{kind}: {len(gaps)} tasks of {name}, {min(gaps):.2f} to {max(gaps):.2f} s")
        median = statistics.median(worst)
        print(f"{kind}: last task after {median:.2f} s (median), {max(worst):.2f} s (worst of {len(worst)})")
    print(f"smallest margin {report.margin_ms:.0f} ms, to another skald {report.margin_elsewhere_ms} ms")
    return kills


def in_a_directory(measure: Callable[[Path], Coroutine[Any, Any, object]]) -> None:
    """Run it, in a directory of its own; what the client library says of brokers that are away is left out."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(measure(Path(directory)))


@click.command()
@click.option("--times", type=int, default=5)
@click.option("--lease-ms", type=int, default=LEASE_MS)
@click.option("--tasks", type=int, default=12)
def main(times: int, lease_ms: int, tasks: int) -> None:
    """Measure, and print one line a kill."""
    in_a_directory(lambda directory: measure(directory, times=times, lease_ms=lease_ms, tasks=tasks))


if __name__ == "__main__":
    main()
