"""The lease: counted from when a heartbeat was sent, on a clock that nobody sets."""

from __future__ import annotations

import asyncio

import pytest

from skalds_streams.settings import Settings
from skalds_streams.skald import lease as lease_module
from skalds_streams.skald.lease import Lease

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease_module, "boottime_ms", clock)
    return clock


def test_it_lasts_from_the_sending_of_an_acknowledged_heartbeat(clock: Clock) -> None:
    told: list[int] = []
    lease = Lease(20_000, 2_000, told.append)
    assert not lease.is_valid
    sent_at_ms = clock.now_ms
    clock.now_ms += 3_000  # the acknowledgement took its time
    lease.renew(sent_at_ms)
    assert told == [sent_at_ms + 22_000]
    clock.now_ms = sent_at_ms + 19_999
    assert lease.is_valid
    clock.now_ms += 1
    assert not lease.is_valid


def test_an_older_heartbeat_shortens_nothing_and_a_late_one_brings_nothing_back(clock: Clock) -> None:
    lease = Lease(20_000, 2_000)
    lease.renew(clock.now_ms)
    lease.renew(clock.now_ms - 5_000)
    assert lease.remaining_ms == 20_000
    clock.now_ms += 20_000
    lease.renew(clock.now_ms - 1)
    assert not lease.is_valid, "it was over before the acknowledgement came"


async def test_a_first_acknowledgement_that_comes_too_late_is_a_lapse(clock: Clock) -> None:
    """The first heartbeat was written, nobody said so, and others may have counted its sender dead since."""
    lease = Lease(20_000, 2_000)
    lease.tried(clock.now_ms)
    clock.now_ms += 20_000
    lease.tried(clock.now_ms)
    lease.renew(clock.now_ms)
    assert not lease.is_valid
    async with asyncio.timeout(1):
        await lease.lapsed()
    lease.begin_anew()
    lease.tried(clock.now_ms)
    lease.renew(clock.now_ms)
    assert lease.is_valid


async def test_over_is_over_until_it_begins_anew(clock: Clock) -> None:
    lease = Lease(1_000, 1)
    lapsed = asyncio.create_task(lease.lapsed())
    await asyncio.sleep(0.01)
    assert not lapsed.done(), "what has not begun does not end"
    lease.renew(clock.now_ms)
    await asyncio.sleep(0.01)
    assert not lapsed.done()
    clock.now_ms += 1_000
    await asyncio.wait_for(lapsed, 5)
    clock.now_ms -= 500  # a renewal that would have been in time, had it been heard
    lease.renew(clock.now_ms)
    assert not lease.is_valid
    lease.begin_anew()
    lease.renew(clock.now_ms)
    assert lease.is_valid


@pytest.mark.parametrize("lease_ms", [1_000, 4_000, 20_000, 60_000])
def test_what_is_derived_from_the_lease_leaves_a_margin_for_slow_clocks(lease_ms: int) -> None:
    """Others may place the tasks anew after DEATH_BEATS - 1 beats on a clock that is 5 % faster than ours."""
    settings = Settings.load(_env_file=None, lease_ms=lease_ms)
    kernel_ends_ms = lease_ms + settings.beat_ms
    others_act_ms = 12 * settings.beat_ms
    assert others_act_ms / 1.05 > kernel_ends_ms
