"""Bugs to be planted into leases, counted heartbeats, incarnations, holding, draining and classes that keep running.

Each breaks one of the bold rules of the design's chapters on membership and workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any
from unittest.mock import PropertyMock, patch

from aiokafka.errors import KafkaError as ClientError

from skalds_streams.coordinator import batch
from skalds_streams.core import decide, membership, placement, reconcile
from skalds_streams.skald import actor, heartbeat, lease, supervisor
from skalds_streams.testing.simulator import hosts, process
from tests.simulation.planting import planted

# -- death by counted heartbeats


@planted
def death_after_eight_beats() -> Iterator[None]:
    """Sooner than the kernel ends the workers."""
    with patch.object(membership, "DEATH_BEATS", 8):
        yield


@planted
def beats_of_different_others_are_added_up() -> Iterator[None]:
    def count(self: Any, incarnation: str, n: object, before: Any, offset: int) -> bool:
        if isinstance(n, int) and (before is None or n > before.n):
            return bool(real(self, "everybody", 1, None, offset))
        return False

    real = membership.Members._count
    with patch.object(membership.Members, "_count", count):
        yield


@planted
def who_is_not_known_is_dead() -> Iterator[None]:
    """Without looking at what was known when its task was placed."""

    def is_dead(self: Any, incarnation: str, known_at: int = -1) -> bool:
        return incarnation not in self._live

    with patch.object(membership.Members, "is_dead", is_dead):
        yield


@planted
def beats_are_sent_by_the_clock() -> Iterator[None]:
    """Every beat, whether the last was acknowledged or not; what could not be sent goes out later, in one go."""

    async def send(self: Any, number: int) -> None:
        incarnation = self._incarnation
        doc = {"v": 1, "skald_id": self._skald_id, "incarnation": self._incarnation, "n": number, "seen": self._seen()}
        doc |= {"running": self._running(), **self._describe()}
        sent_ms = heartbeat.boottime_ms()
        with suppress(ClientError, OSError, TimeoutError):
            value = heartbeat.orjson.dumps(doc)
            await self._producer.send_and_wait(self._topics.heartbeat, value, key=self._skald_id.encode(), partition=0)
            if self._incarnation != incarnation:
                return
            self._lease.renew(sent_ms)
            self.first_acknowledged.set()

    async def run(self: Any) -> None:
        number, sending = 0, []
        while True:
            number += 1
            sending.append(asyncio.create_task(send(self, number)))
            await asyncio.sleep(self._beat_ms / 1000)

    with patch.object(heartbeat, "REQUEST_TIMEOUT_BEATS", 40), patch.object(heartbeat.Heartbeat, "run", run):
        yield


# -- the lease


@planted
def the_lease_counts_from_the_acknowledgement() -> Iterator[None]:
    def renew(self: Any, sent_at_ms: int) -> None:
        real(self, lease.boottime_ms())

    real = lease.Lease.renew
    with patch.object(lease.Lease, "renew", renew):
        yield


@planted
def the_kernel_timer_is_not_armed() -> Iterator[None]:
    with patch.object(hosts.SimulatedHost, "_watch_lease", lambda self: None):
        yield


@planted
def the_kernel_timer_is_two_beats_late() -> Iterator[None]:
    """It ends the workers, but not before others may count their skald dead."""

    def take(self: Any, until_s: float) -> None:
        beat_ms = self._link.watch._beat_ms
        real(self, until_s + 2 * beat_ms / 1000)

    real = hosts.SimulatedHost._take_lease
    with patch.object(hosts.SimulatedHost, "_take_lease", take):
        yield


@planted
def workers_start_without_a_lease() -> Iterator[None]:
    with patch.object(lease.Lease, "is_valid", PropertyMock(return_value=True)):
        yield


@planted
def workers_are_not_stopped_at_a_lapse() -> Iterator[None]:
    """The new incarnation says that it replaces the old one while they run."""

    async def lapse(self: Any) -> None:
        return None

    with patch.object(supervisor.Supervisor, "lapse", lapse):
        yield


@planted
def a_worker_that_ends_with_the_lease_of_its_node_has_crashed() -> Iterator[None]:
    """A machine that was frozen uses up the restarts of what ran there."""
    with patch.object(actor, "RAN_OUT", "another reason"):
        yield


@planted
def a_node_without_hosts_is_a_crash_of_its_tasks() -> Iterator[None]:
    with patch.object(actor.Actor, "_say_not_started", _say_failed):
        yield


def _say_failed(self: Any, error: Exception) -> None:
    self._reporter.say("Failed", self.task_id, self.epoch, error={"message": str(error)}, retryable=True)


# -- incarnations


@planted
def the_same_incarnation_goes_on_after_a_lapse() -> Iterator[None]:
    with patch.object(process.Life, "renewed", lambda self, identity: identity):
        yield


@planted
def the_lock_of_another_machine_counts() -> Iterator[None]:
    """A volume that moved brings the lock's file along, and who reads it says `replaces`."""

    async def claim(self: Any) -> Any:
        identity = await real(self)
        elsewhere = CLAIMED.setdefault((id(self.grounds), self.seat.skald_id), [])
        self.identity = replace(identity, replaces=(*identity.replaces, *elsewhere))
        elsewhere.append(identity.incarnation)
        return self.identity

    real = process.Life.claim
    with patch.object(process.Life, "claim", claim):
        yield


CLAIMED: dict[tuple[int, str], list[str]] = {}
"""(world, skald id) → incarnations, of whichever machine."""


# -- holding, draining, keeping


@planted
def holding_reserves_nothing() -> Iterator[None]:
    with patch.object(membership.Members, "is_reserved", lambda self, skald_id: False):
        yield


@planted
def a_hold_never_ends() -> Iterator[None]:
    """What a skald ran that never comes back waits for it."""

    def pass_time(self: Any) -> bool:
        kept = dict(self._reserved)
        changed = real(self)
        self._reserved.update(kept)
        return bool(changed)

    real = membership.Members._pass_time
    with patch.object(membership.Members, "_pass_time", pass_time):
        yield


@planted
def the_drained_are_given_tasks() -> Iterator[None]:
    def refusal(row: Any, member: Any, used: int, *, silent: bool) -> Any:
        up = replace(member, state="up") if member.state == "draining" else member
        return real(row, up, used, silent=silent)

    real = placement.refusal
    with patch.object(placement, "refusal", refusal):
        yield


@contextmanager
def _no_check_step() -> Iterator[None]:
    with patch.object(batch, "check_step", lambda before, after: None):
        yield


@planted
def a_drain_moves_before_the_old_run_has_stopped() -> Iterator[None]:
    def drain(row: Any, event: Any, context: Any) -> Any:
        after = real(row, event, context)
        return after if isinstance(after, str) else decide._lost(after, event, context)

    real = decide._drain
    with patch.dict(decide._ON_REPORT, {decide.events.Drain: drain}), _no_check_step():
        yield


@planted
def a_lapse_ends_a_drain() -> Iterator[None]:
    """Was in the product: a node that is drained for maintenance got tasks again after a network cut."""
    with patch.object(membership, "former_of", lambda replaces, lapses: ()):
        yield


@planted
def a_restart_ends_no_drain() -> Iterator[None]:
    """Who comes back from maintenance is given nothing."""
    with patch.object(membership, "former_of", lambda replaces, lapses: replaces):
        yield


@planted
def a_drain_moves_nothing() -> Iterator[None]:
    with patch.dict(decide._ON_REPORT, {decide.events.Drain: lambda row, event, context: "not now"}):
        yield


@planted
def who_runs_on_is_not_stopped_when_another_has_the_task() -> Iterator[None]:
    def kept(row: Any, ours: Any, run: Any) -> Any:
        action = real(row, ours, run)
        return None if isinstance(action, reconcile.Stop) and "held by" in action.reason else action

    real = reconcile._kept
    with patch.object(reconcile, "_kept", kept):
        yield


# -- was in the product


@planted
def who_runs_on_takes_its_own_room() -> Iterator[None]:
    """Was in the product until seed 321: a skald that was full because of a worker that ran on never got its task."""

    def refusal(row: Any, member: Any, used: int, *, silent: bool) -> Any:
        return real(row, replace(member, kept=()), used, silent=silent)

    real = placement.refusal
    with patch.object(placement, "refusal", refusal):
        yield


@planted
def a_first_beat_that_is_acknowledged_late_is_no_lapse() -> Iterator[None]:
    """Was in the product until seed 1423: counted dead, a skald went on beating, and was never given a task again."""
    with patch.object(lease.Lease, "tried", lambda self, sent_at_ms: None):
        yield
