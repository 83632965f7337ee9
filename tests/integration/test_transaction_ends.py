"""What the broker is told of a transaction's end, or what it answers, comes late or never; and the broker is killed at
that very point. The node under test reaches the broker through a proxy that holds these frames back, the readers of the
test reach it directly.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from skalds_streams.coordinator.log import TRANSACTION_TIMEOUT_MS, WRITE_TIMEOUT_S
from skalds_streams.core.partition import partition_of
from skalds_streams.devcluster import DevCluster
from skalds_streams.devcluster.ports import HOST, free_port
from tests.integration.exactly_once import check_exactly_once, check_writers, some_progress, streaming
from tests.integration.system import PARTITIONS, Node, System, system_of, until
from tests.integration.tcp_proxy import Cut, EndTxn, TcpProxy, listeners, pass_on

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.timeout(240)]

INVALID_PRODUCER_EPOCH = 47
SWEEP_MS = 250
"""How often the broker looks for transactions that are over their time. Its default is 10 s: then no test knows which
of two things comes first.
"""


@dataclass(frozen=True, slots=True)
class Proxied:
    """A cluster, and the address at which its clients find a proxy when they have asked there."""

    cluster: DevCluster
    listener: socket.socket
    behind_proxy: int

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with socket.create_server((HOST, 0)) as listener:
        port = free_port()
        behind_proxy = free_port(avoid=(port,))
        settings = {
            **listeners(port, behind_proxy, listener.getsockname()[1]),
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": str(SWEEP_MS),
        }
        directory = tmp_path_factory.mktemp("proxied")
        with DevCluster(
            directory, kafka_port=port, strict_ports=True, with_redis=False, kafka_settings=settings
        ) as cluster:
            yield Proxied(cluster, listener, behind_proxy)


@pytest.fixture
async def proxy(proxied: Proxied) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(proxied.behind_proxy).listening(proxied.listener) as made:
        yield made


@pytest.fixture
async def system(proxied: Proxied, proxy: TcpProxy, tmp_path: Path) -> AsyncIterator[System]:
    """Its node is to be made by `node_behind`."""
    async with system_of(tmp_path, proxied.cluster.kafka_port) as made:
        yield made


async def node_behind(proxied: Proxied, system: System) -> Node:
    """A node that is ready and knows the broker by the proxy's address only."""
    node = system.node("a", KAFKA_PORT=str(proxied.port))
    node.start()
    await node.ready()
    return node


# -- the end comes twice -----------------------------------------------------------------------------------------------


class Straggler:
    """Hangs up on one who asks for the end of a transaction, and lets the request through when the next transaction of
    that partition is to end: asked again meanwhile, the broker has ended the first.
    """

    def __init__(self) -> None:
        self.late: EndTxn | None = None
        self.next_one: EndTxn | None = None
        self._committed = 0
        self._may_pass = asyncio.Event()

    async def before_request(self, end: EndTxn) -> None:
        if self.late is None:
            self.late = end
            end.hang_up()
            await self._may_pass.wait()
        elif end.partition == self.late.partition and self.next_one is None:
            self._committed += 1
            if self._committed == 2:
                self.next_one = end
                self._may_pass.set()
                late = self.late
                await until(lambda: late.error is not None, "the broker has answered the late one")


async def test_a_late_request_to_commit_does_not_commit_the_next_transaction(
    proxied: Proxied, system: System, proxy: TcpProxy
) -> None:
    node = await node_behind(proxied, system)
    straggler = Straggler()
    async with streaming(system) as (stream, progress):
        await some_progress(stream, progress)
        proxy.before_request = straggler.before_request
        await until(lambda: straggler.next_one is not None and straggler.next_one.error is not None, "both have ended")
        proxy.before_request = pass_on
        await some_progress(stream, progress)
    assert straggler.late is not None
    assert straggler.next_one is not None
    assert (straggler.late.error, straggler.next_one.error) == (INVALID_PRODUCER_EPOCH, 0)
    assert "a commit was asked for twice" in node.log()
    await check_exactly_once(system, stream.acknowledged)


# -- the end comes late ------------------------------------------------------------------------------------------------

DELAYS_S = {0: 1.0, 1: 4.0, 2: 7.0, 3: 12.0, 4: 30.0}
"""Partition → how late the broker hears of the ends of its transactions. The broker aborts a transaction after 10 s,
the node gives it up after 15 s. Those of the last partition are on time.
"""
FAULT_S = max(DELAYS_S.values())


class Delays:
    """Holds back every end of a transaction that can be let go within FAULT_S from the first of its partition."""

    def __init__(self) -> None:
        self.held: dict[int, list[EndTxn]] = defaultdict(list)
        self._begun: dict[int, float] = {}

    async def before_request(self, end: EndTxn) -> None:
        delay_s = DELAYS_S.get(end.partition)
        if delay_s is None:
            return
        now = asyncio.get_running_loop().time()
        if now + delay_s <= self._begun.setdefault(end.partition, now) + FAULT_S:
            self.held[end.partition].append(end)
            await asyncio.sleep(delay_s)

    @property
    def are_over(self) -> bool:
        """Whether the broker has answered the latest of each."""
        return len(self.held) == len(DELAYS_S) and all(
            end.error is not None for ends in self.held.values() for end in ends
        )


async def test_ends_of_transactions_that_are_1_to_30_s_late_lose_nothing_and_repeat_nothing(
    proxied: Proxied, system: System, proxy: TcpProxy
) -> None:
    assert TRANSACTION_TIMEOUT_MS / 1000 < DELAYS_S[3] < WRITE_TIMEOUT_S < DELAYS_S[4]
    node = await node_behind(proxied, system)
    delays = Delays()
    async with streaming(system) as (stream, progress):
        await some_progress(stream, progress)
        proxy.before_request = delays.before_request
        await until(lambda: delays.are_over, "every late end has reached the broker", FAULT_S + 20)
        proxy.before_request = pass_on
        await some_progress(stream, progress)
    errors = {partition: Counter(end.error for end in ends) for partition, ends in sorted(delays.held.items())}
    print(f"late ends by partition, with the broker's answers: {errors}; inputs: {len(stream.acknowledged)}")
    await check_exactly_once(system, stream.acknowledged)
    check_writers(proxied.cluster, system)
    for partition in (0, 1, 2):
        assert set(errors[partition]) == {0}, "what is late and in time is as good as any"
    for partition in (3, 4):
        assert 0 not in errors[partition], "what was given up is refused"
    assert all(end.committed for ends in delays.held.values() for end in ends)
    assert _lines(node, "journal.fenced", partition=3), "the broker gave it up first"
    assert _lines(node, "journal.outcome_unknown", partition=4), "the node gave it up first"
    for partition in (0, 1, 2, 5):
        assert not _lines(node, "journal.fenced", partition) + _lines(node, "journal.outcome_unknown", partition)
    assert await node.stop() == 0


def _lines(node: Node, event: str, partition: int) -> list[str]:
    """What the node logged of this event in a journal."""
    return [line for line in node.log().splitlines() if event in line and f"partition={partition}" in line]


# -- the answer comes late ---------------------------------------------------------------------------------------------


class Answers:
    """Holds back the answer to the first commit of each partition in `fates`.

    What becomes of it when `let_go` is called is its fate: "released", "cut" (the connection ends instead), "lost"
    (there is no answer, and the connection lives).
    """

    def __init__(self, fates: dict[int, str]) -> None:
        self._fates = dict(fates)
        self.held: set[int] = set()
        self._go = asyncio.Event()

    def let_go(self) -> None:
        self._go.set()

    async def before_answer(self, end: EndTxn) -> None:
        fate = self._fates.pop(end.partition, None)
        if fate is None or not end.committed:
            return
        assert end.error == 0, "the broker has committed"
        self.held.add(end.partition)
        await self._go.wait()
        if fate == "cut":
            raise Cut
        if fate == "lost":
            await asyncio.Event().wait()


FATES = ("released", "cut", "lost", "on time")


async def test_a_report_of_what_a_reader_saw_before_its_writer_knew_is_decided_right(
    proxied: Proxied, system: System, proxy: TcpProxy, tmp_path: Path
) -> None:
    """A skald reads the committed row, starts the task and reports it while the coordinator still waits for the answer
    to that commit.
    """
    tasks = {fate: _task_of(partition) for partition, fate in enumerate(FATES)}
    held = {fate: task_id for fate, task_id in tasks.items() if fate != "on time"}
    node = await node_behind(proxied, system)
    answers = Answers({partition_of(task_id, PARTITIONS): fate for fate, task_id in held.items()})
    proxy.before_answer = answers.before_answer
    for task_id in tasks.values():
        await system.assign(task_id, attachments={"fps": 30, "trace": str(tmp_path / task_id)})
    await until(lambda: _reported(system, tasks.values()), "every skald's report is there")
    await until(lambda: len(answers.held) == len(held), "the broker's answers are held back")
    for task_id in held.values():
        seen = [(item["status"], item["why"]["kind"]) for item in await system.history(task_id)]
        assert seen == [("Assigning", "Assign")], "its report waits for the outcome"
    answers.let_go()
    for task_id in tasks.values():
        await system.status(task_id, "Running", epoch=1, applied_version=1)
        await until((tmp_path / task_id).exists, "it runs")
        history = [
            (item["revision"], item["status"], item["epoch"], item["why"]["kind"])
            for item in await system.history(task_id)
        ]
        assert history == [(1, "Assigning", 1, "Assign"), (2, "Running", 1, "Running")], task_id
    await node.ready()
    for task_id in tasks.values():
        await system.cancel(task_id)
    for task_id in tasks.values():
        await system.status(task_id, "Cancelled", holder=None, epoch=1)
        assert (tmp_path / task_id).read_text().splitlines() == ["start 1"], "it ran once"
    unknown = [_lines(node, "journal.outcome_unknown", partition) for partition in range(len(FATES))]
    # After a cut the client library asks for the commit once more: the first request could still be on its way.
    assert [len(lines) for lines in unknown] == [int(fate in ("cut", "lost")) for fate in FATES]
    assert await node.stop() == 0


def _task_of(partition: int) -> str:
    return next(name for number in range(1000) if partition_of(name := f"task-{number}", PARTITIONS) == partition)


async def _reported(system: System, task_ids: Any) -> bool:
    documents = [orjson.loads(record.value) for record in await system.records(system.topics.report)]
    return {item["task_id"] for item in documents if item["kind"] == "Running"} >= set(task_ids)


# -- the broker dies ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def idempotent(system: System) -> AsyncIterator[None]:
    """What is sent through the death of a broker is written once: an input that came twice would be none of ours."""
    plain = system.producer
    system.producer = AIOKafkaProducer(bootstrap_servers=system.bootstrap, enable_idempotence=True)
    await system.producer.start()
    try:
        yield
    finally:
        await system.producer.stop()
        system.producer = plain


class Killing:
    """Kills the broker at the next commit: when its records are written and it has not heard of the end, or when it has
    committed and nobody has heard of that.
    """

    def __init__(self, cluster: DevCluster) -> None:
        self._cluster = cluster
        self.done = asyncio.Event()

    async def __call__(self, end: EndTxn) -> None:
        if end.committed and not self.done.is_set():
            self.done.set()
            self._cluster.kafka.kill()
            raise Cut


async def test_a_broker_killed_in_mid_batch_and_started_again_loses_nothing_and_repeats_nothing(
    proxied: Proxied, system: System, proxy: TcpProxy
) -> None:
    node = await node_behind(proxied, system)
    async with idempotent(system), streaming(system) as (stream, progress):
        for hook in ("before_request", "before_answer"):
            await some_progress(stream, progress)
            killing = Killing(proxied.cluster)
            setattr(proxy, hook, killing)
            await until(killing.done.is_set, f"the broker is killed {hook}")
            await asyncio.to_thread(proxied.cluster.kafka.start)
            setattr(proxy, hook, pass_on)
        await some_progress(stream, progress)
        await node.ready()
    print(f"inputs: {len(stream.acknowledged)}")
    await check_exactly_once(system, stream.acknowledged)
    check_writers(proxied.cluster, system)
    assert await node.stop() == 0
