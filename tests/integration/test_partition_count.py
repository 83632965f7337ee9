"""Somebody adds partitions to a topic of a system that runs, and starts nodes against such topics."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewPartitions

from tests.integration.system import PARTITIONS, Node, System, admin_of, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

DETECTED_WITHIN_S = 10.0


async def grow(system: System, *topics: str, to: int = PARTITIONS + 1) -> None:
    async with admin_of(system) as admin:
        await admin.create_partitions({topic: NewPartitions(to) for topic in topics})


async def ended(node: Node, within_s: float) -> int:
    assert node.process is not None
    return await asyncio.to_thread(node.process.wait, within_s)


async def halted(node: Node) -> None:
    await until(lambda: "journals.halted" in node.log(), f"{node.skald_id} decides nothing more", DETECTED_WITHIN_S)


async def test_every_node_of_a_system_whose_topic_is_given_a_partition_stops_deciding_and_ends(system: System) -> None:
    nodes = [system.node("a"), system.node("b")]
    for node in nodes:
        node.start()
    for node in nodes:
        await node.ready()
    await system.assign("t")
    await system.status("t", "Running")
    await grow(system, system.topics.assign)
    for node in nodes:
        await halted(node)
    before = await system.records(system.topics.history)
    async with AIOKafkaProducer(bootstrap_servers=system.bootstrap) as publisher:  # one that knows the new partition
        for number in range(PARTITIONS + 1):
            await publisher.send_and_wait(system.topics.assign, b'{"taskIds":["late"]}', partition=number)
    for node in nodes:
        assert await ended(node, 20) == 1
        said = (
            f"skalds_streams: topic {system.topics.assign} has 7 partitions now, it must have 6: their number was"
            " changed while the system runs, so this node decides nothing any more and ends. Kafka can't take"
        )
        assert said in node.log()
    assert len(await system.records(system.topics.history)) == len(before), "what comes later is decided by nobody"
    system.nodes.clear()  # they have ended, and the lint of the logs would miss what became of the late ones


async def test_a_node_refuses_to_start_against_topics_that_were_given_partitions(system: System) -> None:
    node = system.node()
    node.start()
    await node.ready()
    await system.assign("t")
    await system.status("t", "Running")
    assert await node.stop() == 0
    await grow(system, system.topics.report)
    node.start()
    assert await ended(node, 40) == 1
    assert f"topic {system.topics.report} has 7 partitions, it must have 6: their number was changed." in node.log()

    # All alike, and the setting with them: what was written before is still spread over six.
    names = [spec.name for spec in system.topics.specs() if spec.partitions == PARTITIONS]
    await grow(system, *(name for name in names if name != system.topics.report))
    node.start()
    assert await ended(node, 40) == 1
    assert (
        f"topic {system.topics.assign} has 7 partitions, it must have 6, as every topic of this system." in node.log()
    )
    other = system.node("b", KAFKA_TOPIC_PARTITIONS="7")
    other.start()
    assert await ended(other, 40) == 1
    assert "was written when there were 6 partitions, and now there are to be 7 (" not in other.log()
    assert (
        "was written when there were 6 partitions, and now there are to be 7: tasks would be looked for" in other.log()
    )
