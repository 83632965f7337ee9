"""Lint, ledger and oracle over the topics of a cluster that runs or has run: `python -m skalds_streams.testing.verify
--help`.

Reads with a consumer of its own, no group; writes nothing. The last line counts: `findings: 0, inputs: 4012, tasks:
100`. Exit code 1 with findings.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from aiokafka import TopicPartition

from skalds_streams.errors import SkaldsError
from skalds_streams.model.record import Record
from skalds_streams.proxy.client import client_options, log_consumer, record_of
from skalds_streams.settings import Settings
from skalds_streams.testing import ledger, oracle
from skalds_streams.testing.lint import Finding, Logs, lint
from skalds_streams.topics import Topics

SETTLED_S = 10.0
"""How long the broker may take from the answer to a commit until all its records can be read. Milliseconds, mostly."""
LOOK_S = 0.2


async def read_all(topics: Topics, client: Mapping[str, Any]) -> list[Record]:
    """Every committed record of every topic but the heartbeats, in offset order within a partition."""
    names = (*topics.inputs, topics.history, topics.deadletter, topics.changelog)
    tps = [TopicPartition(name, number) for name in names for number in range(topics.partitions)]
    consumer = log_consumer(client)
    await consumer.start()
    try:
        consumer.assign(tps)
        left = dict(await consumer.end_offsets(tps))
        found: list[Record] = []
        while left:
            for items in (await consumer.getmany(timeout_ms=200)).values():
                found += [record_of(item) for item in items]
            left = {tp: end for tp, end in left.items() if await consumer.position(tp) < end}
        return found
    finally:
        await consumer.stop()


def findings(records: Sequence[Record], topics: Topics, *, ledgers: Sequence[Path] = ()) -> list[Finding]:
    """What lint, oracle and the ledgers find. The oracle speaks of a system in which everything has been delivered."""
    logs = Logs.of(records, topics)
    found = lint(records, topics) + oracle.judge(logs, topics)
    for path in ledgers:
        found += ledger.check(ledger.read(path), logs)
    return found


async def settled(
    topics: Topics, client: Mapping[str, Any], judge: Callable[[Sequence[Record], Topics], list[Finding]] = findings
) -> tuple[list[Record], list[Finding]]:
    """All records, and what `judge` finds in them and finds again for SETTLED_S.

    The answer to a commit comes before its records can be read in every partition (in half of all commits, by up to
    31 ms on an idle broker), so one look may see a part of the last transaction. One that is torn stays torn.
    """
    deadline = time.monotonic() + SETTLED_S
    while True:
        records = await read_all(topics, client)
        found = judge(records, topics)
        if not found or time.monotonic() >= deadline:
            return records, found
        await asyncio.sleep(LOOK_S)


@click.command(epilog="Example: python -m skalds_streams.testing.verify --kafka localhost:9092 --ledger sent.jsonl")
@click.option("--kafka", help="host:port, or several with commas between; default KAFKA_HOST and KAFKA_PORT.")
@click.option("--ledger", "ledgers", type=click.Path(exists=True, path_type=Path), multiple=True, help="A ledger file.")
def main(kafka: str | None, ledgers: Sequence[Path]) -> None:
    """Check the topics of a cluster against the rules that every run must keep."""
    try:
        settings = Settings.load(**({"kafka_host": kafka} if kafka else {}))
        topics = Topics.named(
            app=settings.app, prefix=settings.topic_prefix, partitions=settings.kafka_topic_partitions
        )
        records, found = asyncio.run(settled(topics, client_options(settings), partial(findings, ledgers=ledgers)))
    except (SkaldsError, OSError) as error:
        raise click.ClickException(str(error)) from None
    for finding in found:
        click.echo(str(finding))
    logs = Logs.of(records, topics)
    click.echo(f"findings: {len(found)}, inputs: {len(logs.inputs)}, tasks: {len(logs.history)}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
