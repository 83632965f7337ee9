"""The log of a task, asked for at any node and by the command: what all of a worker printed, live over a crash."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.integration.system import Node, System, until
from tests.integration.test_cli_nodes import call, start

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


class Shown:
    """What a command that goes on has written so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out = ""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(65536):
            self.out += data.decode()

    async def interrupt(self) -> tuple[int, str]:
        """Ctrl-C: (exit code, stderr)."""
        self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            await self._reading
            assert self.process.stderr is not None
            err = (await self.process.stderr.read()).decode()
            return await self.process.wait(), err


async def lines_at(node: Node, task_id: str = "t", status: int = 200) -> Any:
    code, doc = await node.get(f"/api/tasks/{task_id}/logs?lines=50")
    assert code == status, doc
    return doc


async def test_the_log_of_a_task_is_had_from_any_node_and_is_followed_over_a_crash(system: System) -> None:
    a, b = system.node("a"), system.node("b")
    for node in (a, b):
        node.start()
    for node in (a, b):
        await node.ready()
    assert "has not run yet" in str(await lines_at_new_task(system, a))
    await system.assign("t", "Talk", recipient="b", attachments={"password": "canary-4711"})
    await system.status("t", "Running", a, epoch=1)

    async def talks() -> Any:
        doc = await lines_at(a)
        return doc if "t@1 a child says ***" in str(doc["lines"]) else None

    doc = await until(talks, "its lines are there, asked for at the node that has them not")
    assert (doc["task_id"], doc["skald_id"]) == ("t", "b")
    shown = Shown(await start(system, "logs", "-f", "-n", "20", "t", "--node", a.url))
    await until(lambda: "a child says ***" in shown.out, "the command shows what there is")
    said, _ = await call(system, "logs", "t")
    assert "t@1 a child says ***" in said

    pid = int(re.findall(r" t@1 pid (\d+)\n", said)[0])
    os.kill(pid, signal.SIGSEGV)
    row = await system.status("t", "Running", a, epoch=2)
    assert "Fatal Python error: Segmentation fault" in row["error"]["output"]
    assert "a child says ***" in row["error"]["output"]
    described, _ = await call(system, "describe", "t")
    assert "what it printed last\n" in described
    assert "    Fatal Python error: Segmentation fault\n" in described
    await until(lambda: "t@2 a child says ***" in shown.out, "the command goes on over the crash")
    code, complaint = await shown.interrupt()
    assert (code, "Traceback" in complaint) == (130, False)
    assert [line.split(" ", 2)[1] for line in shown.out.splitlines()] == sorted(
        line.split(" ", 2)[1] for line in shown.out.splitlines()
    )

    code, page = await b.get("/tasks/t")
    assert (code, "t@2 a child says ***" in page) == (200, True)
    code, page = await a.get("/tasks/t")
    assert (code, f'href="{b.url}/tasks/t#log"' in page) == (200, True)
    files = list((Path(b.environment["SKALDS_DATA_DIR"]) / "logs" / "b").iterdir())
    assert [file.name for file in files] == ["t.log"]
    for text in (files[0].read_text(), said, described, shown.out, orjson.dumps(row).decode()):
        assert "canary-4711" not in text

    await b.stop()

    async def gone() -> bool:
        code, doc = await a.get("/api/tasks/t/logs")
        return code == 410 and "b, which is gone" in doc["error"]

    await until(gone, "a says that b is gone")
    _, complaint = await call(system, "logs", "t", code=1)
    assert "t" in complaint
    assert "b, which is gone" in complaint


async def lines_at_new_task(system: System, node: Node) -> Any:
    await system.assign("new", "Nobody")
    await system.status("new", "Assigning", node)
    return await lines_at(node, "new", 404)
