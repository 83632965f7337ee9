"""Kafka and Valkey together: one directory, one lock, started side by side, stopped in order.

Rules: a directory serves one cluster at a time. Its lock is held by this process *and by all children*, so it is
free exactly when the last of them is gone, also after a kill -9 of any of them. A busy port is replaced by a free
one, which is reported, unless `strict_ports`.

Kafka is one broker or three. Each of the three is a controller as well: with fewer controllers the loss of the one, or
of one of two, would stop the whole cluster, and three are the fewest of which any one may be lost. The data of three is
kept apart from that of one, as a quorum can't be made from a node that was alone.
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

from skalds_streams.addresses import PORTS
from skalds_streams.devcluster import ports
from skalds_streams.devcluster.download import OnProgress, Progress
from skalds_streams.devcluster.kafka import PARTITIONS_DEFAULT, KafkaServer, Quorum, new_id
from skalds_streams.devcluster.process import ServerProcess
from skalds_streams.devcluster.valkey import ValkeyServer
from skalds_streams.errors import DevClusterError

KAFKA_PORT = 9092
REDIS_PORT = 6379
BROKERS_OF_SEVERAL = 3
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

    A port of 0 takes any free one. `brokers` is 1 or 3; `kafka_port` is the first one's, the others want those that
    follow. `partitions_default` is the broker's num.partitions, `kafka_settings` are broker settings on top of ours.
    `on_progress` hears of downloads and starts, in the thread that calls `start()`. All calls block. Raises
    `DevClusterError` for another number of brokers.
    """

    def __init__(
        self,
        directory: Path,
        *,
        brokers: int = 1,
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
        if brokers not in (1, BROKERS_OF_SEVERAL):
            raise DevClusterError(f"Kafka has 1 broker or {BROKERS_OF_SEVERAL}, not {brokers}")
        self.brokers = [
            KafkaServer(
                self.directory / ("kafka" if brokers == 1 else f"kafka-of-{brokers}/{node_id}"),
                _port_of(kafka_port, node_id),
                name="Kafka" if brokers == 1 else f"Kafka {node_id}",
                node_id=node_id,
                partitions_default=partitions_default,
                settings=kafka_settings,
                on_progress=on_progress,
            )
            for node_id in range(1, brokers + 1)
            if with_kafka
        ]
        """The Kafka servers, by node id from 1 on; none when the cluster was made without Kafka."""
        self._redis = ValkeyServer(self.directory / "redis", redis_port) if with_redis else None

    @property
    def kafka(self) -> KafkaServer:
        """The broker, the first of several. Raises `DevClusterError` when the cluster was made without Kafka."""
        if not self.brokers:
            raise DevClusterError("this cluster was made without Kafka")
        return self.brokers[0]

    @property
    def bootstrap(self) -> str:
        """`host:port` of every broker, with commas between; final once `start()` has returned."""
        return ",".join(broker.bootstrap for broker in self.brokers)

    @property
    def redis(self) -> ValkeyServer:
        """The Redis-compatible server. Raises `DevClusterError` when the cluster was made without Redis."""
        if self._redis is None:
            raise DevClusterError("this cluster was made without Redis")
        return self._redis

    @property
    def kafka_host(self) -> str:
        """Address of every broker: 127.0.0.1."""
        return self.kafka.host

    @property
    def kafka_port(self) -> int:
        """Port of the broker, the first of several; final once `start()` has returned."""
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
        return [*([self._redis] if self._redis is not None else []), *self.brokers]

    def start(self) -> None:
        """Download what is missing, start all that is not running, and wait until each answers.

        Raises `DevClusterError`, with the last lines of its log, when one does not start; no process is left then,
        nor after an interrupt.
        """
        try:
            self._lock_directory()
            for broker in self.brokers:
                if not broker.running:
                    broker.fetch_jars()
            self._choose_ports()
            self._make_quorum()
            self._start_servers()
        except BaseException:  # also KeyboardInterrupt: what was started must end
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all in order, each within its `stop_grace_s`, then by force. Safe to call twice, or before
        `start()`.
        """
        if len(self.brokers) > 1:  # the last ones need the others to stop in order
            for broker in self.brokers:
                broker.ask_to_stop()
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

    def _make_quorum(self) -> None:
        """Tell several brokers of each other. Those that run go on with what they were told."""
        if len(self.brokers) < 2 or any(broker.quorum is not None and broker.running for broker in self.brokers):
            return
        taken = {server.port for server in self.servers}
        controllers: dict[int, int] = {}
        for broker in self.brokers:
            controllers[broker.node_id] = ports.free_port(avoid=taken)
            taken.add(controllers[broker.node_id])
        formatted = [broker for broker in self.brokers if broker.is_formatted]
        quorum = Quorum(formatted[0].cluster_id if formatted else new_id(), controllers)
        for broker in self.brokers:
            broker.quorum = quorum

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


def _port_of(first: int, node_id: int) -> int:
    """The port that a broker wants: the first one's or one that follows on it; 0, any, when there is none."""
    wanted = first + node_id - 1
    return wanted if first and wanted in PORTS else 0


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
