"""`skalds-streams assign`: a task is wanted. By key=value, from a file, or by id alone for a task that is known."""

from __future__ import annotations

from typing import Any, BinaryIO

import click

from skalds_streams.cli.commanding import Command, carry_out, checked_id, new_event, wait_options
from skalds_streams.cli.documents import SOURCE, parse_pairs, read_file, tasks_of
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.outcome import settle_pause, settle_run


@click.command()
@click.argument("task_id", metavar="[ID]", required=False)
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@click.option(
    "--class", "class_name", metavar="NAME", help="Worker class. With it, KEY=VALUE are all parameters of the task."
)
@click.option(
    "-f",
    "--file",
    type=click.File("rb"),
    help="A Task document, a list of them, or a TaskWorkers file; JSON or YAML, - is stdin.",
)
@click.option("--recipient", metavar="SKALD", help="Pin the task to this skald and wait for it.")
@click.option(
    "--priority", type=click.IntRange(0, 10), help="Of two that wait, the higher is placed first. Needs --class."
)
@click.option("--reason", metavar="TEXT", help="Kept with the change, and shown.")
@click.option(
    "--action",
    type=click.Choice(["restart", "pause", "resume", "move"]),
    help="restart or move the run, pause (stop, keep everything) or resume.",
)
@click.option("--force", is_flag=True, help="Also when it stops a run for a class that no skald has now.")
@wait_options
@command_options
def assign(
    options: Options,
    /,
    task_id: str | None,
    pairs: tuple[str, ...],
    class_name: str | None,
    file: BinaryIO | None,
    recipient: str | None,
    priority: int | None,
    reason: str | None,
    action: str | None,
    force: bool,
    wait_s: float,
) -> None:
    """Start a task, or bring one that runs in line with what is given; nothing restarts unless --action says so.

    A VALUE that is JSON is taken as JSON, anything else as text; a.b=1 nests. ID alone assigns a task that is known
    already. By default it waits until the task runs; exit code 1 when it was refused, failed, or does not run in
    time. A class that no skald has is refused for a task that runs another one, unless --force is given.

    \b
    Examples:
      skalds-streams assign cam-1 --class Cam fps=30 rtspUrl=rtsp://camera1/stream
      skalds-streams assign cam-1 --action restart --reason "camera moved"
      skalds-streams assign -f tasks.yaml --no-wait
    """
    docs = _documents(task_id, pairs, class_name, file, priority)
    ids = [str(doc["id"]) for doc in docs] if docs else [checked_id(task_id or "")]
    by_id = {str(doc["id"]): doc for doc in docs}
    settle = settle_pause if action == "pause" else settle_run
    commands = [
        Command(
            name,
            "assign",
            new_event(name, tasks=[by_id[name]] if docs else None, recipient=recipient, reason=reason, action=action),
            settle,
            by_id.get(name, {}).get("attachments"),
            by_id.get(name, {}).get("className"),
            force,
            action or "",
        )
        for name in ids
    ]
    if not run(carry_out(options, commands, wait_s)):
        raise click.exceptions.Exit(1)


def _documents(
    task_id: str | None, pairs: tuple[str, ...], class_name: str | None, file: BinaryIO | None, priority: int | None
) -> list[dict[str, Any]]:
    """The Task documents; empty when there is nothing but an id."""
    if file is not None:
        if pairs or class_name or priority is not None:
            raise click.UsageError("-f brings the whole Task: no KEY=VALUE, --class or --priority beside it")
        name = checked_id(task_id) if task_id is not None else None
        return tasks_of(*read_file(file), name)
    if task_id is None:
        raise click.UsageError("give a task id, or a file with -f")
    checked_id(task_id)
    if class_name is None:
        if pairs or priority is not None:
            raise click.UsageError(
                "KEY=VALUE and --priority describe a whole task and need --class;"
                " `skalds-streams update` changes parameters alone"
            )
        return []
    doc: dict[str, Any] = {"id": task_id, "className": class_name, "source": SOURCE, "attachments": parse_pairs(pairs)}
    return [doc if priority is None else {**doc, "priority": priority}]
