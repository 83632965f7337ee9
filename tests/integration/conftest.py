"""A system of its own for each test, on the session's broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.system import System, system_of

if TYPE_CHECKING:
    from skalds_streams.devcluster.cluster import DevCluster


@pytest.fixture
async def system(cluster: DevCluster, tmp_path: Path) -> AsyncIterator[System]:
    async with system_of(tmp_path, cluster.kafka_port) as made:
        yield made
