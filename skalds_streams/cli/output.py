"""How answers look: consoles, colours, JSON, and texts from elsewhere made harmless for a terminal."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import Any, TextIO

import click
import orjson
from rich.console import Console
from rich.text import Text

from skalds_streams.core.row import Status

PIPE_WIDTH = 10_000
"""Width when the output is no terminal: nothing that a script reads is wrapped."""
STATUS_STYLES: dict[Status, str] = {
    Status.CREATED: "dim",
    Status.ASSIGNING: "yellow",
    Status.RUNNING: "green",
    Status.PAUSED: "blue",
    Status.FINISHED: "cyan",
    Status.FAILED: "bold red",
    Status.CANCELLED: "dim",
}
BAD, GOOD, QUIET = "red", "green", "dim"


def now_ms() -> int:
    """The wall clock, in ms since the epoch: for ages that are shown, and for times in events."""
    return time.time_ns() // 1_000_000


def out() -> Console:
    """The console for answers."""
    return _console(sys.stdout)


def err() -> Console:
    """The console for what goes wrong, and for progress."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    return Console(file=file, highlight=False, soft_wrap=False, width=None if file.isatty() else PIPE_WIDTH)


def print_json(doc: Any) -> None:
    """One JSON object on stdout."""
    click.echo(orjson.dumps(doc, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())


def harmless(text: str) -> str:
    """The text without what a terminal would obey: control characters are spelled out, line breaks and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else _spelled(char) for char in text)


def _spelled(char: str) -> str:
    return char.encode("unicode_escape").decode()


def text(value: Any, style: str = "") -> Text:
    """A piece of output; never read as markup."""
    return Text(harmless(str(value)), style=style)


def one_line(value: Any, most: int = 10_000) -> str:
    """The value on one line, cut."""
    line = " ".join(harmless(str(value)).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def status_text(status: Status, suffix: str = "") -> Text:
    """The status in its colour."""
    return text(f"{status.value}{suffix}", STATUS_STYLES[status])


def when(at_ms: int) -> str:
    """A moment in local time with ms and its offset from UTC, Z for none; "–" for never."""
    if not at_ms:
        return "–"
    at = datetime.fromtimestamp(at_ms / 1000, tz=UTC).astimezone()
    hours, minutes = f"{at:%z}"[:3], f"{at:%z}"[3:5]
    zone = f"{hours}:{minutes}" if at.utcoffset() else "Z"
    return f"{at:%Y-%m-%d %H:%M:%S}.{at_ms % 1000:03d}{zone}"


def duration(milliseconds: int) -> str:
    """A length of time, two units at most: "1h 12m", "12s"."""
    seconds = max(milliseconds, 0) // 1000
    units = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
    parts: list[str] = []
    for size, unit in units:
        if seconds >= size or (unit == "s" and not parts):
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
        elif parts:
            break
    return " ".join(parts[:2])


def value_words(value: Any, most: int = 120) -> str:
    """A JSON value in a sentence: "–" for null, text without quotes, the rest as compact JSON."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return one_line(value, most)
    return one_line(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode(), most)
