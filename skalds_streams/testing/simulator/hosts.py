"""Worker hosts as a model: a pool that the supervisor can't tell from `skald.hosts.HostPool`, and what workers do.

Rules: a host is a process of its own: it goes on while its skald is stopped, and ends soon after its skald is killed;
what it says reaches the skald in order, before its end does. Every begin, change of parameters and end of user code is
told to the witness of the world, at the moment at which it happens. A host on a frozen machine does nothing, but the
kernel's timer ends it, as `worker.kernel.KillTimer` would.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from skalds_streams.errors import HostError, NoHostError
from skalds_streams.skald.exits import RAN_OUT
from skalds_streams.skald.hosts import Catalogue, ExitInfo, RunSpec
from skalds_streams.testing.simulator.machines import LeaseWatch, Machine
from skalds_streams.testing.simulator.network import Link
from skalds_streams.testing.simulator.plan_leases import KEEP
from skalds_streams.testing.simulator.witness import Active, Witness

CLASSES = ("Cam", "Feed", KEEP)
RELEASE_S = 2.0
ROUNDING_S = 1e-9
TERMINATE_S = 1.0
REFUSE = "refuse"
"""Parameters with this name are not accepted by any worker."""


@dataclass(slots=True)
class Habits:
    """What workers of a world are like. Shares are of runs."""

    start_s: float = 0.2
    crash: float = 0.0
    crash_s: float = 20.0
    finish: float = 0.0
    fatal: float = 0.0
    no_host: float = 0.0
    slow_stop: float = 0.0
    dies_s: float = 0.05
    """How long after its skald's end a host may live on."""


class Pool:
    """HostPool of one process."""

    def __init__(
        self,
        link: Link,
        witness: Witness,
        habits: Habits,
        rng: random.Random,
        machine: Machine,
        watch: LeaseWatch,
        incarnation: Callable[[], str],
    ) -> None:
        self._link, self._witness, self._habits, self._rng = link, witness, habits, rng
        self.machine, self._watch = machine, watch
        self.incarnation = incarnation
        self.lease_until_s: float | None = None
        """By the machine's clock; None before the first renewal."""
        self.hosts: list[SimulatedHost] = []
        self._stopping = False

    async def start(self) -> Catalogue:
        await asyncio.sleep(self._rng.uniform(0.01, 0.3))
        described = {"schema": {}, "release_s": RELEASE_S, "terminate_s": TERMINATE_S}
        return Catalogue(dict.fromkeys(CLASSES, described), {})

    @property
    def catalogue(self) -> Catalogue:
        described = {"schema": {}, "release_s": RELEASE_S, "terminate_s": TERMINATE_S}
        return Catalogue(dict.fromkeys(CLASSES, described), {})

    def keeps(self, class_name: str) -> bool:
        return class_name == KEEP

    def renew(self, until_ms: int) -> None:
        """The kernel's timers are set anew: late frames of the socket are no matter here, as the time is absolute."""
        self._watch.renewed(until_ms)
        self.lease_until_s = until_ms / 1000
        for host in self.hosts:
            host.renew(self.lease_until_s)

    async def run(self, spec: RunSpec, on_event: Callable[[dict[str, Any]], None]) -> SimulatedHost:
        if spec.class_name not in CLASSES:
            raise HostError(f"class {spec.class_name} is not loaded here")
        self._watch.starts(spec.task_id)
        if self._rng.random() < self._habits.no_host:
            await asyncio.sleep(0.5)
            raise NoHostError("no worker host in 30 s")
        if self._rng.random() < 0.3:
            await asyncio.sleep(self._rng.uniform(0, 0.5))
        if self._stopping:
            raise HostError("the pool is stopped")
        host = SimulatedHost(self, self._link, self._witness, self._habits, self._rng, spec, on_event)
        self.hosts.append(host)
        host.begin()
        return host

    async def stop(self) -> None:
        self._stopping = True
        for host in list(self.hosts):
            host.kill()
            await host.wait_ended()

    def orphan(self) -> None:
        """The skald was killed: the hosts see the end of their socket."""
        for host in list(self.hosts):
            host.by_kernel(self._rng.uniform(0, self._habits.dies_s), host.die, "skald lost")

    def power_off(self) -> None:
        """The machine is gone, and all that ran on it."""
        for host in list(self.hosts):
            host.die("power off")


class SimulatedHost:
    """One host with one worker. Its own moments are callbacks of the world, not of its skald's process."""

    def __init__(
        self,
        pool: Pool,
        link: Link,
        witness: Witness,
        habits: Habits,
        rng: random.Random,
        spec: RunSpec,
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        self._pool, self._link, self._witness, self._habits, self._rng = pool, link, witness, habits, rng
        self._spec, self._on_event = spec, on_event
        self.steps: list[str] = []
        self.pid = 1
        self.alive = True
        self._runs = False
        self._said = self._heard = 0.0
        self._early: list[tuple[int, dict[str, Any] | None]] = []
        """Updates that came before the worker ran."""
        self._parameters = spec.attachments
        self._ended: asyncio.Future[ExitInfo] = link.loop.create_future()
        self._epoch, self._incarnation = spec.epoch, pool.incarnation()
        self._given = [spec.epoch]
        """Epochs under which its skald may report its end: it may end before it hears of the last."""
        self._settled: str | None = None
        self.keeps = pool.keeps(spec.class_name)
        self._lease_until_s = None if self.keeps else pool.lease_until_s

    # -- the host's own life, outside of its skald

    def outside(self, delay: float, callback: Callable[..., None], *args: Any) -> None:
        """A moment of the host's own code: not while its machine is frozen."""
        self.by_kernel(delay, self._pool.machine.run, callback, *args)

    def by_kernel(self, delay: float, callback: Callable[..., None], *args: Any) -> None:
        """What happens to it, whether it runs or not."""
        self._link.loop.call_later(delay, callback, *args, context=self._link.outside)

    def renew(self, until_s: float) -> None:
        if self._lease_until_s is not None:
            self.outside(self._rng.uniform(0, 0.01), self._take_lease, until_s)

    def _take_lease(self, until_s: float) -> None:
        self._lease_until_s = max(self._lease_until_s or 0.0, until_s)

    def _watch_lease(self) -> None:
        """The kernel's timer."""
        if not self.alive or self._lease_until_s is None:
            return
        rate = self._pool.machine.rate
        left_s = self._lease_until_s / rate - self._link.loop.now
        if left_s <= ROUNDING_S:
            self.die(RAN_OUT)
        else:
            self.by_kernel(left_s, self._watch_lease)

    def begin(self) -> None:
        self._watch_lease()
        self.outside(self._rng.uniform(0.005, self._habits.start_s), self._enter)

    def _enter(self) -> None:
        if not self.alive:
            return
        habits, roll = self._habits, self._rng.random()
        if REFUSE in (self._parameters or {}):
            self._end_with("failed", error={"type": "ValidationError", "message": "refused"}, retryable=False)
            return
        self._runs = True
        spec = self._spec
        self._witness.begins(
            Active(self._epoch, self._incarnation, spec.version, self._parameters, self.keeps), spec.task_id
        )
        self._say({"op": "running", "version": spec.version})
        for version, attachments in self._early:
            self._update(version, attachments)
        if roll < habits.crash:
            delay = self._rng.uniform(0, habits.crash_s) * self._rng.random()
            silent = self._rng.random() < 0.5
            self.outside(delay, self._crash, silent)
        elif roll < habits.crash + habits.finish:
            self.outside(self._rng.uniform(0, 20), self._end_with, "finished")
        elif roll < habits.crash + habits.finish + habits.fatal:
            self.outside(self._rng.uniform(0, 20), self._fatal)

    def _crash(self, silent: bool) -> None:
        if self._witness.calm:
            return
        if not silent:
            self._end_with("failed", error={"type": "RuntimeError", "message": "crash"}, retryable=True)
        elif self.alive:
            self._witness.crashed.add((self._spec.task_id, self._epoch))
            self.die("signal 11")

    def _fatal(self) -> None:
        self._end_with("failed", error={"type": "NonRetryableError", "message": "never"}, retryable=False)

    def _end_with(self, op: str, **more: Any) -> None:
        """The worker's own end, with a word."""
        if not self.alive or (self._witness.calm and self._runs):
            return
        if op == "failed":
            self._witness.crashed.add((self._spec.task_id, self._epoch))
        if op == "finished" or more.get("retryable") is False:
            self._settled = op
            self._tell_settled()
        self._stop_acting()
        self._say({"op": op, **more})
        self.outside(self._rng.uniform(0, 0.2), self.die, "exit 0")

    def _stop_acting(self) -> None:
        if self._runs:
            self._runs = False
            self._witness.ends(self._spec.task_id, self._epoch, self._incarnation)

    def die(self, why: str) -> None:
        if not self.alive:
            return
        self._stop_acting()
        self.alive = False
        self._pool.hosts.remove(self)
        self._later(self._reaped, ExitInfo(0, why))

    def _reaped(self, info: ExitInfo) -> None:
        if not self._ended.done():
            self._ended.set_result(info)

    def _say(self, frame: dict[str, Any]) -> None:
        self._later(self._on_event, frame)

    def _later(self, callback: Callable[..., None], *args: Any) -> None:
        """In order to the skald's process."""
        self._said = max(self._said, self._link.loop.now + self._rng.uniform(0, 0.01))
        self._link.loop.at(self._said, callback, *args, context=self._link.inside)

    # -- what the actor calls

    async def wait_ended(self) -> ExitInfo:
        return await asyncio.shield(self._ended)

    async def last_lines(self) -> list[str]:
        """It prints nothing."""
        return []

    async def update(self, version: int, attachments: dict[str, Any] | None) -> None:
        self._heard = max(self._heard, self._link.loop.now + self._rng.uniform(0, 0.05))
        self.outside(self._heard - self._link.loop.now, self._update, version, attachments)

    def _update(self, version: int, attachments: dict[str, Any] | None) -> None:
        if not self.alive:
            return
        if not self._runs:
            self._early.append((version, attachments))
        elif REFUSE in (attachments or {}):
            self._say({"op": "refused", "version": version, "error": {"type": "ValueError", "message": "no"}})
        else:
            self._parameters = attachments
            self._witness.applies(self._spec.task_id, self._epoch, version, attachments)
            self._say({"op": "applied", "version": version})

    def take_epoch(self, epoch: int) -> None:
        """The run goes on under another epoch."""
        self._given.append(epoch)
        self._tell_settled()
        self._heard = max(self._heard, self._link.loop.now + self._rng.uniform(0, 0.05))
        self.outside(self._heard - self._link.loop.now, self._take_epoch, epoch, self._pool.incarnation())

    def _tell_settled(self) -> None:
        for epoch in self._given if self._settled else ():
            self._witness.settled(self._spec.task_id, epoch, str(self._settled))

    def _take_epoch(self, epoch: int, incarnation: str) -> None:
        if self._runs:
            self._witness.adopts(self._spec.task_id, (self._epoch, self._incarnation), epoch, incarnation)
        self._epoch, self._incarnation = epoch, incarnation

    async def stop(self, reason: str, *, release_s: float, terminate_s: float) -> ExitInfo:
        slow = self._rng.random() < self._habits.slow_stop
        self.outside(self._rng.uniform(0, 6.0 if slow else 0.05), self._release)
        if not await self._ends_within(release_s):
            self.steps.append(f"SIGTERM after {release_s:g} s")
            if self._rng.random() < 0.5:
                self.outside(0.01, self.die, "signal 15")
            if not await self._ends_within(terminate_s):
                self.steps.append(f"SIGKILL after {terminate_s:g} s")
                self.kill()
        return await self.wait_ended()

    def _release(self) -> None:
        if self.alive:
            self._stop_acting()
            self._say({"op": "stopped"})
            self.outside(self._rng.uniform(0, 0.05), self.die, "exit 0")

    async def _ends_within(self, seconds: float) -> bool:
        done, _ = await asyncio.wait({self._ended}, timeout=seconds)
        return bool(done)

    def kill(self) -> None:
        self.by_kernel(0.0, self.die, "signal 9 (SIGKILL)")
