"""A world before it begins: how large, how bad, and what happens when. Drawn from a seed; plain data, kept as JSON.

Each seed enables a random subset of the faults (swarm testing), so that no fault always hides behind another. What a
plan leaves open (latencies, which request is lost) is drawn while the world runs, from `noise`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from skalds_streams.testing.simulator.plan_leases import HardshipScript, keep_running

FAULTS = (
    "kill",
    "pause",
    "partition",
    "outage",
    "leader",
    "skew",
    "slow",
    "lost",
    "unanswered",
    "crash",
    "finish",
    "fatal",
    "slow_stop",
    "no_host",
    "twin",
    "stop",
    "compact",
    "markers",
    "malformed",
    "many",
    "astray",
    "refuse",
    "tight",
    "pause_task",
    "forget",
    "deadline",
    "tie",
    "churn",
    "burst",
    "large",
    "retention",
    "away",
    "gaps",
    "rebalance",
)
MESSAGE_BYTES = 1_048_588
UNWRITABLE_MOST = 3
"""Each holds its partition up until it is found among its neighbours."""
ON_PROCESS = ("kill", "pause", "partition", "stop")
ON_PARTITION = ("leader", "compact", "retention", "rebalance")


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that happens at `at` seconds. `do`: a command or a fault; the rest says to whom and how."""

    at: float
    do: str
    how: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """See the module. Shares are between 0 and 1, times in seconds unless they say ms."""

    seed: int
    noise: int
    processes: int = 1
    partitions: int = 1
    duration_s: float = 20.0
    faults: tuple[str, ...] = ()
    capacity: int = 500
    slow: float = 0.0
    lost: float = 0.0
    unanswered: float = 0.0
    marker_s: float = 0.0
    skew_ms: int = 0
    crash: float = 0.0
    finish: float = 0.0
    fatal: float = 0.0
    no_host: float = 0.0
    slow_stop: float = 0.0
    dies_s: float = 0.05
    lease_ms: int = 20_000
    hold_ms: int = 15_000
    drift: float = 0.0
    """How much faster or slower a machine's clock may run."""
    retention_ms: int = 3_600_000
    """Of rows that have ended."""
    message_bytes: int = MESSAGE_BYTES
    """The most that the broker takes in one batch."""
    segment_bytes: int = MESSAGE_BYTES
    gaps: float = 0.0
    actions: tuple[Action, ...] = ()

    def to_doc(self) -> dict[str, Any]:
        """For a file. Inverse of `from_doc`."""
        return asdict(self)

    @classmethod
    def from_doc(cls, doc: Mapping[str, Any]) -> Plan:
        actions = tuple(Action(item["at"], item["do"], item["how"]) for item in doc["actions"])
        return cls(**{**doc, "faults": tuple(doc["faults"]), "actions": actions})


def draw(seed: int, steps: int | None = None) -> Plan:
    """The world of a seed. steps: keep only so many actions."""
    rng = random.Random(seed)
    faults = _draw_faults(rng)
    processes = rng.choice((1, 1, 2, 2, 2, 3, 3, 4)) if rng.random() < 0.97 else rng.randint(5, 7)
    tasks = rng.choice((1, 1, 2, 2, 3, 4, 6)) if rng.random() < 0.95 else rng.choice((12, 30, 80))
    if tasks == 80 and rng.random() < 0.3:
        tasks = 200
    partitions = rng.choice((2, 2, 3) if "burst" in faults else (1, 1, 1, 2, 3))
    duration_s = rng.choice((6.0, 12.0, 20.0, 35.0))
    message_bytes = rng.choice((16_000, 32_000)) if "large" in faults else MESSAGE_BYTES
    actions = _Script(rng, faults, processes, tasks, duration_s, message_bytes).write()

    def share(fault: str, least: float, most: float) -> float:
        return rng.uniform(least, most) if fault in faults else 0.0

    plan = Plan(
        seed=seed,
        noise=rng.getrandbits(48),
        processes=processes,
        partitions=partitions,
        duration_s=duration_s,
        faults=tuple(faults),
        capacity=rng.randint(1, 3) if "tight" in faults else 500,
        slow=share("slow", 0.005, 0.08),
        lost=share("lost", 0.005, rng.choice((0.05, 0.1, 0.35))),
        unanswered=share("unanswered", 0.005, rng.choice((0.05, 0.1, 0.4))),
        marker_s=share("markers", 0.01, 2.0),
        skew_ms=int(share("skew", 5, 3_000)),
        crash=share("crash", 0.1, 0.8),
        finish=share("finish", 0.05, 0.4),
        fatal=share("fatal", 0.05, 0.3),
        no_host=share("no_host", 0.05, 0.3),
        slow_stop=share("slow_stop", 0.2, 1.0),
        dies_s=rng.choice((0.0, 0.05, 0.5, 3.0)),
        retention_ms=rng.choice((4_000, 12_000)) if "forget" in faults else 3_600_000,
        message_bytes=message_bytes,
        segment_bytes=message_bytes - rng.choice((0, 500)),
        gaps=share("gaps", 0.1, 0.9),
        actions=actions,
    )
    plan = _with_hardships(rng, plan)
    return plan if steps is None else replace(plan, actions=plan.actions[:steps])


def _with_hardships(rng: random.Random, plan: Plan) -> Plan:
    """Leases, clocks, machines (`plan_leases`)."""
    found = HardshipScript(rng, plan.processes, plan.duration_s).write()
    for action in plan.actions:
        if "keep" in found.faults and action.do == "assign":
            keep_running(rng, action.how)
    actions = sorted([*plan.actions, *(Action(*item) for item in found.actions)], key=lambda action: action.at)
    return replace(plan, **found.settings, faults=(*plan.faults, *found.faults), actions=tuple(actions))


def _draw_faults(rng: random.Random) -> list[str]:
    density = rng.choice((0.1, 0.25, 0.25, 0.4, 0.6))
    return [name for name in FAULTS if rng.random() < density]


class _Script:
    """Writes the actions."""

    def __init__(
        self,
        rng: random.Random,
        faults: list[str],
        processes: int,
        tasks: int,
        duration_s: float,
        message_bytes: int,
    ) -> None:
        self._rng, self._faults, self._processes = rng, faults, processes
        self._message_bytes, self._unwritable = message_bytes, 0
        self._tasks = [f"t{number}" for number in range(tasks)]
        self._duration_s = duration_s
        self._actions: list[Action] = []
        self._versions = 0

    def write(self) -> tuple[Action, ...]:
        begins = self._rng.choice((0.0, 2.0, 3.0))
        for task in self._tasks:
            if self._rng.random() < 0.85:
                self._command(begins + self._rng.expovariate(1.0), "assign", task)
        most = min(len(self._tasks) * 3 + 4, 120)
        for _ in range(self._rng.randint(1, most)):
            at = self._rng.uniform(0, self._duration_s)
            self._command(at, self._kind(), self._rng.choice(self._tasks))
            if "tie" in self._faults and self._rng.random() < 0.5:
                self._command(at, self._kind(), self._actions[-1].how["tasks"][0])
        for _ in range(self._rng.randint(3, 20) if "churn" in self._faults else 0):
            self._churn(self._rng.choice(self._tasks[:3]))
        for _ in range(self._rng.randint(2, 4) if "burst" in self._faults else 0):
            self._burst(self._rng.uniform(2.0, self._duration_s), self._tasks[:3])
        for fault in self._faults:
            self._fault(fault)
        return tuple(sorted(self._actions, key=lambda action: action.at))

    def _churn(self, task: str) -> None:
        """Ends and begins of one task, close together: what is late of one run meets the next."""
        at = self._rng.uniform(1.0, self._duration_s)
        self._command(at, "assign", task)
        restarts = self._rng.random() < 0.5
        if restarts:
            self._actions[-1].how["action"] = "restart"
        else:
            self._command(at + self._rng.uniform(0, 2.0), "cancel", task)
            self._command(at + self._rng.uniform(2.0, 3.0), "assign", task)

    def _burst(self, at: float, tasks: list[str]) -> None:
        """Commands for the same tasks, one upon the other, by a publisher that partitions otherwise."""
        kind = self._kind()
        for _ in range(self._rng.randint(4, 10)):
            at += self._rng.uniform(0, 0.02)
            self._command(at, kind, tasks[0])
            how = self._actions[-1].how
            how.update(tasks=tasks, astray=True)
            how.pop("padding", None)

    def _kind(self) -> str:
        return self._rng.choices(("assign", "cancel", "update"), (4, 3, 3))[0]

    def _command(self, at: float, kind: str, task: str) -> None:
        rng, faults = self._rng, self._faults
        self._versions += 1
        how: dict[str, Any] = {"tasks": [task], "n": self._versions}
        if "many" in faults and rng.random() < 0.3:
            how["tasks"] = list(dict.fromkeys([task, *rng.choices(self._tasks, k=3)]))
        if "astray" in faults and rng.random() < 0.3:
            how["astray"] = True
        if "refuse" in faults and kind != "cancel" and rng.random() < 0.3:
            how["refuse"] = True
        if kind == "update":
            how["merge"] = rng.random() < 0.3
        if kind == "assign":
            how["described"] = rng.random() < 0.8
            how["parameters"] = rng.random() < 0.6
            if "pause_task" in faults and rng.random() < 0.5:
                how["action"] = rng.choice(("pause", "pause", "resume", "restart", "move"))
            if rng.random() < 0.1:
                how["recipient"] = f"s{rng.randrange(self._processes)}"
            if rng.random() < 0.1:
                how["class"] = "Feed"
            if "deadline" in faults and rng.random() < 0.4:
                how["deadline_s"] = round(at + rng.uniform(0, 15), 3)
        self._spoil(kind, how)
        self._actions.append(Action(round(at, 3), kind, how))

    def _spoil(self, kind: str, how: dict[str, Any]) -> None:
        """What publishers get wrong, or do too much."""
        rng, faults = self._rng, self._faults
        if "malformed" in faults and rng.random() < 0.2:
            how["malformed"] = rng.randrange(5)
        if "large" in faults and kind != "cancel" and rng.random() < 0.2:
            self._pad(kind, how)
        if rng.random() < 0.05:
            how["twice"] = True

    def _pad(self, kind: str, how: dict[str, Any]) -> None:
        """Parameters that fit, some times over, into a record; or with which a row or a dead letter fits into none."""
        rng = self._rng
        if rng.random() < 0.6 or self._unwritable >= UNWRITABLE_MOST:
            how["padding"] = int(self._message_bytes * rng.uniform(0.27, 0.29))
        elif kind == "update" or len(how["tasks"]) == 1:
            self._unwritable += 1
            how["padding"] = self._message_bytes - (250 if "malformed" in how else 800)

    def _away(self) -> None:
        """Nobody is there for a while, and what is published meanwhile is deleted before somebody comes back."""
        rng = self._rng
        at, for_s = rng.uniform(1.0, self._duration_s), rng.uniform(4.0, 10.0)
        for process in range(self._processes):
            self._actions.append(
                Action(round(at, 3), "kill", {"process": process, "for_s": round(for_s, 3), "at_callback": 0})
            )
        for _ in range(rng.randint(2, 5)):
            self._command(at + rng.uniform(0.1, for_s - 1.5), self._kind(), rng.choice(self._tasks))
        for pick in range(3 * 3):
            if rng.random() < 0.6:
                how = {"pick": pick, "share": rng.choice((0.5, 1.0))}
                self._actions.append(Action(round(at + for_s - rng.uniform(0.1, 1.4), 3), "retention", how))

    def _fault(self, fault: str) -> None:
        rng = self._rng
        if fault in ON_PROCESS:
            for _ in range(rng.randint(1, 3)):
                how: dict[str, Any] = {"process": rng.randrange(self._processes)}
                how["for_s"] = round(rng.choice((0.3, 3.0, 8.0, 14.0, 25.0)) * rng.uniform(0.5, 1.2), 3)
                if fault == "kill":
                    how["at_callback"] = rng.choice((0, 0, 1, 2, 3, 5, 8))
                self._add(fault, how)
        elif fault == "outage":
            self._add(fault, {"for_s": round(rng.choice((0.5, 4.0, 12.0, 18.0)) * rng.uniform(0.5, 1.2), 3)})
        elif fault == "twin":
            self._add(fault, {"process": rng.randrange(self._processes), "for_s": round(rng.uniform(3, 30), 3)})
        elif fault == "away":
            self._away()
        elif fault in ON_PARTITION:
            self._partition_fault(fault)

    def _partition_fault(self, fault: str) -> None:
        rng = self._rng
        for _ in range(rng.randint(1, 4)):
            how: dict[str, Any] = {"pick": rng.getrandbits(16)}
            if fault == "retention":
                how["share"] = rng.choice((0.3, 0.7, 1.0))
            self._add(fault, how)

    def _add(self, do: str, how: dict[str, Any]) -> None:
        self._actions.append(Action(round(self._rng.uniform(0.5, self._duration_s), 3), do, how))
