"""The commands against a real broker, with the live journals deciding and a skald that answers by a script.

What user code does is not tested here, so the skald starts no workers: it reports what a worker would have done.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from skalds_streams.coordinator.batch import Secrecy
from skalds_streams.coordinator.journal import Delivery, JournalContext
from skalds_streams.coordinator.journals import Journals
from skalds_streams.coordinator.log import PartitionLog
from skalds_streams.core.row import Row, Wanted
from skalds_streams.model.codec import Limits
from skalds_streams.model.documents import Positions
from skalds_streams.model.record import Record
from skalds_streams.proxy.client import client_options
from skalds_streams.proxy.reports import ReportSender
from skalds_streams.proxy.topic_setup import ensure_topics
from skalds_streams.settings import Settings
from skalds_streams.topics import Topics
from skalds_streams.view.cluster import ClusterView
from skalds_streams.view.reader import TopicReader

if TYPE_CHECKING:
    from skalds_streams.devcluster.cluster import DevCluster

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

ROOT = Path(__file__).parents[2]
PARTITIONS = 3
INCARNATION = "s1-life"
TOOK = r"\d+\.\d{3} s after it was asked"
CODE = "from skalds_streams.cli import main; main(prog_name='skalds-streams')"


@dataclass(frozen=True, slots=True)
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def doc(self) -> dict[str, Any]:
        """Its JSON object."""
        loaded: dict[str, Any] = orjson.loads(self.out)
        return loaded


class System:
    """Journals of all partitions and a scripted skald `s1`, in this process; commands run as processes of their own."""

    def __init__(self, cluster: DevCluster) -> None:
        self.settings = Settings.load(
            kafka_host=cluster.kafka_host,
            kafka_port=cluster.kafka_port,
            kafka_topic_partitions=PARTITIONS,
            topic_prefix=f"t{uuid.uuid4().hex[:8]}.",
            app="cli",
            digest_key="a key",
            _env_file=None,
        )
        self.topics = Topics.named(app="cli", prefix=self.settings.topic_prefix, partitions=PARTITIONS)
        self.client = client_options(self.settings)
        self.view = ClusterView(self.topics, self.client)
        self.sender = ReportSender(self.topics, self.client)
        self.journals = Journals(self._context(), self._new_log, on_fatal=self._fatal)
        self.producer: AIOKafkaProducer
        self.errors: list[BaseException] = []
        self._deliveries: asyncio.Queue[Record] = asyncio.Queue()
        self._changed: asyncio.Queue[str] = asyncio.Queue()
        self._runs: dict[str, tuple[int, int]] = {}
        self._ended: dict[str, int] = {}

    def _context(self) -> JournalContext:
        async def is_ours(_partition: int, _positions: Positions) -> bool:
            return True

        return JournalContext(
            topics=self.topics,
            limits=Limits(),
            secrecy=Secrecy(self.settings.secret_words, b"a key"),
            members=self.view.members,
            forwarder=self.sender,
            now_ms=lambda: time.time_ns() // 1_000_000,
            is_ours=is_ours,
        )

    def _new_log(self, partition: int) -> PartitionLog:
        name = f"{self.settings.topic_prefix}{partition}"
        return PartitionLog(partition, topics=self.topics, transactional_id=name, client=self.client)

    def _fatal(self, error: BaseException) -> None:
        self.errors.append(error)

    # -- the parts that run ------------------------------------------------------------------------------------------

    async def feed(self) -> None:
        """Hand every input to its journal."""
        while True:
            record = await self._deliveries.get()
            await self.journals.offer(Delivery(record, lambda: None))

    async def answer(self) -> None:
        """The skald: one report for each change that asks for one."""
        self.view.on_row(self._changed.put_nowait)
        while True:
            task_id = await self._changed.get()
            row = self.view.rows.get(task_id)
            if row is not None and row.holder is not None and row.holder.incarnation == INCARNATION:
                doc = self._report(row, row.holder.epoch)
                if doc is not None:
                    run = {"v": 1, "task_id": task_id, "epoch": row.holder.epoch, "incarnation": INCARNATION}
                    await self.sender.send_reports([(task_id, {**run, **doc})])

    def _report(self, row: Row, epoch: int) -> dict[str, Any] | None:
        if epoch <= self._ended.get(row.task_id, 0):
            return None
        if row.wanted is not Wanted.RUN or row.release is not None:
            self._ended[row.task_id] = epoch
            self._runs.pop(row.task_id, None)
            return {"kind": "Stopped"}
        if row.class_name == "Broken":
            self._ended[row.task_id] = epoch
            error = {"type": "ValueError", "message": "no such camera", "traceback": ["line 1", "line 2"]}
            return {"kind": "Failed", "error": error, "retryable": False}
        runs = self._runs.get(row.task_id)
        if runs is None or runs[0] != epoch:
            self._runs[row.task_id] = (epoch, row.attachments_version)
            return {"kind": "Running", "version": row.attachments_version}
        if row.attachments_version <= runs[1]:
            return None
        self._runs[row.task_id] = (epoch, row.attachments_version)
        if (row.attachments or {}).get("fps", 0) < 0:
            error = {"type": "ValueError", "message": "fps must be positive"}
            return {"kind": "Refused", "version": row.attachments_version, "error": error}
        return {"kind": "Applied", "version": row.attachments_version}

    async def beat(self) -> None:
        """One heartbeat of s1."""
        doc = {"v": 1, "skald_id": "s1", "incarnation": INCARNATION, "n": 1, "running": 0, "capacity": 8}
        value = orjson.dumps({**doc, "state": "up", "classes": {"Cam": "x", "Broken": "x"}, "role": "both"})
        await self.write(self.topics.heartbeat, "s1", value)
        await wait_for(lambda: len(self.view.members) == 1)

    async def write(self, topic: str, key: str, value: bytes | None) -> None:
        """Write one record as anybody could."""
        await self.producer.send_and_wait(topic, value, key=key.encode())

    # -- commands ----------------------------------------------------------------------------------------------------

    async def start(self, *args: str, **environment: str) -> asyncio.subprocess.Process:
        """Start `skalds-streams` with these arguments."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "SKALDS_"))}
        env |= {
            "KAFKA_HOST": self.settings.kafka_host,
            "KAFKA_PORT": str(self.settings.kafka_port),
            "SKALDS_TOPIC_PREFIX": self.settings.topic_prefix,
            "SKALDS_APP": "cli",
            "SKALDS_DIGEST_KEY": "a key",
            **environment,
        }
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-W", "error", "-c", CODE, *args)
        return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd=ROOT, env=env)

    async def call(self, *args: str, **environment: str) -> Said:
        """Run `skalds-streams` to its end."""
        process = await self.start(*args, **environment)
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return Said(process.returncode or 0, out.decode(), err.decode())

    async def offsets(self) -> dict[str, dict[int, int]]:
        """End offsets of every topic, to see that somebody wrote nothing."""
        from skalds_streams.replay.reader import open_reader

        found: dict[str, dict[int, int]] = {}
        async with open_reader(self.client) as reader:
            for spec in self.topics.specs():
                ends = await reader.ends([(spec.name, number) for number in range(spec.partitions)], committed=False)
                found[spec.name] = {number: end for (_, number), end in ends.items()}
        return found


async def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # conditions on rows, which have no event of their own
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(cluster: DevCluster) -> AsyncIterator[System]:
    """A system with topics of its own."""
    system = System(cluster)
    await ensure_topics(system.topics.specs(), system.client, replication_factor=1)
    await system.sender.start()
    system.producer = AIOKafkaProducer(**system.client)
    await system.producer.start()

    def take(records: Sequence[Record]) -> None:
        for record in records:
            system._deliveries.put_nowait(record)

    readers = [TopicReader(topic, PARTITIONS, system.client, take) for topic in system.topics.inputs]
    await system.journals.own(range(PARTITIONS))
    parts = [system.view.run(), system.feed(), system.answer(), *(reader.run() for reader in readers)]
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await system.view.wait_caught_up()
        await system.beat()
        yield system
        assert not system.errors
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        await system.journals.close()
        await system.producer.stop()
        await system.sender.stop()


@pytest.fixture
async def system(cluster: DevCluster) -> AsyncIterator[System]:
    async with running(cluster) as started:
        yield started


async def test_assign_update_cancel_and_what_is_shown_of_them(system: System) -> None:
    said = await system.call("assign", "cam-1", "--class", "Cam", "fps=30", "password=hunter2", "--reason", "first")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == ["cam-1: Assigning: Starting on s1", "cam-1: running on s1 (epoch 1)"]

    said = await system.call("update", "cam-1", "fps=10", "-o", "json")
    assert (said.code, said.err) == (0, "")
    assert said.doc["tasks"][0]["result"] == "applied"
    assert system.view.rows["cam-1"].attachments == {"fps": 10, "password": "hunter2"}

    said = await system.call("update", "cam-1", "fps=-1")
    assert said.code == 1
    assert said.out in ("", "cam-1: Running: s1 has not applied version 3 yet\n")  # said after a second only
    assert said.err == ("Error: cam-1: parameters refused: ValueError: fps must be positive; the former ones stay\n")

    said = await system.call("ps")
    lines = said.out.splitlines()
    assert (said.code, len(lines)) == (0, 3)
    assert lines[1].split()[:7] == ["cam-1", "Cam", "Running", "s1", "1", "fps=10", "password=***"]
    assert "v3 refused, v2 runs" in lines[1]

    said = await system.call("describe", "cam-1", "-n", "3")
    assert said.code == 0
    for part in (
        "held by       s1 (up), incarnation s1-life, epoch 1",
        "password: ***",
        "last changes, 3 of them",
        "Refused ",
    ):
        assert part in said.out
    doc = (await system.call("describe", "cam-1", "-o", "json")).doc
    assert [entry["revision"] for entry in doc["history"]] == [1, 2, 3, 4, 5, 6]
    assert doc["history"][0]["why"]["reason"] == "first"

    said = await system.call("cancel", "cam-1")
    assert (said.code, said.err) == (0, "")
    assert re.fullmatch(rf"cam-1: cancelled, {TOOK}", said.out.splitlines()[-1])
    assert "hunter2" not in str(doc)


async def test_assign_says_why_nobody_can_take_it(system: System) -> None:
    said = await system.call("assign", "odd-1", "--class", "Unknown", "--wait", "2")
    assert said.code == 1
    assert said.out == "odd-1: Assigning: No skald can take it: s1: no class Unknown\n"
    assert said.err.splitlines() == [
        "warning: odd-1: no skald has class Unknown now: it will wait",
        "Error: odd-1: not done within 2 s: Assigning: No skald can take it: s1: no class Unknown",
    ]
    doc = (await system.call("ps", "--status", "Assigning", "-o", "json")).doc
    assert [(task["task_id"], task["waiting"]) for task in doc["tasks"]] == [("odd-1", {"s1": "no class Unknown"})]
    assert [skald["skald_id"] for skald in doc["skalds"]] == ["s1"]


async def test_what_is_mistyped_stops_nothing_and_is_said(system: System) -> None:
    assert (await system.call("assign", "cam-1", "--class", "Cam")).code == 0
    before = await system.offsets()
    said = await system.call("assign", "cam-1", "--class", "Nope", "--no-wait")
    assert (said.code, said.out) == (1, "")
    assert said.err == (
        "Error: task cam-1: no skald has class Nope, so this would only stop its Cam; --force sends it all the same;"
        " there are: Broken, Cam\n"
    )
    assert await system.offsets() == before
    said = await system.call("assign", "cam-1", "--class", "Nope", "--force", "--no-wait", "-o", "json")
    assert (said.code, said.doc["tasks"][0]["warning"]) == (0, "cam-1: no skald has class Nope now: it will wait")

    said = await system.call("cancel", "nosuch")
    assert (said.code, said.out.split(",")[0]) == (0, "nosuch: cancelled")
    assert said.err == "warning: nosuch is not known here; the cancel is kept for when it is assigned\n"


async def test_assign_a_file_and_a_failure(system: System, tmp_path: Path) -> None:
    path = tmp_path / "tasks.yaml"
    path.write_text("TaskWorkers:\n  f-1: {className: Cam}\n  f-2: {className: Broken}\n")
    said = await system.call("assign", "-f", str(path), "-o", "json")
    assert said.code == 1
    results = {task["task_id"]: (task["ok"], task["result"]) for task in said.doc["tasks"]}
    assert results == {"f-1": (True, "running"), "f-2": (False, "failed")}
    assert said.err == "Error: f-2: failed: ValueError: no such camera\n"
    described = await system.call("describe", "f-2")
    assert "last error\n  ValueError: no such camera\n    line 1\n    line 2\n" in described.out


async def test_pause_resume_and_restart(system: System) -> None:
    assert (await system.call("assign", "cam-1", "--class", "Cam", "--no-wait")).out.startswith("cam-1: sent, ")
    said = await system.call("assign", "cam-1", "--action", "pause")
    assert (said.code, bool(re.fullmatch(rf"cam-1: paused, {TOOK}", said.out.splitlines()[-1]))) == (0, True)
    said = await system.call("assign", "cam-1", "--action", "resume")
    assert said.code == 0
    assert re.fullmatch(rf"cam-1: running on s1 \(epoch 2\), {TOOK}", said.out.splitlines()[-1])
    said = await system.call("assign", "cam-1", "--action", "restart", "-o", "json")
    (task,) = said.doc["tasks"]
    assert (said.code, task["reason"]) == (0, "running on s1 (epoch 3)")
    told = task["row"]["controls"]["restart"]
    assert (task["took_ms"], told["epoch"]) == (told["applied_at_ms"] - told["asked_at_ms"], 3)
    said = await system.call("describe", "cam-1")
    for name in ("pause", "resume", "restart"):
        assert re.search(rf"\n  {name} +asked .* by \S*task.assign/\d@\d+, applied ", said.out), said.out


async def test_what_no_coordinator_would_accept_is_not_sent(system: System) -> None:
    before = await system.offsets()
    most = {"SKALDS_MAX_ATTACHMENTS_BYTES": "1000"}
    said = await system.call("assign", "cam-1", "--class", "Cam", f"text={'x' * 2_000}", **most)
    assert (said.code, said.out) == (1, "")
    assert "SKALDS_MAX_ATTACHMENTS_BYTES" in said.err
    assert await system.offsets() == before


async def test_ps_watch_shows_changes_and_ends_with_ctrl_c(system: System) -> None:
    process = await system.start("ps", "--watch")
    await system.call("assign", "cam-1", "--class", "Cam")
    await asyncio.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"cam-1" in out


async def test_errors_are_one_line(system: System) -> None:
    said = await system.call("describe", "nobody")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("Error: there is no task 'nobody' at ")
    said = await system.call("ps", SKALDS_TOPIC_PREFIX="none.")
    assert (said.code, len(said.err.splitlines())) == (1, 1)
    assert "none.skald.heartbeat does not exist" in said.err
    said = await system.call("ps", "--kafka", "127.0.0.1:1")
    assert said.err == "Error: no Kafka broker answers at 127.0.0.1:1 (--kafka, or KAFKA_HOST and KAFKA_PORT)\n"
    assert said.code == 1


async def test_topics_check_and_create(system: System) -> None:
    said = await system.call("topics", "check", KAFKA_TOPIC_PARTITIONS=str(PARTITIONS))
    assert (said.code, said.err) == (0, "")
    said = await system.call("topics", "check", KAFKA_TOPIC_PARTITIONS="7")
    assert said.code == 1
    assert "has 3 partitions, it must have 7" in said.err
    prefix = f"new{uuid.uuid4().hex[:6]}."
    said = await system.call("topics", "check", "-o", "json", SKALDS_TOPIC_PREFIX=prefix)
    assert (said.code, said.doc["ok"], len(said.doc["missing"])) == (1, False, 9)
    said = await system.call("topics", "create", "-o", "json", SKALDS_TOPIC_PREFIX=prefix)
    assert (said.code, len(said.doc["created"])) == (0, 9)
    assert (await system.call("topics", "check", SKALDS_TOPIC_PREFIX=prefix)).code == 0
