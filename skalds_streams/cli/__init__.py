"""`skalds-streams`: the command line. One command a module, imported when it is called, so that `--help` is instant.

Rules: what a person asked for goes to stdout, one clear line about what went wrong to stderr. Exit codes: 0 done, 1
it did not work out, 2 wrong usage, 130 Ctrl-C. A SkaldsError is shown without a traceback; any other exception is a
bug and keeps its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from skalds_streams.cli.options import common_options
from skalds_streams.errors import SkaldsError
from skalds_streams.version import __version__

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

COMMANDS: Mapping[str, str] = {
    "dev": "Run the whole system on this machine: Kafka, Redis, a skald, example tasks.",
    "edge": "Run the tasks of a YAML file on this machine, without Kafka.",
    "assign": "Start a task, or bring one that runs in line.",
    "update": "Change the parameters of a task while it runs.",
    "cancel": "Stop tasks.",
    "move": "Let tasks run elsewhere.",
    "drain": "Move everything away from a node, and let it take nothing new.",
    "undrain": "Let a drained node take tasks again.",
    "rebalance": "Move a few tasks to even the load out.",
    "plan": "What would happen if a node were drained or lost.",
    "ps": "List the tasks: status, skald, parameters.",
    "describe": "Everything about one task, and how it came to be.",
    "classes": "The worker classes there are, and the parameters of one.",
    "logs": "What a task printed, from wherever it runs.",
    "state": "What a task's runs have saved: show, set, reset.",
    "replay": "Rebuild every row from the recorded events and verify the live table.",
    "deadletter": "What no coordinator understood: list, show, send again.",
    "topics": "Check, create or mend the Kafka topics.",
}
"""Name → what the list of commands says of it. The module of the same name has a command of the same name."""


class LazyGroup(click.Group):
    """Knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands that are installed."""
        return [name for name in COMMANDS if _is_there(name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, its module imported now."""
        if cmd_name not in COMMANDS or not _is_there(cmd_name):
            return None
        command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, and turn whatever ends the command into an exit code."""
        run: Any = super().main
        if not extra.pop("standalone_mode", True):
            return run(*args, standalone_mode=False, **extra)
        try:
            code = run(*args, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(EXIT_INTERRUPTED)
        except SkaldsError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(EXIT_FAILED)
        sys.exit(code if isinstance(code, int) else 0)


def _is_there(name: str) -> bool:
    return find_spec(f"{__name__}.{name}") is not None


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Settings come from the environment and .env, see `--kafka` for the one that is needed most.",
)
@click.version_option(__version__, prog_name="skalds-streams")
@common_options
@click.pass_context
def main(_ctx: click.Context, /) -> None:
    """Long-lived jobs on many machines, driven by a Kafka event queue.

    \b
    Example:
      skalds-streams assign cam-1 --class Cam fps=30 rtspUrl=rtsp://camera1/stream
      skalds-streams ps
    """
