"""The broker stands still or is gone: workers run on, nothing is lost, and a node can still be stopped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from skalds_streams.devcluster import DevCluster
from tests.integration.system import System, system_of, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

AWAY_S = 12


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[tuple[System, DevCluster]]:
    """A system with a broker that no other test uses."""
    with DevCluster(tmp_path / "cluster", kafka_port=0, with_redis=False) as cluster:
        async with system_of(tmp_path, cluster.kafka_port) as system:
            yield system, cluster


async def test_a_frozen_broker_stops_no_worker_and_loses_nothing(alone: tuple[System, DevCluster]) -> None:
    system, cluster = alone
    node = system.node()
    node.start()
    await node.ready()
    await system.assign("t", attachments={"fps": 30})
    before = await system.status("t", "Running")
    cluster.kafka.pause()
    broker = psutil.Process(cluster.kafka.pid)
    await until(lambda: broker.status() == psutil.STATUS_STOPPED, "the broker stands still")
    with pytest.raises(AssertionError, match="never"):
        await until(lambda: False, "never", AWAY_S)
    cluster.kafka.resume()
    await system.update("t", {"fps": 5}, merge=True)
    after = await system.status("t", "Running", applied_version=2)
    assert after["epoch"] == before["epoch"]


async def test_a_node_can_be_stopped_while_the_broker_is_gone(alone: tuple[System, DevCluster]) -> None:
    system, cluster = alone
    node = system.node()
    node.start()
    await node.ready()
    await system.assign("t", attachments={"fps": 30})
    await system.status("t", "Running")
    assert node.process is not None
    hosts = psutil.Process(node.process.pid).children(recursive=True)
    assert hosts
    cluster.kafka.pause()
    try:
        code = await node.stop(timeout_s=20)
    finally:
        cluster.kafka.resume()
    assert code in (0, 1)
    await until(lambda: not any(host.is_running() and host.status() != "zombie" for host in hosts), "no host is left")
