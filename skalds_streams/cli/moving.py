"""Follows tasks that change places and shows each on its way: what `drain`, `undrain`, `move` and `rebalance` share.

Rules: a task has arrived when it runs under a newer epoch than before; so many are under way at once that none stands
still for longer than it must; what was sent goes on whatever becomes of the command.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from skalds_streams.cli.commanding import new_event
from skalds_streams.cli.kafka import Cluster, Sender
from skalds_streams.cli.outcome import Clean, status_line
from skalds_streams.cli.output import BAD, GOOD, err, one_line, out, text
from skalds_streams.core.moves import NOT_MOVED
from skalds_streams.core.plans import Step
from skalds_streams.core.row import Row, Status, Wanted
from skalds_streams.projections.masking import text_cleaner
from skalds_streams.view.cluster import ClusterView

AT_ONCE = 8
"""Moves that are under way at a time: as many as a node starts at once by default."""
REDRAW_S = 0.5
STAGES = 3
"""Is stopped, has a new place, runs there."""
BARS_MOST = 20


@dataclass(frozen=True, slots=True)
class Stage:
    """How far a task is, 0 to STAGES. `ok` is None while it is on its way."""

    done: int
    words: str
    ok: bool | None = None


def stage(step: Step, before: Row, row: Row | None, clean: Clean) -> Stage:
    """How far a task has come that stood as in `before` when it was asked to move."""
    if row is None or row.is_terminal:
        return Stage(STAGES, f"has ended meanwhile ({row.status.value if row else 'forgotten'})", True)
    if row.wanted is not Wanted.RUN:
        return Stage(STAGES, f"is not wanted any more ({row.wanted.value})", True)
    holder = row.holder
    if holder is None:
        return Stage(1, one_line(clean(status_line(row, clean)), 300))
    if before.holder is not None and holder.epoch == before.holder.epoch:
        if row.revision > before.revision and row.note is not None and row.note.startswith(NOT_MOVED):
            return Stage(0, f"stays on {holder.skald_id}: {clean(row.note.removeprefix(NOT_MOVED))}", False)
        return Stage(
            0, f"{holder.skald_id} is stopping it" if row.release is not None else f"runs on {holder.skald_id}"
        )
    if row.status is not Status.RUNNING or row.release is not None:
        return Stage(2, f"starts on {holder.skald_id}")
    if holder.skald_id == step.source:
        return Stage(STAGES, f"runs on {holder.skald_id} again: nobody else could take it", False)
    return Stage(STAGES, f"runs on {holder.skald_id} (epoch {holder.epoch})", True)


@dataclass(slots=True)
class Moving:
    """One task on its way."""

    step: Step
    before: Row
    stage: Stage = field(default=Stage(0, "waits for its turn"))
    sent: bool = True
    """Whether it was asked to move."""

    @property
    def task_id(self) -> str:
        return self.step.task_id

    @property
    def is_over(self) -> bool:
        return self.stage.ok is not None

    def to_doc(self) -> dict[str, Any]:
        """For `-o json`."""
        return {
            "task_id": self.task_id,
            "from": self.step.source,
            "to": self.step.target,
            "ok": self.stage.ok is True,
            "result": "done" if self.stage.ok else "failed" if self.is_over else "open" if self.sent else "not sent",
            "reason": self.stage.words,
        }


class Board:
    """Shows them: bars in a terminal, else a line for each that is over. Silent when the answer is JSON."""

    def __init__(self, console: Console, *, silent: bool) -> None:
        self._console, self._silent = console, silent
        self._bars: dict[str, TaskID] = {}
        self._told: set[str] = set()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[words]}", markup=False),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._all: TaskID | None = None

    @contextmanager
    def shown(self, number: int) -> Iterator[None]:
        """Draw until the end of the block. number: of tasks."""
        if self._silent or self._progress is None:
            yield
            return
        with self._progress:
            self._all = self._progress.add_task("all", total=number, words="")
            yield

    def show(self, moving: Moving) -> None:
        """Where a task is now."""
        if self._silent:
            return
        if moving.is_over and moving.task_id not in self._told:
            self._told.add(moving.task_id)
            self._end(moving)
        elif not moving.is_over and moving.sent and self._progress is not None:
            self._draw(self._progress, moving)

    def _draw(self, progress: Progress, moving: Moving) -> None:
        words = one_line(moving.stage.words, 60)
        if moving.task_id in self._bars:
            progress.update(self._bars[moving.task_id], completed=moving.stage.done, words=words)
        elif len(self._bars) < BARS_MOST:
            name = one_line(moving.task_id, 40)
            self._bars[moving.task_id] = progress.add_task(name, total=STAGES, words=words)

    def _end(self, moving: Moving) -> None:
        if self._progress is not None:
            if moving.task_id in self._bars:
                self._progress.remove_task(self._bars.pop(moving.task_id))
            if self._all is not None:
                self._progress.advance(self._all)
        if moving.stage.ok:
            self._console.print(text(f"{moving.task_id}: {moving.stage.words}", GOOD))


async def follow(
    cluster: Cluster,
    view: ClusterView,
    movings: Sequence[Moving],
    timeout_s: float,
    *,
    silent: bool,
    ask: Callable[[Sequence[Moving]], Awaitable[None]] | None = None,
) -> None:
    """Watch them until all are over or the time is. ask: asks some to move; the others wait for their turn."""
    until_s = time.monotonic() + timeout_s
    board = Board(out(), silent=silent)
    with board.shown(len(movings)), view.subscribe() as changes:
        while True:
            if ask is not None and (turn := _turn(movings)):
                for moving in turn:
                    moving.sent, moving.stage = True, Stage(0, "asked")
                await ask(turn)
            for moving in movings:
                if moving.sent and not moving.is_over:
                    moving.stage = _now(cluster, view, moving)
                board.show(moving)
            left_s = until_s - time.monotonic()
            if left_s <= 0 or all(moving.is_over for moving in movings):
                return
            if ask is not None and _turn(movings):
                continue
            try:
                async with asyncio.timeout(min(left_s, REDRAW_S)):
                    await changes.wait()
            except TimeoutError:
                continue


def _turn(movings: Sequence[Moving]) -> Sequence[Moving]:
    under_way = sum(1 for moving in movings if moving.sent and not moving.is_over)
    waiting = [moving for moving in movings if not moving.sent]
    return waiting[: max(AT_ONCE - under_way, 0)]


def _now(cluster: Cluster, view: ClusterView, moving: Moving) -> Stage:
    row = view.rows.get(moving.task_id)
    known = row or moving.before
    clean = text_cleaner(known, cluster.words, view.members.secret_paths(known.class_name))
    return stage(moving.step, moving.before, row, clean)


def begin(view: ClusterView, steps: Collection[Step], *, sent: bool) -> list[Moving]:
    """The steps that move something, as they stand before anything was asked."""
    return [Moving(step, view.rows[step.task_id], sent=sent) for step in steps if step.target is not None]


async def ask_to_move(cluster: Cluster, sender: Sender, movings: Sequence[Moving], reason: str | None) -> None:
    """Send an assign with action move for each, to its target this once."""
    topic = cluster.topics.assign
    events = [
        (moving.task_id, new_event(moving.task_id, action="move", to=moving.step.target, reason=reason))
        for moving in movings
    ]
    await sender.send([(topic, key, event.model_dump_json(by_alias=True).encode()) for key, event in events])


def say_what_is_open(movings: Sequence[Moving], timeout_s: float) -> None:
    """A line for each that has not arrived."""
    for moving in movings:
        if moving.stage.ok is False:
            err().print(text(f"Error: {moving.task_id}: {moving.stage.words}", BAD))
        elif not moving.is_over:
            what = moving.stage.words if moving.sent else "was not asked to move"
            err().print(text(f"Error: {moving.task_id}: not done within {timeout_s:g} s: {what}", BAD))


def say_interrupted(movings: Sequence[Moving], more: str = "") -> None:
    """What stands when a person has pressed Ctrl-C."""
    arrived = sum(1 for moving in movings if moving.stage.ok)
    under_way = sum(1 for moving in movings if moving.sent and not moving.is_over)
    unsent = sum(1 for moving in movings if not moving.sent)
    words = f"Interrupted: {arrived} moved, {under_way} under way and going on, {unsent} not asked to move{more}"
    err().print(text(words, BAD))
