"""The view: rows and members as this process has read them, and who wants to know of changes.

Rules: everything here may be a moment old; a decision never rests on it but through an event. Subscribers get task ids
and skald ids, coalesced; a slow one misses nothing but the number of changes in between.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
import structlog

from skalds_streams.core.membership import HOLD_BEATS, Members
from skalds_streams.core.row import Row
from skalds_streams.errors import SkaldsError
from skalds_streams.model.changelog import ChangelogState
from skalds_streams.model.record import Record
from skalds_streams.topics import Topics
from skalds_streams.view.reader import TopicReader

HEARTBEAT_COALESCE_MS = 400

log = structlog.get_logger(__name__)


class Changes:
    """What changed since it was asked last. `wait` returns (task ids, whether members changed)."""

    def __init__(self) -> None:
        self._tasks: set[str] = set()
        self._members = False
        self._wake = asyncio.Event()

    def note_task(self, task_id: str) -> None:
        self._tasks.add(task_id)
        self._wake.set()

    def note_members(self) -> None:
        self._members = True
        self._wake.set()

    async def wait(self) -> tuple[frozenset[str], bool]:
        await self._wake.wait()
        self._wake.clear()
        tasks, self._tasks = frozenset(self._tasks), set()
        members, self._members = self._members, False
        return tasks, members


class ClusterView:
    """See the module. `run` reads for ever."""

    def __init__(
        self,
        topics: Topics,
        client: Mapping[str, Any],
        hold_beats: int = HOLD_BEATS,
        agreed: Mapping[str, object] | None = None,
    ) -> None:
        """hold_beats, agreed: see `core.membership`."""
        self._state = ChangelogState()
        self._held: dict[str, tuple[str, int]] = {}
        self._load: Counter[str] = Counter()
        self.members = Members(hold_beats, agreed)
        self._subscribers: set[Changes] = set()
        self._on_row: list[Callable[[str], object]] = []
        self._on_members: list[Callable[[], object]] = []
        self._changelog = TopicReader(topics.changelog, topics.partitions, client, self._take_rows)
        self._heartbeats = TopicReader(topics.heartbeat, 1, client, self._take_beats, coalesce_ms=HEARTBEAT_COALESCE_MS)

    @property
    def rows(self) -> Mapping[str, Row]:
        return self._state.rows

    def load(self, incarnation: str) -> int:
        """Units of its capacity that the rows give to a skald: what it runs, starts or is stopping."""
        return self._load[incarnation]

    @property
    def is_caught_up(self) -> bool:
        """Whether everything written before this process began has been read."""
        return self._changelog.caught_up.is_set() and self._heartbeats.caught_up.is_set()

    @property
    def members_caught_up(self) -> bool:
        return self._heartbeats.caught_up.is_set()

    async def wait_caught_up(self) -> None:
        await self._changelog.caught_up.wait()
        await self._heartbeats.caught_up.wait()

    async def wait_members(self) -> None:
        """Until the heartbeats that were there when this process began are read."""
        await self._heartbeats.caught_up.wait()

    async def read_members(self) -> None:
        """Until all heartbeats are read that are there now."""
        await self._heartbeats.read_on()

    async def read_rows(self) -> None:
        """Until all rows are read that are there now."""
        await self._changelog.read_on()

    async def run(self) -> None:
        """Read both logs until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._changelog.run(), name="view-changelog")
            group.create_task(self._heartbeats.run(), name="view-heartbeats")

    def on_row(self, callback: Callable[[str], object]) -> None:
        """Call with the task id at every changed row, at once. The callback must not block."""
        self._on_row.append(callback)

    def on_members(self, callback: Callable[[], object]) -> None:
        """Call when who is there has changed. The callback must not block."""
        self._on_members.append(callback)

    @contextmanager
    def subscribe(self) -> Iterator[Changes]:
        changes = Changes()
        self._subscribers.add(changes)
        try:
            yield changes
        finally:
            self._subscribers.discard(changes)

    def _take_rows(self, records: Sequence[Record]) -> None:
        for record in records:
            try:
                task_id = self._state.apply(record.partition, record.key, record.value)
            except SkaldsError as error:
                log.error("view.row_not_understood", where=record.where, error=str(error))
                continue
            if task_id is not None:
                self._weigh(task_id)
                for changes in self._subscribers:
                    changes.note_task(task_id)
                for callback in self._on_row:
                    callback(task_id)

    def _weigh(self, task_id: str) -> None:
        former = self._held.pop(task_id, None)
        if former is not None:
            self._load[former[0]] -= former[1]
            if not self._load[former[0]]:
                del self._load[former[0]]
        row = self._state.rows.get(task_id)
        if row is not None and row.holder is not None:
            self._held[task_id] = row.holder.incarnation, row.units
            self._load[row.holder.incarnation] += row.units

    def _take_beats(self, records: Sequence[Record]) -> None:
        changed = False
        for record in records:
            try:
                doc = orjson.loads(record.value or b"")
                changed |= self.members.apply(doc, record.offset, record.timestamp_ms)
            except (ValueError, TypeError, AttributeError) as error:
                log.warning("view.heartbeat_not_understood", where=record.where, error=str(error))
        for changes in self._subscribers:
            changes.note_members()
        if changed:
            for callback in self._on_members:
                callback()
