"""Secrets through a whole node: those in parameters are nowhere but in the inputs and the changelog, those that
references stand for are nowhere at all.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis import Redis

from skalds_streams.devcluster.cluster import DevCluster
from tests.integration.system import Node, System, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


async def test_a_secret_field_leaves_in_no_history_and_on_no_page(system: System) -> None:
    node = system.node()
    node.start()
    await node.ready()
    await system.assign("t", "Lock", attachments={"fps": 3, "doors": [{"pin": "canary-4711"}]})
    row = await system.status("t", "Failed")
    assert row["attachments_masked"] == {"fps": 3, "doors": [{"pin": "***"}]}
    assert row["error"]["message"] == "no door opens with ***"
    history = await system.history("t")
    assert [item["attachments_masked"] for item in history] == [{"fps": 3, "doors": [{"pin": "***"}]}] * len(history)
    assert history[-1]["error"]["message"] == "no door opens with ***"
    for topic in (system.topics.history, system.topics.heartbeat, system.topics.deadletter):
        partitions = 1 if topic == system.topics.heartbeat else system.topics.partitions
        assert not [item for item in await system.records(topic, partitions) if b"canary-4711" in (item.value or b"")]
    for path in ("/", "/tasks/t", "/api/tasks", "/api/tasks/t/logs", "/metrics"):
        code, body = await node.get(path)
        assert (code, "canary-4711" in str(body)) == (200, False)
    assert "canary-4711" not in node.log()
    assert await node.stop() == 0


ENV, FILE, NONE = 'secret("env:SECRET_CANARY")', 'secret("file:{}/key")', 'secret("env:SECRET_OF_NOBODY")'


async def test_canaries_are_found_nowhere(system: System, cluster: DevCluster, tmp_path: Path) -> None:
    planted = {name: f"canary-{name}-{secrets.token_hex(6)}" for name in ("env", "file", "pin", "named", "url", "new")}
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted" / "key").write_text(planted["file"] + "\n")
    node = system.node(
        SECRET_CANARY=planted["env"],
        SKALDS_SECRETS_DIRS=str(tmp_path / "mounted"),
        SKALDS_REDIS_ENABLED="true",
        REDIS_PORT=str(cluster.redis_port),
    )
    node.start()
    await node.ready()
    given = {
        "pin": planted["pin"],
        "api_token": planted["named"],
        "url": f"rtsp://me:{planted['url']}@192.0.2.1/",
        "db": ENV,
        "key": FILE.format(tmp_path / "mounted"),
    }
    task_id = f"teller-{secrets.token_hex(4)}"
    await system.assign(task_id, "Teller", attachments=given)
    row = await system.status(task_id, "Running")
    shown = {**given, "pin": "***", "api_token": "***", "url": "rtsp://***@192.0.2.1/"}
    assert {**row["attachments_masked"]} == shown

    await system.update(task_id, {**given, "db": NONE})
    refused = (await refusal(system, task_id, 2))["error"]
    assert refused["field"] == "db"
    assert refused["message"] == f"db: {NONE}: there is no such variable in this node's environment"
    await system.update(task_id, {**given, "api_token": planted["new"]})
    refused = (await refusal(system, task_id, 3))["error"]
    assert refused["message"] == "it refuses ['***', '***', 'rtsp://***@192.0.2.1/', '***', '***']"
    await system.update(task_id, {**given, "fail": True})
    row = await system.status(task_id, "Failed")
    assert row["error"]["message"] == "it fails with ['***', '***', 'rtsp://***@192.0.2.1/', '***', '***']"

    seen = await everything(system, node, task_id, cluster.redis_port)
    for place, text in seen.items():
        allowed = (
            {"pin", "named", "url", "new"} if place in (*system.topics.inputs[:3], system.topics.changelog) else ()
        )
        assert not [name for name, canary in planted.items() if canary in text and name not in allowed], place
    assert planted["named"] in seen[system.topics.assign]
    assert "it begins with ['***'" in seen["log of the task"]
    assert "it prints *** *** rtsp://***@192.0.2.1/ *** ***" in seen["log of the task"]
    assert f"task:{task_id}:exception" in seen["redis"]
    assert await node.stop() == 0


async def refusal(system: System, task_id: str, version: int) -> dict[str, Any]:
    async def refused() -> Any:
        row = await system.status(task_id, "Running")
        return row["refused"] if row["refused"] and row["refused"]["version"] == version else None

    answer: dict[str, Any] = await until(refused, f"version {version} is refused")
    return answer


async def everything(system: System, node: Node, task_id: str, redis_port: int) -> dict[str, str]:
    """What anybody outside of the worker can read, by place."""
    seen: dict[str, str] = {}
    for topic in (*system.topics.inputs, system.topics.history, system.topics.deadletter, system.topics.changelog):
        seen[topic] = str([(item.key, item.value, item.headers) for item in await system.records(topic)])
    seen[system.topics.heartbeat] = str([item.value for item in await system.records(system.topics.heartbeat, 1)])
    paths = ["/", f"/tasks/{task_id}", "/api/tasks", f"/api/tasks/{task_id}", "/api/skalds", "/metrics", "/readyz"]
    for path in [*paths, "/api/classes/Teller", "/api/openapi.json"]:
        code, body = await node.get(path)
        assert code == 200, path
        seen[path] = str(body)
    async with aiohttp.ClientSession() as session, session.get(node.url + "/api/events") as stream:
        seen["/api/events"] = ""
        while task_id not in seen["/api/events"]:  # the snapshot is not the first thing that is said
            seen["/api/events"] += (await stream.content.readuntil(b"\n\n")).decode()
    code, body = await node.get(f"/api/tasks/{task_id}/logs")
    assert (code, "it prints" in str(body)) == (200, True)
    seen["the log over the web"] = str(body)
    client = Redis(port=redis_port, decode_responses=True)
    await until(lambda: client.exists(f"task:{task_id}:exception"), "Redis has the error")
    seen["redis"] = str([(name, of_redis(client, name)) for name in client.scan_iter()])
    client.close()
    seen["log of the node"] = node.log()
    logs = list((system.directory / "data").rglob("*.log*"))
    seen["log of the task"] = "".join(log.read_text(errors="replace") for log in logs)
    return seen


def of_redis(client: Any, name: str) -> Any:
    kind = client.type(name)
    read = {"string": client.get, "hash": client.hgetall, "list": lambda key: client.lrange(key, 0, -1)}
    return read[kind](name) if kind in read else None
