"""`skalds-streams topics`: check the topics, or create those that are missing."""

from __future__ import annotations

from collections.abc import Sequence

import click

from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import BAD, GOOD, err, out, print_json, text
from skalds_streams.errors import TopicError
from skalds_streams.proxy.client import client_options
from skalds_streams.proxy.topic_setup import ensure_topics
from skalds_streams.replay.reader import partition_counts
from skalds_streams.settings import Settings
from skalds_streams.topics import Topics, TopicSpec


@click.group()
def topics() -> None:
    """Check or create the Kafka topics. A skald that starts does the same.

    \b
    Example:
      skalds-streams topics check
    """


@topics.command()
@command_options
def check(options: Options, /) -> None:
    """Say which topics are missing or are not as they must be. Changes nothing; exit code 1 when something is wrong.

    \b
    Example:
      skalds-streams topics check --kafka broker:9092
    """
    run(_check(options))


@topics.command()
@command_options
def create(options: Options, /) -> None:
    """Create what is missing, then check everything.

    \b
    Example:
      KAFKA_TOPIC_PARTITIONS=12 skalds-streams topics create
    """
    run(_ensure(options, _specs(options.settings), missing=()))


def _specs(settings: Settings) -> Sequence[TopicSpec]:
    named = Topics.named(app=settings.app, prefix=settings.topic_prefix, partitions=settings.kafka_topic_partitions)
    return named.specs()


async def _check(options: Options) -> None:
    specs = _specs(options.settings)
    counts = await partition_counts(client_options(options.settings), [spec.name for spec in specs])
    there = [spec for spec in specs if spec.name in counts]
    missing = [spec.name for spec in specs if spec.name not in counts]
    if there:
        await _ensure(options, there, missing)
    elif options.json:
        print_json({"ok": False, "topics": [], "created": [], "missing": missing, "warnings": []})
    if missing:
        raise TopicError(f"missing: {', '.join(missing)}. `skalds-streams topics create` makes them.")


async def _ensure(options: Options, specs: Sequence[TopicSpec], missing: Sequence[str]) -> None:
    settings = options.settings
    report = await ensure_topics(specs, client_options(settings), replication_factor=settings.kafka_replication_factor)
    if options.json:
        print_json(
            {
                "ok": not missing,
                "topics": [spec.name for spec in specs],
                "created": list(report.created),
                "missing": list(missing),
                "warnings": list(report.warnings),
            }
        )
        return
    for spec in specs:
        word = "created" if spec.name in report.created else "as it must be"
        out().print(text(f"{spec.name}: {word}, {spec.partitions} partitions", GOOD))
    for warning in report.warnings:
        err().print(text(f"Warning: {warning}", BAD))
