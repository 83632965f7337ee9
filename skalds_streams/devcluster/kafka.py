"""A Kafka broker: one KRaft node that is broker and controller, alone or one of a quorum, and its settings.

Rules: the data directory is formatted once, by writing `meta.properties` (what kafka-storage does for a fixed
quorum, at the cost of no second JVM), and never again, so cluster id and topics stay. Paths in the settings
are relative to the server's directory, so no character of its path needs quoting.
"""

from __future__ import annotations

import base64
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from skalds_streams.devcluster import ports
from skalds_streams.devcluster.download import OnProgress, class_path
from skalds_streams.devcluster.extra import java_path
from skalds_streams.devcluster.probe import kafka_answers
from skalds_streams.devcluster.process import ServerProcess
from skalds_streams.errors import DevClusterError

NODE_ID = 1
META = "meta.properties"
PARTITIONS_DEFAULT = 6
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
TRANSACTION_TIMEOUT_MS_MAX = 15 * 60 * 1000
RETENTION_HOURS = 7 * 24
INSYNC_MIN = 2
"""Of several brokers so many must have a record before it is acknowledged: any one of three may be lost."""
LOG_BYTES_MAX = "8MB"

SESSION_MS = 9_000
"""Kafka's default: how long the controller waits for the broker's heartbeat before it fences it."""
SESSION_RECOVERY_MS = 1_400
"""The same in the run after a crash. The controller takes the dead broker for alive for one session after *its* start
and refuses the new one, which asks again after 0.1, 0.3, 0.7, 1.5, 3.1, 6.3 and 12.7 s: with Kafka's default a start
after kill -9 takes 14 s, so 3 s.
"""

HEAP_ALONE = ("-Xms96m", "-Xmx320m")
HEAP_OF_SEVERAL = ("-Xms64m", "-Xmx192m")
JVM_OPTIONS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:ErrorFile=hs_err.log",
    "-Djava.awt.headless=true",
    "-Djava.net.preferIPv4Stack=true",
    "-Dlog4j.configuration=file:log4j.properties",
)
LOG4J_SETTINGS = {
    "log4j.rootLogger": "WARN, file",
    "log4j.logger.kafka.server.KafkaRaftServer": "INFO",
    # while it starts after a crash it asks itself 20 times a second, and logs each
    "log4j.logger.org.apache.kafka.clients.NetworkClient": "ERROR",
    "log4j.appender.file": "org.apache.log4j.RollingFileAppender",
    "log4j.appender.file.File": "kafka.log",
    "log4j.appender.file.MaxFileSize": LOG_BYTES_MAX,
    "log4j.appender.file.MaxBackupIndex": "1",
    "log4j.appender.file.layout": "org.apache.log4j.PatternLayout",
    "log4j.appender.file.layout.ConversionPattern": "[%d] %p %m (%c)%n",
}


@dataclass(frozen=True, slots=True)
class Quorum:
    """The nodes of a cluster that has several. Each is broker and controller.

    `controllers`: node id → port of its controller, the same for all as long as one of them runs.
    """

    cluster_id: str
    controllers: Mapping[int, int]


class KafkaServer(ServerProcess):
    """One Kafka node in `directory`; `port` 0 takes a free one at the first start.

    It is alone unless `quorum` is set before its first start. `settings` are broker settings on top of ours, by
    Kafka's names. `on_progress` hears of the download.
    """

    start_timeout_s = 90.0
    stop_grace_s = 8.0

    def __init__(
        self,
        directory: Path,
        port: int,
        *,
        name: str = "Kafka",
        node_id: int = NODE_ID,
        partitions_default: int = PARTITIONS_DEFAULT,
        settings: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        super().__init__(directory, port, directory / "kafka.log")
        self.name, self.node_id = name, node_id
        self.quorum: Quorum | None = None
        self.partitions_default = partitions_default
        self.settings = dict(settings or {})
        self.on_progress = on_progress
        self._class_path: list[Path] = []

    @property
    def bootstrap(self) -> str:
        """`host:port`, as clients want it."""
        return f"{self.host}:{self.port}"

    @property
    def cluster_id(self) -> str:
        """The cluster's id, which stays with the data. Raises `DevClusterError` before the first start."""
        return read_cluster_id(self._data_directory)

    @property
    def is_formatted(self) -> bool:
        """Whether there is data, and so a cluster id."""
        return (self._data_directory / META).exists()

    @property
    def _data_directory(self) -> Path:
        return self.directory / "data"

    def answers(self) -> bool:
        """Whether it gives metadata that lists itself, under our cluster's id."""
        return kafka_answers(self.port, self.cluster_id, self.node_id)

    def fetch_jars(self) -> None:
        """Download Kafka when it is not in the cache; `launch()` does it too. Raises `DevClusterError`."""
        self._class_path = class_path(self.on_progress)

    def _prepare(self) -> None:
        if not self._class_path:
            self.fetch_jars()
        format_data(self._data_directory, self.node_id, self.quorum.cluster_id if self.quorum else new_id())
        controllers = self.quorum.controllers if self.quorum else {self.node_id: ports.free_port(avoid=(self.port,))}
        settings = broker_settings(
            self.node_id,
            self.port,
            controllers,
            partitions_default=self.partitions_default,
            after_crash=crashed(self._data_directory),
        )
        _write_properties(self.directory / "server.properties", {**settings, **self.settings})
        _write_properties(self.directory / "log4j.properties", LOG4J_SETTINGS)
        self._output_path().unlink(missing_ok=True)

    def _command(self) -> list[str]:
        jars = os.pathsep.join(str(path) for path in self._class_path)
        heap = HEAP_OF_SEVERAL if self.quorum else HEAP_ALONE
        return [str(java_path()), *heap, *JVM_OPTIONS, "-cp", jars, "kafka.Kafka", "server.properties"]

    def _output_path(self) -> Path:
        """What the JVM itself says; Kafka's log is another file, because it is rolled."""
        return self.directory / "kafka.out"


def broker_settings(
    node_id: int, port: int, controllers: Mapping[int, int], *, partitions_default: int, after_crash: bool
) -> dict[str, str]:
    """The settings of server.properties. controllers: node id → port of every node's controller, its own included."""
    alone = len(controllers) == 1
    session_ms = SESSION_RECOVERY_MS if after_crash and alone else SESSION_MS
    broker, controller = f"{ports.HOST}:{port}", f"{ports.HOST}:{controllers[node_id]}"
    copies, insync = len(controllers), 1 if alone else INSYNC_MIN
    settings = {
        "process.roles": "broker,controller",
        "node.id": node_id,
        "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{broker}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": ",".join(f"{node}@{ports.HOST}:{at}" for node, at in controllers.items()),
        "log.dirs": "data",
        # every node has a copy of everything
        "default.replication.factor": copies,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": insync,
        "min.insync.replicas": insync,
        # quick to create and to load
        "offsets.topic.num.partitions": 5,
        "transaction.state.log.num.partitions": 5,
        "group.initial.rebalance.delay.ms": 0,
        # a topic that nobody declared is a mistake
        "auto.create.topics.enable": "false",
        "num.partitions": partitions_default,
        "message.max.bytes": MESSAGE_BYTES_MAX,
        "replica.fetch.max.bytes": MESSAGE_BYTES_MAX,
        "transaction.max.timeout.ms": TRANSACTION_TIMEOUT_MS_MAX,
        "log.retention.hours": RETENTION_HOURS,
        # stopping in order fences the broker, so that the next start need not wait for its session to end
        "controlled.shutdown.enable": "true",
        "broker.session.timeout.ms": session_ms,
        "broker.heartbeat.interval.ms": session_ms // 7,
        # small and idle
        "metadata.max.idle.interval.ms": 5_000,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
    }
    return {name: str(value) for name, value in settings.items()}


def format_data(data: Path, node_id: int, cluster_id: str) -> None:
    """Make `data` a directory that Kafka accepts; a formatted one is left as it is."""
    meta = data / META
    if meta.exists():
        return
    data.mkdir(parents=True, exist_ok=True)
    fresh = meta.with_suffix(".new")
    _write_properties(
        fresh,
        {"version": "1", "cluster.id": cluster_id, "node.id": str(node_id), "directory.id": new_id()},
        durable=True,
    )
    fresh.replace(meta)


def crashed(data: Path) -> bool:
    """Whether the last broker on `data` ran and did not stop in order."""
    return (data / "__cluster_metadata-0").exists() and not (data / ".kafka_cleanshutdown").exists()


def read_cluster_id(data: Path) -> str:
    """The cluster id in `data`. Raises `DevClusterError` when it was not formatted."""
    meta = data / META
    try:
        lines = meta.read_text().splitlines()
    except OSError as error:
        raise DevClusterError(f"Kafka's data directory is not formatted: {error}") from error
    for line in lines:
        name, _, value = line.partition("=")
        if name.strip() == "cluster.id":
            return value.strip()
    raise DevClusterError(f"{meta} has no cluster.id: it is damaged; remove {data} to begin anew")


def new_id() -> str:
    """A random id in Kafka's spelling: 22 characters; it may not begin with a dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


def _write_properties(path: Path, settings: Mapping[str, str], *, durable: bool = False) -> None:
    with path.open("w") as file:
        file.writelines(f"{name}={value}\n" for name, value in settings.items())
        if durable:
            file.flush()
            os.fsync(file.fileno())
