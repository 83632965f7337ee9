"""Replay against a real broker: what the live journals wrote is rebuilt and verified; tampering is found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING

import orjson
import pytest

from skalds_streams.coordinator.batch import Output
from skalds_streams.core.partition import partition_of
from skalds_streams.model.documents import encode_row
from skalds_streams.replay.reader import open_reader
from tests.integration.test_cli import PARTITIONS, System, running, wait_for

if TYPE_CHECKING:
    from skalds_streams.devcluster.cluster import DevCluster

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


@pytest.fixture
async def lived(cluster: DevCluster) -> AsyncIterator[System]:
    """A system in which a few tasks have had a life."""
    async with running(cluster) as system:
        ids = [f"cam-{number}" for number in range(6)]
        tasks = [
            {"id": name, "className": "Cam", "source": "test", "attachments": {"fps": 30, "password": "hunter2"}}
            for name in ids
        ]
        event = {"taskIds": ids, "tasks": tasks, "reason": "morning"}
        await system.write(system.topics.assign, ids[0], orjson.dumps(event))
        rows = system.view.rows
        await wait_for(lambda: all(name in rows and rows[name].status.value == "Running" for name in ids))
        update = {"taskIds": ["cam-1"], "attachments": {"fps": 10}, "merge": True}
        await system.write(system.topics.update, "cam-1", orjson.dumps(update))
        await wait_for(lambda: rows["cam-1"].applied_version == 2)
        await system.write(system.topics.cancel, "cam-2", orjson.dumps({"taskIds": ["cam-2"], "reason": "night"}))
        await wait_for(lambda: rows["cam-2"].status.value == "Cancelled")
        await system.write(system.topics.history, "cam-3", b'{"attachments":{"fps":1}}')
        yield system


async def test_replay_rebuilds_the_live_table_and_leaves_no_trace(lived: System) -> None:
    before = await lived.offsets()
    said = await lived.call("replay", "--from-start")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[-1] == "verified: 6 tasks, 16 decisions, 0 differ"
    assert "status: Assigning → Running" in said.out
    assert "attachments.fps: 30 → 10" in said.out
    assert "“night”" in said.out
    assert "1 records on the history topic are not ours" in said.out
    assert "hunter2" not in said.out
    assert await lived.offsets() == before


async def test_replay_of_one_task(lived: System) -> None:
    said = await lived.call("replay", "--task", "cam-2", "-o", "json")
    assert (said.code, said.err) == (0, "")
    assert (said.doc["verified"], said.doc["tasks"], said.doc["decisions"]) == (True, 1, 4)
    assert [step["event"]["kind"] for step in said.doc["steps"]] == ["Assign", "Running", "Cancel", "Stopped"]
    said = await lived.call("replay", "--task", "nobody")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("Error: there is no task 'nobody'")


async def test_quiet_says_the_verdict_only(lived: System) -> None:
    said = await lived.call("replay", "--quiet")
    assert "Assigning" not in said.out
    assert said.out.splitlines()[-1] == "verified: 6 tasks, 16 decisions, 0 differ"


async def test_replay_while_the_cluster_goes_on(lived: System) -> None:
    """The table is read while rows change: what is newer than the one is older than the other, and nothing differs."""

    async def go_on() -> None:
        for fps in range(1, 1_000):
            update = {"taskIds": ["cam-4"], "attachments": {"fps": fps}, "merge": True}
            await lived.write(lived.topics.update, "cam-4", orjson.dumps(update))

    task = asyncio.ensure_future(go_on())
    try:
        for _ in range(3):
            said = await lived.call("replay", "--quiet")
            assert (said.code, said.err) == (0, "")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_tampered_row_is_found(lived: System) -> None:
    row = lived.view.rows["cam-5"]
    number = partition_of("cam-5", PARTITIONS)
    journal = lived.journals.get(number)
    assert journal is not None
    tampered = replace(row, attempt=3, last_skald="elsewhere")
    await journal._log.write([Output(lived.topics.changelog, b"cam-5", encode_row(tampered))])
    said = await lived.call("replay", "--quiet")
    assert said.code == 1
    assert "cam-5, live table:" in said.out
    assert "    differs: attempt: rebuilt 0, recorded 3" in said.out
    assert "    differs: last_skald: rebuilt s1, recorded elsewhere" in said.out
    assert said.err == "Error: NOT verified: 6 tasks, 16 decisions, 1 differ\n"


async def test_inputs_that_are_gone_are_said(lived: System) -> None:
    """As after retention: the assigns are deleted from the topic, the tasks start from their first history record."""
    from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
    from aiokafka.structs import TopicPartition

    admin = AIOKafkaAdminClient(**lived.client)
    await admin.start()
    try:
        ends = (await lived.offsets())[lived.topics.assign]
        gone = {TopicPartition(lived.topics.assign, n): RecordsToDelete(before_offset=end) for n, end in ends.items()}
        await admin.delete_records(gone)
    finally:
        await admin.close()
    async with open_reader(lived.client) as reader:
        begins = await reader.begins([(lived.topics.assign, number) for number in ends])
    assert {number: begin for (_, number), begin in begins.items()} == ends
    said = await lived.call("replay", "--from-start")
    assert (said.code, said.err) == (0, "")
    assert "taken as recorded: its cause" in said.out
    assert "is no longer kept" in said.out
    assert said.out.splitlines()[-1].startswith("verified: 6 tasks, ")
