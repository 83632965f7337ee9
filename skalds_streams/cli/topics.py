"""`skalds-streams topics`: check the topics, create those that are missing, mend those that are not as they must be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import BAD, GOOD, QUIET, err, out, print_json, text
from skalds_streams.errors import TopicError
from skalds_streams.proxy.client import client_options
from skalds_streams.proxy.topic_repair import Done, Repair, carry_out, plan_repair
from skalds_streams.proxy.topic_setup import ensure_topics, open_admin
from skalds_streams.replay.reader import partition_counts, translated_errors
from skalds_streams.settings import Settings
from skalds_streams.topics import Topics, TopicSpec


@click.group()
def topics() -> None:
    """Check, create or mend the Kafka topics. A skald that starts checks and creates, too.

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


@topics.command()
@click.option("--dry-run", is_flag=True, help="Say what would be changed, and change nothing.")
@command_options
def fix(options: Options, /, dry_run: bool) -> None:
    """Mend what can be mended without losing anything: create missing topics, set settings right.

    Every change is shown, before → after. What a person must do is said on stderr, and the exit code is 1 then: a
    number of partitions is never changed, as a task is found by it; no topic is deleted, no retention shortened.

    \b
    Example:
      skalds-streams topics fix --dry-run
      skalds-streams topics fix
    """
    run(_fix(options, dry_run=dry_run))


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
        raise TopicError(f"missing: {', '.join(missing)}. `skalds-streams topics fix` makes them.")


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
        out().print(text(f"{spec.name}: {word}, {_counted(spec.partitions, 'partition')}", GOOD))
    for warning in report.warnings:
        err().print(text(f"Warning: {warning}", BAD))


async def _fix(options: Options, *, dry_run: bool) -> None:
    settings, client = options.settings, client_options(options.settings)
    with translated_errors(client):
        async with open_admin(client) as admin:
            repair = await plan_repair(admin, _specs(settings), settings.kafka_replication_factor)
            if not options.json:
                _show(repair, dry_run=dry_run)
            if not dry_run:
                with _progress(repair) as done:
                    await carry_out(admin, repair, done)
    if options.json:
        print_json(_as_doc(repair, dry_run=dry_run))
    elif not dry_run and repair.topics:
        out().print(text(f"mended: {_counted(repair.topics, 'topic')}", GOOD))
    if repair.left:
        raise TopicError("not mended, a person must do it:\n  " + "\n  ".join(words for _, words in repair.left))


def _show(repair: Repair, *, dry_run: bool) -> None:
    console = out()
    for spec in repair.missing:
        size = f"{_counted(spec.partitions, 'partition')}, {_counted(repair.replicas, 'replica')}"
        console.print(text(f"{spec.name}: missing → {size}"))
    for name, items in repair.changes.items():
        for item in items:
            console.print(text(f"{name}: {item.name}: {item.found} → {item.wanted} ({item.why})"))
    if not repair.topics:
        console.print(text("nothing to mend", GOOD))
    elif dry_run:
        console.print(text("nothing was changed: --dry-run", QUIET))


@contextmanager
def _progress(repair: Repair) -> Iterator[Done]:
    """A bar on a terminal, nothing elsewhere."""
    console = err()
    if not console.is_terminal or not repair.topics:
        yield lambda _topic: None
        return
    columns = (TextColumn("mending {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        number = bar.add_task("topics", total=repair.topics)
        yield lambda topic: bar.update(number, description=topic, advance=1)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _as_doc(repair: Repair, *, dry_run: bool) -> dict[str, Any]:
    changed = [
        {"topic": item.topic, "name": item.name, "from": item.found, "to": item.wanted, "why": item.why}
        for items in repair.changes.values()
        for item in items
    ]
    return {
        "ok": not repair.left,
        "dry_run": dry_run,
        "created": [spec.name for spec in repair.missing],
        "changed": changed,
        "left": [{"topic": topic, "todo": words} for topic, words in repair.left],
    }
