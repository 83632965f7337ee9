"""What was read for a replay: history, the inputs that it names, the live table. `gather` fills them from Kafka.

Rules: the table is read first and to the offset that was written last, then the history, then the inputs: so the
history covers the table, and the inputs cover the history. Records of others on taskworker.update (upstream's have no
row) are counted and left out.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from skalds_streams.core.partition import partition_of
from skalds_streams.core.row import Json, Row
from skalds_streams.errors import WireError
from skalds_streams.model.changelog import ChangelogState
from skalds_streams.model.record import Record
from skalds_streams.replay.reader import LogReader, Place, Progress, Ranges
from skalds_streams.topics import Topics

InputKey = tuple[str, int, int]
"""(topic, partition, offset)"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of taskworker.update: a row as it was after one change, without its parameters."""

    partition: int
    offset: int
    row: Row
    masked: Any
    """The parameters with secrets masked; None when there are none."""
    digest: str | None
    members_offset: int = -1

    @property
    def task_id(self) -> str:
        """Whose row it is."""
        return self.row.task_id

    @property
    def input_key(self) -> InputKey:
        """The record that caused the change."""
        return (self.row.why.topic, self.row.why.partition, self.row.why.offset)

    def to_doc(self) -> dict[str, Any]:
        """The record's document, as `history_doc` makes it."""
        doc = self.row.public_doc()
        doc |= {
            "attachments_masked": self.masked,
            "attachments_digest": self.digest,
            "members_offset": self.members_offset,
        }
        return doc


def read_entry(record: Record) -> Entry | None:
    """The entry; None for a record that is not ours (upstream's, a tombstone).

    Raises WireError for a newer format or a broken row.
    """
    try:
        doc: Json = orjson.loads(record.value or b"null")
    except orjson.JSONDecodeError:
        return None
    if not isinstance(doc, dict) or "task_id" not in doc or "revision" not in doc:
        return None
    try:
        row = replace(Row.from_doc(doc), attachments=None)
        return Entry(
            record.partition,
            record.offset,
            row,
            doc.get("attachments_masked"),
            doc.get("attachments_digest"),
            int(doc.get("members_offset", -1)),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise WireError(f"{record.where} is no history record: {error}") from None


@dataclass(slots=True)
class Recording:
    """See the module. `history` is in order within each partition."""

    history: Sequence[Entry] = ()
    inputs: Mapping[InputKey, Record] = field(default_factory=dict)
    rows: Mapping[str, Row] = field(default_factory=dict)
    """The live table, by task id."""
    inputs_begin: Mapping[Place, int] = field(default_factory=dict)
    """The first offset of each input that is still kept; what lies before it can't be replayed."""
    history_before: Mapping[int, int] = field(default_factory=dict)
    """End of each partition's history before the table was read: what lies before it is in the table or was removed."""
    inputs_read: int = 0
    foreign: int = 0
    """Records on taskworker.update that others wrote."""


async def gather(
    reader: LogReader, topics: Topics, *, task_id: str | None = None, on_progress: Progress | None = None
) -> Recording:
    """Read what is kept, of one task or of all."""
    partitions: Collection[int] = (
        range(topics.partitions) if task_id is None else [partition_of(task_id, topics.partitions)]
    )
    history_places = [(topics.history, number) for number in partitions]
    before = await reader.ends(history_places)
    state = ChangelogState()
    async for records in reader.read(await reader.whole(topics.changelog, partitions, committed=False), on_progress):
        for record in records:
            state.apply(record.partition, record.key, record.value)
    ranges = await reader.whole(topics.history, partitions, committed=False)
    history, foreign = await _read_history(reader, ranges, task_id, on_progress)
    named = {entry.input_key for entry in history}
    inputs: dict[InputKey, Record] = {}
    begins: dict[Place, int] = {}
    count = 0
    for topic in topics.inputs:
        ranges = await reader.whole(topic, partitions)
        begins |= {place: begin for place, (begin, _) in ranges.items()}
        async for records in reader.read(ranges, on_progress):
            count += len(records)
            for record in records:
                key = (record.topic, record.partition, record.offset)
                if key in named:
                    inputs[key] = record
    rows = {key: row for key, row in state.rows.items() if task_id in (None, key)}
    history_before = {partition: end for (_, partition), end in before.items()}
    return Recording(history, inputs, rows, begins, history_before, count, foreign)


async def _read_history(
    reader: LogReader, ranges: Ranges, task_id: str | None, on_progress: Progress | None
) -> tuple[list[Entry], int]:
    by_partition: dict[int, list[Entry]] = {}
    foreign = 0
    async for records in reader.read(ranges, on_progress):
        for record in records:
            if task_id is not None and record.key != task_id.encode():
                continue
            entry = read_entry(record)
            if entry is None:
                foreign += 1
            else:
                by_partition.setdefault(record.partition, []).append(entry)
    return merge_partitions(by_partition), foreign


def merge_partitions(by_partition: Mapping[int, Sequence[Entry]]) -> list[Entry]:
    """One list, by time as far as the order within the partitions allows."""
    return list(heapq.merge(*by_partition.values(), key=lambda entry: entry.row.updated_at_ms))
