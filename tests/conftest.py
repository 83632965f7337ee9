"""What all tests share: the asyncio backend, and one embedded cluster a session for those that ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from skalds_streams.devcluster.cluster import DevCluster


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """A real Kafka and a real Valkey on free ports, shared by the whole session."""
    from skalds_streams.devcluster.cluster import DevCluster

    with DevCluster(tmp_path_factory.mktemp("cluster"), kafka_port=0, redis_port=0) as started:
        yield started
