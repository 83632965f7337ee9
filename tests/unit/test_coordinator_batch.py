"""Records in, a staged transaction out: positions, dead letters, limits, and that no record can stop its partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from skalds_streams.coordinator import batch
from skalds_streams.coordinator.batch import Secrecy, Staged, Stager, advanced, outputs
from skalds_streams.core.invariants import check_step
from skalds_streams.core.membership import Members
from skalds_streams.core.partition import partition_of
from skalds_streams.core.placement import Load
from skalds_streams.core.row import Row, Status, Wanted
from skalds_streams.errors import InvariantError
from skalds_streams.model.codec import Limits
from skalds_streams.model.documents import Positions
from skalds_streams.model.record import Record
from skalds_streams.topics import POSITIONS_KEY, Topics

TOPICS = Topics.named(app="x")
OWN = [f"t{number}" for number in range(60) if partition_of(f"t{number}", TOPICS.partitions) == 0]
FOREIGN = [f"t{number}" for number in range(60) if partition_of(f"t{number}", TOPICS.partitions) != 0]
SECRECY = Secrecy(frozenset({"password"}), b"key")


def members(**skalds: int) -> Members:
    known = Members()
    for offset, (name, capacity) in enumerate(skalds.items()):
        doc = {"skald_id": name, "incarnation": f"{name}1", "classes": {"Cam": "h"}, "capacity": capacity}
        known.apply(doc, offset)
    return known


@dataclass
class World:
    """Partition 0 without a broker."""

    rows: dict[str, Row] = field(default_factory=dict)
    positions: Positions = field(default_factory=lambda: Positions({}))
    members: Members = field(default_factory=lambda: members(a=100))
    load: Load = field(default_factory=Load)
    limits: Limits = field(default_factory=Limits)

    def stage(self, records: Sequence[Record], now_ms: int = 10_000) -> Staged:
        stager = Stager(
            self.rows,
            self.positions,
            topics=TOPICS,
            members=self.members,
            load=self.load,
            limits=self.limits,
            now_ms=now_ms,
        )
        return stager.add(records)

    def commit(self, staged: Staged) -> list[tuple[str, bytes | None, bytes | None]]:
        """Apply what was staged, as the journal does. Returns what the transaction writes."""
        self.positions = advanced(self.positions, staged)
        written = outputs(staged, self.positions, TOPICS, SECRECY)
        for task_id, row in staged.rows.items():
            if row is not None:
                check_step(None, row)
                self.rows[task_id] = row
        return [(output.topic, output.key, output.value) for output in written]


def record(topic: str, offset: int, doc: Any, *, key: bytes | None = b"k", at_ms: int = 1_000) -> Record:
    value = doc if isinstance(doc, bytes) else orjson.dumps(doc)
    return Record(topic, 0, offset, key, value, at_ms)


def assign(offset: int, *ids: str, attachments: Any = None, **event: Any) -> Record:
    tasks = [{"id": i, "className": "Cam", "source": "s", "attachments": attachments} for i in ids]
    return record(TOPICS.assign, offset, {"taskIds": list(ids), "tasks": tasks, **event})


def reasons(staged: Staged) -> list[str]:
    return [dict(letter.headers)["reason"].decode() for letter in staged.deadletters]


# -- positions


def test_what_is_staged_again_is_skipped_and_changes_nothing() -> None:
    world = World()
    records = [
        assign(3, OWN[0], attachments={"fps": 1}),
        record(TOPICS.cancel, 7, {"taskIds": [OWN[1]]}),
        record(TOPICS.update, 2, {"taskIds": [OWN[0]], "attachments": {"x": 1}, "merge": True}),
        record(TOPICS.assign, 4, b"nonsense"),
        record(TOPICS.cancel, 8, {"taskIds": FOREIGN[:2]}),
    ]
    world.commit(world.stage(records))
    rows, positions = dict(world.rows), world.positions
    assert positions.offsets == {TOPICS.assign: 4, TOPICS.cancel: 8, TOPICS.update: 2}
    again = world.stage(records)
    assert (again.is_empty, again.skipped, again.records) == (True, 5, 5)
    assert (again.rows, again.history, again.deadletters, again.forwards) == ({}, [], [], [])
    assert (world.rows, world.positions) == (rows, positions)


def test_a_batch_that_reaches_back_takes_only_what_is_new() -> None:
    world = World()
    records = [assign(number, task_id) for number, task_id in enumerate(OWN[:4])]
    world.commit(world.stage(records[:2]))
    rest = world.stage(records)
    assert (rest.skipped, sorted(rest.rows)) == (2, sorted(OWN[2:4]))


def test_the_same_record_twice_in_one_batch_counts_once() -> None:
    staged = World().stage([assign(0, OWN[0]), assign(0, OWN[0])])
    assert (staged.skipped, len(staged.history)) == (1, 1)


def test_events_of_one_batch_see_each_other() -> None:
    world = World()
    staged = world.stage([assign(0, OWN[0]), record(TOPICS.cancel, 0, {"taskIds": [OWN[0]]}, at_ms=2_000)])
    row = staged.rows[OWN[0]]
    assert row is not None
    assert (row.wanted, row.revision) == (Wanted.CANCEL, 2)
    assert [item.revision for item, _ in staged.history] == [1, 2]


def test_placements_of_one_batch_count_as_load() -> None:
    world = World(members=members(a=2))
    staged = world.stage([assign(0, *OWN[:3])])
    held = [row for row in staged.rows.values() if row is not None and row.holder is not None]
    waiting = [row for row in staged.rows.values() if row is not None and row.holder is None]
    assert len(held) == 2
    assert [row.waiting for row in waiting] == [{"a": "full 2/2"}]


# -- outputs


def test_rows_history_and_dead_letters_are_written_and_the_positions_last() -> None:
    world = World()
    written = world.commit(
        world.stage([assign(0, OWN[0], attachments={"password": "s3cret"}), record(TOPICS.cancel, 5, b"{")])
    )
    assert [(topic, key) for topic, key, _ in written] == [
        (TOPICS.changelog, OWN[0].encode()),
        (TOPICS.history, OWN[0].encode()),
        (TOPICS.deadletter, b"k"),
        (TOPICS.changelog, POSITIONS_KEY),
    ]
    assert b"s3cret" not in (written[1][2] or b"")
    assert orjson.loads(written[3][2] or b"")["positions"] == {TOPICS.assign: 0, TOPICS.cancel: 5}


def test_a_dead_letter_keeps_bytes_key_and_headers_and_says_where_from() -> None:
    odd = Record(TOPICS.assign, 0, 9, b"\xff\x00", b"\xfe{", 1_234, (("trace", b"\x01"),))
    (letter,) = World().stage([odd]).deadletters
    assert (letter.key, letter.value) == (b"\xff\x00", b"\xfe{")
    headers = dict(letter.headers)
    assert headers.pop("reason").startswith(b"not JSON")
    assert headers == {
        "source.topic": TOPICS.assign.encode(),
        "source.partition": b"0",
        "source.offset": b"9",
        "source.timestamp_ms": b"1234",
        "original.trace": b"\x01",
    }


def test_a_record_is_all_or_nothing() -> None:
    doc = {"taskIds": OWN[:2], "tasks": [{"id": OWN[0], "className": "Cam", "source": "s"}, {"id": OWN[1]}]}
    staged = World().stage([record(TOPICS.assign, 0, doc)])
    assert (staged.rows, len(staged.deadletters)) == ({}, 1)
    assert reasons(staged)[0].startswith("tasks[1] is not a Task")


def test_merged_updates_make_no_parameters_that_one_update_could_not() -> None:
    world = World(limits=Limits(attachments_bytes=60))
    world.commit(world.stage([assign(0, *OWN[:2], attachments={"a": "x" * 40})]))

    def merge(offset: int, ids: Sequence[str], **attachments: Any) -> Staged:
        return world.stage([record(TOPICS.update, offset, {"taskIds": ids, "attachments": attachments, "merge": True})])

    staged = merge(0, OWN[:2], b="y" * 40)
    world.commit(staged)
    assert reasons(staged) == [
        f"merged with the parameters of task {OWN[0]!r}: attachments have 95 bytes, the limit is 60"
        " (SKALDS_MAX_ATTACHMENTS_BYTES)"
    ]
    assert staged.rows == {}
    staged = merge(1, OWN[:1], a=None, b="y" * 40)
    assert (reasons(staged), staged.rows[OWN[0]] and staged.rows[OWN[0]].attachments) == ([], {"b": "y" * 40})


def test_ids_of_other_partitions_are_forwarded_with_their_cause() -> None:
    staged = World().stage([assign(7, OWN[0], FOREIGN[0], attachments={"fps": 1}, reason="why not")])
    assert list(staged.rows) == [OWN[0]]
    ((task_id, doc),) = staged.forwards
    assert (task_id, doc["command"], doc["spec"]["attachments"]) == (FOREIGN[0], "Assign", {"fps": 1})
    assert doc["cause"] == {
        "kind": "Assign",
        "topic": TOPICS.assign,
        "partition": 0,
        "offset": 7,
        "at_ms": 1_000,
        "reason": "why not",
    }


# -- a batch has a size


def test_a_full_batch_takes_no_more_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """One record may name 10,000 tasks, so 500 records are no limit on a transaction."""
    monkeypatch.setattr(batch, "CHANGES_MOST", 3)
    world = World()
    records = [assign(0, *OWN[:2]), assign(1, OWN[2], FOREIGN[0]), assign(2, OWN[3])]
    staged = world.stage(records)
    assert (staged.records, staged.offsets, len(staged.rows)) == (2, {TOPICS.assign: 1}, 3)
    world.commit(staged)
    assert sorted(world.stage(records).rows) == [OWN[3]]


# -- nothing stops a partition


@pytest.mark.parametrize("error", [TypeError("canary-1"), RecursionError("canary-1"), InvariantError("says why")])
def test_a_defect_of_ours_costs_the_record_not_the_partition(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(batch.core, "decide", fail)
    staged = World().stage([assign(0, OWN[0])])
    (reason,) = reasons(staged)
    assert reason.startswith(f"internal error, please report it: {type(error).__name__}")
    assert "canary" not in reason, "the text of a foreign error may repeat parameters"


def test_a_lack_of_memory_is_not_the_record_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(batch.core, "decide", fail)
    with pytest.raises(MemoryError):
        World().stage([assign(0, OWN[0])])


def test_reports_move_a_row_on_and_unknown_ones_are_ignored() -> None:
    world = World()
    world.commit(world.stage([assign(0, OWN[0])]))
    run = {"task_id": OWN[0], "epoch": 1, "incarnation": "a1"}
    staged = world.stage(
        [
            record(TOPICS.report, 0, {**run, "kind": "Running", "version": 0}),
            record(TOPICS.report, 1, {**run, "kind": "Running", "version": 0, "incarnation": "b1"}),
            record(TOPICS.report, 2, {**run, "kind": "Finished"}),
            record(TOPICS.report, 3, {**run, "kind": "Finished"}),
        ]
    )
    row = staged.rows[OWN[0]]
    assert row is not None
    assert (row.status, staged.ignored, staged.deadletters) == (Status.FINISHED, 2, [])


def test_what_a_class_declares_as_secret_is_masked_and_all_that_an_unknown_class_is_given() -> None:
    members = Members()
    paths = members.secret_paths
    secrecy = Secrecy(frozenset(), b"", paths)

    def masked(members_offset: int = -1) -> Any:
        row = Row("t", class_name="Cam", attachments={"pin": "1234", "fps": 3})
        written = outputs(Staged(history=[(row, members_offset)]), Positions({}), TOPICS, secrecy)
        return orjson.loads(next(item.value or b"" for item in written if item.topic == TOPICS.history))

    assert masked()["attachments_masked"] == {"pin": "***", "fps": "***"}
    members.apply({"skald_id": "a", "incarnation": "a1", "classes": {"Cam": "h"}, "secret": {"Cam": ["pin"]}}, 0)
    assert masked()["attachments_masked"] == {"pin": "***", "fps": 3}
