"""Makes a failing plan short: fewer actions, fewer faults, a smaller world, as long as the same rule is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from skalds_streams.testing.simulator.plan import Action, Plan
from skalds_streams.testing.simulator.world import Result, run

TRIES_MOST = 400
FAULT_FIELDS = (
    "slow",
    "lost",
    "unanswered",
    "marker_s",
    "skew_ms",
    "crash",
    "finish",
    "fatal",
    "no_host",
    "slow_stop",
    "dies_s",
    "gaps",
    "drift",
)
ORNAMENTS = (
    "twice",
    "deadline_s",
    "astray",
    "refuse",
    "recipient",
    "class",
    "action",
    "malformed",
    "at_callback",
    "at_beat",
    "padding",
)


class Shrinker:
    """`plan` is the shortest plan so far that fails. Tries are bounded, so the last is not always the least."""

    def __init__(self, result: Result, tries: int = TRIES_MOST, play: Callable[[Plan], Result] = run) -> None:
        self.plan, self._rule, self._left, self._play = result.plan, result.rule, tries, play
        self.violation = result.violation

    def shrink(self) -> Plan:
        before: Plan | None = None
        while before != self.plan and self._left > 0:
            before = self.plan
            self._drop_actions()
            for smaller in self._smaller():
                self._try(smaller)
        return self.plan

    def _try(self, plan: Plan) -> bool:
        if self._left <= 0 or plan == self.plan:
            return False
        self._left -= 1
        result = self._play(plan)
        if result.rule != self._rule:
            return False
        self.plan, self.violation = plan, result.violation
        return True

    def _drop_actions(self) -> None:
        """Delta debugging: halves, quarters … single ones."""
        size = max(len(self.plan.actions) // 2, 1)
        while size >= 1 and self._left > 0:
            at = 0
            while at < len(self.plan.actions):
                actions = self.plan.actions
                if not self._try(replace(self.plan, actions=actions[:at] + actions[at + size :])):
                    at += size
            size //= 2

    def _smaller(self) -> Iterator[Plan]:
        """Each built on what is the shortest at that moment."""
        for name in FAULT_FIELDS:
            yield replace(self.plan, **{name: type(getattr(self.plan, name))(0)})
        for processes in range(1, self.plan.processes):
            yield replace(self.plan, processes=processes)
        for partitions in range(1, self.plan.partitions):
            yield replace(self.plan, partitions=partitions)
        last = max((action.at for action in self.plan.actions), default=0.0)
        for duration_s in (last + 1.0, last + 5.0, last + 15.0):
            if duration_s < self.plan.duration_s:
                yield replace(self.plan, duration_s=duration_s)
        for at in range(len(self.plan.actions)):
            for simpler in _simpler(self.plan.actions[at]):
                actions = self.plan.actions
                yield replace(self.plan, actions=(*actions[:at], simpler, *actions[at + 1 :]))


def _simpler(action: Action) -> Iterator[Action]:
    for name in ORNAMENTS:
        if name in action.how:
            yield replace(action, how={key: value for key, value in action.how.items() if key != name})
    if len(action.how.get("tasks", ())) > 1:
        yield replace(action, how={**action.how, "tasks": action.how["tasks"][:1]})
