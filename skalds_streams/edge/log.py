"""The log of a node without Kafka: what is appended is decided at once, and its rows are shown to this process.

Rules: one partition, so every record is this node's; records are decided one after the other by the code that decides
a journal's (`coordinator.batch`); of two records the later has the greater time, even when the clock was set back;
nothing is kept beyond the process but the epochs, which never go back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import structlog

from skalds_streams.coordinator.batch import Stager, advanced
from skalds_streams.core.placement import Load
from skalds_streams.core.row import Row
from skalds_streams.errors import ConfigError
from skalds_streams.model.codec import Limits
from skalds_streams.model.documents import Positions, encode_row
from skalds_streams.model.record import Record
from skalds_streams.topics import Topics
from skalds_streams.view.cluster import ClusterView

EPOCHS_A_LIFE = 1_000_000
"""Epochs that one life of the process may use for one task. A crash loop for a year uses half as many."""

log = structlog.get_logger(__name__)


class LocalView(ClusterView):
    """The view, told by this process instead of read from Kafka."""

    def __init__(self, topics: Topics, agreed: Mapping[str, object]) -> None:
        super().__init__(topics, {}, agreed=agreed)
        self._topics = topics
        self._rows_shown = self._beats_shown = 0
        self.is_filled = False
        """Whether it has the rows of all tasks there are."""

    @property
    def is_caught_up(self) -> bool:
        return self.is_filled

    def show_rows(self, rows: Iterable[tuple[str, Row | None]], now_ms: int) -> None:
        """(task id, its row or None for one that is forgotten)."""
        for task_id, row in rows:
            value = encode_row(row) if row is not None else None
            self._take_rows([Record(self._topics.changelog, 0, self._rows_shown, task_id.encode(), value, now_ms)])
            self._rows_shown += 1

    def show_beat(self, doc: Mapping[str, Any], now_ms: int) -> None:
        """This node as a heartbeat describes it."""
        self._take_beats([Record(self._topics.heartbeat, 0, self._beats_shown, None, orjson.dumps(doc), now_ms)])
        self._beats_shown += 1


class LocalLog:
    """See the module. Stands for the journals, and for the sender of reports."""

    def __init__(
        self, topics: Topics, view: LocalView, limits: Limits, now_ms: Callable[[], int], *, epoch_floor: int
    ) -> None:
        """topics: of one partition."""
        self._topics, self._view, self._limits, self._now_ms = topics, view, limits, now_ms
        self._positions = Positions({}, epoch_floor)
        self._time_ms = 0
        self.load = Load()
        self.opened = asyncio.Event()
        self.opened.set()

    @property
    def rows(self) -> Mapping[str, Row]:
        return self._view.rows

    def append(self, topic: str, task_id: str, doc: Mapping[str, Any]) -> str | None:
        """Decide one record. Returns why it can't be understood, None when it can."""
        now_ms = self._time_ms = max(self._now_ms(), self._time_ms + 1)
        offset = self._positions.offsets.get(topic, -1) + 1
        record = Record(topic, 0, offset, task_id.encode(errors="replace"), orjson.dumps(doc), now_ms)
        stager = Stager(
            self.rows,
            self._positions,
            topics=self._topics,
            members=self._view.members,
            load=self.load,
            limits=self._limits,
            now_ms=now_ms,
        )
        staged = stager.add([record])
        self._positions = advanced(self._positions, staged)
        self._view.show_rows(staged.rows.items(), now_ms)
        return dict(staged.deadletters[0].headers)["reason"].decode() if staged.deadletters else None

    async def send_reports(self, docs: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """What the supervisor and the timer say."""
        for task_id, doc in docs:
            problem = self.append(self._topics.report, task_id, doc)
            if problem is not None:
                log.error("edge.report_not_understood", task=task_id, kind=doc.get("kind"), error=problem)


def next_epochs(path: Path) -> int:
    """The epoch above which this life of the process begins: a user's fencing token never goes back. Raises
    ConfigError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        floor = int(path.read_text()) if path.exists() else 0
        part = path.with_name(path.name + ".part")
        with part.open("w") as file:
            file.write(str(floor + EPOCHS_A_LIFE))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}, the epochs that were used, can't be read and written: {error}") from None
    return floor
