"""What can never count again is deleted, and nothing that counts."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from skalds_streams.coordinator.states import StateSweeper
from skalds_streams.core.row import Row
from skalds_streams.model.record import Record
from skalds_streams.model.saved import StateIndex, StateKey, StateRecord

pytestmark = pytest.mark.anyio


class World:
    """A view that may lag, an index, and what is deleted."""

    def __init__(self, *keys: StateKey) -> None:
        self.rows: dict[str, Row] = {}
        self.rows_later: dict[str, Row] = {}
        self.index = StateIndex()
        self.see(*keys)
        self.deleted: list[StateKey] = []
        self.error: Exception | None = None
        self.while_reading: Sequence[StateKey] = ()
        view = SimpleNamespace(rows=self.rows, read_rows=self.read_rows)
        self.sweeper = StateSweeper(
            cast("Any", view),
            cast("Any", SimpleNamespace(index=self.read_index)),
            cast("Any", self),
            lambda: [0],
            retention_ms=1_000,
        )

    def see(self, *keys: StateKey) -> None:
        for key in keys:
            self.index.apply(Record("task.state", 0, 0, key.encode(), b"{}", 0))

    async def read_index(self, partition: int) -> StateIndex:
        return self.index

    async def read_rows(self) -> None:
        self.rows.update(self.rows_later)
        self.see(*self.while_reading)

    async def send(self, records: Sequence[StateRecord]) -> list[BaseException | None]:
        assert all(item.value is None for item in records)
        self.deleted += [item.key for item in records]
        return [self.error for _ in records]


async def test_states_of_forgotten_tasks_are_deleted() -> None:
    world = World(StateKey("gone", 3), StateKey("kept", 2))
    world.rows["kept"] = Row("kept", epoch=2, first_epoch=1)
    assert await world.sweeper.sweep(0) == 1
    assert world.deleted == [StateKey("gone", 3)]


async def test_a_task_that_is_new_to_a_view_that_lags_is_not_taken_for_a_forgotten_one() -> None:
    world = World(StateKey("new", 1))
    world.rows_later["new"] = Row("new", epoch=1, first_epoch=1)
    assert (await world.sweeper.sweep(0), world.deleted) == (0, [])


async def test_a_state_that_is_read_while_the_rows_are_is_not_judged_by_them() -> None:
    world = World(StateKey("gone", 3))
    world.while_reading = [StateKey("newer still", 1)]
    await world.sweeper.sweep(0)
    assert world.deleted == [StateKey("gone", 3)]


async def test_what_could_not_be_deleted_is_an_error() -> None:
    world = World(StateKey("gone", 3))
    world.error = OSError("no broker")
    with pytest.raises(OSError, match="no broker"):
        await world.sweeper.sweep(0)
