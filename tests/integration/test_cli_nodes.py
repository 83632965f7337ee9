"""Maintenance of nodes by the commands: plan, drain, undrain, move, rebalance, on two real nodes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
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


async def assigned(system: System, number: int) -> list[str]:
    """So many tasks that run."""
    ids = [f"t{at:02}" for at in range(number)]
    for task_id in ids:
        await system.assign(task_id, attachments={"fps": 7})
    await asyncio.gather(*(system.status(task_id, "Running") for task_id in ids))
    return ids


async def all_on(system: System, task_ids: Sequence[str], skald_id: str) -> None:
    await asyncio.gather(*(system.status(task_id, "Running", skald=skald_id) for task_id in task_ids))


async def test_a_node_is_drained_and_comes_back(system: System) -> None:
    await node(system, "a")
    await system.assign("slow", "Slow", attachments={})
    await system.assign("pinned", recipient="a")
    ids = [*await assigned(system, 3), "slow"]
    await all_on(system, [*ids, "pinned"], "a")
    await node(system, "b")

    unknown, lost, (plan, _), idle, (missing, complaint) = await asyncio.gather(
        call(system, "drain", "x", code=1),
        answer(system, "plan", "--lose", "a"),
        call(system, "drain", "a", "--plan"),
        answer(system, "classes", "Idle"),
        call(system, "classes", "Nope", code=1),
    )
    assert ([there["skald_id"] for there in idle["run_by"]], idle["described_by"]) == (["a", "b"], "a")
    assert idle["schema"]["properties"]["fps"]["maximum"] == 120
    assert missing == ""
    assert complaint.startswith("Error: no living skald runs a class 'Nope'; there are: ")
    assert unknown[1] == "Error: there is no skald 'x'; there are a, b\n"
    targets = {step["task_id"]: (step["to"], step["reasons"]) for step in lost["plan"]}
    assert targets == {**dict.fromkeys(ids, ("b", {})), "pinned": (None, {"a": "recipient is not here"})}
    lines = plan.splitlines()
    assert lines[0].split() == ["TASK", "CLASS", "FROM", "TO", "WHY", "NOT"]
    assert lines[1].split() == ["pinned", "Idle", "a", "would", "stay", "it", "is", "pinned", "to", "a"]
    assert lines[3].split() == ["t00", "Idle", "a", "b"]
    assert lines[-1] == "4 tasks would move, 1 would stay"
    await all_on(system, ids, "a")

    process = await start(system, "drain", "a")
    await system.status("slow", "Running", release="move")
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        _, err = await process.communicate()
    assert (process.returncode, err.decode().startswith("Interrupted: ")) == (130, True), err
    assert err.decode().strip().endswith("; a stays drained, `skalds-streams undrain a` takes it back")
    await all_on(system, ids, "b")

    out, err = await call(system, "drain", "a", code=1)
    assert out == "a takes nothing new; nothing moved, 1 task can't\n"
    assert err == "pinned: stays on a: it is pinned to a\n"
    (listed, _), (told, _) = await asyncio.gather(call(system, "ps"), call(system, "describe", "pinned"))
    assert "a draining" in listed
    assert "a (draining)" in listed
    assert "held by       a (draining)" in told

    assert (await call(system, "undrain", "a"))[0].startswith("a takes tasks again; no task waits for it")
    (again, _), (out, _) = await asyncio.gather(call(system, "undrain", "a"), call(system, "drain", "b"))
    assert again == "a is up, not draining\n"
    assert sorted(out.splitlines()[:-1]) == sorted(f"{task_id}: runs on a (epoch 3)" for task_id in ids)
    assert out.splitlines()[-1] == "b is drained and runs nothing; 4 tasks moved"


async def test_tasks_move_and_the_load_is_evened_out(system: System) -> None:
    await node(system, "a", SKALDS_CAPACITY="8")
    ids = await assigned(system, 6)
    doc = await answer(system, "move", "t00", code=1)
    assert doc == {"ok": False, "tasks": [], "stay": [_stay("t00", {"*": "no other skald is here"})]}
    await node(system, "b", SKALDS_CAPACITY="8")

    unknown, moved = await asyncio.gather(
        call(system, "move", "t00", "nobody", code=1), call(system, "move", "t05", "--to", "b")
    )
    assert unknown[1] == f"Error: there is no task 'nobody'; there are {', '.join(ids)}\n"
    assert moved[0] == "t05: runs on b (epoch 2)\n"
    assert (await call(system, "move", "t05"))[0] == "t05: runs on a (epoch 3)\n", "anywhere but where it was"
    row = await system.status("t05", "Running")
    assert (row["recipient"], row["move_to"], row["moved_from"]) == (None, None, None)

    refused, plan = await asyncio.gather(
        call(system, "move", "t05", "--to", "a", code=1), answer(system, "rebalance", "--plan")
    )
    assert refused[1] == "Error: t05: stays on a: a has it already\n"
    assert [tuple(step.values())[:3] for step in plan["plan"]] == [(task_id, "a", "b") for task_id in ids[:3]]
    out, _ = await call(system, "rebalance")
    assert sorted(out.splitlines()[:3]) == [f"{task_id}: runs on b (epoch 2)" for task_id in ids[:3]]
    assert out.splitlines()[-1] == "load before: a 6/8, b 0/8; 75% apart"
    await all_on(system, ids[:3], "b")
    await all_on(system, ids[3:], "a")
    out, _ = await call(system, "rebalance")
    assert out.splitlines()[0] == "nothing moves: no move would even the load out"


def _stay(task_id: str, reasons: dict[str, str]) -> dict[str, Any]:
    return {"task_id": task_id, "from": "a", "to": None, "reasons": reasons}
