"""The command: one run, or several one after the other, added to a file of results.

    python -m skalds_streams.testing.chaos --minutes 3 --lease-ms 4000 --seed 1

The last line says `faults: N, overlaps: 0, lost: 0, margin_ms: N`; exit code 1 when anything is wrong, and then the
directory with all logs is kept and named. Without --seed the runs of the file go on with the next one.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from skalds_streams.settings import LEASE_MS
from skalds_streams.testing.chaos import clock
from skalds_streams.testing.chaos.leaks import PREFIX
from skalds_streams.testing.chaos.plan import KINDS
from skalds_streams.testing.chaos.run import Order, Run, prepare_disks, release_disks
from skalds_streams.testing.chaos.verdict import Outcome, as_doc, total

RESULTS = Path("chaos.jsonl")
FAILURES_SHOWN = 40
DISK, CLOCK = "fill disk", "jump clock"

err = Console(stderr=True, highlight=False)


@click.command()
@click.option("--minutes", type=float, default=3.0, show_default=True, help="How long faults are done, in all.")
@click.option("--lease-ms", type=click.IntRange(1_000), default=LEASE_MS, show_default=True)
@click.option("--tasks", type=click.IntRange(2), default=30, show_default=True)
@click.option("--seed", type=int, help="Which faults; default: the one after the last in --results.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--only", "kinds", multiple=True, type=click.Choice(tuple(KINDS)), help="Only faults of this kind.")
@click.option("--class", "only", help="The class of all tasks; Keeper overlaps, as it should: the witness must see it.")
@click.option("--keep", is_flag=True, help="Keep the directory with the logs also when all is well.")
def main(
    minutes: float,
    lease_ms: int,
    tasks: int,
    seed: int | None,
    results: Path,
    kinds: Sequence[str],
    only: str | None,
    keep: bool,
) -> None:
    """Disturb a whole system of real processes and check that no task ever ran twice and no command was lost."""
    order = Order(
        _next_seed(results) if seed is None else seed,
        minutes * 60,
        lease_ms,
        tasks,
        tuple(kinds or KINDS),
        only,
    )
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    has_disks = prepare_disks(directory)
    outcome = _one(order, directory, has_disks=has_disks)
    _append(results, outcome)
    for text in outcome.failures[:FAILURES_SHOWN]:
        click.echo(text)
    if outcome.failures or keep:
        click.echo(f"logs: {directory}")
        _save_disks(directory)
    release_disks(directory)
    if not (outcome.failures or keep):
        shutil.rmtree(directory)
    for text in outcome.left_out:
        click.echo(f"left out: {text}")
    click.echo(
        f"seed {outcome.seed}: {outcome.seconds:.0f} s, {outcome.acts} acts, {outcome.runs} runs, {outcome.commands}"
        f" commands, margin to another skald {outcome.margin_elsewhere_ms or 0:.0f} ms"
    )
    click.echo(f"all runs: {total(_results(results))}")
    click.echo(outcome.line)
    sys.exit(1 if outcome.failures else 0)


def _one(order: Order, directory: Path, *, has_disks: bool) -> Outcome:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it says many times a second that the broker is away
    clock_library = clock.prepare(directory)
    left_out = {} if has_disks else {DISK: "this user may not mount"}
    if clock_library is None:
        left_out[CLOCK] = "no C compiler (cc), or this Python takes no library before its own"
    kinds = [kind for kind in order.kinds if kind not in left_out]
    columns = (
        TextColumn("chaos"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with (directory / "chaos.log").open("a", buffering=1) as log, Progress(*columns, console=err) as progress:
        bar = progress.add_task("chaos", total=order.seconds, said="starting")

        def note(text: str) -> None:
            log.write(text + "\n")
            if not err.is_terminal:
                err.print(text, markup=False, soft_wrap=True)

        def show(seconds: float, faults: int) -> None:
            progress.update(bar, completed=seconds, said=f"{faults} faults")

        run = Run(order, directory, note=note, on_progress=show, clock_library=clock_library)
        run.outcome.left_out += [f"{kind}: {why}" for kind, why in left_out.items() if kind in order.kinds]
        return asyncio.run(run.run(kinds))


def _save_disks(directory: Path) -> None:
    """The nodes' disks go with this process: what they hold is copied beside them."""
    for path in (directory / "data").glob("*"):
        if path.is_mount():
            shutil.copytree(path, directory / "saved" / path.name, dirs_exist_ok=True)


def _results(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()]


def _next_seed(path: Path) -> int:
    return max((item["seed"] for item in _results(path)), default=0) + 1


def _append(path: Path, outcome: Outcome) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(orjson.dumps(as_doc(outcome, at=datetime.now(UTC).isoformat(timespec="seconds"))) + b"\n")


if __name__ == "__main__":
    main()
