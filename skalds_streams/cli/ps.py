"""`skalds-streams ps`: all tasks in a table, once or live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table as RichTable

from skalds_streams.cli.kafka import Cluster, Table, connect, read_table
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import BAD, QUIET, duration, err, now_ms, one_line, out, print_json, status_text, text
from skalds_streams.cli.rows import (
    age_words,
    applied_words,
    full_doc,
    holder_state,
    parameters_words,
    status_suffix,
    tries_words,
)
from skalds_streams.core.membership import Member, Members
from skalds_streams.core.row import Row, Status
from skalds_streams.projections.masking import text_cleaner
from skalds_streams.replay.reader import open_reader
from skalds_streams.view.cluster import ClusterView
from skalds_streams.web.documents import is_crash_looping
from skalds_streams.web.words import situation, update_state

PAUSE_S = 0.25
"""Shortest time between two pictures of `--watch`."""
REDRAW_S = 1.0
"""Longest: ages go on."""
REASONS_MOST = 20
"""Tasks of which the picture says why they wait."""
COLUMNS = ("ID", "CLASS", "STATUS", "SKALD", "EPOCH", "CRASHES", "PARAMETERS", "APPLIED", "AGE")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows are shown. An empty choice shows all."""

    statuses: frozenset[str] = frozenset()
    classes: frozenset[str] = frozenset()
    skalds: frozenset[str] = frozenset()

    def picks(self, row: Row) -> bool:
        """Whether the row is shown."""
        skald = row.holder.skald_id if row.holder else None
        return (
            (not self.statuses or row.status.value in self.statuses)
            and (not self.classes or row.class_name in self.classes)
            and (not self.skalds or skald in self.skalds)
        )


@click.command()
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([status.value for status in Status], case_sensitive=False),
    help="Only tasks of this status. May be given more than once, as the others.",
)
@click.option("--class", "classes", multiple=True, metavar="NAME", help="Only tasks of this worker class.")
@click.option("--skald", "skalds", multiple=True, metavar="ID", help="Only tasks that this skald holds.")
@click.option("-w", "--watch", is_flag=True, help="Go on, and show every change, until Ctrl-C.")
@command_options
def ps(
    options: Options, /, statuses: tuple[str, ...], classes: tuple[str, ...], skalds: tuple[str, ...], watch: bool
) -> None:
    """List the tasks. Secrets in parameters are masked.

    APPLIED is the version of the parameters that the worker has taken. AGE counts since the task runs, else since its
    last change. Below the table is why each task waits that nobody can take.

    \b
    Examples:
      skalds-streams ps --status Failed --status Assigning
      skalds-streams ps --watch
      skalds-streams ps -o json
    """
    if watch and options.json:
        raise click.UsageError("--watch shows a table; -o json answers once")
    chosen = Filter(frozenset(statuses), frozenset(classes), frozenset(skalds))
    if watch:
        run(_watch(options, chosen))
    else:
        run(_once(options, chosen))


async def _once(options: Options, chosen: Filter) -> None:
    cluster = await connect(options.settings, "changelog", "heartbeat")
    async with open_reader(cluster.client) as reader:
        table = await read_table(cluster, reader)
    for problem in table.problems:
        err().print(text(f"Warning: not understood: {problem}", BAD))
    rows = pick(table.rows.values(), chosen)
    if options.json:
        print_json(as_doc(rows, table.members, cluster.words, now_ms()))
    else:
        out().print(picture(rows, table.members, cluster.words, now_ms()))


async def _watch(options: Options, chosen: Filter) -> None:
    cluster = await connect(options.settings, "changelog", "heartbeat")
    view = ClusterView(cluster.topics, cluster.client, cluster.settings.hold_beats)
    console = out()
    async with asyncio.TaskGroup() as group:
        group.create_task(view.run(), name="ps-view")
        await view.wait_caught_up()
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            await _draw_for_ever(view, cluster, chosen, lambda shown: live.update(shown, refresh=True))


async def _draw_for_ever(
    view: ClusterView, cluster: Cluster, chosen: Filter, draw: Callable[[RenderableType], object]
) -> None:
    with view.subscribe() as changes:
        while True:
            table = Table(view.rows, view.members)
            draw(picture(pick(table.rows.values(), chosen), table.members, cluster.words, now_ms()))
            await asyncio.sleep(PAUSE_S)
            try:
                async with asyncio.timeout(REDRAW_S):
                    await changes.wait()
            except TimeoutError:
                continue


def pick(rows: Iterable[Row], chosen: Filter) -> list[Row]:
    """The rows that are shown, by id."""
    return sorted((row for row in rows if chosen.picks(row)), key=lambda row: row.task_id)


def as_doc(rows: Sequence[Row], members: Members, words: frozenset[str], now: int) -> dict[str, Any]:
    """The JSON object: {"tasks": […], "skalds": […]}."""
    skalds = [
        {
            "skald_id": member.skald_id,
            "incarnation": member.incarnation,
            "state": _state(member, members),
            "running": member.running,
            "capacity": member.capacity,
            "classes": sorted(member.classes),
        }
        for member in _by_id(members)
    ]
    return {"tasks": [full_doc(row, members, words, now) for row in rows], "skalds": skalds}


def picture(rows: Sequence[Row], members: Members, words: frozenset[str], now: int) -> RenderableType:
    """The table, why tasks wait, and a line on who is there."""
    table = RichTable(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        table.add_column(
            name, no_wrap=name != "CRASHES", overflow="ellipsis", justify="right" if name == "EPOCH" else "left"
        )
    for row in rows:
        table.add_row(*_cells(row, members, words, now))
    return Group(table, *_reasons(rows, members, words, now), text(summary(rows, members), QUIET))


def _reasons(rows: Sequence[Row], members: Members, words: frozenset[str], now: int) -> Iterator[RenderableType]:
    """Why each task waits that nobody holds, one line each, cut to the terminal: a column would have no room."""
    waiting = [row for row in rows if row.is_waiting]
    for row in waiting[:REASONS_MOST]:
        told = situation(row, text_cleaner(row, words, members.secret_paths(row.class_name)))
        after = f" in {duration(told.at_ms - now)}" if told.at_ms else ""
        line = text(one_line(f"{row.task_id} waits: {told.text}{after}"), BAD if told.tone == "bad" else QUIET)
        line.no_wrap, line.overflow = True, "ellipsis"
        yield line
    if len(waiting) > REASONS_MOST:
        yield text(f"{len(waiting) - REASONS_MOST} more wait; `skalds-streams describe ID` says why", QUIET)


def _cells(row: Row, members: Members, words: frozenset[str], now: int) -> list[RenderableType]:
    state = holder_state(row, members)
    skald = row.holder.skald_id if row.holder else "–"
    if state not in (None, "up"):
        skald += f" ({state})"
    looping = is_crash_looping(row, now)
    return [
        text(one_line(row.task_id)),
        text(one_line(row.class_name or "–")),
        status_text(row.status, status_suffix(row, now)),
        text(one_line(skald), "" if state in (None, "up") else BAD),
        text(row.epoch),
        text(tries_words(row, now), BAD if looping else ""),
        text(parameters_words(row, words, members.secret_paths(row.class_name))),
        text(applied_words(row), BAD if update_state(row) == "refused" else ""),
        text(age_words(row, now)),
    ]


def summary(rows: Sequence[Row], members: Members) -> str:
    """ "12 tasks, 8 of them running; skalds: a up 4/8, b silent 4/8"."""
    running = sum(1 for row in rows if row.status is Status.RUNNING)
    skalds = ", ".join(
        f"{one_line(member.skald_id)} {_state(member, members)} {member.running}/{member.capacity}"
        for member in _by_id(members)
        if member.role != "coordinator"
    )
    skalds = ", ".join(
        [*([skalds] if skalds else []), *(f"{one_line(name)} expected back" for name in members.reserved)]
    )
    tasks = "1 task" if len(rows) == 1 else f"{len(rows)} tasks"
    return f"{tasks}, {running} running; skalds: {skalds or 'none'}"


def _state(member: Member, members: Members) -> str:
    return "silent" if members.is_silent(member) else member.state


def _by_id(members: Members) -> list[Member]:
    return sorted(members, key=lambda member: (member.skald_id, member.incarnation))
