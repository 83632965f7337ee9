"""The table task → ownership row: a Faust Table whose store reads the journals' rows.

Faust sees a changelog-backed table with nothing to recover; opening journals, writing and reading them is done by
`coordinator`, in transactions, which Faust's own table writes are not. A write through the table raises TypeError:
rows change by events only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Protocol

import faust
from faust.stores.base import Store
from faust.types import TP

from skalds_streams.core.row import Row

NAME = "ownership"


class RowSource(Protocol):
    """What the store reads: the journals of this process."""

    async def own(self, partitions: Collection[int]) -> None: ...

    def end_offset(self, partition: int) -> int | None: ...

    def rows(self) -> Iterator[Row]: ...


class OwnershipStore(Store):  # type: ignore[misc]  # faust has no types that mypy can follow
    """Reads rows of owned partitions; forwards a rebalance to the journals."""

    source: RowSource

    def persisted_offset(self, tp: TP) -> int | None:
        end = self.source.end_offset(tp.partition)
        return None if end is None else end - 1

    def set_persisted_offset(self, tp: TP, offset: int) -> None:
        """Positions are in the changelog itself."""

    async def need_active_standby_for(self, tp: TP) -> bool:
        return False

    def apply_changelog_batch(
        self, batch: Iterable[Any], to_key: Callable[[Any], Any], to_value: Callable[[Any], Any]
    ) -> None:
        """A journal reads its partition itself."""

    def reset_state(self) -> None:
        """Rows belong to the journals."""

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Sources and table have the same partition count, so Faust assigns a partition number whole."""
        await self.source.own({tp.partition for tp in assigned})

    async def backup_partition(self, tp: TP | int, flush: bool = True, purge: bool = False, keep: int = 1) -> None:
        raise NotImplementedError("the changelog is the backup")

    def restore_backup(self, tp: TP | int, latest: bool = True, backup_id: int = 0) -> None:
        raise NotImplementedError("the changelog is the backup")

    def _row(self, key: object) -> Row | None:
        wanted = key.decode() if isinstance(key, bytes) else key
        return next((row for row in self.source.rows() if row.task_id == wanted), None)

    def __getitem__(self, key: object) -> Row:
        row = self._row(key)
        if row is None:
            raise KeyError(key)
        return row

    def __contains__(self, key: object) -> bool:
        return self._row(key) is not None

    def __iter__(self) -> Iterator[str]:
        return (row.task_id for row in self.source.rows())

    def __len__(self) -> int:
        return sum(1 for _ in self.source.rows())

    def items(self) -> Any:
        return [(row.task_id, row) for row in self.source.rows()]

    def keys(self) -> Any:
        return list(self)

    def values(self) -> Any:
        return list(self.source.rows())

    def __setitem__(self, key: object, value: object) -> None:
        raise TypeError("rows change by events only: publish to task.assign, task.cancel or task.update.attachment")

    def __delitem__(self, key: object) -> None:
        raise TypeError("rows change by events only: publish to task.cancel")


class OwnershipTable(faust.Table):  # type: ignore[misc]  # faust has no types that mypy can follow
    """The Faust table. `attach` gives it the journals before the app starts."""

    source: RowSource

    def attach(self, source: RowSource) -> None:
        self.source = source

    def _new_store(self) -> OwnershipStore:
        store = OwnershipStore("skalds://", self.app, self, table_name=self.name, key_type=bytes, value_type=bytes)
        store.source = self.source
        return store
