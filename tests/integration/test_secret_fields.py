"""A parameter that only the class declares as secret, through a whole node: nowhere but in the inputs and the
changelog.
"""

from __future__ import annotations

import pytest

from tests.integration.system import System

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
