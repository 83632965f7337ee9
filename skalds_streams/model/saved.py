"""What a worker saved, as a record of task.state, and which of several counts.

Key: `task id@epoch`, in the partition of the task id; value: the state as JSON, as the worker saved it; what is known
of it is in the headers. Rules:

- Every run writes under a key of its own. So whatever a run that is long over still writes (a skald that was cut off,
  a request that lay in a buffer), compaction never lets it take the place of what a later run saved; and readers take
  the highest epoch, whichever record came last.
- What a person sets is `task id@epoch+`: after everything of the run of that epoch, before everything of the next. The
  value `null` is a reset: nothing, and nothing of what is older.
- What counts for the next run is the highest of the task's `first_epoch` or above: the runs since it was assigned new.
- A key that can never count again gets a tombstone (`StateIndex.garbage`).

Within a key the highest sequence number counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from skalds_streams.core.row import Row
from skalds_streams.errors import StateError
from skalds_streams.model.record import Record

FORMAT = 1
"""Header `v`."""
BY_HAND = "+"
RESET = b"null"

Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class StateKey:
    """Whose state a record is. `by_hand`: a person's, set after the run of that epoch."""

    task_id: str
    epoch: int
    by_hand: bool = False

    @property
    def rank(self) -> tuple[int, bool]:
        """The highest counts."""
        return self.epoch, self.by_hand

    def encode(self) -> bytes:
        return f"{self.task_id}@{self.epoch}{BY_HAND if self.by_hand else ''}".encode()

    @classmethod
    def parse(cls, key: bytes | None) -> StateKey | None:
        """None for a key that none of us wrote."""
        task_id, at, epoch = (key or b"").decode(errors="replace").rpartition("@")
        number = epoch.removesuffix(BY_HAND)
        if not at or not task_id or not (number.isascii() and number.isdecimal()) or len(number) > 18:
            return None
        return cls(task_id, int(number), epoch.endswith(BY_HAND))


@dataclass(frozen=True, slots=True)
class StateRecord:
    """One record as it is to be written. `value` None: a tombstone."""

    key: StateKey
    value: bytes | None
    headers: Headers = ()

    @classmethod
    def of(cls, key: StateKey, value: bytes, *, seq: int, skald_id: str) -> StateRecord:
        """seq: number of this state within its key, from 1; skald_id: who says so, "" for a person."""
        told = (("v", str(FORMAT)), ("seq", str(seq)), ("skald", skald_id))
        return cls(key, value, tuple((name, text.encode()) for name, text in told))


@dataclass(frozen=True, slots=True)
class Saved:
    """One state. `text` is JSON, None after a reset; `at_ms` when it was written."""

    key: StateKey
    seq: int
    at_ms: int
    skald_id: str
    text: str | None


def read_saved(record: Record) -> Saved:
    """Raises StateError for what can't be understood, a newer format included."""
    key, headers = StateKey.parse(record.key), dict(record.headers)
    version = _number(headers.get("v"))
    if key is None or version is None or record.value is None:
        raise StateError(f"{record.where} is no saved state of ours")
    if version > FORMAT:
        raise StateError(f"{record.where} has format {version}; this version knows {FORMAT} and older")
    try:
        text = None if record.value == RESET else record.value.decode()
    except UnicodeDecodeError:
        raise StateError(f"{record.where} is not UTF-8") from None
    skald_id = (headers.get("skald") or b"").decode(errors="replace")
    return Saved(key, _number(headers.get("seq")) or 0, record.timestamp_ms, skald_id, text)


@dataclass(frozen=True, slots=True)
class Spot:
    """Where the newest record of a key lies."""

    key: StateKey
    seq: int
    offset: int


class StateIndex:
    """Where the states of one partition lie; the states themselves are not kept: 10,000 tasks of 64 KiB are 640 MB."""

    def __init__(self) -> None:
        self._spots: dict[str, dict[tuple[int, bool], tuple[int, int]]] = {}

    def apply(self, record: Record) -> None:
        """Note one record; in offset order. Keys that are not ours are passed over."""
        key = StateKey.parse(record.key)
        if key is None:
            return
        if record.value is None:
            of_task = self._spots.get(key.task_id, {})
            of_task.pop(key.rank, None)
            if not of_task:
                self._spots.pop(key.task_id, None)
            return
        of_task = self._spots.setdefault(key.task_id, {})
        seq = _number(dict(record.headers).get("seq")) or 0
        if seq >= of_task.get(key.rank, (0, 0))[0]:
            of_task[key.rank] = (seq, record.offset)

    def keys(self, task_id: str) -> Sequence[StateKey]:
        """All that is there of a task, the oldest first."""
        return [StateKey(task_id, *rank) for rank in sorted(self._spots.get(task_id, ()))]

    def newest(self, task_id: str, first_epoch: int) -> Spot | None:
        """What counts for the task's next run."""
        counting = [key for key in self.keys(task_id) if key.epoch >= first_epoch]
        if not counting:
            return None
        key = counting[-1]
        return Spot(key, *self._spots[task_id][key.rank])

    def garbage(self, rows: Mapping[str, Row]) -> Iterator[StateKey]:
        """What can never count again: of tasks that are forgotten, of former assigns, and what was replaced.

        rows: of all tasks, not older than what this index has read; else a task that is new looks like a forgotten one.
        """
        for task_id in self._spots:
            row = rows.get(task_id)
            newest = self.newest(task_id, row.first_epoch) if row is not None else None
            for key in self.keys(task_id):
                if row is None or key.epoch < row.first_epoch or (newest is not None and key.rank < newest.key.rank):
                    yield key


def _number(text: bytes | None) -> int | None:
    return int(text) if text and text.isdigit() and len(text) < 19 else None
