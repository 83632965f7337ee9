"""`skalds-streams replay`: the recorded events decided once more, shown, and verified against the live table."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from skalds_streams.cli.kafka import Cluster, connect, read_members
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import (
    BAD,
    GOOD,
    QUIET,
    err,
    harmless,
    one_line,
    out,
    print_json,
    text,
    value_words,
    when,
)
from skalds_streams.coordinator.batch import Secrecy
from skalds_streams.core.membership import Members
from skalds_streams.core.row import Row
from skalds_streams.errors import SkaldsError
from skalds_streams.projections.masking import masked_doc, text_cleaner
from skalds_streams.replay.compare import Change, Difference, shown_changes
from skalds_streams.replay.reader import Progress as OnProgress
from skalds_streams.replay.reader import open_reader
from skalds_streams.replay.recording import Recording, gather
from skalds_streams.replay.timeline import Step, Timeline
from skalds_streams.replay.verify import Finding, Verdict, Verifier

STEPS_SHOWN = 200
"""Without --from-start only the last ones are shown; all are verified."""
FINDINGS_SHOWN = 50
FIRST_FIELDS = (
    "status",
    "wanted",
    "holder",
    "release",
    "attachments",
    "attachments_version",
    "error",
    "refused",
    "waiting",
)
DIGEST_FIELD = "attachments_digest"
DIGEST_HINT = "only the digests of parameters differ: SKALDS_DIGEST_KEY is probably not the key that the cluster has."


@click.command()
@click.option("--task", "task_id", metavar="ID", help="Only this task.")
@click.option(
    "--from-start", is_flag=True, help=f"Show everything that is kept, not just the last {STEPS_SHOWN} changes."
)
@click.option("-q", "--quiet", is_flag=True, help="Show no changes, only what differs and the verdict.")
@command_options
def replay(options: Options, /, task_id: str | None, from_start: bool, quiet: bool) -> None:
    """Rebuild every row from the recorded events with the code that decided them, and verify the live table.

    Shows event → decision → what it changed. Everything that the topics still keep is decided again, whatever is
    shown. Reads with a consumer of its own: writes nothing, moves no offset. Ends with "verified: …, 0 differ" (exit
    code 0) or the fields that differ (1). Digests of parameters are compared with SKALDS_DIGEST_KEY.

    \b
    Examples:
      skalds-streams replay --task cam-1
      skalds-streams replay --from-start --quiet
    """
    if not run(_replay(options, task_id, None if from_start else STEPS_SHOWN, quiet=quiet)):
        raise click.exceptions.Exit(1)


async def _replay(options: Options, task_id: str | None, most: int | None, *, quiet: bool) -> bool:
    needed = ("assign", "cancel", "update", "report", "history", "changelog", "heartbeat")
    cluster = await connect(options.settings, *needed)
    with progress(err()) as on_progress:
        async with open_reader(cluster.client) as reader:
            recording = await gather(reader, cluster.topics, task_id=task_id, on_progress=on_progress)
            members, _ = await read_members(cluster, reader)
    if task_id is not None and not recording.history and not recording.rows:
        raise SkaldsError(
            f"there is no task {harmless(task_id)!r} at {options.settings.bootstrap}, and no history of it is kept"
        )
    steps, total, verdict = play(cluster, recording, 0 if quiet else most)
    words = cluster.words | secret_names(members)
    if options.json:
        print_json(as_doc(steps, verdict, words))
    else:
        _print(out(), steps, total, verdict, words, quiet=quiet)
    if not verdict.is_verified:
        err().print(text(f"Error: {verdict.sentence}", BAD))
    return verdict.is_verified


def secret_names(members: Members) -> frozenset[str]:
    """Names of the parameters that any class declares as secret: here they are masked wherever they occur."""
    last = {path.rpartition(".")[2] for paths in members.secrets.values() for path in paths}
    return frozenset(name.lower().replace("-", "") for name in last - {"*"})


def play(cluster: Cluster, recording: Recording, most: int | None) -> tuple[list[Step], int, Verdict]:
    """(the last steps, how many there are, the verdict). most: how many steps are wanted, None for all."""
    settings = cluster.settings
    secrecy = Secrecy(settings.secret_words, settings.digest_key.get_secret_value().encode())
    timeline = Timeline(recording, topics=cluster.topics, secrecy=secrecy)
    verifier = Verifier(recording, secrecy=secrecy, history_topic=cluster.topics.history)
    kept: deque[Step] = deque(maxlen=most)
    total = 0
    for step in timeline.steps():
        verifier.add(step)
        kept.append(step)
        total += 1
    return list(kept), total, verifier.verdict()


@contextmanager
def progress(console: Console) -> Iterator[OnProgress]:
    """A bar on a terminal, nothing elsewhere."""
    if not console.is_terminal:
        yield lambda _topic, _done, _total: None
        return
    columns = (TextColumn("reading {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        number = bar.add_task("topics", total=None)
        yield lambda topic, done, total: bar.update(number, description=topic, completed=done, total=total)


# -- as JSON -----------------------------------------------------------------------------------------------------------


def as_doc(steps: list[Step], verdict: Verdict, words: frozenset[str]) -> dict[str, Any]:
    """The JSON object: {"steps": […], "findings": […], and the verdict's counts}."""
    return {
        **verdict.to_doc(),
        "sentence": verdict.sentence,
        "steps": [_step_doc(step, words) for step in steps],
        "findings": [
            {
                "task_id": item.task_id,
                "where": item.where,
                "differences": [_difference_doc(d, item.row, words) for d in item.differences],
            }
            for item in verdict.findings
        ],
    }


def _step_doc(step: Step, words: frozenset[str]) -> dict[str, Any]:
    row = step.after.row
    return {
        "task_id": step.entry.task_id,
        "at_ms": step.entry.row.updated_at_ms,
        "revision": step.entry.row.revision,
        "event": text_cleaner(row, words)(step.entry.to_doc()["why"]),
        "history": {"partition": step.entry.partition, "offset": step.entry.offset},
        "base": step.base,
        "changes": [{"field": c.field, "before": c.before, "after": c.after} for c in _changes(step, words)],
        "differences": [_difference_doc(item, row, words) for item in step.differences],
    }


def _difference_doc(difference: Difference, row: Row, words: frozenset[str]) -> dict[str, Any]:
    clean = text_cleaner(row, words)
    return {"field": difference.field, "rebuilt": clean(difference.rebuilt), "recorded": clean(difference.recorded)}


def _changes(step: Step, words: frozenset[str]) -> list[Change]:
    before = step.before or Row(step.entry.task_id)
    return shown_changes(_shown(before, words), _shown(step.after.row, words))


def _shown(row: Row, words: frozenset[str]) -> dict[str, Any]:
    doc = masked_doc(row, words)
    return {**doc, "attachments": doc.pop("attachments_masked")}


# -- for people --------------------------------------------------------------------------------------------------------


def _print(
    console: Console, steps: list[Step], total: int, verdict: Verdict, words: frozenset[str], *, quiet: bool
) -> None:
    if not quiet and total > len(steps):
        console.print(text(f"… {total - len(steps):,} earlier changes are not shown: --from-start shows them", QUIET))
    for step in steps:
        for line in step_lines(step, words):
            console.print(line)
    for note in notes(verdict):
        console.print(text(note, QUIET))
    for finding in verdict.findings[:FINDINGS_SHOWN]:
        for line in finding_lines(finding, words):
            console.print(line)
    if verdict.differing > FINDINGS_SHOWN:
        console.print(text(f"… and {verdict.differing - FINDINGS_SHOWN:,} more", BAD))
    if verdict.findings and all(item.field == DIGEST_FIELD for found in verdict.findings for item in found.differences):
        console.print(text(DIGEST_HINT, BAD))
    if verdict.is_verified:
        console.print(text(verdict.sentence, GOOD))


def step_lines(step: Step, words: frozenset[str]) -> Iterator[Text]:
    """Event, decision, changed fields."""
    row = step.entry.row
    why = row.why
    reason = f" “{text_cleaner(step.after.row, words)(why.reason)}”" if why.reason else ""
    line = text(f"{when(row.updated_at_ms)}  ", QUIET) + text(one_line(row.task_id), "bold")
    line += text(f"  {one_line(why.kind)}  ", "cyan")
    yield line + text(one_line(f"{why.topic}/{why.partition}@{why.offset}{reason}"), QUIET)
    if step.base is not None:
        yield text(f"    taken as recorded: {one_line(step.base)}", "yellow")
    ordered = sorted(_changes(step, words), key=_rank)
    yield text("    " + (" · ".join(map(change_words, ordered)) or "nothing that is shown"))
    for difference in step.differences:
        yield _difference_line(difference, step.after.row, words)


def _rank(change: Change) -> int:
    """What people look for first: status and holder at the front, times at the end."""
    first = change.field.partition(".")[0]
    if first in FIRST_FIELDS:
        return FIRST_FIELDS.index(first)
    return len(FIRST_FIELDS) + _is_time(change.field)


def _is_time(field: str) -> bool:
    return "." not in field and field.endswith(("_at_ms", "_since_ms"))


def change_words(change: Change) -> str:
    """ "status: Assigning → Running"."""
    before, after = (_field_words(change.field, value) for value in (change.before, change.after))
    return f"{change.field.removesuffix('_ms')}: {before} → {after}"


def _field_words(field: str, value: Any) -> str:
    if field == "holder" and isinstance(value, dict):
        return one_line(f"{value.get('skald_id')} (epoch {value.get('epoch')})")
    if _is_time(field) and isinstance(value, int):
        return when(value).partition(" ")[2] or "–"
    return value_words(value)


def finding_lines(finding: Finding, words: frozenset[str]) -> Iterator[Text]:
    """What differs at one place, a line a field."""
    yield text(f"{one_line(finding.task_id)}, {finding.where}:", BAD)
    for difference in finding.differences:
        yield _difference_line(difference, finding.row, words)


def _difference_line(difference: Difference, row: Row, words: frozenset[str]) -> Text:
    doc = _difference_doc(difference, row, words)
    return text(
        f"    differs: {doc['field']}: rebuilt {value_words(doc['rebuilt'])}, recorded {value_words(doc['recorded'])}",
        BAD,
    )


def notes(verdict: Verdict) -> Iterator[str]:
    """What a reader should know of the verdict's reach."""
    if verdict.bases:
        yield f"{verdict.bases:,} records were taken as recorded: what came before them is no longer kept"
    if verdict.without_history:
        yield f"{verdict.without_history:,} tasks in the table have no history that is kept, and were not rebuilt"
    if verdict.gone:
        yield f"{verdict.gone:,} tasks with a history have left the table"
    if verdict.inputs_without_change:
        counts = f"{verdict.inputs_without_change:,} of {verdict.inputs:,}"
        yield f"{counts} events changed nothing here (stale, repeated, dead letters, or of other tasks)"
    if verdict.foreign:
        yield f"{verdict.foreign:,} records on the history topic are not ours"
