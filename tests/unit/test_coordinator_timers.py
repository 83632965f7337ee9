"""What is due is written once, again when it got lost, and a mass of it without a pause."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from skalds_streams.coordinator import timers
from skalds_streams.coordinator.timers import DueTimer
from skalds_streams.core.due import find_due
from skalds_streams.core.membership import Members
from skalds_streams.core.placement import Load
from skalds_streams.core.restarts import BACKOFF_LONGEST_MS
from skalds_streams.core.row import Holder, Row, Status, Wanted

pytestmark = pytest.mark.anyio


def held(task_id: str) -> Row:
    return Row(task_id, wanted=Wanted.RUN, status=Status.RUNNING, holder=Holder("b", "b1", 1), epoch=1)


class World:
    def __init__(self, *rows: Row) -> None:
        self.sent: list[Sequence[tuple[str, dict[str, Any]]]] = []
        self.error: Exception | None = None
        self.now_ms = 1_000
        opened = asyncio.Event()
        opened.set()
        journal = SimpleNamespace(rows={row.task_id: row for row in rows}, load=Load(), opened=opened)
        members = Members()
        members.apply({"skald_id": "b", "incarnation": "b1", "state": "leaving"}, 0)
        self.timer = DueTimer(cast("Any", [journal]), members, self, lambda: self.now_ms)

    async def send_reports(self, docs: Sequence[tuple[str, dict[str, Any]]]) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(docs)

    async def look(self) -> list[str]:
        before = len(self.sent)
        await self.timer._look()
        return [task_id for docs in self.sent[before:] for task_id, _ in docs]


async def test_what_is_due_is_written_once_and_again_after_a_while() -> None:
    world = World(held("t"))
    assert await world.look() == ["t"]
    assert world.sent[0][0][1]["kind"] == "Lost"
    assert await world.look() == []
    world.now_ms += timers.AGAIN_MS
    assert await world.look() == ["t"]


async def test_it_is_written_again_after_the_wall_clock_was_set_back() -> None:
    world = World(held("t"))
    assert await world.look() == ["t"]
    world.now_ms -= 3_600_000
    assert await world.look() == ["t"]


def test_a_try_that_a_wrong_clock_put_far_ahead_is_due() -> None:
    row = Row("t", wanted=Wanted.RUN, status=Status.ASSIGNING, attempt=9, retry_at_ms=10_000_000)
    for ahead_ms, is_due in ((0, True), (1, False), (BACKOFF_LONGEST_MS, False), (BACKOFF_LONGEST_MS + 1, True)):
        assert bool(list(find_due([row], Members(), Load(), 10_000_000 - ahead_ms))) is is_due


async def test_a_mass_death_is_written_without_waiting_for_the_next_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "MOST_AT_ONCE", 10)
    monkeypatch.setattr(timers, "PERIOD_S", 60.0)
    world = World(*(held(f"t{number}") for number in range(35)))
    task = asyncio.create_task(world.timer.run(lambda: True))
    world.timer.wake()
    for _ in range(200):
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert [len(docs) for docs in world.sent] == [10, 10, 10, 5]


async def test_a_broker_that_is_away_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "PERIOD_S", 0.001)
    monkeypatch.setattr(timers, "AGAIN_MS", 0)
    world = World(held("t"))
    world.error = TimeoutError()
    task = asyncio.create_task(world.timer.run(lambda: True))
    await asyncio.sleep(0.01)
    assert not task.done()
    world.error = None
    for _ in range(1_000):
        if world.sent:
            break
        await asyncio.sleep(0.001)
    assert world.sent
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("steps", range(4))
async def test_it_ends_when_it_is_woken_in_the_moment_in_which_it_is_cancelled(steps: int) -> None:
    world = World()
    task = asyncio.create_task(world.timer.run(lambda: True))
    for _ in range(5):
        await asyncio.sleep(0)
    world.timer.wake()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    ended = task.done()
    task.cancel()
    assert ended


def waiting(**reasons: str) -> Row:
    return Row("t", class_name="Cam", wanted=Wanted.RUN, status=Status.ASSIGNING, waiting=reasons)


async def test_counts_in_the_reasons_write_no_row_anew() -> None:
    """A full cluster whose heartbeats count up and down would else write every waiting row every few seconds."""
    members = Members()
    members.apply({"skald_id": "a", "incarnation": "a1", "classes": {"Cam": ""}, "capacity": 8, "running": 8}, 0)
    assert list(find_due([waiting(a="full 9/8")], members, Load(), 0)) == []
    assert [due.reason for due in find_due([waiting(a="silent")], members, Load(), 0)] == ["reasons changed"]
