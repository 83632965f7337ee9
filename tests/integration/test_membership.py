"""Nodes that die, freeze, lose the broker, leave and are drained: what becomes of their tasks."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import NewTopic
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from skalds_streams.devcluster import DevCluster
from skalds_streams.devcluster.ports import free_port
from skalds_streams.testing.chaos import processes
from skalds_streams.testing.chaos.cluster import listeners
from skalds_streams.testing.chaos.link import Link
from tests.integration.system import Node, System, admin_of, system_of, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

SHORT = {"SKALDS_LEASE_MS": "4000"}
"""All else follows from it: a beat is 0.4 s, a silent node is dead after 13 of another."""


async def two_nodes(system: System, **environment: str) -> tuple[Node, Node]:
    first, second = system.node("a", **SHORT, **environment), system.node("b", **SHORT, **environment)
    first.start()
    second.start()
    await first.ready()
    await second.ready()
    return first, second


async def running_at(system: System, skald: str, tmp_path: Path) -> tuple[str, Path]:
    """A task that this skald has although both could run it. Returns its id, and the file that its runs write to."""
    for number in range(40):
        trace = tmp_path / f"trace{number}"
        await system.assign(f"t{number}", attachments={"fps": 7, "trace": str(trace)})
        row = await system.status(f"t{number}", "Running")
        if row["skald"] == skald:
            return f"t{number}", trace
    raise AssertionError(f"{skald} got none of 40 tasks")


def family(node: Node) -> list[psutil.Process]:
    """The node's process, its zygote and its hosts."""
    assert node.process is not None
    process = psutil.Process(node.process.pid)
    return [process, *process.children(recursive=True)]


@contextmanager
def standing_still(node: Node) -> Iterator[None]:
    """Every process of the node is stopped meanwhile."""
    frozen = family(node)
    for item in frozen:
        item.suspend()
    try:
        yield
    finally:
        for item in frozen:
            with suppress(psutil.NoSuchProcess):  # one that was woken has reaped it
                item.resume()


def lines(trace: Path) -> list[str]:
    return trace.read_text().splitlines()


async def wrote(trace: Path, expected: list[str]) -> None:
    """A run counts as running a moment before its main says so."""
    await until(lambda: lines(trace) == expected, f"{expected} in {trace}")


async def test_the_tasks_of_a_node_that_is_gone_for_good_run_elsewhere(system: System, tmp_path: Path) -> None:
    first, second = await two_nodes(system)
    task_id, trace = await running_at(system, "a", tmp_path)
    first.kill()
    row = await system.status(task_id, "Running", second, skald="b", epoch=2)
    assert row["attempt"] == 0, "the loss of a node is no crash of the task"
    await wrote(trace, ["start 1", "start 2"])


async def test_a_node_that_is_frozen_for_less_than_its_lease_goes_on(system: System, tmp_path: Path) -> None:
    first, second = await two_nodes(system)
    task_id, trace = await running_at(system, "a", tmp_path)
    with standing_still(first):
        await asyncio.sleep(1)  # a quarter of the lease: this is the fault, nothing is waited for
    await system.update(task_id, {"fps": 9, "trace": str(trace)})
    await wrote(trace, ["start 1", "fps 9"])
    row = await system.status(task_id, "Running", second)
    assert (row["skald"], row["epoch"]) == ("a", 1)
    assert "lease.lapsed" not in first.log()


async def test_a_node_that_is_frozen_beyond_its_lease_wakes_up_without_workers(system: System, tmp_path: Path) -> None:
    first, second = await two_nodes(system)
    task_id, trace = await running_at(system, "a", tmp_path)
    hosts = [item for item in family(first)[1:] if item.num_threads() > 1]
    assert hosts
    with standing_still(first):
        await system.status(task_id, "Running", second, skald="b", epoch=2)
        assert all(not item.is_running() or item.status() == psutil.STATUS_ZOMBIE for item in hosts), (
            "the kernel has ended what was stopped"
        )
    await until(lambda: "lease.lapsed" in first.log(), "it notices")
    await first.ready()
    await system.cancel(task_id)
    await system.status(task_id, "Cancelled")
    await wrote(trace, ["start 1", "start 2"])
    await system.assign("again", recipient="a")
    await system.status("again", "Running", skald="a")


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[tuple[System, DevCluster]]:
    """A system with a broker that no other test uses."""
    with DevCluster(tmp_path / "cluster", kafka_port=0, with_redis=False) as cluster:
        async with system_of(tmp_path, cluster.kafka_port) as system:
            yield system, cluster


async def test_without_the_broker_workers_end_with_their_lease_and_run_again_when_it_is_back(
    alone: tuple[System, DevCluster], tmp_path: Path
) -> None:
    system, cluster = alone
    node = system.node(**SHORT)
    node.start()
    await node.ready()
    traces = {name: tmp_path / name for name in ("t", "kept")}
    await system.assign("t", attachments={"fps": 7, "trace": str(traces["t"])})
    await system.assign("kept", "Keeper", attachments={"fps": 7, "trace": str(traces["kept"])})
    await system.status("t", "Running")
    await system.status("kept", "Running")
    cluster.kafka.pause()
    try:
        await until(lambda: "skald.new_incarnation" in node.log(), "the lease has lapsed")
    finally:
        cluster.kafka.resume()
    row = await system.status("t", "Running", epoch=2)
    assert (row["skald"], row["attempt"]) == ("a", 0)
    await system.status("kept", "Running", epoch=2)
    await wrote(traces["t"], ["start 1", "start 2"])
    assert lines(traces["kept"]) == ["start 1"], "it ran on, and only its epoch is new"
    await node.ready()
    assert await node.stop() == 0


async def test_a_slow_link_costs_nothing_and_one_that_is_cut_its_tasks_run_elsewhere(tmp_path: Path) -> None:
    link = Link(free_port(), free_port())
    port, controller = free_port(), free_port()
    settings = listeners(port, controller, [(link.broker_port, link)])
    with DevCluster(tmp_path / "cluster", kafka_port=port, with_redis=False, kafka_settings=settings):
        async with link, system_of(tmp_path, port) as system:
            first, second = system.node("a", **SHORT, KAFKA_PORT=str(link.port)), system.node("b", **SHORT)
            first.start()
            second.start()
            await first.ready()
            await second.ready()
            task_id, trace = await running_at(system, "a", tmp_path)
            link.delay(0.2)
            await system.update(task_id, {"fps": 9, "trace": str(trace)})
            await wrote(trace, ["start 1", "fps 9"])
            assert "lease.lapsed" not in first.log()
            link.drop()
            await system.status(task_id, "Running", second, skald="b", epoch=2)
            await wrote(trace, ["start 1", "fps 9", "start 2"])
            assert not [item for item in family(first) if item.name().startswith("skald:")], "its own run has ended"
            link.heal()
            await until(lambda: "skald.new_incarnation" in first.log(), "it is back")
            await first.ready()


def has_zygote(node: Node) -> bool:
    with suppress(psutil.NoSuchProcess):
        return any("skalds_streams.worker.zygote" in item.cmdline() for item in family(node)[1:])
    return False


async def test_a_node_can_be_stopped_while_its_workers_are_imported(system: System) -> None:
    node = system.node(SKALDS_WORKERS="tests.integration.slow_workers")
    node.start()
    await until(lambda: has_zygote(node), "it imports them", 40)
    assert await node.stop() == 0


class SilentLeader(RoundRobinPartitionAssignor):
    """Leads the group of a system while it is alone in it, then gives nobody an answer."""

    name = "faust"
    asked, may_answer = threading.Event(), threading.Event()

    @classmethod
    def assign(cls, cluster: Any, members: Any) -> Any:
        if len(members) > 1:
            cls.asked.set()
            cls.may_answer.wait()
        return super().assign(cluster, members)


async def lead(system: System, topic: str, leads: threading.Event) -> None:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=system.bootstrap,
        group_id=f"{system.prefix}it",
        partition_assignment_strategy=[SilentLeader],
        session_timeout_ms=60_000,
    )
    async with consumer:
        while not consumer.assignment():  # noqa: ASYNC110  # a consumer without a listener has no event
            await asyncio.sleep(0.01)
        leads.set()
        await asyncio.to_thread(SilentLeader.may_answer.wait)


async def test_a_node_can_be_stopped_while_the_group_waits_for_a_member_that_says_nothing(system: System) -> None:
    node, topic, leads = system.node(), f"{system.prefix}led", threading.Event()
    async with admin_of(system) as admin:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    leading = asyncio.create_task(asyncio.to_thread(asyncio.run, lead(system, topic, leads)))
    try:
        await until(leads.is_set, "the group has a leader")
        node.start()
        await until(SilentLeader.asked.is_set, "the node has joined", 40)
        assert await node.stop() == 0
    finally:
        SilentLeader.may_answer.set()
        await leading
    assert "stop.took_too_long" not in node.log()


async def test_after_a_restart_in_order_every_task_is_where_it_was(system: System, tmp_path: Path) -> None:
    first, second = await two_nodes(system)
    task_id, _ = await running_at(system, "a", tmp_path)
    service = first.process
    assert service is not None
    processes.send([item.pid for item in processes.family(service.pid)], signal.SIGTERM)  # all of it, as systemd does
    await until(lambda: service.poll() is not None, "it has ended")
    assert service.returncode == 0
    row = await system.status(task_id, "Assigning", second, holder=None)
    assert row["waiting"] == {"a": "is expected back"}
    first.start()
    row = await system.status(task_id, "Running", second, skald="a", epoch=2)
    assert row["attempt"] == 0, "its worker was stopped with its node"


async def test_a_drained_node_hands_its_tasks_over_and_takes_no_more(system: System, tmp_path: Path) -> None:
    first, second = await two_nodes(system)
    task_id, trace = await running_at(system, "a", tmp_path)
    await system.assign("pinned", recipient="a")
    await system.status("pinned", "Running", skald="a")
    await _ask(system, "drain", "a")
    await system.status(task_id, "Running", second, skald="b", epoch=2)
    await wrote(trace, ["start 1", "start 2"])
    pinned = await system.status("pinned", "Running")
    assert (pinned["skald"], pinned["epoch"]) == ("a", 1), "nobody else may run it: it runs on"
    await until(lambda: _says(second, "a", "draining"), "the page says so")
    await _lapse(first, second)
    await system.status("pinned", "Assigning", second, epoch=1, waiting={"a": "draining", "b": "recipient is a"})
    await _ask(system, "undrain", "a")
    await until(lambda: _says(second, "a", "up"), "it is as before")
    row = await system.status("pinned", "Running", second, skald="a", epoch=2)
    assert row["attempt"] == 0


async def _lapse(node: Node, other: Node) -> None:
    """The node stands still until the other has counted it dead."""
    assert node.process is not None
    os.kill(node.process.pid, signal.SIGSTOP)
    try:
        await until(lambda: _is_gone(other, node.skald_id), "it is counted dead", 60)
    finally:
        os.kill(node.process.pid, signal.SIGCONT)
    await until(lambda: "skald.new_incarnation" in node.log(), "it goes on as another incarnation", 60)


async def _is_gone(node: Node, skald_id: str) -> bool:
    _, document = await node.get("/api/skalds")
    return skald_id not in [item["skald_id"] for item in document["items"]]


async def _ask(system: System, kind: str, skald_id: str) -> None:
    await system.send(system.topics.heartbeat, {"v": 1, "kind": kind, "skald_id": skald_id}, key=skald_id)


async def _says(node: Node, skald_id: str, state: str) -> bool:
    _, document = await node.get("/api/skalds")
    return any((item["skald_id"], item["state"]) == (skald_id, state) for item in document["items"])
