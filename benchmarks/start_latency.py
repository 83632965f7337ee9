"""How long from an acknowledged assign to the worker's main method, one task after the other, on a system that runs
(`make run`).

    .venv/bin/python benchmarks/start_latency.py --kafka 127.0.0.1:9092 --tasks 20

Prints p50, p95 and max in ms of: send → broker has it; send → main begins (the skald's own time of the Running
report); send → Running on taskworker.update. Beside it, in the same run, the time that a bare `subprocess` of this
Python needs to begin. Cancels its tasks at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import subprocess
import sys
import time

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from skalds_streams.proxy.client import tune_consumers
from skalds_streams.topics import Topics


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)

    def pick(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1)

    return {"n": len(ordered), "p50": pick(0.5), "p95": pick(0.95), "max": round(ordered[-1], 1)}


def bare_start_ms() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return (time.perf_counter() - begun) * 1000


async def reader(bootstrap: str, topic: str, partitions: int) -> AIOKafkaConsumer:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=None, isolation_level="read_committed")
    await consumer.start()
    tps = [TopicPartition(topic, number) for number in range(partitions)]
    consumer.assign(tps)
    await consumer.seek_to_end(*tps)
    for tp in tps:
        await consumer.position(tp)
    return consumer


async def running(consumer: AIOKafkaConsumer, key: bytes, kind: str | None) -> dict[str, object]:
    async for record in consumer:
        if record.key == key:
            doc: dict[str, object] = orjson.loads(record.value)
            if doc.get("kind") == kind if kind else doc.get("status") == "Running":
                return doc
    raise RuntimeError("the topic ended")


async def measure(bootstrap: str, topics: Topics, class_name: str, tasks: int) -> dict[str, dict[str, float]]:
    tune_consumers()
    reports = await reader(bootstrap, topics.report, topics.partitions)
    history = await reader(bootstrap, topics.history, topics.partitions)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    sent_ms: list[float] = []
    main_ms: list[float] = []
    seen_ms: list[float] = []
    ids = [f"bench-{secrets.token_hex(4)}" for _ in range(tasks)]
    try:
        for task_id in ids:
            task = {"id": task_id, "className": class_name, "source": "benchmark"}
            value = orjson.dumps({"taskIds": [task_id], "tasks": [task]})
            begun = time.time() * 1000
            await producer.send_and_wait(topics.assign, value, key=task_id.encode())
            sent_ms.append(time.time() * 1000 - begun)
            seen = asyncio.ensure_future(running(history, task_id.encode(), None))
            async with asyncio.timeout(30):
                report = await running(reports, task_id.encode(), "Running")
            main_ms.append(float(str(report["at_ms"])) - begun)
            async with asyncio.timeout(30):
                await seen
            seen_ms.append(time.time() * 1000 - begun)
            await asyncio.sleep(0.2)
    finally:
        for task_id in ids:
            await producer.send(topics.cancel, orjson.dumps({"taskIds": [task_id]}), key=task_id.encode())
        await producer.stop()
        await reports.stop()
        await history.stop()
    return {
        "assign acknowledged": percentiles(sent_ms),
        "main begins": percentiles(main_ms),
        "Running in history": percentiles(seen_ms),
        "bare subprocess": percentiles([bare_start_ms() for _ in range(tasks)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", default="127.0.0.1:9092")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--class-name", default="Counter")
    parser.add_argument("--app", default="skalds")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--partitions", type=int, default=6)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    topics = Topics.named(app=options.app, prefix=options.prefix, partitions=options.partitions)
    found = asyncio.run(measure(options.kafka, topics, options.class_name, options.tasks))
    print(f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}")
    print(f"{'ms':22}{'n':>6}{'p50':>8}{'p95':>8}{'max':>8}")
    for name, row in found.items():
        print(f"{name:22}{row['n']:6}{row['p50']:8}{row['p95']:8}{row['max']:8}")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
