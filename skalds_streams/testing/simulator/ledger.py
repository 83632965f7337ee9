"""What the logs of a world say, entered at the moment at which a commit is decided: the ground on which it is
judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from skalds_streams.core.row import Row
from skalds_streams.model.documents import Positions, decode_positions, decode_row
from skalds_streams.testing.simulator.storage import Entry, Partition
from skalds_streams.topics import POSITIONS_KEY, Topics

Where = tuple[str, int, int]
"""(topic, partition, offset)"""


COMMANDS = frozenset({"Assign", "Cancel", "Update", "Deadline", "Expired"})
"""Causes that change what is wanted, or that it is known."""


@dataclass(frozen=True, slots=True)
class Step:
    """One committed record of history: the row before and after."""

    before: Row | None
    after: Row


@dataclass(slots=True)
class Ledger:
    """See the module. The callbacks are the rules' ears."""

    topics: Topics
    on_step: Callable[[Step], None] = lambda step: None
    on_row: Callable[[Row], None] = lambda row: None
    on_positions: Callable[[int, Positions], None] = lambda partition, positions: None
    on_deadletter: Callable[[Where, Entry], None] = lambda source, letter: None
    rows: dict[str, Row] = field(default_factory=dict)
    """The changelog, folded."""
    latest: dict[str, Row] = field(default_factory=dict)
    """The last record of history of each task."""
    positions: dict[int, Positions] = field(default_factory=dict)
    deadletters: set[Where] = field(default_factory=set)
    inputs: dict[Where, Entry] = field(default_factory=dict)
    deleted: set[Where] = field(default_factory=set)
    """Inputs that the broker deleted before anybody had applied them. One that was read before may still be applied."""
    unreported: set[str] = field(default_factory=set)
    """Tasks of which a report was among them: what runs is not known to their rows."""
    commands: dict[str, list[Row]] = field(default_factory=dict)
    """Records of history whose cause is one of COMMANDS, by task, in the order of application."""
    records: int = 0
    digest: Any = field(default_factory=lambda: hashlib.sha256())

    def take_input(self, partition: Partition, entry: Entry) -> None:
        """A plain record was appended."""
        self._digest(partition, entry)
        if partition.topic in self.topics.inputs:
            self.inputs[partition.topic, partition.number, entry.offset] = entry

    def take_deletion(self, partition: Partition, before: int) -> None:
        """The broker deletes what is older than an offset. Only what is not applied is lost with it."""
        topic, number = partition.topic, partition.number
        positions = self.positions.get(number)
        applied = positions.offsets.get(topic, -1) if positions is not None else -1
        self.note(f"{topic}/{number} begins at {before}")
        for entry in partition.entries[applied + 1 : before]:
            if entry is None:
                continue
            self.deleted.add((topic, number, entry.offset))
            if topic == self.topics.report and b'"Forwarded"' not in (entry.value or b""):
                self.unreported.add((entry.key or b"").decode())

    def take_commit(self, written: Sequence[tuple[Partition, Entry]]) -> None:
        """A transaction was committed: history first, as the steps of a batch; then the rows that it leaves."""
        topics = self.topics
        for partition, entry in written:
            self._digest(partition, entry)
        for _, entry in _of(written, topics.deadletter):
            source = _source(entry)
            self.on_deadletter(source, entry)
            self.deadletters.add(source)
        for _, entry in _of(written, topics.history):
            self._take_step(Row.from_doc(orjson.loads(entry.value or b"")))
        for partition, entry in _of(written, topics.changelog):
            if entry.key == POSITIONS_KEY:
                positions = decode_positions(entry.value or b"")
                self.on_positions(partition.number, positions)
                self.positions[partition.number] = positions
            elif entry.value is None:
                self.rows.pop((entry.key or b"").decode(), None)
            else:
                row = decode_row(entry.value)
                self.on_row(row)
                self.rows[row.task_id] = row

    def _take_step(self, row: Row) -> None:
        self.on_step(Step(self.latest.get(row.task_id), row))
        if row.why.kind == "Expired":
            self.latest.pop(row.task_id, None)
        else:
            self.latest[row.task_id] = row
        if row.why.kind in COMMANDS:
            self.commands.setdefault(row.task_id, []).append(row)

    def note(self, text: str) -> None:
        """Something else that belongs into the digest."""
        self.digest.update(text.encode())

    def _digest(self, partition: Partition, entry: Entry) -> None:
        self.records += 1
        head = f"{partition.topic}/{partition.number}@{entry.offset} {entry.at_ms} ".encode()
        self.digest.update(head + (entry.key or b"") + b" " + (entry.value or b"") + b"\n")


def command_of(ledger: Ledger, row: Row) -> tuple[dict[str, Any], bool]:
    """({"parameters", "action", "merge", "described"}, whether it was forwarded) of the command that is a row's cause.

    described: an assign says more of the task than its id.
    """
    why = row.why
    doc = orjson.loads(ledger.inputs[why.topic, why.partition, why.offset].value or b"{}")
    if why.topic == ledger.topics.report:
        spec = doc.get("spec") or {}
        parameters = doc.get("attachments") if doc.get("command") == "Update" else spec.get("attachments")
        described = bool(spec or doc.get("recipient"))
        about = {"parameters": parameters, "action": doc.get("action"), "merge": doc.get("merge")}
        return {**about, "described": described}, True
    parameters, described = doc.get("attachments"), bool(doc.get("recipient"))
    for task in doc.get("tasks") or ():
        if task["id"] == row.task_id and why.kind == "Assign":
            parameters, described = task.get("attachments"), True
    about = {"parameters": parameters, "action": doc.get("action"), "merge": doc.get("merge")}
    return {**about, "described": described}, False


def public(row: Row) -> Row:
    """The row as history has it: without parameters."""
    return replace(row, attachments=None, unanswered={})


def _of(written: Sequence[tuple[Partition, Entry]], topic: str) -> Iterable[tuple[Partition, Entry]]:
    return [item for item in written if item[0].topic == topic]


def _source(entry: Entry) -> Where:
    headers = {name: value.decode() for name, value in entry.headers if name.startswith("source.")}
    return headers["source.topic"], int(headers["source.partition"]), int(headers["source.offset"])
