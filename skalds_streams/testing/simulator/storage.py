"""One partition as its leader keeps it: entries, open transactions, the last stable offset, compaction.

Rules: the index of an entry is its offset, markers take one too; a read_committed reader sees nothing at or above the
first offset of an open transaction, and nothing of an aborted one; compaction leaves holes, never below the need of a
reader that starts at the beginning; retention moves the beginning, and who asks for what was before it is given what
there is (auto_offset_reset "earliest").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from skalds_streams.coordinator.batch import Output
from skalds_streams.model.record import Record

NO_PRODUCER = -1
OVERHEAD_BYTES = 80
"""About what a record takes beside its key, value and headers, with its part of the batch's head."""


@dataclass(slots=True)
class Entry:
    """What stands at one offset. `marker`: the end of a transaction, which no consumer is given."""

    offset: int
    at_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    producer: int = NO_PRODUCER
    marker: bool = False
    aborted: bool = False


def size_of(output: Output | Entry) -> int:
    """Bytes of a record in a batch."""
    headers = sum(len(name) + len(value) for name, value in output.headers)
    return len(output.key or b"") + len(output.value or b"") + headers + OVERHEAD_BYTES


class Partition:
    """See the module. `at_ms` of an entry is its leader's clock (LogAppendTime)."""

    def __init__(self, topic: str, number: int) -> None:
        self.topic, self.number = topic, number
        self.entries: list[Entry | None] = []
        self.begin = 0
        """The log start offset."""
        self.leader = 0
        self._open: dict[int, int] = {}
        self.watchers: dict[int, Callable[[], None]] = {}
        """Called when more has become visible, each once; by a number of the one who waits."""

    def append(self, output: Output, at_ms: int, producer: int = NO_PRODUCER) -> Entry:
        entry = Entry(len(self.entries), at_ms, output.key, output.value, output.headers, producer)
        if producer != NO_PRODUCER:
            self._open.setdefault(producer, entry.offset)
        self.entries.append(entry)
        if producer == NO_PRODUCER:
            self.wake()
        return entry

    def end_transaction(self, producer: int, at_ms: int, *, commit: bool) -> None:
        """Write the marker; what the transaction wrote here becomes visible, or is dropped."""
        first = self._open.pop(producer, len(self.entries))
        if not commit:
            for entry in self.entries[first:]:
                if entry is not None and entry.producer == producer and not entry.marker:
                    entry.aborted = True
        self.entries.append(Entry(len(self.entries), at_ms, None, None, (), producer, marker=True))
        self.wake()

    @property
    def stable_end(self) -> int:
        """The last stable offset."""
        return min(self._open.values(), default=len(self.entries))

    def end(self, *, committed: bool) -> int:
        return self.stable_end if committed else len(self.entries)

    def read(self, start: int, *, committed: bool) -> list[Record]:
        """Every record from `start` that such a reader may see."""
        found = []
        for entry in self.entries[start : self.end(committed=committed)]:
            if entry is None or entry.marker or (committed and entry.aborted):
                continue
            found.append(
                Record(self.topic, self.number, entry.offset, entry.key, entry.value, entry.at_ms, entry.headers)
            )
        return found

    def delete_before(self, offset: int) -> None:
        """Retention: what is older is gone."""
        self.begin = max(self.begin, min(offset, self.stable_end))
        self.entries[: self.begin] = [None] * self.begin

    def compact(self) -> int:
        """Drop what a later committed record of the same key stands for. Returns how many were dropped."""
        latest: set[bytes] = set()
        dropped = 0
        for offset in range(self.stable_end - 1, -1, -1):
            entry = self.entries[offset]
            if entry is None or entry.marker or entry.key is None:
                continue
            if entry.aborted or entry.key in latest:
                self.entries[offset] = None
                dropped += 1
            else:
                latest.add(entry.key)
        return dropped

    def wake(self) -> None:
        if self.watchers:
            waiting, self.watchers = self.watchers, {}
            for number in sorted(waiting):
                waiting[number]()
