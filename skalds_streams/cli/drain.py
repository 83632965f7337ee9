"""`skalds-streams drain`: a node takes nothing new, and what others can run moves there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import click
import orjson

from skalds_streams.cli.kafka import Cluster, connect, live_view, send
from skalds_streams.cli.moving import Moving, begin, follow, say_interrupted, say_what_is_open
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import BAD, GOOD, err, now_ms, one_line, out, print_json, text
from skalds_streams.cli.planning import (
    PLAN,
    check_node,
    print_plan,
    reasons_words,
    state_of,
    step_docs,
    tasks_words,
    timeout_option,
)
from skalds_streams.core.plans import Step, plan_drain
from skalds_streams.view.cluster import ClusterView

TIMEOUT_S = 120.0


@click.command()
@click.argument("node")
@PLAN
@timeout_option(TIMEOUT_S)
@command_options
def drain(options: Options, /, node: str, only_plan: bool, timeout_s: float) -> None:
    """Let a node take nothing new and move its tasks to others, each stopped there first. Then it can be restarted.

    What nobody else can run stays and runs on; the reasons are told, and the exit code is 1. The node is drained until
    it is restarted or undrained; a network cut does not end that.

    \b
    Examples:
      skalds-streams drain node-1 --plan
      skalds-streams drain node-1
    """
    if not run(_drain(options, node, only_plan, timeout_s)):
        raise click.exceptions.Exit(1)


async def _drain(options: Options, node: str, only_plan: bool, timeout_s: float) -> bool:
    cluster = await connect(options.settings, "changelog", "heartbeat")
    async with live_view(cluster) as view:
        check_node(view, node)
        steps = plan_drain(list(view.rows.values()), view.members, node, now_ms())
        if only_plan:
            print_plan(options, steps, view.rows, nothing=f"{node} has no tasks", stays="would stay")
            return True
        movings = begin(view, steps, sent=True)
        try:
            await ask_node(cluster, "drain", node)
            await _follow_all(options, cluster, view, node, movings, timeout_s)
        except asyncio.CancelledError:
            say_interrupted(movings, f"; {node} stays drained, `skalds-streams undrain {node}` takes it back")
            raise
        return _say(options, view, node, movings, timeout_s)


async def _follow_all(
    options: Options, cluster: Cluster, view: ClusterView, node: str, movings: list[Moving], timeout_s: float
) -> None:
    """Until nothing that can move is left, what came to the node meanwhile included."""
    until_s = time.monotonic() + timeout_s
    turn = list(movings)
    while True:
        await follow(cluster, view, turn, until_s - time.monotonic(), silent=options.json)
        known = {moving.task_id for moving in movings}
        left = plan_drain(list(view.rows.values()), view.members, node, now_ms())
        fresh = [step for step in left if step.task_id not in known]
        turn = begin(view, fresh, sent=True)
        if not turn or time.monotonic() >= until_s:
            return
        movings += turn


async def ask_node(cluster: Cluster, kind: str, node: str) -> None:
    """Send what a person asks of a node to the heartbeats, where everybody reads it."""
    value = orjson.dumps({"v": 1, "kind": kind, "skald_id": node})
    await send(cluster, [(cluster.topics.heartbeat, node, value)])


def _say(options: Options, view: ClusterView, node: str, movings: Sequence[Moving], timeout_s: float) -> bool:
    known = {moving.task_id for moving in movings}
    left = plan_drain(list(view.rows.values()), view.members, node, now_ms())
    stay = [step for step in left if step.target is None or step.task_id not in known]
    arrived = sum(1 for moving in movings if moving.stage.ok)
    ok = arrived == len(movings) and not stay
    if options.json:
        tasks = [moving.to_doc() for moving in movings]
        state = state_of(view, node)
        print_json({"ok": ok, "skald_id": node, "state": state, "tasks": tasks, "stay": step_docs(stay)})
        return ok
    say_what_is_open(movings, timeout_s)
    for step in stay:
        err().print(text(f"{one_line(step.task_id)}: stays on {node}: {_why(step)}", BAD))
    moved = f"{tasks_words(arrived)} moved" if movings else "nothing moved"
    stays = f", {tasks_words(len(stay))} can't" if stay else ""
    empty = f"{node} is drained and runs nothing" if ok else f"{node} takes nothing new"
    out().print(text(f"{empty}; {moved}{stays}", GOOD if ok else ""))
    return ok


def _why(step: Step) -> str:
    return reasons_words(step.reasons) if step.target is None else f"it came meanwhile, and is to go to {step.target}"
