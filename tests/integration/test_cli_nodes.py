"""Maintenance of nodes by the commands: plan, drain, undrain, move, rebalance, on two real nodes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.integration.system import Node, System

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

SHORT = {"SKALDS_LEASE_MS": "4000"}
CODE = "from skalds_streams.cli import main; main(prog_name='skalds-streams')"


async def start(system: System, *args: str) -> asyncio.subprocess.Process:
    """Start `skalds-streams` with these arguments."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "SKALDS_"))}
    environment |= {"SKALDS_TOPIC_PREFIX": system.prefix, "SKALDS_APP": "it", **SHORT}
    command = (sys.executable, "-W", "error", "-c", CODE, "--kafka", system.bootstrap, *args)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *command, stdout=pipe, stderr=pipe, cwd=Path(__file__).parents[2], env=environment
    )


async def call(system: System, *args: str, code: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of a command that must end with this code."""
    process = await start(system, *args)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == code, f"{args}: {process.returncode}\n{out.decode()}\n{err.decode()}"
    return out.decode(), err.decode()


async def answer(system: System, *args: str, code: int = 0) -> dict[str, Any]:
    """Its JSON object."""
    out, _ = await call(system, *args, "-o", "json", code=code)
    loaded: dict[str, Any] = orjson.loads(out)
    return loaded


async def node(system: System, skald_id: str, **environment: str) -> Node:
    started = system.node(skald_id, **SHORT, **environment)
    started.start()
    await started.ready()
    return started


async def assigned(system: System, number: int, trace: Path | None = None) -> list[str]:
    """So many tasks that run. trace: folder of the files that they write to."""
    ids = [f"t{at:02}" for at in range(number)]
    for task_id in ids:
        attachments = {"trace": str(trace / task_id)} if trace is not None else {}
        await system.assign(task_id, attachments={"fps": 7, **attachments})
    for task_id in ids:
        await system.status(task_id, "Running")
    return ids


async def where(system: System) -> dict[str, tuple[str, str | None]]:
    """Task → (status, skald)."""
    doc = await answer(system, "ps")
    return {task["task_id"]: (task["status"], task["skald"]) for task in doc["tasks"]}


async def test_a_node_is_drained_and_comes_back(system: System) -> None:
    await node(system, "a")
    ids = await assigned(system, 4)
    await system.assign("pinned", recipient="a")
    await system.status("pinned", "Running")
    _, err = await call(system, "drain", "x", code=1)
    assert err == "Error: there is no skald 'x'; there is a\n"
    plan = (await answer(system, "plan", "--lose", "a"))["plan"]
    assert {(step["task_id"], step["to"]) for step in plan} == {(task_id, None) for task_id in [*ids, "pinned"]}
    assert plan[0]["reasons"] == {"a": "recipient is not here"}
    assert plan[1]["reasons"] == {"*": "no skald is here"}
    await node(system, "b")

    out, _ = await call(system, "drain", "a", "--plan")
    lines = out.splitlines()
    assert lines[0].split() == ["TASK", "CLASS", "FROM", "TO", "WHY", "NOT"]
    assert lines[1].split()[:6] == ["pinned", "Idle", "a", "would", "stay", "a:"]
    assert lines[2].split() == ["t00", "Idle", "a", "b"]
    assert lines[-1] == "4 tasks would move, 1 would stay"
    assert {skald for _, skald in (await where(system)).values()} == {"a"}, "nothing has changed"

    out, err = await call(system, "drain", "a", code=1)
    assert sorted(out.splitlines()[:-1]) == [f"{task_id}: runs on b (epoch 2)" for task_id in ids]
    assert out.splitlines()[-1] == "a takes nothing new; 4 tasks moved, 1 task can't move and run on there"
    assert err == "pinned: stays on a: a: is pinned to it\n"
    assert await where(system) == {**dict.fromkeys(ids, ("Running", "b")), "pinned": ("Running", "a")}
    out, _ = await call(system, "ps")
    assert "a draining" in out
    assert "a (draining)" in out
    out, _ = await call(system, "describe", "pinned")
    assert "held by       a (draining)" in out

    out, _ = await call(system, "undrain", "a")
    assert out.splitlines() == [
        "a takes tasks again; no task waits for it, so nothing moves; `skalds-streams rebalance` evens the load out"
    ]
    assert (await call(system, "undrain", "a"))[0] == "a is up, not draining\n"


async def test_tasks_move_and_the_load_is_evened_out(system: System) -> None:
    await node(system, "a", SKALDS_CAPACITY="8")
    ids = await assigned(system, 6)
    doc = await answer(system, "move", "t00", code=1)
    assert doc == {"ok": False, "tasks": [], "stay": [_stay("t00", {"*": "no other skald is here"})]}
    await node(system, "b", SKALDS_CAPACITY="8")
    _, err = await call(system, "move", "t00", "nobody", code=1)
    assert err == f"Error: there is no task 'nobody'; there are {', '.join(ids)}\n"

    assert (await call(system, "move", "t05", "--to", "b"))[0] == "t05: runs on b (epoch 2)\n"
    assert (await call(system, "move", "t05"))[0] == "t05: runs on a (epoch 3)\n", "anywhere but where it was"
    row = await system.status("t05", "Running")
    assert (row["recipient"], row["move_to"], row["moved_from"]) == (None, None, None)
    _, err = await call(system, "move", "t05", "--to", "a", code=1)
    assert err == "Error: t05: stays on a: a has it already\n"

    plan = (await answer(system, "rebalance", "--plan"))["plan"]
    assert [(step["task_id"], step["from"], step["to"]) for step in plan] == [(name, "a", "b") for name in ids[:3]]
    out, _ = await call(system, "rebalance")
    assert sorted(out.splitlines()[:3]) == [f"{task_id}: runs on b (epoch 2)" for task_id in ids[:3]]
    assert out.splitlines()[-1] == "load before: a 6/8, b 0/8; 75% apart"
    found = await where(system)
    assert [found[task_id][1] for task_id in ids] == ["b", "b", "b", "a", "a", "a"]
    out, _ = await call(system, "rebalance")
    assert out.splitlines()[0] == "nothing moves: no move would even the load out"


async def test_ctrl_c_leaves_a_drain_as_it_is(system: System) -> None:
    await node(system, "a")
    await system.assign("slow", "Slow", attachments={})
    await system.status("slow", "Running")
    await node(system, "b")
    process = await start(system, "drain", "a")
    await system.status("slow", "Running", release="move")
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert err.decode() == (
        "Interrupted: 0 moved, 1 under way and going on, 0 not asked to move;"
        " a stays drained, `skalds-streams undrain a` takes it back\n"
    )
    await system.status("slow", "Running", skald="b", epoch=2)


def _stay(task_id: str, reasons: dict[str, str]) -> dict[str, Any]:
    return {"task_id": task_id, "from": "a", "to": None, "reasons": reasons}
