"""`skalds-streams rebalance`: a few tasks move so that the load is even."""

from __future__ import annotations

from collections.abc import Sequence

import click

from skalds_streams.cli.kafka import connect, live_view
from skalds_streams.cli.move import carry_out_steps
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import QUIET, out, text
from skalds_streams.cli.planning import PLAN, REASON, print_plan, timeout_option
from skalds_streams.core.plans import Share, plan_balance, shares, spread

MOST = 20
TIMEOUT_S = 120.0
NOTHING_GAINED = "nothing moves: no move would even the load out"


@click.command()
@click.option(
    "--most", type=click.IntRange(min=1), default=MOST, show_default=True, metavar="N", help="At most N moves."
)
@REASON
@PLAN
@timeout_option(TIMEOUT_S)
@command_options
def rebalance(options: Options, /, most: int, reason: str | None, only_plan: bool, timeout_s: float) -> None:
    """Move a few tasks from the nodes that are fullest for their capacity to those that are emptiest.

    It stops when no further move evens the load out. Tasks that are pinned or that do not run stay where they are.

    \b
    Examples:
      skalds-streams rebalance --plan
      skalds-streams rebalance --most 5
    """
    if not run(_rebalance(options, most, reason, only_plan, timeout_s)):
        raise click.exceptions.Exit(1)


async def _rebalance(options: Options, most: int, reason: str | None, only_plan: bool, timeout_s: float) -> bool:
    cluster = await connect(options.settings, "changelog", "heartbeat", "assign")
    async with live_view(cluster) as view:
        rows = list(view.rows.values())
        before = shares(rows, view.members)
        steps = plan_balance(rows, view.members, most)
        if only_plan:
            lines = [_words("load", before)] if before else []
            print_plan(options, steps, view.rows, nothing=NOTHING_GAINED, stays="would stay", lines=lines)
            return True
        if not steps and not options.json:
            out().print(text(NOTHING_GAINED))
            out().print(text(_words("load", before), QUIET))
            return True
        ok = await carry_out_steps(options, cluster, view, steps, reason=reason or "rebalance", timeout_s=timeout_s)
        if not options.json:
            out().print(text(_words("load before", before), QUIET))
            if len(steps) == most:
                out().print(text(f"--most {most} was reached: call it again for more", QUIET))
        return ok


def _words(what: str, found: Sequence[Share]) -> str:
    """ "load: a 8/8, b 0/8; 100 % apart"."""
    parts = ", ".join(f"{share.member.skald_id} {share.used}/{share.member.capacity}" for share in found)
    return f"{what}: {parts or 'no skald takes tasks'}; {spread(found):.0%} apart"
