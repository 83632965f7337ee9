"""What a worker costs and how fast it obeys, on a broker and a skald of its own:

    .venv/bin/python -m benchmarks.workers            # two minutes; --json: one JSON object on the last line

Assign → main method, update → update handler, cancel → process gone, each from before the send, one task after the
other; a burst of assigns until the last main; memory of idle workers (PSS, as forked processes share most of theirs);
CPU at rest. The same for tasks that share a host, and what one of 200 adds to its memory. Then what
`benchmarks.worker_control` measures: cancels at once, pause and resume, a crash-looping task among others. Beside it,
in the same run: a bare fork of a process that has the same modules loaded, a `subprocess` of this Python, an asyncio
task. Times are of CLOCK_MONOTONIC, taken in the worker itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import orjson
from aiokafka import AIOKafkaProducer
from rich.console import Console
from rich.table import Table

from benchmarks.bench_workers import VARIABLE
from benchmarks.worker_control import RESTARTS, beside_a_crash_loop, cancels_at_once, pauses
from skalds_streams.devcluster import DevCluster
from skalds_streams.devcluster.ports import HOST, free_port
from skalds_streams.testing.chaos.clock import Clock
from skalds_streams.testing.chaos.cluster import SOURCE, Node
from skalds_streams.testing.chaos.link import Link
from skalds_streams.topics import Topics

PATIENCE_S = 60.0
REST_S = 10.0
SETTLE_S = 3.0
MANY = 200
"""What one shared host takes."""
TICKS = os.sysconf("SC_CLK_TCK")
APP = "bench"
DATAGRAM_BYTES = 65_536
SHARED_HOST = "skald:shared"
SHARED = "shared: "
"""Begins the rows of tasks that share a host."""


@dataclass(slots=True)
class Told:
    """What the workers have told so far: (what, task, number) → (ns, pid)."""

    found: dict[tuple[str, str, int], tuple[int, int]] = field(default_factory=dict)
    mains: Counter[str] = field(default_factory=Counter)
    """How often main has begun, by task."""
    late_ms: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    """What was noted until it was asked for, by task and number of the update that asked."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, data: bytes) -> None:
        said = orjson.loads(data)
        what, task, number = said["what"], said["task"], said["number"]
        self.found[what, task, number] = said["ns"], said["pid"]
        self.mains[task] += what == "main"
        if what == "ticks":
            self.late_ms[task, number] = said["late_ms"]
        self.changed.set()

    async def wait(self, what: str, task: str, number: int) -> tuple[int, int]:
        """(ns, pid); raises TimeoutError."""
        async with asyncio.timeout(PATIENCE_S):
            while (found := self.found.get((what, task, number))) is None:
                self.changed.clear()
                await self.changed.wait()
        return found


@contextmanager
def listening(path: Path) -> Iterator[Told]:
    told, loop = Told(), asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), lambda: told.take(sock.recv(DATAGRAM_BYTES)))
        try:
            yield told
        finally:
            loop.remove_reader(sock.fileno())


class Bench:
    """The system under test, its producer, and what its workers tell."""

    def __init__(self, node: Node, told: Told, producer: AIOKafkaProducer, topics: Topics) -> None:
        self.node, self._told, self._producer, self._topics = node, told, producer, topics

    async def _send(self, topic: str, task_id: str, **document: Any) -> int:
        """The time before the send, in ns."""
        begun = time.monotonic_ns()
        value = orjson.dumps({"taskIds": [task_id], **document})
        await self._producer.send_and_wait(topic, value, key=task_id.encode())
        return begun

    async def assign(self, task_id: str, class_name: str = "Idle", **parameters: Any) -> int:
        """The time before the send, in ns; so do all that send."""
        task = {"id": task_id, "className": class_name, "source": "benchmark", "attachments": parameters}
        return await self._send(self._topics.assign, task_id, tasks=[task])

    async def start(self, task_id: str, class_name: str = "Idle", **parameters: Any) -> float:
        """ms from the assign to main."""
        begun = await self.assign(task_id, class_name, **parameters)
        return ((await self._told.wait("main", task_id, 0))[0] - begun) / 1e6

    async def update(self, task_id: str, number: int) -> float:
        """ms from the update to the handler."""
        begun = await self._send(self._topics.update, task_id, attachments={"number": number})
        return ((await self._told.wait("update", task_id, number))[0] - begun) / 1e6

    async def cancel(self, task_id: str) -> float:
        """ms from the cancel until the worker's process is gone."""
        return await self._gone(task_id, self._topics.cancel)

    async def pause(self, task_id: str) -> float:
        """ms from the pause until the worker's process is gone."""
        return await self._gone(task_id, self._topics.assign, action="pause")

    async def resume(self, task_id: str) -> float:
        """ms from the resume to main."""
        del self._told.found["main", task_id, 0]
        begun = await self._send(self._topics.assign, task_id, action="resume")
        return ((await self._told.wait("main", task_id, 0))[0] - begun) / 1e6

    async def drop(self, task_id: str) -> None:
        """Cancel, without a look at what runs."""
        await self._send(self._topics.cancel, task_id)

    def mains(self, task_id: str) -> int:
        """How often its main has begun."""
        return self._told.mains[task_id]

    async def ticks(self, ids: Sequence[str], number: int) -> list[float]:
        """How late, in ms, each tick was that these have noted since they were asked last."""
        await asyncio.gather(*(self._send(self._topics.update, i, attachments={"number": number}) for i in ids))
        await asyncio.gather(*(self._told.wait("ticks", task_id, number) for task_id in ids))
        return [late for task_id in ids for late in self._told.late_ms[task_id, number]]

    async def _gone(self, task_id: str, topic: str, **document: Any) -> float:
        """ms from this command until the worker's process is gone."""
        _, pid = await self._told.wait("main", task_id, 0)
        handle = os.pidfd_open(pid)
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(handle, gone.set)
        try:
            begun = await self._send(topic, task_id, **document)
            async with asyncio.timeout(PATIENCE_S):
                await gone.wait()
            return (time.monotonic_ns() - begun) / 1e6
        finally:
            loop.remove_reader(handle)
            os.close(handle)

    async def burst(self, ids: list[str], class_name: str = "Idle") -> float:
        """ms from the first of these assigns to the last main."""
        begun = min(await asyncio.gather(*(self.assign(task_id, class_name) for task_id in ids)))
        ends = await asyncio.gather(*(self._told.wait("main", task_id, 0) for task_id in ids))
        return (max(ns for ns, _ in ends) - begun) / 1e6

    def memory_mib(self, workers: int) -> float:
        """PSS a worker: all that runs for them, also the spare hosts, but for the skald and its zygote."""
        ours = [item.pid for item in self.node.family()[1:] if not item.is_zygote]
        return sum(pss_mib(pid) for pid in ours) / workers

    def shared_kib(self) -> float:
        """PSS of the one host that shared tasks have, in KiB."""
        (pid,) = [item.pid for item in self.node.family() if item.name == SHARED_HOST]
        return 1024 * pss_mib(pid)

    def cpu_s(self) -> float:
        """CPU seconds that the skald and all its processes have used."""
        return sum(cpu_s(item.pid) for item in self.node.family())


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def pss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


# -- the peers


def fork_ms() -> float:
    """A fork of this process, which has the same modules, until the child's first line."""
    reader, writer = os.pipe()
    begun = time.monotonic_ns()
    pid = os.fork()
    if pid == 0:
        os.write(writer, str(time.monotonic_ns()).encode())
        os._exit(0)
    at = int(os.read(reader, 32))
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)
    return (at - begun) / 1e6


def subprocess_ms() -> float:
    """A Python of its own until its first line."""
    begun = time.monotonic_ns()
    code = "import time; print(time.monotonic_ns())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)  # noqa: S603  # our own words
    return (int(done.stdout) - begun) / 1e6


async def task_ms() -> float:
    """An asyncio task until its first line."""
    begun = time.monotonic_ns()

    async def main() -> int:
        return time.monotonic_ns()

    return (await asyncio.create_task(main()) - begun) / 1e6


# -- the run


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    p95, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.95, 0.99))
    return {"n": len(ordered), "p50": statistics.median(ordered), "p95": p95, "p99": p99, "max": ordered[-1]}


async def each(times: int, measure: Callable[[int], Awaitable[float]]) -> dict[str, float]:
    values = []
    for number in range(times):
        values.append(await measure(number))
        await asyncio.sleep(0.2)  # one after the other, on a system at rest
    return summary(values)


async def measure(bench: Bench, times: int, burst: int, console: Console) -> dict[str, dict[str, float]]:
    name = secrets.token_hex(3)
    ids = [f"bench-{name}-{number}" for number in range(times)]
    found = {}
    for _ in range(3):  # what is done for the first time only is no part of it
        await bench.start(warm := f"warm-{secrets.token_hex(3)}")
        await bench.cancel(warm)
    console.print(f"{times} tasks, one after the other")
    found["assign → main"] = await each(times, lambda number: bench.start(ids[number]))
    found["update → handler"] = await each(times, lambda number: bench.update(ids[number], number + 1))
    found["cancel → gone"] = await each(times, lambda number: bench.cancel(ids[number]))
    console.print(f"a burst of {burst} tasks, and {REST_S:g} s of rest")
    many = [f"burst-{name}-{number}" for number in range(burst)]
    found[f"burst of {burst} → last main"] = summary([await bench.burst(many)])
    await asyncio.sleep(SETTLE_S)
    used, begun = bench.cpu_s(), time.monotonic()
    await asyncio.sleep(REST_S)
    share = 100 * (bench.cpu_s() - used) / (time.monotonic() - begun)
    found[f"CPU at rest with {burst} tasks, % of a core"] = summary([share])
    found["memory of an idle worker, MiB PSS"] = summary([bench.memory_mib(burst)])
    found |= await measure_shared(bench, name, times, burst, console)
    await asyncio.gather(*(bench.cancel(task_id) for task_id in many))
    for rows in (
        await cancels_at_once(bench, console),
        await pauses(bench, times, console),
        await beside_a_crash_loop(bench, console),
    ):
        found |= {name: summary(values) for name, values in rows.items()}
    found["bare fork"] = summary([fork_ms() for _ in range(times)])
    found["bare subprocess"] = summary([subprocess_ms() for _ in range(times)])
    found["asyncio task"] = summary([await task_ms() for _ in range(times)])
    return found


async def measure_shared(
    bench: Bench, name: str, times: int, burst: int, console: Console
) -> dict[str, dict[str, float]]:
    """The same for tasks that share one host. The first is there all the time: the host that is empty but for it."""
    console.print(f"{times} tasks in a shared host, one after the other, a burst of {burst}, {MANY} at once")
    cls, found = "IdleShared", {}
    await bench.start(first := f"shared-{name}-first", cls)
    await bench.update(first, 1)  # what is done for the first time is no task's
    await asyncio.sleep(SETTLE_S)
    empty_kib = bench.shared_kib()
    ids = [f"shared-{name}-{number}" for number in range(times)]
    found[SHARED + "assign → main"] = await each(times, lambda number: bench.start(ids[number], cls))
    found[SHARED + "update → handler"] = await each(times, lambda number: bench.update(ids[number], number + 1))
    many = [f"shared-burst-{name}-{number}" for number in range(burst)]
    found[f"{SHARED}burst of {burst} → last main"] = summary([await bench.burst(many, cls)])
    more = [f"shared-many-{name}-{number}" for number in range(MANY - 1 - times - burst)]
    await bench.burst(more, cls)
    await asyncio.sleep(SETTLE_S)
    added = len(ids) + len(many) + len(more)
    found[f"{SHARED}memory of one of {MANY} tasks, KiB PSS"] = summary([(bench.shared_kib() - empty_kib) / added])
    return found


async def run(directory: Path, times: int, burst: int, console: Console) -> dict[str, dict[str, float]]:
    topics = Topics.named(app=APP, partitions=6)
    console.print("starting a broker and a skald")
    servers = DevCluster(directory / "servers", kafka_port=0, with_redis=False)
    await asyncio.to_thread(servers.start)
    link = Link(free_port(), servers.kafka_port)
    link.port = servers.kafka_port  # nothing between the skald and its broker
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("SKALD", "KAFKA_", "REDIS_"))},
        "PYTHONPATH": str(SOURCE),
        "KAFKA_REPLICATION_FACTOR": "1",
        "REDIS_ENABLED": "false",
        "SKALDS_APP": APP,
        "SKALDS_CAPACITY": str(10 * burst + 2 * MANY),
        "SKALDS_WORKERS": "benchmarks.bench_workers",
        VARIABLE: str(directory / "told.sock"),
    }
    node = Node("bench", directory, link, Clock(directory / "clock", None), environment)
    try:
        with listening(directory / "told.sock") as told:
            node.start()
            async with asyncio.timeout(PATIENCE_S):
                while not await node.is_ready():  # noqa: ASYNC110  # it is another process
                    await asyncio.sleep(0.1)
            async with AIOKafkaProducer(bootstrap_servers=f"{HOST}:{servers.kafka_port}") as producer:
                return await measure(Bench(node, told, producer, topics), times, burst, console)
    finally:
        await node.stop()
        await asyncio.to_thread(servers.stop)


@click.command()
@click.option("--times", default=20, show_default=True, help="Tasks that are measured one after the other.")
@click.option("--burst", default=50, show_default=True, help="Tasks that are assigned at once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line.")
def main(times: int, burst: int, as_json: bool) -> None:
    """Measure, and print a table."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(run(Path(directory), times, burst, console))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    machine = f"{os.cpu_count()} cores, load {load}, {platform.platform()}, Python {platform.python_version()}"
    table = Table(title=machine, title_justify="left")
    for heading in ("ms, where nothing else is said", "n", "p50", "p95", "p99", "max"):
        table.add_column(heading, justify="left" if heading.startswith("ms") else "right")
    for name, row in found.items():
        table.add_row(name, str(row["n"]), *(f"{row[column]:.2f}" for column in ("p50", "p95", "p99", "max")))
    Console().print(table)
    ratio = found["assign → main"]["p50"] / found["bare subprocess"]["p50"]
    click.echo(f"assign → main takes {ratio:.2f} times as long as a bare subprocess")
    if as_json:
        click.echo(json.dumps({"machine": machine, **found}))
    if found[RESTARTS]["max"]:
        raise click.ClickException("a crash-looping task made healthy ones begin anew")


if __name__ == "__main__":
    main()
