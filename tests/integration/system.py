"""A real node for tests: `faust -A skalds_streams worker` as a process of its own, and what it writes read back by an
independent consumer.

Every system has topics of its own (a prefix), so that tests share a broker without meeting.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from skalds_streams.testing.lint import Finding
from skalds_streams.testing.verify import settled
from skalds_streams.topics import POSITIONS_KEY, Topics

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "skalds_streams" / "devcluster" / "launch.py"
PARTITIONS = 6
PATIENCE_S = 30.0
OPEN_S = 5.0
"""How long a transaction that is open is waited for before what it wrote is left out."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Wait for a true value of `condition`, sync or async; AssertionError names what did not happen."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert loop.time() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.02)


class Node:
    """One process of the system under test."""

    def __init__(self, system: System, skald_id: str, **environment: str) -> None:
        self.system, self.skald_id = system, skald_id
        self.port = free_port()
        self.log_path = system.directory / f"{skald_id}.log"
        self.environment = {
            **os.environ,
            "KAFKA_HOST": system.brokers or "127.0.0.1",
            "KAFKA_PORT": str(system.kafka_port),
            "KAFKA_REPLICATION_FACTOR": "3" if system.brokers else "1",
            "SKALD_ID": skald_id,
            "SKALDS_TOPIC_PREFIX": system.prefix,
            "SKALDS_APP": "it",
            "SKALDS_DATA_DIR": str(system.directory / "data" / skald_id),
            "SKALDS_WORKERS": "tests.integration.system_workers",
            "SKALDS_WEB_PORT": str(self.port),
            "SKALDS_REDIS_ENABLED": "false",
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        faust = [sys.executable, "-m", "faust", "-A", "skalds_streams", "worker", "-l", "info"]
        # A test run that is killed must leave no node behind.
        command = [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), *faust]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    async def ready(self) -> None:
        async def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the node ended:\n{self.log()[-3000:]}"
            return (await self.get("/readyz"))[0] == 200

        try:
            await until(answers, f"{self.skald_id} is ready", 40)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-3000:]}") from None

    async def get(self, path: str) -> tuple[int, Any]:
        """(status, JSON or text); status 0 when nobody answers."""
        try:
            async with aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
                text = await answer.text()
                return answer.status, orjson.loads(text) if "json" in answer.content_type else text
        except (aiohttp.ClientError, OSError):
            return 0, None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def stop(self, timeout_s: float = 15) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self.process.wait, timeout_s)
        if code:
            print(f"{self.skald_id} ended with {code}:\n{self.log()[-5000:]}")  # pytest shows it with the failure
        return code


class System:
    """Nodes with topics of their own, a producer, and readers. brokers: three, as host:port with commas between."""

    def __init__(self, directory: Path, kafka_port: int, brokers: str = "") -> None:
        self.directory, self.kafka_port, self.brokers = directory, kafka_port, brokers
        self.prefix = f"t{secrets.token_hex(4)}."
        self.topics = Topics.named(app="it", prefix=self.prefix, partitions=PARTITIONS)
        self.nodes: list[Node] = []
        self.producer: AIOKafkaProducer | None = None

    @property
    def bootstrap(self) -> str:
        return self.brokers or f"127.0.0.1:{self.kafka_port}"

    async def stop(self) -> None:
        """End every node that still runs."""
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    await node.stop()
                if node.process.poll() is None:
                    node.kill()

    def node(self, skald_id: str = "a", **environment: str) -> Node:
        node = Node(self, skald_id, **environment)
        self.nodes.append(node)
        return node

    async def send(self, topic: str, value: bytes | dict[str, Any] | None, key: str | None = None) -> Any:
        assert self.producer is not None
        encoded = orjson.dumps(value) if isinstance(value, dict) else value
        return await self.producer.send_and_wait(topic, encoded, key=key.encode() if key is not None else None)

    async def assign(
        self, task_id: str, class_name: str | None = "Idle", *, attachments: Any = None, **event: Any
    ) -> Any:
        document: dict[str, Any] = {"taskIds": [task_id], **event}
        if class_name is not None:
            task = {"id": task_id, "className": class_name, "source": "test", "attachments": attachments}
            document["tasks"] = [task]
        return await self.send(self.topics.assign, document, key=task_id)

    async def cancel(self, task_id: str) -> Any:
        return await self.send(self.topics.cancel, {"taskIds": [task_id]}, key=task_id)

    async def update(self, task_id: str, attachments: Any, **event: Any) -> Any:
        return await self.send(
            self.topics.update, {"taskIds": [task_id], "attachments": attachments, **event}, key=task_id
        )

    async def records(self, topic: str, partitions: int = PARTITIONS) -> list[Any]:
        """Every committed record of a topic, in offset order within a partition: also those whose commit was answered
        just now, as the broker shows them some milliseconds later.
        """
        tps = [TopicPartition(topic, number) for number in range(partitions)]
        async with reader_of(self, "read_uncommitted") as consumer:
            written = await consumer.end_offsets(tps)
        async with reader_of(self, "read_committed") as consumer:
            consumer.assign(tps)

            async def decided() -> bool:
                ends = await consumer.end_offsets(tps)
                return all(ends[tp] >= end for tp, end in written.items())

            with suppress(AssertionError):  # the transaction of a node that was killed stays open for long
                await until(decided, "no transaction is open", OPEN_S)
            found: list[Any] = []
            for tp, end in (await consumer.end_offsets(tps)).items():
                while await consumer.position(tp) < end:
                    for batch in (await consumer.getmany(tp, timeout_ms=200)).values():
                        found += batch
            return found

    async def history(self, task_id: str) -> list[dict[str, Any]]:
        """The task's records on taskworker.update, oldest first."""
        return [
            orjson.loads(record.value)
            for record in await self.records(self.topics.history)
            if record.key == task_id.encode()
        ]

    async def rows(self) -> dict[str, dict[str, Any]]:
        """The changelog compacted to its rows."""
        return {
            record.key.decode(): orjson.loads(record.value)
            for record in await self.records(self.topics.changelog)
            if record.key != POSITIONS_KEY
        }

    async def status(self, task_id: str, status: str, node: Node | None = None, **fields: Any) -> dict[str, Any]:
        """Wait until a node shows the task in this status, with these fields."""
        asked = node or self.nodes[0]
        seen: dict[str, Any] = {}

        async def shown() -> bool:
            nonlocal seen
            code, document = await asked.get(f"/api/tasks/{task_id}")
            if code != 200:
                return False
            seen = document
            return bool(seen["status"] == status and all(seen.get(name) == value for name, value in fields.items()))

        try:
            await until(shown, f"{task_id} is {status} {fields}")
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {seen}\n{asked.log()[-2000:]}") from None
        return seen

    async def lint(self) -> list[Finding]:
        """What must not be in the topics of any run."""
        client = {"bootstrap_servers": self.bootstrap}
        return (await settled(self.topics, client))[1]

    async def deadletters(self) -> list[tuple[str, Any]]:
        """(reason, record) of each."""
        return [
            (dict(record.headers)["reason"].decode(), record) for record in await self.records(self.topics.deadletter)
        ]


@asynccontextmanager
async def reader_of(system: System, isolation: str) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=system.bootstrap, group_id=None, isolation_level=isolation, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


@asynccontextmanager
async def admin_of(system: System) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=system.bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


@asynccontextmanager
async def system_of(directory: Path, kafka_port: int, brokers: str = "") -> AsyncIterator[System]:
    """A system whose nodes are gone at the end, whatever happened. A test that passed also passes the log lint."""
    system = System(directory, kafka_port, brokers)
    system.producer = AIOKafkaProducer(bootstrap_servers=system.bootstrap, acks="all", max_request_size=4_000_000)
    await system.producer.start()
    try:
        yield system
        await system.stop()
        if any(node.process is not None for node in system.nodes):
            assert await system.lint() == []
    finally:
        await system.producer.stop()
        await system.stop()
