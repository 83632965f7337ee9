"""`skalds-streams update`: new parameters for a task, while it runs."""

from __future__ import annotations

from typing import BinaryIO

import click

from skalds_streams.cli.commanding import Command, carry_out, checked_id, new_event, wait_options
from skalds_streams.cli.documents import parameters_of, parse_pairs, read_file
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.outcome import settle_update


@click.command()
@click.argument("task_id", metavar="ID")
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("-f", "--file", type=click.File("rb"), help="Parameters as a JSON or YAML object; - is stdin.")
@click.option(
    "--merge/--replace",
    default=None,
    help="Change only what is given (null removes), or replace all. Default: merge for KEY=VALUE, replace for -f.",
)
@click.option("--reason", metavar="TEXT", help="Kept with the change, and shown.")
@wait_options
@command_options
def update(
    options: Options,
    /,
    task_id: str,
    pairs: tuple[str, ...],
    file: BinaryIO | None,
    merge: bool | None,
    reason: str | None,
    wait_s: float,
) -> None:
    """Change the parameters of a task while it runs. If the worker refuses them, the former ones stay.

    KEY=VALUE changes only the parameters it names (--merge is the default for it); with -f all parameters are
    replaced unless --merge is given. Exit code 1 when they were refused or not applied in time.

    \b
    Examples:
      skalds-streams update cam-1 fps=10
      skalds-streams update cam-1 mask=null detector.size=640
      skalds-streams update cam-1 -f params.json --reason "new calibration"
    """
    checked_id(task_id)
    if (file is None) == (not pairs):
        raise click.UsageError("give either KEY=VALUE or -f with a file")
    attachments = parameters_of(*read_file(file)) if file is not None else parse_pairs(pairs)
    merged = merge if merge is not None else file is None
    event = new_event(task_id, attachments=attachments, merge=merged, reason=reason)
    command = Command(task_id, "update", event, settle_update, attachments)
    if not run(carry_out(options, [command], wait_s)):
        raise click.exceptions.Exit(1)
