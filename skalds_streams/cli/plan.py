"""`skalds-streams plan`: what would become of the tasks of a node. Reads only."""

from __future__ import annotations

import click

from skalds_streams.cli.kafka import connect, live_view
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import now_ms
from skalds_streams.cli.planning import check_node, print_plan
from skalds_streams.core.plans import plan_drain, plan_loss


@click.command()
@click.option("--lose", metavar="NODE", help="If this node were gone for good.")
@click.option("--drain", metavar="NODE", help="If this node were drained.")
@command_options
def plan(options: Options, /, lose: str | None, drain: str | None) -> None:
    """Who would take which task, and which would wait or stay, and why. Nothing changes.

    It is what the coordinators' own placement says of the cluster as it is now.

    \b
    Examples:
      skalds-streams plan --lose node-1
      skalds-streams plan --drain node-1 -o json
    """
    if (lose is None) == (drain is None):
        raise click.UsageError("give either --lose NODE or --drain NODE")
    run(_plan(options, lose, drain))


async def _plan(options: Options, lose: str | None, drain: str | None) -> None:
    cluster = await connect(options.settings, "changelog", "heartbeat")
    async with live_view(cluster) as view:
        rows = list(view.rows.values())
        if drain is not None:
            check_node(view, drain)
            steps = plan_drain(rows, view.members, drain, now_ms())
            print_plan(options, steps, view.rows, nothing=f"{drain} has no tasks", stays="would stay")
        elif lose is not None:
            kept = {row.last_skald for row in rows if row.is_waiting and row.last_skald}
            check_node(view, lose, kept | {row.holder.skald_id for row in rows if row.holder is not None})
            steps = plan_loss(rows, view.members, lose, now_ms())
            print_plan(options, steps, view.rows, nothing=f"{lose} has no tasks", stays="would wait")
