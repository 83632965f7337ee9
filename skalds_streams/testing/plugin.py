"""pytest fixtures for people who write workers: `worker_env` and `devcluster`. docs/testing.md is the manual.

pytest loads it wherever the package is installed (entry point `skalds_streams` in the group pytest11), so importing it
imports nothing of the package: whoever asks for a fixture does. `-p no:skalds_streams` leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from skalds_streams.devcluster import DevCluster
    from skalds_streams.testing.worker import WorkerEnv


@pytest.fixture
def worker_env() -> Iterator[Callable[..., WorkerEnv[Any]]]:
    """`env = worker_env(Cam, {"fps": 5})`: a worker for this test (`skalds_streams.testing.worker.WorkerEnv`). What
    still runs when the test is over is killed.
    """
    from skalds_streams.testing.worker import WorkerEnv

    made: list[WorkerEnv[Any]] = []

    def make(*args: Any, **options: Any) -> WorkerEnv[Any]:
        env = WorkerEnv(*args, **options)
        made.append(env)
        return env

    yield make
    for env in made:
        env.abandon()


@pytest.fixture(scope="session")
def devcluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """A real Kafka and a real Valkey on free ports of 127.0.0.1, started when the first test asks for them and shared
    by the session: `devcluster.kafka_host`, `.kafka_port`, `.bootstrap`, `.redis_host`, `.redis_port`. Needs the extra
    `skalds-streams[dev-cluster]`.
    """
    from skalds_streams.devcluster import DevCluster

    with DevCluster(tmp_path_factory.mktemp("devcluster"), kafka_port=0, redis_port=0) as started:
        yield started
