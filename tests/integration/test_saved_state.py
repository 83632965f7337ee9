"""What a run saves the next one finds: after a crash, on another node, whatever a run that is over still writes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from skalds_streams.core.partition import partition_of
from skalds_streams.model.saved import StateKey, StateRecord
from skalds_streams.proxy.states import StateSender
from tests.integration.system import PARTITIONS, ROOT, Node, System, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

CODE = "from skalds_streams.cli import main; main(prog_name='skalds-streams')"


class Trace:
    """What the runs of a `Saver` have written down."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def runs(self) -> list[tuple[int, int, Any]]:
        """(epoch, pid, what it found) of each run."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [(int(epoch), int(pid), orjson.loads(found)) for epoch, pid, found in (s.split(" ", 2) for s in lines)]

    async def run(self, number: int) -> Any:
        """What the so-manieth run found, from 1."""
        await until(lambda: len(self.runs) >= number, f"run {number} has begun")
        return self.runs[number - 1][2]

    def kill(self) -> None:
        """kill -9 of the process of the last run."""
        os.kill(self.runs[-1][1], signal.SIGKILL)


async def cli(node: Node, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CODE, *arguments), cwd=ROOT, env=node.environment, stdout=-1, stderr=-1
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def written(system: System, key: str, state: Any) -> None:
    """Wait until a key of task.state has this value."""

    async def there() -> bool:
        found = {record.key: record.value for record in await system.records(system.topics.state)}
        value = found.get(key.encode())
        return bool(value is not None and orjson.loads(value) == state)

    await until(there, f"{key} is {state}")


async def test_after_a_crash_the_next_run_finds_it_and_a_late_record_of_a_former_run_does_not_win(
    system: System, tmp_path: Path
) -> None:
    node = system.node(SKALDS_TERMINAL_RETENTION_MS="1000")
    node.start()
    await node.ready()
    trace = Trace(tmp_path / "trace")
    await system.assign("t", "Saver", attachments={"trace": str(trace.path)})
    assert await trace.run(1) is None
    await written(system, "t@1", {"runs": 1})
    trace.kill()
    assert await trace.run(2) == {"runs": 1}
    await written(system, "t@2", {"runs": 2})
    sender = StateSender(system.topics, {"bootstrap_servers": system.bootstrap})
    late = StateRecord.of(StateKey("t", 1), b'{"runs": 77}', seq=99, skald_id="cut off")
    assert await sender.send([late]) == [None]
    await sender.stop()
    trace.kill()
    assert await trace.run(3) == {"runs": 2}
    code, _, err = await cli(node, "state", "set", "t", "{}")
    assert (code, "runs on a, and would save over it. Pause it first" in err) == (1, True)
    await system.cancel("t")
    await system.status("t", "Cancelled")
    await system.assign("t", "Saver", attachments={"trace": str(trace.path)})
    assert await trace.run(4) is None, "it was given up, and begins anew"
    await system.cancel("t")

    async def deleted() -> bool:
        records = {record.key: record.value for record in await system.records(system.topics.state)}
        return b"t@4" in records and not any(records.values())

    await until(deleted, "what was saved is deleted with the row")
    assert await node.stop() == 0


async def test_another_node_finds_it_and_a_person_can_change_it(system: System, tmp_path: Path) -> None:
    first, second = system.node("a"), system.node("b")
    for node in (first, second):
        node.start()
    for node in (first, second):
        await node.ready()
    trace = Trace(tmp_path / "trace")
    await system.assign("t", "Saver", attachments={"trace": str(trace.path)})
    row = await system.status("t", "Running")
    await system.assign("t", None, action="move")
    moved = await system.status("t", "Running", epoch=2)
    assert moved["holder"]["skald_id"] != row["holder"]["skald_id"]
    assert await trace.run(2) == {"runs": 1, "released": True}, "also what the release handler saved"

    assert (await cli(first, "assign", "t", "--action", "pause"))[0] == 0
    await written(system, "t@2", {"runs": 2, "released": True})
    code, out, err = await cli(first, "state", "show", "t", "-o", "json")
    doc = orjson.loads(out)
    assert (code, err, doc["state"], doc["epoch"]) == (0, "", {"runs": 2, "released": True}, 2)
    assert doc["next_run_finds_it"]
    assert (await cli(first, "state", "set", "t", '{"runs": 40}'))[0] == 0
    code, out, err = await cli(first, "state", "show", "t")
    assert (code, orjson.loads(out), "set by hand after the run of epoch 2" in err) == (0, {"runs": 40}, True)
    await system.assign("t", None, action="resume")
    assert await trace.run(3) == {"runs": 40}

    assert (await cli(first, "assign", "t", "--action", "pause"))[0] == 0
    assert (await cli(first, "state", "reset", "t", "--yes"))[0] == 0
    left = [record for record in await system.records(system.topics.state) if record.value not in (None, b"null")]
    partition = partition_of("t", PARTITIONS)
    tombstones = {record.key for record in await system.records(system.topics.state) if record.value is None}
    assert {record.key for record in left} <= tombstones, "what was saved is deleted"
    assert all(record.partition == partition for record in left)
    assert orjson.loads((await cli(first, "state", "show", "t", "-o", "json"))[1])["state"] is None
    await system.assign("t", None, action="resume")
    assert await trace.run(4) is None
    for node in (first, second):
        assert await node.stop() == 0
