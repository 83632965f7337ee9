"""The whole job through a real broker and a real worker process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.system import Node, System, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


async def test_assign_update_cancel_are_acknowledged_in_the_history(system: System, tmp_path: Path) -> None:
    node = system.node()
    node.start()
    await node.ready()
    trace = tmp_path / "trace"
    await system.assign("t", attachments={"fps": 30, "password": "canary-7731", "trace": str(trace)})
    await system.status("t", "Running", epoch=1, applied_version=1)
    await system.update("t", {"fps": 5}, merge=True)
    await system.status("t", "Running", applied_version=2)
    await system.update("t", {"fps": 0}, merge=True)
    refused = await system.status("t", "Running", update_state="refused")
    assert refused["refused"]["error"]["field"] == "fps"
    assert (refused["applied_version"], refused["attachments_version"]) == (2, 3)
    await system.cancel("t")
    row = await system.status("t", "Cancelled", holder=None)
    assert row["cancel_applied_at_ms"] >= row["cancel_at_ms"] > 0
    assert trace.read_text().splitlines() == ["start 1", "fps 5"]
    history = await system.history("t")
    assert [item["revision"] for item in history] == list(range(1, len(history) + 1))
    assert [item["why"]["kind"] for item in history] == [
        *("Assign", "Running", "Update", "Applied", "Update", "Refused", "Cancel", "Stopped")
    ]
    for record in await system.records(system.topics.history):
        assert b"canary-7731" not in record.value
    assert await node.stop() == 0


async def test_pause_resume_restart_and_cancel_are_acknowledged_with_how_hard_they_were(system: System) -> None:
    node = system.node()
    node.start()
    await node.ready()
    await system.assign("t", "Deaf")
    await system.status("t", "Running", epoch=1)
    sent: dict[str, Any] = {}
    for action, status, epoch in (("pause", "Paused", 1), ("resume", "Running", 2), ("restart", "Running", 3)):
        sent[action] = await system.assign("t", None, action=action)
        await system.status("t", status, epoch=epoch, wanted="pause" if action == "pause" else "run")
    sent["cancel"] = await system.cancel("t")
    row = await system.status("t", "Cancelled", holder=None)
    for action, epoch in (("pause", 1), ("resume", 2), ("restart", 3), ("cancel", 3)):
        told, record = row["controls"][action], sent[action]
        assert (told["topic"], told["partition"], told["offset"]) == (record.topic, record.partition, record.offset)
        assert (told["epoch"], told["superseded_by"]) == (epoch, None), action
        assert told["applied_at_ms"] >= told["asked_at_ms"] == record.timestamp > 0
    history = await system.history("t")
    stops = [item for item in history if item["why"]["kind"] == "Stopped"]
    assert [item["note"] for item in stops] == 3 * ["SIGTERM after 0.2 s, SIGKILL after 0.2 s"]
    assert history[-1]["controls"] == row["controls"]
    paused = next(item for item in history if item["status"] == "Paused")
    assert paused["controls"]["pause"]["applied_at_ms"] == paused["updated_at_ms"]
    assert await node.stop() == 0


async def test_a_finished_task_ends_and_a_crashing_one_is_tried_again(system: System) -> None:
    node = system.node()
    node.start()
    await node.ready()
    await system.assign("once", "OneShot")
    await system.status("once", "Finished", epoch=1)
    await system.assign("crash", "Crash")
    await system.assign("stuck", "Stuck")
    row = await system.status("crash", "Assigning", attempt=2)
    assert row["error"]["type"] == "RuntimeError"
    assert row["error"]["message"] == "boom {not a format}"
    assert row["error"]["reason"] == "exception"
    assert row["retry_at_ms"] > row["updated_at_ms"]
    error = await _error_of(node, "stuck")
    assert (error["type"], error["reason"]) == ("Stalled", "stall")
    assert any("in wait_for_a_frame" in line for line in error["traceback"])


async def _error_of(node: Node, task_id: str) -> dict[str, Any]:
    """The error of its last crash, as soon as there is one."""
    found: dict[str, Any] = {}

    async def shown() -> bool:
        _, document = await node.get(f"/api/tasks/{task_id}")
        found.update(document.get("error") or {})
        return bool(found)

    await until(shown, f"{task_id} has crashed")
    return found


BAD: dict[str, tuple[str, Any, str]] = {
    "not JSON": ("assign", b"{nonsense", "not JSON"),
    "not an object": ("assign", b"[1]", "not a JSON object but an array"),
    "wrong types": ("assign", {"taskIds": "abc"}, "not a TaskEvent: taskIds"),
    "numbers as ids": ("cancel", {"taskIds": [1]}, "not a TaskEvent: taskIds.0"),
    "no ids": ("assign", {"taskIds": []}, "taskIds is empty"),
    "a task that is none": ("assign", {"taskIds": ["x"], "tasks": [{"id": "x"}]}, "tasks[0] is not a Task: className"),
    "null value": ("assign", None, "the value is empty"),
    "an update without parameters": ("update", {"taskIds": ["x"]}, "attachments is missing"),
    "attachments of a wrong type": ("update", {"taskIds": ["x"], "attachments": 3}, "attachments must be an object"),
    "above the limit": ("assign", b'{"taskIds":["' + b"x" * 1_200_000 + b'"]}', "the limit is 1000000"),
    "attachments above the limit": (
        *("update", {"taskIds": ["x"], "attachments": {"a": "x" * 300_000}}, "attachments have"),
    ),
}


async def test_bad_input_ends_in_the_dead_letters_and_nothing_else_is_touched(system: System) -> None:
    node = system.node()
    node.start()
    await node.ready()
    for topic, value, _ in BAD.values():
        await system.send(getattr(system.topics, topic), value, key="t")
    await system.send(system.topics.update, {"attachments": {"fps": 3}}, key=None)
    await system.assign("t")
    await system.status("t", "Running")
    letters = await until(lambda: _all_letters(system, len(BAD) + 1), "every dead letter")
    reasons = [reason for reason, _ in letters]
    for name, (_, value, reason) in BAD.items():
        found = [record for said, record in letters if said.startswith(reason) or reason in said]
        assert found, f"{name}: {reasons}"
        if isinstance(value, bytes):
            assert any(record.value == value for record in found), name
    assert any("no task id" in reason for reason in reasons)
    assert set(await system.rows()) == {"t"}


async def _all_letters(system: System, count: int) -> list[tuple[str, Any]] | None:
    letters = await system.deadletters()
    return letters if len(letters) >= count else None


async def test_odd_but_legal_input_reaches_a_clear_state(system: System) -> None:
    node = system.node()
    node.start()
    await node.ready()
    await system.assign("no-class", "Nowhere")
    row = await system.status("no-class", "Assigning", waiting={"a": "no class Nowhere"})
    assert row["holder"] is None
    await system.assign("ids-only", None)
    await system.status("ids-only", "Assigning", class_name=None)
    await system.assign("wrong", attachments={"fps": 1000})
    row = await system.status("wrong", "Failed")
    assert row["error"]["field"] == "fps"
    await system.send(system.topics.cancel, {"task_ids": ["early"], "create_date_time": 1}, key="early")
    await system.status("early", "Cancelled")
    await system.send(system.topics.assign, {"taskIds": ["k1", "k2", "k3", "k4"]}, key=None)
    for task_id in ("k1", "k2", "k3", "k4"):
        await system.status(task_id, "Assigning")
    assert await system.deadletters() == []


async def test_rows_and_runs_survive_kill_9_of_the_process_and_of_a_host(system: System, tmp_path: Path) -> None:
    node = system.node()
    node.start()
    await node.ready()
    trace = tmp_path / "trace"
    await system.assign("t", attachments={"fps": 7, "trace": str(trace)})
    await system.status("t", "Running", epoch=1)
    os.kill(_host_pid(node.process.pid if node.process else 0), signal.SIGKILL)
    row = await system.status("t", "Running", epoch=2)
    assert row["attempt"] == 1
    assert "SIGKILL" in row["error"]["message"]
    assert row["error"]["reason"] == "signal"
    node.kill()
    node.start()
    await node.ready()
    row = await system.status("t", "Running", epoch=3)
    assert (row["attempt"], row["attachments_masked"]["fps"]) == (1, 7)
    await until(lambda: trace.read_text().splitlines() == ["start 1", "start 2", "start 3"], "its main has begun")


def _host_pid(parent: int) -> int:
    import psutil

    hosts = [
        item
        for item in psutil.Process(parent).children(recursive=True)
        if item.num_threads() > 1 and "zygote" in " ".join(item.cmdline())
    ]
    assert hosts, "no host runs"
    return int(hosts[0].pid)


async def test_two_skalds_share_the_work_and_one_that_leaves_hands_it_over(system: System) -> None:
    first, second = (system.node(name, SKALDS_HOLD_MS="0") for name in ("a", "b"))
    first.start()
    second.start()
    await first.ready()
    await second.ready()
    for number in range(8):
        await system.assign(f"t{number}")
    await system.assign("pinned", recipient="b")
    held = [await system.status(f"t{number}", "Running") for number in range(8)]
    assert {row["skald"] for row in held} == {"a", "b"}
    pinned = await system.status("pinned", "Running")
    assert pinned["skald"] == "b"
    assert await second.stop() == 0
    for number in range(8):
        await system.status(f"t{number}", "Running", skald="a")
    row = await system.status("pinned", "Assigning", holder=None)
    assert row["attempt"] == 0


async def test_a_task_that_events_only_name_is_found_in_the_file(system: System, tmp_path: Path) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text("TaskWorkers:\n  first: {className: Idle, attachments: {fps: 7}}\n")
    node = system.node(YAML_FILE=str(file))
    node.start()
    await node.ready()
    await system.assign("first", None)
    await system.assign("later", None)
    row = await system.status("first", "Running", applied_version=1)
    assert row["attachments_masked"]["fps"] == 7
    found = next(item for item in await system.history("first") if item["why"]["kind"] == "Found")
    assert found["why"]["reason"] == f"{file}:2"
    waiting = await system.status("later", "Assigning")
    assert "no Task document" in str(waiting["waiting"])
    file.write_text(file.read_text() + "  later: {className: OneShot}\n")
    await system.status("later", "Finished")
    assert await node.stop() == 0
