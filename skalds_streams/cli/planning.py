"""Plans in words, as a table or as JSON, and the names of nodes and tasks checked against those that exist."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import click
from rich.table import Table as RichTable

from skalds_streams.cli.options import Options
from skalds_streams.cli.output import BAD, GOOD, QUIET, harmless, one_line, out, print_json, text
from skalds_streams.core.plans import Step
from skalds_streams.core.row import Row
from skalds_streams.errors import SkaldsError
from skalds_streams.view.cluster import ClusterView

NAMES_MOST = 20
COLUMNS = ("TASK", "CLASS", "FROM", "TO", "WHY NOT")
PLAN = click.option("--plan", "only_plan", is_flag=True, help="Only print what would happen. Nothing changes.")
REASON = click.option("--reason", metavar="TEXT", help="Kept with the change, and shown.")


def timeout_option(seconds: float) -> Callable[..., Any]:
    """`--timeout SECONDS`, handed over as `timeout_s`."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0),
        default=seconds,
        show_default=True,
        metavar="SECONDS",
        help="Wait this long for the tasks to run at their new places.",
    )


def check_node(view: ClusterView, skald_id: str, more: Iterable[str] = ()) -> None:
    """Raises SkaldsError with those that exist. more: ids that count as well."""
    known = {member.skald_id for member in view.members} | set(more)
    if skald_id not in known:
        raise SkaldsError(f"there is no skald {harmless(skald_id)!r}; {_those(known, 'skald')}")


def check_tasks(view: ClusterView, task_ids: Iterable[str]) -> None:
    """Raises SkaldsError with those that exist."""
    for task_id in task_ids:
        if task_id not in view.rows:
            held = [row.task_id for row in view.rows.values() if not row.is_terminal]
            raise SkaldsError(f"there is no task {harmless(task_id)!r}; {_those(held, 'task')}")


def _those(names: Collection[str], what: str) -> str:
    if not names:
        return f"there is no {what} at all"
    shown = [one_line(name, 80) for name in sorted(names)[:NAMES_MOST]]
    more = f" and {len(names) - NAMES_MOST} more" if len(names) > NAMES_MOST else ""
    return f"there {'is' if len(names) == 1 else 'are'} {', '.join(shown)}{more}"


def state_of(view: ClusterView, skald_id: str) -> str:
    """What the heartbeats say of a skald: up, draining …; "" when it is not there."""
    states = [member.state for member in view.members if member.skald_id == skald_id]
    return states[-1] if states else ""


def reasons_words(reasons: Mapping[str, str]) -> str:
    """ "b: full 8/8; c: no class Cam"."""
    parts = [reason if skald_id == "*" else f"{skald_id}: {reason}" for skald_id, reason in sorted(reasons.items())]
    return one_line("; ".join(parts), 400)


def step_docs(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """For `-o json`."""
    return [
        {"task_id": step.task_id, "from": step.source, "to": step.target, "reasons": dict(step.reasons)}
        for step in steps
    ]


def print_plan(
    options: Options,
    steps: Sequence[Step],
    rows: Mapping[str, Row],
    *,
    nothing: str,
    stays: str,
    lines: Sequence[str] = (),
) -> None:
    """The plan as a table with a summary, or as {"plan": […]}.

    nothing: said of an empty one; stays: what a task without a target does ("stays", "waits"); lines: said at the end.
    """
    if options.json:
        print_json({"plan": step_docs(steps)})
        return
    if not steps:
        out().print(text(nothing))
    else:
        out().print(_table(steps, rows, stays))
        moved = sum(1 for step in steps if step.target is not None)
        out().print(text(f"{tasks_words(moved)} would move, {len(steps) - moved} {stays}", QUIET))
    for line in lines:
        out().print(text(line, QUIET))


def _table(steps: Sequence[Step], rows: Mapping[str, Row], stays: str) -> RichTable:
    table = RichTable(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, no_wrap=name != "WHY NOT", overflow="fold" if name == "WHY NOT" else "ellipsis")
    for step in steps:
        row = rows.get(step.task_id)
        table.add_row(
            text(one_line(step.task_id)),
            text(one_line((row.class_name if row else None) or "–")),
            text(one_line(step.source or "–")),
            text(one_line(step.target), GOOD) if step.target is not None else text(stays, BAD),
            text(reasons_words(step.reasons)),
        )
    return table


def tasks_words(number: int) -> str:
    """ "1 task", "2 tasks"."""
    return "1 task" if number == 1 else f"{number} tasks"
