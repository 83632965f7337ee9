"""`skalds-streams deadletter`: what no coordinator understood: list it, look at it, send it again.

Rules: values are shown by `show` only, masked; a letter is sent again once unless --again says otherwise (`letters`
explains how that is known); nothing is sent without a yes.
"""

from __future__ import annotations

import re
import sys
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

import click
import orjson
from rich.table import Table as RichTable

from skalds_streams.cli.documents import FILE_MAX_BYTES
from skalds_streams.cli.kafka import Sent, connect
from skalds_streams.cli.letters import (
    TOPICS_NEEDED,
    Copies,
    Spot,
    bar,
    cleaned,
    find_copies,
    key_words,
    letter_doc,
    read_letters,
    read_record,
    spot_words,
)
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import QUIET, harmless, now_ms, one_line, out, print_json, text, when
from skalds_streams.cli.preview import preview, starred
from skalds_streams.cli.redrive import carry_out, foretell, make_plan, question, tell
from skalds_streams.core.redact import redact
from skalds_streams.model.deadletter import Letter, original_headers
from skalds_streams.projections.masking import is_secret_name
from skalds_streams.replay.reader import open_reader

UNITS_MS: Mapping[str, int] = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
COLUMNS = ("LETTER", "WHEN", "SOURCE", "KEY", "BYTES", "REASON")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are chosen. What is not said chooses all."""

    reason: str = ""
    topic: str = ""
    since_ms: int = 0
    prefix: str = ""
    """Of the topics, so that a topic can be named without."""

    def picks(self, letter: Letter) -> bool:
        """Whether the letter is chosen."""
        topic = letter.source.topic if letter.source else ""
        return (
            self.reason.lower() in letter.reason.lower()
            and self.topic in ("", topic, topic.removeprefix(self.prefix))
            and letter.at_ms >= self.since_ms
        )


class SpotType(click.ParamType):
    """PARTITION/OFFSET, or as other commands write it: task.deadletter/PARTITION@OFFSET."""

    name = "partition/offset"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Spot:
        """(partition, offset)."""
        found = (
            re.fullmatch(r"(?:[\w.\-]*deadletter/)?(\d{1,9})[/@](\d{1,18})", value) if isinstance(value, str) else None
        )
        if found is None:
            self.fail(f"{value!r} is not PARTITION/OFFSET, e.g. 3/17 (the first column of the list)", param, ctx)
        return int(found[1]), int(found[2])


class SinceType(click.ParamType):
    """A length of time that ends now (90s, 15m, 2h, 7d), or a moment: ISO 8601, local time unless it says otherwise."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Milliseconds since the epoch."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,9})([smhd])", value)
        if found is not None:
            return now_ms() - int(found[1]) * UNITS_MS[found[2]]
        try:
            return round(datetime.fromisoformat(value).astimezone().timestamp() * 1000)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time: 90s, 15m, 2h, 7d, or a moment such as 2026-11-25T08:00", param, ctx)


def filter_options(function: Any) -> Any:
    """`--reason`, `--topic`, `--since`."""
    reason = click.option("--reason", default="", metavar="TEXT", help="Only those with this text in their reason.")
    topic = click.option("--topic", default="", metavar="NAME", help="Only those from this topic, e.g. task.assign.")
    since = click.option(
        "--since", "since_ms", type=SinceType(), default=0, metavar="TIME", help="Only newer ones: 15m, 2h, 7d, or ISO."
    )
    return reason(topic(since(function)))


@click.group()
def deadletter() -> None:
    """What no coordinator understood: list it, look at it, mend it and send it again.

    \b
    Examples:
      skalds-streams deadletter list --since 2h
      skalds-streams deadletter show 3/17
      skalds-streams deadletter redrive 3/17 --value-file mended.json
    """


# -- list --------------------------------------------------------------------------------------------------------------


@deadletter.command("list")
@filter_options
@click.option("--redriven", is_flag=True, help="Look on the source topics, too, which of them were sent again.")
@command_options
def list_letters(options: Options, /, reason: str, topic: str, since_ms: int, redriven: bool) -> None:
    """List the dead letters, oldest first. Values are not shown: `show` does that.

    \b
    Example:
      skalds-streams deadletter list --reason "not JSON" --topic task.assign
    """
    run(_list(options, Filter(reason, topic, since_ms, options.settings.topic_prefix), redriven=redriven))


async def _list(options: Options, chosen: Filter, *, redriven: bool) -> None:
    cluster = await connect(options.settings, *TOPICS_NEEDED)
    with bar("reading") as on_progress:
        async with open_reader(cluster.client) as reader:
            letters = await read_letters(cluster, reader, chosen.picks, None, on_progress)
            copies = None
            if redriven:
                copies = await find_copies(reader, cluster.topics, letters, on_progress=on_progress)
    if options.json:
        print_json({"letters": [letter_doc(letter, copies) for letter in letters]})
        return
    if letters:
        out().print(table(letters, copies))
    out().print(text("1 dead letter" if len(letters) == 1 else f"{len(letters):,} dead letters", QUIET))


def table(letters: Sequence[Letter], copies: Copies | None) -> RichTable:
    """A line a letter."""
    shown = RichTable(box=None, pad_edge=False, header_style="bold")
    for name in (*COLUMNS[:-1], "SENT AGAIN", COLUMNS[-1]) if copies is not None else COLUMNS:
        shown.add_column(
            name,
            no_wrap=name in ("LETTER", "BYTES"),
            overflow="fold",
            justify="right" if name == "BYTES" else "left",
        )
    for letter in letters:
        cells = [
            spot_words(letter.spot),
            when(letter.at_ms),
            letter.source or "–",
            one_line(key_words(letter.key), 60),
            f"{letter.size:,}",
        ]
        if copies is not None:
            cells.append(copies_words(letter, copies))
        shown.add_row(*map(text, cells), text(one_line(letter.reason, 500)))
    return shown


def copies_words(letter: Letter, copies: Copies) -> str:
    """ "task.assign/3@99", "no", or "?" where nobody can tell."""
    found = copies.found.get(letter.spot)
    if found:
        return ", ".join(str(copy.place) for copy in found)
    return "?" if letter.spot in copies.unsure else "no"


# -- show --------------------------------------------------------------------------------------------------------------


@deadletter.command()
@click.argument("spot", type=SpotType(), metavar="PARTITION/OFFSET")
@click.option("--raw", is_flag=True, help="Only the value, exactly as it came, nothing masked: for a file.")
@command_options
def show(options: Options, /, spot: Spot, raw: bool) -> None:
    """Everything about one dead letter. JSON is shown with its secrets masked, anything else as a hex dump.

    \b
    Examples:
      skalds-streams deadletter show 3/17
      skalds-streams deadletter show 3/17 --raw > mended.json
    """
    run(_show(options, spot, raw=raw))


async def _show(options: Options, spot: Spot, *, raw: bool) -> None:
    cluster = await connect(options.settings, *TOPICS_NEEDED)
    async with open_reader(cluster.client) as reader:
        record = await read_record(cluster, reader, spot)
    letter, value = cleaned(record, cluster.words), record.value
    if raw and not options.json:
        _write_raw(value or b"")
        return
    headers = {name: _header_words(name, content, cluster.words) for name, content in original_headers(record)}
    kind, lines = preview(value, cluster.words)
    if options.json:
        doc = {**letter_doc(letter), "headers": headers, "is_cut": letter.is_cut, "value": _json(value, cluster.words)}
        print_json({**doc, "value_base64": b64encode(value).decode() if value is not None else None} if raw else doc)
        return
    console = out()
    console.print(text(f"{spot_words(spot)}  ", "bold") + text(when(letter.at_ms), QUIET))
    facts = [("source", str(letter.source or "–")), ("key", key_words(letter.key)), ("reason", letter.reason)]
    if letter.redrives:
        facts.append(("sent again", f"{letter.redrives} times before it came here"))
    for name, words in [*facts, *((f"header {name}", content) for name, content in headers.items())]:
        console.print(text(f"  {one_line(name):<14}", QUIET) + text(one_line(words)))
    console.print(text(f"value: {kind}", "bold"))
    for line in lines:
        console.print(text(f"  {line}"))


def _write_raw(value: bytes) -> None:
    if sys.stdout.isatty():
        click.echo(harmless(value.decode(errors="replace")))
    else:
        click.echo(value, nl=False)


def _header_words(name: str, value: bytes | None, words: frozenset[str]) -> str:
    if is_secret_name(name, words):
        return "***"
    return starred(value or b"", words).decode(errors="replace")


def _json(value: bytes | None, words: frozenset[str]) -> Any:
    try:
        return redact(orjson.loads(value or b"null"), words)
    except orjson.JSONDecodeError:
        return None


# -- redrive -----------------------------------------------------------------------------------------------------------


@deadletter.command()
@click.argument("spots", type=SpotType(), metavar="[PARTITION/OFFSET]...", nargs=-1)
@filter_options
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--value-file", type=click.File("rb"), help="Send these bytes instead of the letter's own. - is stdin.")
@click.option("--again", is_flag=True, help="Also what was sent again before, or may have been.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@command_options
def redrive(
    options: Options,
    /,
    spots: tuple[Spot, ...],
    reason: str,
    topic: str,
    since_ms: int,
    everything: bool,
    value_file: BinaryIO | None,
    again: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Send the events of dead letters again: key, value and headers as they came, to the partition they came from.

    They count as sent now: an assign that is sent again starts its task even if it was cancelled since. What was sent
    again before is recognised on its source topic and skipped. Exit code 1 when one could not be sent.

    \b
    Examples:
      skalds-streams deadletter redrive 3/17 --value-file mended.json
      skalds-streams deadletter redrive --reason SKALDS_MAX_RECORD_BYTES --dry-run
    """
    chosen = Filter(reason, topic, since_ms, options.settings.topic_prefix)
    if bool(spots) + everything + bool(reason or topic or since_ms) != 1:
        raise click.UsageError("say which: PARTITION/OFFSET, or --reason, --topic, --since, or --all")
    if value_file is not None and len(spots) != 1:
        raise click.UsageError("--value-file mends one letter: give its PARTITION/OFFSET")
    if not yes and not dry_run and (options.json or not sys.stdin.isatty()):
        raise click.UsageError("nobody can be asked here: give --yes, or --dry-run")
    value = value_file.read(FILE_MAX_BYTES + 1) if value_file is not None else None
    if value is not None and len(value) > FILE_MAX_BYTES:
        raise click.UsageError(f"--value-file has more than {FILE_MAX_BYTES} bytes, the limit")
    plan = run(make_plan(options, chosen.picks, spots, value, again=again))
    if dry_run:
        answers: Mapping[Spot, Sent | str] = run(foretell(plan))
    elif plan.chosen and (yes or click.confirm(question(plan), err=True)):
        answers = run(carry_out(plan))
    else:
        answers = {item.letter.spot: "not sent, as you wished" for item in plan.chosen}
    if not tell(options, plan, answers, dry_run=dry_run):
        raise click.exceptions.Exit(1)
