"""One of three brokers is lost, the one that every heartbeat goes to: no worker notices, and commands are applied."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from skalds_streams.devcluster import DevCluster, KafkaServer
from skalds_streams.testing.witness import VARIABLE, Report, read_report
from tests.integration.system import LAUNCH, Node, System, admin_of, system_of, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.timeout(300)]

WORKERS = 50
TASKS = [f"t{number}" for number in range(WORKERS)]
PATIENCE_S = 60.0


@dataclass
class Three:
    """A system of two nodes on three brokers, and the witness of what its workers do."""

    cluster: DevCluster
    system: System
    nodes: list[Node]
    report: Path

    def seen(self) -> Report:
        """Half a second old at most."""
        return read_report(self.report)

    async def leader(self) -> KafkaServer:
        """The leader of the heartbeats' only partition. Every broker must be up."""
        async with admin_of(self.system) as admin:
            ((heartbeats,),) = [
                item["partitions"] for item in await admin.describe_topics([self.system.topics.heartbeat])
            ]
        return self.cluster.brokers[heartbeats["leader"] - 1]

    async def in_sync(self) -> None:
        """Wait until every broker has all of every partition: only then may another one be lost."""
        async with admin_of(self.system) as admin:

            async def all_of() -> bool:
                return all(
                    len(partition["isr"]) == len(self.cluster.brokers)
                    for topic in await admin.describe_topics()
                    for partition in topic["partitions"]
                )

            await until(all_of, "every broker is in sync", PATIENCE_S)

    async def beaten_since(self, moment_ms: int) -> bool:
        """Whether each node has seen a heartbeat of both that was written after this moment."""
        for node in self.nodes:
            _, found = await node.get("/api/skalds")
            if not found or any(item["beat_at_ms"] <= moment_ms for item in found["items"]):
                return False
        return True

    async def incarnations(self) -> list[str]:
        _, found = await self.nodes[0].get("/api/skalds")
        return sorted(item["incarnation"] for item in found["items"])

    async def applied(self, version: int) -> None:
        """Wait until every task runs with its parameters of this version, as both nodes say."""

        async def all_of() -> bool:
            for node in self.nodes:
                _, found = await node.get(f"/api/tasks?limit={WORKERS}&status=Running")
                if not found or [item["applied_version"] for item in found["items"]] != [version] * WORKERS:
                    return False
            return True

        try:
            await until(all_of, f"version {version} is applied everywhere", PATIENCE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; {await self._lagging(version)}") from None

    async def _lagging(self, version: int) -> dict[str, list[str]]:
        """For each node which tasks it shows otherwise."""
        shown = {}
        for node in self.nodes:
            _, found = await node.get(f"/api/tasks?limit={WORKERS}")
            shown[node.skald_id] = [
                f"{item['task_id']} {item['status']} {item['attachments_version']}/{item['applied_version']}"
                for item in (found or {"items": []})["items"]
                if item["applied_version"] != version
            ]
        return shown

    async def acts_since(self, moment_ns: int) -> None:
        """Wait until every worker has acted after this moment."""

        def all_of() -> bool:
            running = self.seen().running
            return len(running) == WORKERS and all(at_ns > moment_ns for _, at_ns in running.values())

        await until(all_of, "every worker acts", PATIENCE_S)


@contextmanager
def witness(directory: Path) -> Iterator[tuple[Path, Path]]:
    """(socket, report) of a witness that runs."""
    socket, report = directory / "witness.sock", directory / "witness.json"
    module = ["-m", "skalds_streams.testing.witness", "--socket", str(socket), "--report", str(report)]
    tied = [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), sys.executable, *module]
    process = subprocess.Popen(tied)
    try:
        yield socket, report
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    """50 tasks run on two nodes with the default lease."""
    with (
        DevCluster(tmp_path / "cluster", brokers=3, kafka_port=0, with_redis=False) as cluster,
        witness(tmp_path) as (socket, report),
    ):
        async with system_of(tmp_path, cluster.kafka_port, cluster.bootstrap) as system:
            await until(report.exists, "the witness listens")
            environment = {VARIABLE: str(socket), "SKALDS_WORKERS": "skalds_streams.testing.verifiable"}
            nodes = [system.node(name, **environment) for name in ("a", "b")]
            for node in nodes:
                node.start()
            for node in nodes:
                await node.ready()
            made = Three(cluster, system, nodes, report)
            await asyncio.gather(*(system.assign(task, "SteadyAsync", attachments={"fps": 1}) for task in TASKS))
            await made.applied(1)
            await made.acts_since(time.monotonic_ns())
            yield made
        for broker in cluster.brokers:  # to stop in order would take seconds, for data that nobody wants
            broker.kill()


async def test_the_loss_of_the_leader_of_the_heartbeats_restarts_no_worker(three: Three) -> None:
    system = three.system
    before = await three.incarnations()

    killed = await three.leader()
    killed_ms = time.time_ns() // 1_000_000
    killed.kill()
    await until(lambda: three.beaten_since(killed_ms), "heartbeats go on without the killed broker", PATIENCE_S)
    await asyncio.gather(*(system.update(task, {"fps": 2}, merge=True) for task in TASKS))
    await three.applied(2)
    await asyncio.to_thread(killed.start)
    await three.in_sync()

    frozen = await three.leader()
    frozen.pause()
    await until(lambda: psutil.Process(frozen.pid).status() == psutil.STATUS_STOPPED, "the broker stands still")
    frozen_ms = time.time_ns() // 1_000_000
    await until(lambda: three.beaten_since(frozen_ms), "heartbeats go on beside the frozen broker", PATIENCE_S)
    frozen.resume()
    await asyncio.gather(*(system.update(task, {"fps": 3}, merge=True) for task in TASKS))
    await three.applied(3)

    await three.acts_since(time.monotonic_ns())
    seen = three.seen()
    assert (seen.runs, seen.deaths, seen.overlaps) == (WORKERS, 0, 0)
    assert await three.incarnations() == before
