"""Kafka and Valkey together: one directory, one lock, started side by side, stopped in order.

Rules: a directory serves one cluster at a time. Its lock is held by this process *and by both children*, so it is
free exactly when the last of them is gone, also after a kill -9 of any of them. A busy port is replaced by a free
one, which is reported, unless `strict_ports`.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from skalds_streams.devcluster import ports
from skalds_streams.devcluster.download import OnProgress, Progress
from skalds_streams.devcluster.kafka import PARTITIONS_DEFAULT, KafkaServer
from skalds_streams.devcluster.process import ServerProcess
from skalds_streams.devcluster.valkey import ValkeyServer
from skalds_streams.errors import DevClusterError

KAFKA_PORT = 9092
REDIS_PORT = 6379
LOCK_WAIT_S = 5.0
"""After a kill -9 of its owner the kernel needs a moment to end the children."""
LOCK_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class MovedPort:
    """A service that listens on another port than was wanted."""

    service: str
    wanted: int
    got: int


class DevCluster:
    """An embedded Kafka and Valkey whose data and logs are under `directory`.

    A port of 0 takes any free one. `partitions_default` is the broker's num.partitions, `kafka_settings` are broker
    settings on top of ours. `on_progress` hears of downloads and starts, in the thread that calls `start()`. All
    calls block.
    """

    def __init__(
        self,
        directory: Path,
        *,
        kafka_port: int = KAFKA_PORT,
        redis_port: int = REDIS_PORT,
        strict_ports: bool = False,
        with_redis: bool = True,
        with_kafka: bool = True,
        partitions_default: int = PARTITIONS_DEFAULT,
        kafka_settings: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self.strict_ports = strict_ports
        self.moved_ports: list[MovedPort] = []
        self._on_progress = on_progress
        self._lock_fd: int | None = None
        self._kafka = (
            KafkaServer(
                self.directory / "kafka",
                kafka_port,
                partitions_default=partitions_default,
                settings=kafka_settings,
                on_progress=on_progress,
            )
            if with_kafka
            else None
        )
        self._redis = ValkeyServer(self.directory / "redis", redis_port) if with_redis else None

    @property
    def kafka(self) -> KafkaServer:
        """The broker. Raises `DevClusterError` when the cluster was made without Kafka."""
        if self._kafka is None:
            raise DevClusterError("this cluster was made without Kafka")
        return self._kafka

    @property
    def redis(self) -> ValkeyServer:
        """The Redis-compatible server. Raises `DevClusterError` when the cluster was made without Redis."""
        if self._redis is None:
            raise DevClusterError("this cluster was made without Redis")
        return self._redis

    @property
    def kafka_host(self) -> str:
        """Address of the broker: 127.0.0.1."""
        return self.kafka.host

    @property
    def kafka_port(self) -> int:
        """Port of the broker; final once `start()` has returned."""
        return self.kafka.port

    @property
    def redis_host(self) -> str:
        """Address of the Redis-compatible server: 127.0.0.1."""
        return self.redis.host

    @property
    def redis_port(self) -> int:
        """Port of the Redis-compatible server; final once `start()` has returned."""
        return self.redis.port

    @property
    def servers(self) -> list[ServerProcess]:
        """The servers of this cluster."""
        return [server for server in (self._redis, self._kafka) if server is not None]

    def start(self) -> None:
        """Download what is missing, start all that is not running, and wait until each answers.

        Raises `DevClusterError`, with the last lines of its log, when one does not start; no process is left then,
        nor after an interrupt.
        """
        try:
            self._lock_directory()
            if self._kafka is not None and not self._kafka.running:
                self._kafka.fetch_jars()
            self._choose_ports()
            self._start_servers()
        except BaseException:  # also KeyboardInterrupt: what was started must end
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all in order, each within its `stop_grace_s`, then by force. Safe to call twice, or before
        `start()`.
        """
        with ExitStack() as steps:  # a server that can't be stopped must not keep the others alive
            steps.callback(self._unlock_directory)
            for server in self.servers:
                steps.callback(server.stop)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start_servers(self) -> None:
        starting = [server for server in self.servers if not server.running]
        for server in starting:
            self._report(f"starting {server.name}", 0)
            server.launch()
        for server in starting:
            server.wait_until_answering()
            self._report(f"starting {server.name}", 1)

    def _report(self, phase: str, done: int) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(phase, done, 1))

    def _choose_ports(self) -> None:
        """Give every server that does not run a free port, and note those that could not have the one they wanted."""
        taken = {server.port for server in self.servers if server.running}
        for server in self.servers:
            if server.running:
                continue
            wanted = server.port
            server.port = ports.choose_port(wanted, service=server.name, strict=self.strict_ports, avoid=taken)
            taken.add(server.port)
            if wanted not in (0, server.port):
                self.moved_ports.append(MovedPort(server.name, wanted, server.port))

    def _lock_directory(self) -> None:
        """Take the directory. Raises `DevClusterError` when another cluster still has it after `LOCK_WAIT_S`
        seconds.
        """
        if self._lock_fd is not None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock_fd = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _try_lock(self._lock_fd):
            if time.monotonic() > deadline:
                owner = os.read(self._lock_fd, 32).decode(errors="replace").strip() or "unknown"
                raise DevClusterError(f"{self.directory} is in use by another cluster (process {owner})")
            time.sleep(LOCK_POLL_S)
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)
        for server in self.servers:
            server.keep_fds = (self._lock_fd,)

    def _unlock_directory(self) -> None:
        if self._lock_fd is None:
            return
        for server in self.servers:
            server.keep_fds = ()
        os.close(self._lock_fd)
        self._lock_fd = None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
