"""Who takes part: roles, two processes with one skald id, and nodes with other settings."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from tests.integration.system import Node, System, system_of, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

SHORT = {"SKALDS_LEASE_MS": "4000"}
"""A beat is 0.4 s; who is silent is dead after 13 of another, and a second process gives up after 20 of its own."""


async def group_members(system: System) -> set[str]:
    """Host part apart, who is in the consumer group: client and instance ids as the broker has them."""
    admin = AIOKafkaAdminClient(bootstrap_servers=system.bootstrap)
    await admin.start()
    try:
        (answer,) = await admin.describe_consumer_groups([f"{system.prefix}it"])
        (group,) = answer.groups
        return {str(member[0]) for member in group[5]}
    finally:
        await admin.close()


async def ended(node: Node, within_s: float = 30) -> int:
    assert node.process is not None
    return await asyncio.to_thread(node.process.wait, within_s)


def twin_of(system: System, skald_id: str, name: str, **environment: str) -> Node:
    """A second process with the id of another, as on another machine: with a data directory of its own."""
    node = system.node(name, **{**SHORT, "SKALD_ID": skald_id, **environment})
    assert node.environment["SKALDS_DATA_DIR"].endswith(name)
    return node


async def started(system: System, name: str = "a", **environment: str) -> Node:
    node = system.node(name, **{**SHORT, **environment})
    node.start()
    await node.ready()
    return node


async def states(node: Node) -> dict[str, str]:
    """Incarnation → state, as a node shows them."""
    _, document = await node.get("/api/skalds")
    return {item["incarnation"]: item["state"] for item in document["items"]} if document else {}


# -- roles


async def test_a_skald_is_in_no_group_and_a_coordinator_runs_no_workers(system: System) -> None:
    coordinator = await started(system, "c", SKALDS_ROLE="coordinator")
    skald = await started(system, "s", SKALDS_ROLE="skald")
    assert set((await skald.get("/readyz"))[1]) == {"ready", "view_caught_up", "lease_valid", "workers_loaded"}
    assert "workers_loaded" not in (await coordinator.get("/readyz"))[1]
    await system.assign("t")
    row = await system.status("t", "Running", skald)
    assert row["skald"] == "s"
    await system.assign("pinned", recipient="c")
    await system.status("pinned", "Assigning", waiting={"c": "runs no workers", "s": "recipient is c"})
    assert "zygote" not in " ".join(" ".join(item.cmdline()) for item in _family(coordinator))
    members = await group_members(system)
    assert len(members) == 1
    assert "skalds_view_caught_up" in str((await skald.get("/metrics"))[1])
    assert (await skald.get("/"))[0] == 200
    assert await skald.stop() == 0
    skald.start()
    await skald.ready()
    await system.status("t", "Running", coordinator, skald="s", epoch=2)
    assert await group_members(system) == members
    assert "rebalancing" not in coordinator.log(), "who comes and goes without a group disturbs none"
    assert await coordinator.stop() == 0
    await until(lambda: _warns(skald, "No coordinator is here"), "the page says that nobody decides")
    assert await skald.stop() == 0


def _family(node: Node) -> list[psutil.Process]:
    assert node.process is not None
    return psutil.Process(node.process.pid).children(recursive=True)


async def _warns(node: Node, text: str) -> bool:
    return text in str((await node.get("/"))[1])


# -- two processes with one id


async def test_a_second_process_gives_up_while_the_first_goes_on_undisturbed(system: System, tmp_path: Path) -> None:
    first = await started(system)
    trace = tmp_path / "trace"
    await system.assign("t", attachments={"fps": 7, "trace": str(trace)})
    await system.status("t", "Running", epoch=1)
    members = await group_members(system)
    (incarnation,) = await states(first)
    second = twin_of(system, "a", "a-twin")
    second.start()
    await until(lambda: _has_state(first, "waiting"), "the second waits")
    await system.assign("u")
    await system.status("u", "Running", epoch=1)
    assert await _warns(first, "A second process runs as skald a")
    assert await ended(second) == 1
    said = f"another process runs as skald 'a': incarnation {incarnation}, {first.url}, on machine "
    assert said in second.log()
    assert "SKALDS_TAKE_OVER=true" in second.log()
    assert await group_members(system) == members
    assert "journal.opened" not in second.log()
    await until(lambda: _is_alone(first, incarnation), "it has left")
    assert trace.read_text() == "start 1\n"
    assert await first.stop() == 0


async def _has_state(node: Node, state: str) -> bool:
    return state in (await states(node)).values()


async def _is_alone(node: Node, incarnation: str) -> bool:
    return await states(node) == {incarnation: "up"}


async def test_a_second_process_comes_in_when_the_first_was_killed(system: System, tmp_path: Path) -> None:
    first = await started(system)
    trace = tmp_path / "trace"
    await system.assign("t", attachments={"fps": 7, "trace": str(trace)})
    await system.status("t", "Running", epoch=1)
    second = twin_of(system, "a", "a-twin")
    second.start()
    await until(lambda: "skald.waits" in second.log(), "the second waits")
    first.kill()
    await second.ready()
    row = await system.status("t", "Running", second, epoch=2)
    assert (row["skald"], row["attempt"]) == ("a", 0)
    assert trace.read_text() == "start 1\nstart 2\n"
    assert await second.stop() == 0


async def test_one_that_waits_can_be_stopped(system: System) -> None:
    first = await started(system)
    second = twin_of(system, "a", "a-twin", SKALDS_LEASE_MS="4000")
    second.start()
    await until(lambda: "skald.waits" in second.log(), "the second waits")
    assert second.process is not None
    second.process.send_signal(signal.SIGTERM)
    assert await ended(second, 6) == 0
    assert await first.stop() == 0


async def test_a_process_that_takes_over_gets_in_when_the_other_has_ended_in_order(
    system: System, tmp_path: Path
) -> None:
    first = await started(system)
    trace = tmp_path / "trace"
    await system.assign("t", attachments={"fps": 7, "trace": str(trace)})
    await system.status("t", "Running", epoch=1)
    second = twin_of(system, "a", "a-twin", SKALDS_TAKE_OVER="true")
    second.start()
    assert await ended(first, 15) == 1
    assert "skald 'a' is taken over by another process: incarnation " in first.log()
    await second.ready()
    await system.status("t", "Running", second, epoch=2, skald="a")
    assert trace.read_text() == "start 1\nstart 2\n"
    assert await second.stop() == 0


async def test_one_that_was_frozen_while_another_took_its_place_ends_and_never_joins_again(
    system: System, tmp_path: Path
) -> None:
    first = await started(system)
    trace = tmp_path / "trace"
    await system.assign("t", attachments={"fps": 7, "trace": str(trace)})
    await system.status("t", "Running", epoch=1)
    second = twin_of(system, "a", "a-twin")
    second.start()
    await until(lambda: "skald.waits" in second.log(), "the second waits")
    assert first.process is not None
    frozen = [psutil.Process(first.process.pid), *_family(first)]
    for item in frozen:
        os.kill(item.pid, signal.SIGSTOP)
    try:
        await second.ready()
        await system.status("t", "Running", second, epoch=2, skald="a")
        members = await group_members(system)
    finally:
        for item in frozen:
            if item.is_running() and item.status() != psutil.STATUS_ZOMBIE:
                os.kill(item.pid, signal.SIGCONT)
    assert await ended(first, 20) == 1
    assert "another process runs as skald 'a'" in first.log()
    assert "group.not_joined_again" in first.log()
    assert await group_members(system) == members
    assert "rebalancing" not in second.log()
    row = await system.status("t", "Running", second, epoch=2)
    assert row["attempt"] == 0
    assert trace.read_text() == "start 1\nstart 2\n"
    assert await second.stop() == 0


# -- settings that all must share

STARTS_MOST = 6
"""One that refuses is there for no longer than a beat, 0.4 s: a busy machine may miss that."""


async def _is_shown(node: Node, text: str, other: Node) -> bool:
    """Whether the node's page says so at any time until the other has ended."""
    assert other.process is not None
    while other.process.poll() is None:  # it is another process
        if await _warns(node, text):
            return True
        await asyncio.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SKALDS_LEASE_MS": "8000"}, "SKALDS_LEASE_MS is 8000 here and 4000 there"),
        ({"SKALDS_CLUSTER": "north"}, "SKALDS_CLUSTER is north here and default there"),
    ],
)
async def test_a_node_with_other_settings_refuses(system: System, environment: dict[str, str], said: str) -> None:
    first = await started(system)
    second = system.node("b", **{**SHORT, **environment})
    for _ in range(STARTS_MOST):
        second.start()
        was_shown = await _is_shown(first, "has other settings and takes no part", second)
        assert await ended(second) == 1
        if was_shown:
            break
    assert was_shown, "the page of the first says so as long as it is there, which is a beat at most"
    assert "skald 'a' (incarnation " in second.log()
    assert f"has other settings that all nodes must share: {said}" in second.log()
    await system.assign("t")
    row = await system.status("t", "Running")
    assert row["skald"] == "a"
    assert await first.stop() == 0


async def test_settings_can_be_changed_when_all_nodes_are_gone(system: System) -> None:
    first = await started(system)
    await system.assign("t")
    await system.status("t", "Running")
    first.kill()
    second = system.node("b", SKALDS_LEASE_MS="2000")
    second.start()
    await second.ready()
    await system.status("t", "Running", second, skald="b")
    assert await second.stop() == 0


@pytest.fixture
async def other(system: System, tmp_path: Path) -> AsyncIterator[System]:
    """Another system on the same Kafka, with another prefix."""
    async with system_of(tmp_path / "other", system.kafka_port) as made:
        yield made


async def test_two_clusters_with_different_prefixes_do_not_meet(system: System, other: System, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir(exist_ok=True)
    first = await started(system)
    second = other.node("a", SKALDS_LEASE_MS="8000", SKALDS_CLUSTER="other")
    second.start()
    await second.ready()
    await system.assign("t")
    await other.assign("t", "OneShot")
    await system.status("t", "Running", first)
    await other.status("t", "Finished", second)
    assert len(await states(first)) == len(await states(second)) == 1
    for made, node in ((system, first), (other, second)):
        assert set(await made.rows()) == {"t"}
        assert len(await group_members(made)) == 1
        assert await node.stop() == 0
