"""`skalds-streams move`: tasks are to run elsewhere, once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import click

from skalds_streams.cli.kafka import Cluster, connect, live_view, sending
from skalds_streams.cli.moving import Moving, ask_to_move, begin, follow, say_interrupted, say_what_is_open
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import BAD, err, now_ms, one_line, out, print_json, text
from skalds_streams.cli.planning import (
    PLAN,
    REASON,
    check_node,
    check_tasks,
    print_plan,
    reasons_words,
    step_docs,
    timeout_option,
)
from skalds_streams.core.plans import Step, plan_move
from skalds_streams.view.cluster import ClusterView

TIMEOUT_S = 60.0


@click.command()
@click.argument("task_ids", metavar="TASK...", nargs=-1, required=True)
@click.option("--to", metavar="NODE", help="To this node. Without it: to any but the one that has the task.")
@REASON
@PLAN
@timeout_option(TIMEOUT_S)
@command_options
def move(
    options: Options,
    /,
    task_ids: tuple[str, ...],
    to: str | None,
    reason: str | None,
    only_plan: bool,
    timeout_s: float,
) -> None:
    """Let tasks run elsewhere: stopped where they are, then started there. A few at a time.

    It pins nothing: when the node is lost later, they go where placement says (`assign --recipient` pins). A task that
    nobody else can run is left alone, and the exit code is 1.

    \b
    Examples:
      skalds-streams move cam-1 cam-2 --to node-2
      skalds-streams move cam-1 --plan
    """
    ids = list(dict.fromkeys(task_ids))
    if not run(_move(options, ids, to, reason, only_plan, timeout_s)):
        raise click.exceptions.Exit(1)


async def _move(
    options: Options, task_ids: Sequence[str], to: str | None, reason: str | None, only_plan: bool, timeout_s: float
) -> bool:
    cluster = await connect(options.settings, "changelog", "heartbeat", "assign")
    async with live_view(cluster) as view:
        check_tasks(view, task_ids)
        if to is not None:
            check_node(view, to)
        steps = plan_move(list(view.rows.values()), view.members, task_ids, to, now_ms())
        if only_plan:
            print_plan(options, steps, view.rows, nothing="nothing would move", stays="would stay")
            return True
        return await carry_out_steps(options, cluster, view, steps, reason=reason, timeout_s=timeout_s)


async def carry_out_steps(
    options: Options,
    cluster: Cluster,
    view: ClusterView,
    steps: Sequence[Step],
    *,
    reason: str | None,
    timeout_s: float,
) -> bool:
    """Move what has a target, a few at a time, and say of the others why not. Returns whether all have arrived."""
    movings = begin(view, steps, sent=False)
    try:
        async with sending(cluster) as sender:

            async def ask(turn: Sequence[Moving]) -> None:
                await ask_to_move(cluster, sender, turn, reason)

            await follow(cluster, view, movings, timeout_s, silent=options.json, ask=ask)
    except asyncio.CancelledError:
        say_interrupted(movings)
        raise
    stay = [step for step in steps if step.target is None]
    ok = not stay and all(moving.stage.ok for moving in movings)
    if options.json:
        print_json({"ok": ok, "tasks": [moving.to_doc() for moving in movings], "stay": step_docs(stay)})
        return ok
    say_what_is_open(movings, timeout_s)
    for step in stay:
        where = f"stays on {step.source}" if step.source else "waits on"
        err().print(text(f"Error: {one_line(step.task_id)}: {where}: {reasons_words(step.reasons)}", BAD))
    if not movings:
        out().print(text("nothing moved"))
    return ok
