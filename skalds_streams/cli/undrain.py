"""`skalds-streams undrain`: a drained node takes tasks again."""

from __future__ import annotations

import asyncio

import click

from skalds_streams.cli.drain import ask_node
from skalds_streams.cli.kafka import connect, live_view
from skalds_streams.cli.moving import begin, follow, say_interrupted, say_what_is_open
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import GOOD, now_ms, out, print_json, text
from skalds_streams.cli.planning import PLAN, check_node, print_plan, state_of, tasks_words, timeout_option
from skalds_streams.core.plans import plan_undrain

TIMEOUT_S = 30.0
NOTHING_MOVES = "no task waits for it, so nothing moves; `skalds-streams rebalance` evens the load out"


@click.command()
@click.argument("node")
@PLAN
@timeout_option(TIMEOUT_S)
@command_options
def undrain(options: Options, /, node: str, only_plan: bool, timeout_s: float) -> None:
    """Let a drained node take tasks again. Those that wait for a place go there; what runs elsewhere stays.

    \b
    Example:
      skalds-streams undrain node-1
    """
    if not run(_undrain(options, node, only_plan, timeout_s)):
        raise click.exceptions.Exit(1)


async def _undrain(options: Options, node: str, only_plan: bool, timeout_s: float) -> bool:
    cluster = await connect(options.settings, "changelog", "heartbeat")
    async with live_view(cluster) as view:
        check_node(view, node)
        drained = state_of(view, node) == "draining"
        steps = plan_undrain(list(view.rows.values()), view.members, node, now_ms()) if drained else []
        nothing = NOTHING_MOVES if drained else f"{node} is {state_of(view, node)}, not draining"
        if only_plan:
            print_plan(options, steps, view.rows, nothing=nothing, stays="would wait")
            return True
        movings = begin(view, steps, sent=True)
        try:
            if drained:
                await ask_node(cluster, "undrain", node)
            await follow(cluster, view, movings, timeout_s, silent=options.json)
        except asyncio.CancelledError:
            say_interrupted(movings)
            raise
    ok = all(moving.stage.ok for moving in movings)
    if options.json:
        print_json({"ok": ok, "skald_id": node, "tasks": [moving.to_doc() for moving in movings]})
        return ok
    say_what_is_open(movings, timeout_s)
    if drained:
        came = f"{tasks_words(len(movings))} waited for a place" if movings else nothing
        out().print(text(f"{node} takes tasks again; {came}", GOOD))
    else:
        out().print(text(nothing))
    return ok
