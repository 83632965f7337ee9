"""What user code did, world-wide: who ran which task under which epoch, with which parameters, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from skalds_streams.testing.simulator.loop import VirtualLoop


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that a worker did. `what`: begin, apply, adopt (goes on under another epoch) or end."""

    at: float
    what: str
    task_id: str
    epoch: int
    incarnation: str
    version: int = 0
    keeps: bool = False


@dataclass(slots=True)
class Active:
    """A worker whose user code runs now."""

    epoch: int
    incarnation: str
    version: int
    parameters: dict[str, Any] | None
    keeps: bool = False
    """It runs on without a lease, and may run twice."""


@dataclass(slots=True)
class Witness:
    """See the module. `on_act` judges each act before it is entered. `calm`: workers stop crashing and finishing."""

    loop: VirtualLoop
    on_act: Callable[[Act], None] = lambda act: None
    active: dict[str, list[Active]] = field(default_factory=dict)
    ended_by_itself: dict[tuple[str, int], str] = field(default_factory=dict)
    """(task, epoch) whose worker finished, or failed for good."""
    crashed: set[tuple[str, int]] = field(default_factory=set)
    """(task, epoch) whose worker failed, with or without a word."""
    acts: int = 0
    calm: bool = False

    def begins(self, run: Active, task_id: str) -> None:
        self._note(Act(self.loop.now, "begin", task_id, run.epoch, run.incarnation, run.version, run.keeps))
        self.active.setdefault(task_id, []).append(run)

    def adopts(self, task_id: str, former: tuple[int, str], epoch: int, incarnation: str) -> None:
        """former: the epoch and the incarnation that the run had."""
        for active in self.active.get(task_id, ()):
            if (active.epoch, active.incarnation) == former:
                active.epoch, active.incarnation = epoch, incarnation
                self._note(Act(self.loop.now, "adopt", task_id, epoch, incarnation, active.version, active.keeps))

    def applies(self, task_id: str, epoch: int, version: int, parameters: dict[str, Any] | None) -> None:
        for active in self.active.get(task_id, ()):
            if active.epoch == epoch:
                active.version, active.parameters = version, parameters
                self._note(Act(self.loop.now, "apply", task_id, epoch, active.incarnation, version))

    def ends(self, task_id: str, epoch: int, incarnation: str) -> None:
        self._note(Act(self.loop.now, "end", task_id, epoch, incarnation))
        left = [item for item in self.active[task_id] if (item.epoch, item.incarnation) != (epoch, incarnation)]
        self.active[task_id] = left

    def settled(self, task_id: str, epoch: int, how: str) -> None:
        self.ended_by_itself[task_id, epoch] = how

    def _note(self, act: Act) -> None:
        self.acts += 1
        self.on_act(act)
