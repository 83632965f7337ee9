"""`skalds-streams cancel`: tasks are not wanted any more."""

from __future__ import annotations

import click

from skalds_streams.cli.commanding import Command, carry_out, new_event, wait_options
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.outcome import settle_cancel


@click.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--reason", metavar="TEXT", help="Kept with the change, and shown.")
@wait_options
@command_options
def cancel(options: Options, /, task_ids: tuple[str, ...], reason: str | None, wait_s: float) -> None:
    """Stop tasks. A cancel is remembered: an older assign that comes late does not start the task.

    By default it waits until the workers have ended; exit code 1 when one has not in time.

    \b
    Example:
      skalds-streams cancel cam-1 cam-2 --reason "street closed"
    """
    commands = [
        Command(task_id, "cancel", new_event(task_id, reason=reason), settle_cancel)
        for task_id in dict.fromkeys(task_ids)
    ]
    if not run(carry_out(options, commands, wait_s)):
        raise click.exceptions.Exit(1)
