"""A node that is started before its broker, as after a power cut, and one that its broker does not take."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from skalds_streams.devcluster import DevCluster
from tests.integration.system import Node, System, free_port, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


async def waits(node: Node) -> str:
    """What a node says that it waits for; "" when it says nothing of the kind."""
    code, document = await node.get("/readyz")
    return str(document["waits_for"]) if code == 503 and document.get("waits_for") else ""


async def test_a_node_that_is_started_before_its_broker_waits_for_it(tmp_path: Path) -> None:
    port = free_port()
    system = System(tmp_path, port)
    node, given_up, interrupted = system.node(), system.node("b"), system.node("c")
    try:
        for item in system.nodes:
            item.start()
        for item in system.nodes:
            reason = await until(lambda item=item: waits(item), f"{item.skald_id} says that it waits")
            assert reason.startswith(f"no Kafka broker answers at 127.0.0.1:{port}")
        assert await node.get("/healthz") == (200, {"ok": True})
        assert (await node.get("/"))[0] == 503
        assert interrupted.process is not None
        interrupted.process.send_signal(signal.SIGINT)
        assert await given_up.stop() == 0
        assert await asyncio.to_thread(interrupted.process.wait, 15) == 0
        with DevCluster(tmp_path / "cluster", kafka_port=port, with_redis=False) as cluster:
            assert cluster.kafka_port == port
            await node.ready()
            said = node.log()
            assert said.count("event='kafka.waits'") == 1
            assert said.count("event='kafka.answers'") == 1
            assert await node.stop() == 0
    finally:
        await system.stop()


async def test_a_broker_that_refuses_the_login_is_not_waited_for(cluster: DevCluster, tmp_path: Path) -> None:
    node = System(tmp_path, cluster.kafka_port).node(KAFKA_USERNAME="somebody", KAFKA_PASSWORD="s3cret-of-somebody")
    node.start()
    assert node.process is not None
    assert await asyncio.to_thread(node.process.wait, 30) == 1
    assert "refuses a client with SASL_PLAINTEXT as user 'somebody'" in node.log()
    assert "s3cret-of-somebody" not in node.log()
