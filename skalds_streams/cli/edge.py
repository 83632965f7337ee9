"""`skalds-streams edge`: the tasks of a YAML file on this machine, without Kafka. The same as SKALD_MODE=edge
YAML_FILE=FILE faust -A skalds_streams worker.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from skalds_streams.model.task_file import FILE_MAX_BYTES, parse_task_file
from skalds_streams.settings import Settings


@click.command(
    epilog="Example: skalds-streams edge tasks.yaml --workers examples.workers   (Ctrl-C stops everything)\n\n"
    "What is not given here comes from the environment: SKALDS_WORKERS, SKALDS_WEB_PORT, SKALDS_DATA_DIR …"
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), envvar="YAML_FILE", required=True)
@click.option(
    "--workers", help="Modules with your worker classes, comma-separated; what installed packages offer is there, too."
)
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the status page.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Locks, ids and logs of the workers.")
@click.option("--single", is_flag=True, help="Run only the first task, and end with it: exit code 1 when it failed.")
@click.option("--check", is_flag=True, help="Only say what is wrong with the file: exit code 1 when something is.")
def edge(file: Path, workers: str | None, port: int | None, data_dir: Path | None, single: bool, check: bool) -> None:
    """Run the tasks of a YAML file, and follow its edits: new tasks start, removed ones stop, changed parameters reach
    the workers that run. The file is never written.
    """
    if check:
        _check(file)
        return
    given = {
        "SKALD_MODE": "single_process" if single else _edge_mode(),
        "YAML_FILE": str(file),
        "SKALDS_WORKERS": workers,
        "SKALDS_WEB_PORT": str(port) if port is not None else None,
        "SKALDS_DATA_DIR": str(data_dir) if data_dir is not None else None,
    }
    os.environ.update({name: value for name, value in given.items() if value is not None})
    settings = Settings.load()  # a wrong setting is said here, without Faust around it
    _become_worker(settings.log_level)


def _edge_mode() -> str:
    """The environment's, if it names one of the two."""
    mode = os.environ.get("SKALD_MODE", "").strip().lower()
    return mode if mode in ("edge", "single_process") else "edge"


def _become_worker(log_level: str) -> NoReturn:
    """This process goes on as Faust's worker, so that signals and the exit code are its own."""
    sys.stdout.flush()
    command = [sys.executable, "-m", "faust", "-A", "skalds_streams", "worker", "-l", log_level.lower()]
    os.execv(sys.executable, command)  # noqa: S606  # our own interpreter, no shell


def _check(file: Path) -> None:
    with file.open("rb") as opened:
        found = parse_task_file(str(file), opened.read(FILE_MAX_BYTES + 1))
    for problem in found.problems:
        click.echo(str(problem), err=True)
    if found.problems:
        sys.exit(1)
    number = f"{len(found.tasks)} task" + ("s" if len(found.tasks) != 1 else "")
    click.echo(f"{file}: {number}, nothing wrong. Parameters are checked by the workers.")
