"""How long a process needs to take over all partitions: every journal's log opened side by side, as after a rebalance,
and all rows read and checked. Beside it, in the same run, bare aiokafka reading the same topic into a dict.

    .venv/bin/python benchmarks/recovery.py                            # with an embedded broker
    .venv/bin/python benchmarks/recovery.py --kafka 127.0.0.1:9092     # topics of its own, deleted at the end

Prints medians in s, rows/s, CPU µs a row (of this process), the ratio, and the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import secrets
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from skalds_streams.coordinator.batch import Output
from skalds_streams.coordinator.log import PartitionLog
from skalds_streams.core.partition import partition_of
from skalds_streams.core.row import Cause, Holder, Row, Status, Wanted
from skalds_streams.devcluster.cluster import DevCluster
from skalds_streams.model.documents import Positions, encode_positions, encode_row
from skalds_streams.proxy.client import tune_consumers
from skalds_streams.proxy.topic_setup import ensure_topics
from skalds_streams.topics import POSITIONS_KEY, Topics

ROWS_A_TRANSACTION = 500
"""As a coordinator's batch writes them."""
GOAL_S = 3.0
"""For 100,000 rows."""

Runs = dict[str, list[tuple[float, float]]]
"""Name → (seconds, CPU seconds) of each run."""


def row_of(number: int) -> Row:
    """A task that runs, as most rows of a system are."""
    return Row(
        f"bench-task-{number:06d}",
        "Camera",
        requires={"zone": "a"},
        wanted=Wanted.RUN,
        status=Status.RUNNING,
        holder=Holder("node-1", "0123456789abcdef", 3),
        epoch=3,
        revision=12,
        attachments={"rtspUrl": f"rtsp://camera-{number}.example/stream", "fps": 30, "fixFrame": True},
        attachments_version=2,
        applied_version=2,
        applied_at_ms=1_795_528_037_269,
        assign_at_ms=1_795_528_037_000,
        update_at_ms=1_795_528_037_200,
        running_since_ms=1_795_528_037_100,
        last_skald="node-1",
        why=Cause("Applied", "skald.report", 3, 1_000 + number, 1_795_528_037_269),
        updated_at_ms=1_795_528_037_269,
    )


def logs_of(topics: Topics, bootstrap: str) -> list[PartitionLog]:
    client = {"bootstrap_servers": bootstrap}
    return [
        PartitionLog(number, topics=topics, transactional_id=f"{topics.changelog}-{number}", client=client)
        for number in range(topics.partitions)
    ]


async def fill(topics: Topics, bootstrap: str, rows: int) -> None:
    by_partition: dict[int, list[Output]] = {number: [] for number in range(topics.partitions)}
    for number in range(rows):
        row = row_of(number)
        output = Output(topics.changelog, row.task_id.encode(), encode_row(row))
        by_partition[partition_of(row.task_id, topics.partitions)].append(output)
    positions = Output(topics.changelog, POSITIONS_KEY, encode_positions(Positions({}, partitions=topics.partitions)))
    for log in logs_of(topics, bootstrap):
        await log.open()
        outputs = by_partition[log.partition]
        for start in range(0, len(outputs), ROWS_A_TRANSACTION):
            await log.write([*outputs[start : start + ROWS_A_TRANSACTION], positions])
        await log.close()


async def journals(topics: Topics, bootstrap: str, cleanup: AsyncExitStack) -> int:
    """Open every log. Returns the number of rows."""
    logs = logs_of(topics, bootstrap)
    for log in logs:
        cleanup.push_async_callback(log.close)
    recovered = await asyncio.gather(*(log.open() for log in logs))
    return sum(len(item.rows) for item in recovered)


async def bare(topics: Topics, bootstrap: str, cleanup: AsyncExitStack) -> int:
    """Read the topic with one consumer. Returns the number of rows."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, group_id=None, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    cleanup.push_async_callback(consumer.stop)
    await consumer.start()
    tps = [TopicPartition(topics.changelog, number) for number in range(topics.partitions)]
    consumer.assign(tps)
    ends = await consumer.end_offsets(tps)
    await consumer.seek_to_beginning(*tps)
    kept: dict[bytes, bytes] = {}
    left = set(tps)
    while left:
        for records in (await consumer.getmany(timeout_ms=100)).values():
            for record in records:
                kept[record.key] = record.value
        left = {tp for tp in left if await consumer.position(tp) < ends[tp]}
    return len(kept) - 1  # without the positions, whose key is the same everywhere


async def timed(
    work: Callable[[Topics, str, AsyncExitStack], Awaitable[int]], topics: Topics, bootstrap: str, rows: int
) -> tuple[float, float]:
    gc.collect()
    async with AsyncExitStack() as cleanup:
        begun, cpu = time.perf_counter(), time.process_time()
        found = await work(topics, bootstrap, cleanup)
        took = time.perf_counter() - begun, time.process_time() - cpu
    if found != rows:
        raise RuntimeError(f"{work.__name__} found {found} rows of {rows}")
    return took


async def measure(bootstrap: str, rows: int, runs: int, partitions: int) -> Runs:
    tune_consumers()
    topics = Topics.named(app="bench", prefix=f"bench{secrets.token_hex(4)}.", partitions=partitions)
    await ensure_topics(topics.specs(), {"bootstrap_servers": bootstrap}, replication_factor=1)
    took: Runs = {"journals": [], "bare aiokafka": []}
    try:
        await fill(topics, bootstrap, rows)
        for _ in range(runs):  # by turns, so that whatever else the machine does hits both
            took["journals"].append(await timed(journals, topics, bootstrap, rows))
            took["bare aiokafka"].append(await timed(bare, topics, bootstrap, rows))
    finally:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        await admin.delete_topics([spec.name for spec in topics.specs()])
        await admin.close()
    return took


@contextmanager
def broker(address: str | None) -> Iterator[str]:
    """The address of a broker: the one that is given, or of one that lives as long as this runs."""
    if address is not None:
        yield address
        return
    with tempfile.TemporaryDirectory() as directory, DevCluster(Path(directory), kafka_port=0, redis_port=0) as cluster:
        yield f"{cluster.kafka_host}:{cluster.kafka_port}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", help="host:port; an embedded broker without it")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--partitions", type=int, default=6)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    with broker(options.kafka) as bootstrap:
        took = asyncio.run(measure(bootstrap, options.rows, options.runs, options.partitions))
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores (load {load:.1f}), {platform.platform()}, Python {platform.python_version()}")
    print(f"{options.rows:,} rows in {options.partitions} partitions, median of {options.runs}")
    print(f"{'':16}{'s':>8}{'best':>8}{'rows/s':>10}{'CPU µs a row':>15}")
    median: dict[str, float] = {}
    for name, runs in took.items():
        median[name] = statistics.median(seconds for seconds, _ in runs)
        cpu_us = statistics.median(cpu for _, cpu in runs) / options.rows * 1e6
        best = min(seconds for seconds, _ in runs)
        print(f"{name:16}{median[name]:8.2f}{best:8.2f}{options.rows / median[name]:10,.0f}{cpu_us:15.1f}")
    ratio = median["journals"] / median["bare aiokafka"]
    goal_s = GOAL_S * options.rows / 100_000
    met = "met" if median["journals"] <= goal_s else "missed"
    print(f"journals take {ratio:.1f} times as long; the goal of {goal_s:g} s is {met}")
    if options.json:
        print(json.dumps({**{name: took[name] for name in took}, "ratio": ratio}))


if __name__ == "__main__":
    main()
