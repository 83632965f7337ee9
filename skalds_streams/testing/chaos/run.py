"""One run: start everything, disturb it for a while, heal it, demand that every task runs again, stop every task and
every node, and judge.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from skalds_streams.testing.chaos import disk, processes
from skalds_streams.testing.chaos.cluster import ChaosCluster
from skalds_streams.testing.chaos.faults import Faults, heal
from skalds_streams.testing.chaos.leaks import Leaks
from skalds_streams.testing.chaos.plan import KINDS, draw
from skalds_streams.testing.chaos.stream import ENDED, Commands, History, classes_of, ended
from skalds_streams.testing.chaos.verdict import Outcome
from skalds_streams.testing.verifiable import RUNNING
from skalds_streams.testing.witness import Sayer

NAMES = ("a", "b", "c")
POLL_S = 0.2
START_S = 60.0
SETTLE_LEASES, SETTLE_S = 4.0, 90.0
"""How long healed nodes may take until every task runs: a crash-looping one waits for up to a minute."""
STILL_NS = 2_000_000_000
"""A task runs when its last act is no older."""
DESCRIPTORS_MORE = 60
"""Descriptors that a node without tasks may have more than when it was new."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run. `kinds`: of faults, in no order. `only`: the class of all tasks."""

    seed: int
    seconds: float
    lease_ms: int
    tasks: int = 30
    kinds: Sequence[str] = tuple(KINDS)
    only: str | None = None

    @property
    def lease_s(self) -> float:
        return self.lease_ms / 1000


class Run:
    """See the module. `note`: told one line at a time. `on_progress`: told the seconds and faults so far.
    `clock_library`: from `clock.prepare`; without it no fault may move a clock.
    """

    def __init__(
        self,
        order: Order,
        directory: Path,
        *,
        note: Callable[[str], None],
        on_progress: Callable[[float, int], None] = lambda seconds, faults: None,
        clock_library: Path | None = None,
    ) -> None:
        self._order, self._directory, self._on_progress = order, directory, on_progress
        self._begun = time.monotonic()
        self._note_line = note
        self.outcome = Outcome(order.seed, order.lease_ms)
        self._leaks = Leaks()
        self.cluster = ChaosCluster(directory, NAMES, lease_ms=order.lease_ms, clock_library=clock_library)
        self._dice = random.Random(order.seed)
        self._tasks = classes_of(order.tasks, self._dice, order.only)
        self._faults = Faults(self.cluster, self._note)
        self._disturbing: set[asyncio.Task[None]] = set()
        self._new: dict[str, int] = {}

    async def run(self, kinds: Sequence[str]) -> Outcome:
        """All of it; every process has ended afterwards, whatever happened. kinds: of faults that are possible here."""
        ledger = self._directory / "ledger.jsonl"
        try:
            await self.cluster.start()
            self._note("every node is ready")
            self._new = {node.name: processes.descriptors(node.pid) for node in self.cluster.nodes}
            sayer = Sayer(str(self.cluster.socket_path))
            bootstrap = self.cluster.bootstrap
            history = History(self.cluster.topics, bootstrap, sayer)
            commands = Commands(self.cluster.topics, bootstrap, ledger, self._tasks, self._dice, self._order.lease_s)
            await commands.start()
            reading = asyncio.create_task(history.run())
            try:
                await commands.assign_all()
                await self._until(lambda: self._all_run(history), START_S, "every task runs at the start", history)
                await self._disturb(commands, reading, kinds)
                await self._settle(commands, history)
            finally:
                await commands.stop()
                await ended(reading)
                sayer.close()
            await self._judge(ledger)
        finally:
            await self.cluster.stop()
        self.outcome.failures += [f"left: {text}" for text in self._leaks.found(self.cluster)]
        return self.outcome

    async def _disturb(self, commands: Commands, reading: asyncio.Task[None], kinds: Sequence[str]) -> None:
        """Faults and commands for as long as was ordered."""
        begun = time.monotonic()
        sending = asyncio.create_task(commands.run())
        keeping = asyncio.create_task(self._keep_running())
        plan = draw(self._order.seed, self._order.lease_s, kinds)
        fault = next(plan)
        due = begun + fault.pause_s
        try:
            while (now := time.monotonic()) - begun < self._order.seconds:
                for task in (sending, keeping, reading, *self._disturbing):
                    if task.done():
                        task.result()  # raises: the test run itself is broken
                        self._disturbing.discard(task)
                if now >= due:
                    self._disturbing.add(asyncio.create_task(self._faults.do(fault)))
                    fault = next(plan)
                    due = now + fault.pause_s
                self._on_progress(now - begun, self._faults.total)
                await asyncio.sleep(POLL_S)
        finally:
            self.outcome.seconds = time.monotonic() - begun
            for task in (sending, *self._disturbing):
                task.cancel()
            await asyncio.gather(sending, *self._disturbing, return_exceptions=True)
            await ended(keeping)
        self.outcome.faults = dict(sorted(self._faults.done.items()))

    async def _keep_running(self) -> None:
        """What systemd would do: a node that ended by itself is started again."""
        while True:
            for node in self.cluster.nodes:
                if node.wanted and not node.busy and not node.runs and node.process is not None:
                    self._note(f"{node.name} ended by itself with {node.process.returncode}")
                    key = f"{node.name}: {node.process.returncode}"
                    self.outcome.self_ended[key] = self.outcome.self_ended.get(key, 0) + 1
                    node.start()
            await asyncio.sleep(POLL_S)

    async def _settle(self, commands: Commands, history: History) -> None:
        """After the faults: every task runs, then every task is cancelled and no act comes any more."""
        self._note("healing")
        await heal(self.cluster)
        keeping = asyncio.create_task(self._keep_running())
        try:
            await commands.assign_all()
            patience = SETTLE_LEASES * self._order.lease_s + SETTLE_S
            await self._until(lambda: self._all_run(history), patience, "every task runs after the faults", history)
            await commands.cancel_all()
            await self._until(
                lambda: [task for task in self._tasks if history.status(task) not in ENDED],
                patience, "every task is cancelled", history,
            )  # fmt: skip
        finally:
            await ended(keeping)
        self.outcome.failures += [
            f"{node.name} has {count} descriptors without tasks, {self._new[node.name]} when it was new"
            for node in self.cluster.nodes
            if (count := processes.descriptors(node.pid)) > self._new[node.name] + DESCRIPTORS_MORE
        ]

    def _all_run(self, history: History) -> list[str]:
        """Tasks that should act and do not."""
        running = self.cluster.seen().running
        missing = []
        for task, class_name in self._tasks.items():
            if class_name in RUNNING:
                epoch, last_ns = running.get(task, (0, 0))
                fresh = time.monotonic_ns() - last_ns < STILL_NS
                document = history.last.get(task, {})
                if not fresh or document.get("status") != "Running" or document.get("epoch") != epoch:
                    missing.append(task)
        return missing

    async def _until(self, missing: Callable[[], list[str]], seconds: float, what: str, history: History) -> None:
        """Wait until nothing is missing; a failure of the run when it takes longer."""
        begun = time.monotonic()
        while left := missing():
            if time.monotonic() - begun > seconds:
                told = [
                    f"{task} ({self._tasks[task]}): {history.status(task)}, {history.last.get(task, {}).get('waiting')}"
                    for task in left[:10]
                ]
                self.outcome.failures.append(f"not within {seconds:.0f} s: {what}; {len(left)} left: {'; '.join(told)}")
                return
            await asyncio.sleep(POLL_S)
        self._note(f"{what} ({time.monotonic() - begun:.1f} s)")

    async def _judge(self, ledger: Path) -> None:
        codes = await asyncio.gather(*(node.stop() for node in self.cluster.nodes))
        for node, code in zip(self.cluster.nodes, codes, strict=True):
            if code:
                self.outcome.failures.append(f"{node.name} ended with {code}")
        steady = sum(name in RUNNING for name in self._tasks.values())
        self.outcome.take_report(self.cluster.end_witness(), steady, self._order.lease_s)
        self._note("reading the topics")
        await self.outcome.take_topics(self.cluster, ledger)

    def _note(self, text: str) -> None:
        self._note_line(f"{time.monotonic() - self._begun:7.1f} s  {text}")


def prepare_disks(directory: Path) -> bool:
    """A small disk for each node's data; before any thread is started. False: not allowed, and "fill disk" with it."""
    with suppress(OSError):
        if not disk.private_mounts():
            return False
        for name in NAMES:
            path = directory / "data" / name
            path.mkdir(parents=True)
            if not disk.mount(path):
                return False
        return True
    return False


def release_disks(directory: Path) -> None:
    """After the run, so that the directory can be removed."""
    for name in NAMES:
        disk.unmount(directory / "data" / name)
