"""`skalds-streams describe`: one task in words: what is wanted, who holds it, parameters, errors, last changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table as RichTable

from skalds_streams.cli.kafka import Cluster, Table, connect, last_history, read_table
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import (
    BAD,
    QUIET,
    STATUS_STYLES,
    err,
    harmless,
    now_ms,
    one_line,
    out,
    print_json,
    status_text,
    text,
    value_words,
    when,
)
from skalds_streams.cli.rows import (
    age_words,
    applied_words,
    full_doc,
    holder_state,
    status_suffix,
    tries_words,
)
from skalds_streams.core.control import CANCEL
from skalds_streams.core.placement import EXPECTED_BACK
from skalds_streams.core.row import Row
from skalds_streams.errors import SkaldsError
from skalds_streams.projections.masking import error_reason, error_text, masked_doc, text_cleaner
from skalds_streams.replay.reader import open_reader
from skalds_streams.replay.recording import Entry
from skalds_streams.web.words import (
    WANTED,
    cause_words,
    controls_told,
    note_words,
    outcome_words,
    policy_words,
    situation,
    waiting_reasons,
    why_words,
)

HISTORY_MOST = 20


@click.command()
@click.argument("task_id", metavar="ID")
@click.option(
    "-n",
    "--history",
    "most",
    type=click.IntRange(min=0),
    default=HISTORY_MOST,
    show_default=True,
    metavar="N",
    help="How many of its last changes to show.",
)
@command_options
def describe(options: Options, /, task_id: str, most: int) -> None:
    """Everything about one task, and its last changes with their causes. Secrets are masked.

    \b
    Example:
      skalds-streams describe cam-1 -n 50
    """
    run(_describe(options, task_id, most))


async def _describe(options: Options, task_id: str, most: int) -> None:
    cluster = await connect(options.settings, "changelog", "history", "heartbeat")
    async with open_reader(cluster.client) as reader:
        table = await read_table(cluster, reader, task_id)
        history = await last_history(cluster, reader, task_id, most)
    row = table.rows.get(task_id)
    if row is None and not history:
        raise SkaldsError(
            f"there is no task {harmless(task_id)!r} at {options.settings.bootstrap}, and no history of it is kept"
        )
    if options.json:
        print_json(as_doc(task_id, table, history, cluster.words, now_ms()))
        return
    for problem in table.problems:
        err().print(text(f"Warning: not understood: {problem}", BAD))
    _print(out(), cluster, task_id, table, history)


def as_doc(task_id: str, table: Table, history: Sequence[Entry], words: frozenset[str], now: int) -> dict[str, Any]:
    """The JSON object: {"task_id", "task": document or null, "history": […], oldest first}."""
    row = table.rows.get(task_id)
    clean = _cleaner(row, table, words)
    entries = [{"partition": entry.partition, "offset": entry.offset, **clean(entry.to_doc())} for entry in history]
    return {
        "task_id": task_id,
        "task": full_doc(row, table.members, words, now) if row is not None else None,
        "history": entries,
    }


def _print(console: Console, cluster: Cluster, task_id: str, table: Table, history: Sequence[Entry]) -> None:
    row, now = table.rows.get(task_id), now_ms()
    if row is None:
        console.print(text(f"{task_id} is not in the table any more; this is what is kept of its history", QUIET))
    else:
        console.print(
            text(one_line(task_id), "bold"),
            status_text(row.status, status_suffix(row)),
            text(f"for {age_words(row, now)}"),
        )
        for name, words in facts(row, table, cluster.words, now):
            console.print(text(f"  {name:<14}", QUIET) + text(words))
        doc = masked_doc(row, cluster.words, table.members.secret_paths(row.class_name))
        _print_parameters(console, row, doc)
        _print_error(console, doc["error"])
    _print_history(console, history, _cleaner(row, table, cluster.words))


def _cleaner(row: Row | None, table: Table, words: frozenset[str]) -> Callable[[Any], Any]:
    row = row or Row("")
    return text_cleaner(row, words, table.members.secret_paths(row.class_name))


def facts(row: Row, table: Table, words: frozenset[str], now: int) -> Iterator[tuple[str, str]]:
    """(name, words) of everything that there is to say, without parameters, error and history."""
    clean = _cleaner(row, table, words)
    told = situation(row, clean)
    yield "class", row.class_name or "not known yet"
    yield "wanted", WANTED[row.wanted]
    expected = set((row.waiting or {}).values()) == {EXPECTED_BACK}
    if row.is_waiting and row.waiting and not row.retry_at_ms and not expected:
        yield "now", "No skald can take it"
    elif told.text:
        yield "now", one_line(told.text) + (f" at {when(told.at_ms)}" if told.at_ms else "")
    if row.holder is not None:
        state = holder_state(row, table.members)
        state = "not in the heartbeats" if state == "unknown" else state
        yield (
            "held by",
            f"{row.holder.skald_id} ({state}), incarnation {row.holder.incarnation}, epoch {row.holder.epoch}",
        )
    elif row.last_skald:
        yield "last held by", f"{row.last_skald}, epoch {row.epoch}"
    for reason in waiting_reasons(row, clean) if row.is_waiting and not expected else ():
        yield "waits for", reason
    if row.recipient:
        yield "recipient", row.recipient
    policy = policy_words(row, table.members)
    if policy["labels"]:
        yield "requires", policy["labels"]
    yield "weight", policy["weight"]
    yield "priority", str(row.priority)
    yield "restarts", policy["restarts"] + (f"; pauses of {policy['pauses']}" if policy["pauses"] else "")
    if row.attempt:
        yield "crashes", tries_words(row, now)
    yield from _times(row)
    yield "last change", f"{when(row.updated_at_ms)}, revision {row.revision}: {one_line(cause_words(row, clean))}"
    if note := note_words(row, clean):
        yield "note", one_line(note)


def _times(row: Row) -> Iterator[tuple[str, str]]:
    """When it was asked, and when it was so."""
    by_an_older_version = row.cancel_at_ms and CANCEL not in row.controls
    for name, at_ms in (
        ("assigned", row.assign_at_ms),
        ("cancelled", row.cancel_at_ms if by_an_older_version else 0),
        ("ended", row.cancel_applied_at_ms if by_an_older_version else 0),
        ("running since", row.running_since_ms),
    ):
        if at_ms:
            yield name, when(at_ms)
    for told in controls_told(row):
        asked = f"asked {when(told.asked_at_ms)} by {told.by}"
        if told.run:
            yield told.name, f"{asked}, applied {when(told.applied_at_ms)}, after {told.took}: {told.run}"
        elif told.superseded:
            at = f" at {when(told.superseded_at_ms)}" if told.superseded_at_ms else ""
            yield told.name, f"{asked}, superseded by {told.superseded}{at}"
        else:
            yield told.name, f"{asked}, not applied yet"


def _print_parameters(console: Console, row: Row, doc: Mapping[str, Any]) -> None:
    version = f", {applied_words(row)}" if row.attachments_version else ""
    applied = f", last applied at {when(row.applied_at_ms)}" if row.applied_at_ms else ""
    console.print(text(f"parameters{version}{applied}", "bold"))
    if isinstance(doc["attachments_masked"], dict) and doc["attachments_masked"]:
        for name, value in doc["attachments_masked"].items():
            console.print(text(f"  {one_line(name)}: {value_words(value, 1_000)}"))
    else:
        console.print(text("  none", QUIET))
    if doc["refused"]:
        error = doc["refused"].get("error")
        told = error_text(error) if isinstance(error, dict) else str(error)
        version, at_ms = doc["refused"].get("version"), doc["refused"].get("at_ms", 0)
        console.print(text(f"  version {version} was refused at {when(at_ms)}: {one_line(told)}", BAD))


def _print_error(console: Console, error: Mapping[str, Any] | None) -> None:
    if not error:
        return
    reason = error_reason(error)
    console.print(text("last error" + (f", ended by: {one_line(reason)}" if reason else ""), "bold"))
    console.print(text(f"  {one_line(error_text(error))}", BAD))
    for name, title in (("traceback", ""), ("output", "  what it printed last")):
        lines = [part for line in error.get(name) or () for part in str(line).rstrip().splitlines()]
        if lines and title:
            console.print(text(title, "bold"))
        for line in lines:
            console.print(text(f"    {line}", QUIET))


def _print_history(console: Console, history: Sequence[Entry], clean: Any) -> None:
    console.print(text(f"last changes, {len(history)} of them" if history else "no changes are kept", "bold"))
    if not history:
        return
    table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=QUIET)
    for name in ("  WHEN", "REV", "STATUS", "SKALD", "EPOCH", "WHY", "NOTE"):
        table.add_column(name, no_wrap=name != "NOTE", overflow="fold")
    for entry in history:
        row = entry.row
        table.add_row(
            text(f"  {when(row.updated_at_ms)}"),
            text(row.revision),
            text(row.status.value, STATUS_STYLES[row.status]),
            text(one_line(row.holder.skald_id if row.holder else "–")),
            text(row.epoch),
            text(one_line(why_words(row, clean))),
            text(one_line(outcome_words(row, clean))),
        )
    console.print(table)
