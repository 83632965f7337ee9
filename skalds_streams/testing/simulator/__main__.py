"""The command: one world, many worlds, or a soak that goes on where it was left.

    python -m skalds_streams.testing.simulator --seed 7 --trace
    python -m skalds_streams.testing.simulator --seeds 0:5000 --jobs 2
    python -m skalds_streams.testing.simulator --soak results.jsonl --hours 8
    python -m skalds_streams.testing.simulator --file tests/histories/simulator-7.json --trace

Exit code 1 when a rule was broken.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from skalds_streams.testing.simulator import histories
from skalds_streams.testing.simulator.plan import Plan, draw
from skalds_streams.testing.simulator.runs import Outcome, Tally, tally
from skalds_streams.testing.simulator.shrink import Shrinker
from skalds_streams.testing.simulator.world import Result, run

BLOCK = 1_000
"""Seeds a line of a soak's results."""
SHOWN = (
    "kill",
    "pause",
    "freeze",
    "partition",
    "outage",
    "stop",
    "lose",
    "drain",
    "jump",
    "twin",
    "lease.lapsed",
    "journal.fenced",
    "journal.outcome_unknown",
)
SHRUNK_MOST = 5
"""Failing seeds of one run that are shrunk and kept; more would say the same."""

console = Console(highlight=False)


@click.command()
@click.option("--seed", type=int, help="One world, and what happened in it.")
@click.option("--file", "path", type=click.Path(exists=True, path_type=Path), help="One world from a kept file.")
@click.option("--seeds", help="Many worlds, A:B, B not included.")
@click.option("--soak", type=click.Path(path_type=Path), help="Go on for --hours, a line a block in this file.")
@click.option("--hours", type=float, default=8.0, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True)
@click.option("--steps", type=int, help="Only so many actions of the plan.")
@click.option("--trace", is_flag=True, help="Print every act, fault, command and line of the log.")
@click.option("--keep", type=click.Path(path_type=Path), default=histories.DIRECTORY, show_default=True)
def main(
    seed: int | None,
    path: Path | None,
    seeds: str | None,
    soak: Path | None,
    hours: float,
    jobs: int,
    steps: int | None,
    trace: bool,
    keep: Path,
) -> None:
    """Simulate whole worlds of skalds_streams on virtual time."""
    if seed is not None or path is not None:
        plan = histories.load(path) if path is not None else draw(seed or 0, steps)
        sys.exit(_one(plan, trace=trace, shrink=path is None and not trace, keep=keep))
    if soak is not None:
        sys.exit(_soak(soak, hours=hours, jobs=jobs, keep=keep))
    if seeds is None:
        raise click.UsageError("say --seed, --seeds, --soak or --file")
    first, _, after = seeds.partition(":")
    sys.exit(_many(range(int(first), int(after)), jobs, keep))


def _one(plan: Plan, *, trace: bool, shrink: bool, keep: Path) -> int:
    result = run(plan, trace=trace)
    for line in result.trace:
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"seed {plan.seed}: {plan.processes} processes, {len(plan.actions)} actions, {result.seconds:.0f} s")
    console.print(f"faults: {', '.join(plan.faults) or 'none'}")
    console.print(
        f"{result.records} records, {result.acts} acts, {result.events} callbacks; digest {result.digest[:16]}"
    )
    if result.violation is None:
        console.print("no rule broken")
        return 0
    _report(result, shrink=shrink, keep=keep)
    return 1


def _report(result: Result, *, shrink: bool, keep: Path) -> None:
    console.print(f"[red]{result.rule}[/red]: ", end="")
    console.print(result.violation, markup=False)
    console.print(f"  again: {histories.command(result.plan.seed)}", markup=False)
    if shrink:
        shrinker = Shrinker(result)
        short = shrinker.shrink()
        kept = histories.keep(short, run(short), keep)
        console.print(f"  shrunk from {len(result.plan.actions)} to {len(short.actions)} actions: {kept}", markup=False)


def _many(seeds: range, jobs: int, keep: Path) -> int:
    begun = time.monotonic()
    with _progress() as progress:
        bar = progress.add_task("worlds", total=len(seeds), failed=0)
        found = tally(
            seeds, jobs, lambda so_far: progress.update(bar, completed=so_far.seeds, failed=len(so_far.failed))
        )
    _summary(found, time.monotonic() - begun)
    _keep_failed(found.failed, keep)
    return 1 if found.failed else 0


def _keep_failed(failed: list[Outcome], keep: Path) -> None:
    for outcome in failed[:SHRUNK_MOST]:
        _report(run(draw(outcome.seed)), shrink=True, keep=keep)
    for outcome in failed[SHRUNK_MOST:]:
        console.print(f"seed {outcome.seed}: {outcome.violation}", markup=False)


def _summary(found: Tally, wall_s: float) -> None:
    days = found.virtual_s / 86_400
    console.print(
        f"{found.seeds} worlds in {wall_s:.0f} s ({found.seeds / max(wall_s, 0.001):.0f} a second), {days:.1f} days of"
        f" virtual time, {found.records} records, {found.acts} acts of workers"
    )
    console.print(", ".join(f"{name} {found.seen[name]}" for name in SHOWN))
    if found.margin_beats is not None:
        console.print(
            f"least time between the last act of a run that was counted dead and the next one's first:"
            f" {found.margin_beats:.2f} beats (seed {found.margin_seed})"
        )
    console.print(f"rules broken: {len(found.failed)}", style="red" if found.failed else "green")


def _soak(path: Path, *, hours: float, jobs: int, keep: Path) -> int:
    """Blocks of seeds, one after the other, from where the file ends."""
    until, begun, failed = time.monotonic() + hours * 3600, time.monotonic(), 0
    first = _next_seed(path)
    with _progress() as progress:
        bar = progress.add_task(f"soak from seed {first}", total=int(hours * 3600), failed=0)

        def show(failed_before: int, so_far: Tally) -> None:
            progress.update(bar, completed=int(time.monotonic() - begun), failed=failed_before + len(so_far.failed))

        while time.monotonic() < until:
            started = time.monotonic()
            found = tally(range(first, first + BLOCK), jobs, partial(show, failed))
            failed += len(found.failed)
            _append(path, first, found, time.monotonic() - started)
            _keep_failed(found.failed, keep)
            first += BLOCK
    return 1 if failed else 0


def _append(path: Path, first: int, found: Tally, wall_s: float) -> None:
    doc = {
        "first": first,
        "seeds": found.seeds,
        "wall_s": round(wall_s, 1),
        "virtual_s": round(found.virtual_s),
        "records": found.records,
        "acts": found.acts,
        "margin_beats": found.margin_beats,
        "violations": [{"seed": item.seed, "rule": item.rule, "what": item.violation} for item in found.failed],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(orjson.dumps(doc) + b"\n")


def _next_seed(path: Path) -> int:
    if not path.exists():
        return 0
    blocks = [orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
    return max((block["first"] + block["seeds"] for block in blocks), default=0)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("broken: {task.fields[failed]}"),
        console=Console(stderr=True),
    )


if __name__ == "__main__":
    main()
