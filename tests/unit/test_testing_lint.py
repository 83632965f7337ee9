"""The log lint: silent on what the coordinator writes, and loud on each kind of damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from skalds_streams.coordinator.batch import Secrecy, Stager, advanced, outputs
from skalds_streams.core.membership import Members
from skalds_streams.core.partition import partition_of
from skalds_streams.core.placement import Load
from skalds_streams.core.row import Row
from skalds_streams.model.codec import Limits
from skalds_streams.model.documents import Positions
from skalds_streams.model.record import Record
from skalds_streams.testing.lint import lint
from skalds_streams.topics import Topics

TOPICS = Topics.named(app="x")
PARTITION = partition_of("t", TOPICS.partitions)
SPEC = {"id": "t", "className": "Cam", "source": "test"}


def a_run() -> list[Record]:
    """An assign, its run, a cancel, its end, and a dead letter, as the coordinator writes them."""
    members = Members()
    members.apply({"skald_id": "a", "incarnation": "a1", "classes": {"Cam": ""}, "capacity": 9, "state": "up"}, 0)
    rows: dict[str, Row] = {}
    positions, load = Positions({}), Load()
    offsets: dict[str, int] = {}
    records: list[Record] = []

    def write(topic: str, key: bytes | None, value: bytes | None, headers: Any = ()) -> Record:
        offset = offsets[topic] = offsets.get(topic, -1) + 1
        record = Record(topic, PARTITION, offset, key, value, 1_000 + len(records), headers)
        records.append(record)
        return record

    run = {"v": 1, "task_id": "t", "epoch": 1, "incarnation": "a1"}
    for topic, document in (
        (TOPICS.assign, {"taskIds": ["t"], "tasks": [SPEC]}),
        (TOPICS.report, {**run, "kind": "Running", "version": 0}),
        (TOPICS.cancel, {"taskIds": []}),
        (TOPICS.cancel, {"taskIds": ["t"]}),
        (TOPICS.report, {**run, "kind": "Stopped"}),
    ):
        record = write(topic, b"t", orjson.dumps(document))
        stager = Stager(
            rows, positions, topics=TOPICS, members=members, load=load, limits=Limits(), now_ms=record.timestamp_ms
        )
        staged = stager.add([record])
        positions = advanced(positions, staged)
        rows.update({task_id: row for task_id, row in staged.rows.items() if row is not None})
        for output in outputs(staged, positions, TOPICS, Secrecy()):
            write(output.topic, output.key, output.value, output.headers)
    assert rows["t"].status == "Cancelled"
    return records


def test_a_clean_run_has_no_findings() -> None:
    assert lint(a_run(), TOPICS) == []


def history(records: list[Record]) -> list[int]:
    return [at for at, record in enumerate(records) if record.topic == TOPICS.history]


def edited(records: list[Record], at: int, **fields: Any) -> None:
    document = {**orjson.loads(records[at].value or b""), **fields}
    records[at] = replace(records[at], value=orjson.dumps(document))


def drop_a_state(records: list[Record]) -> None:
    del records[history(records)[1]]


def repeat_a_state(records: list[Record]) -> None:
    at = history(records)[1]
    records.insert(at, records[at])


def lower_an_epoch(records: list[Record]) -> None:
    edited(records, history(records)[2], epoch=0, holder=None)


def invent_a_cause(records: list[Record]) -> None:
    at = history(records)[1]
    why = orjson.loads(records[at].value or b"")["why"]
    edited(records, at, why={**why, "offset": 77})


def rise_from_the_dead(records: list[Record]) -> None:
    edited(records, history(records)[2], status="Finished")
    edited(records, history(records)[3], status="Running")


def lose_a_row(records: list[Record]) -> None:
    for record in [item for item in records if item.topic == TOPICS.changelog and item.key == b"t"]:
        records.remove(record)


def lose_a_dead_letter(records: list[Record]) -> None:
    records.remove(next(item for item in records if item.topic == TOPICS.deadletter))


def turn_positions_back(records: list[Record]) -> None:
    at = max(n for n, item in enumerate(records) if item.topic == TOPICS.changelog and item.key != b"t")
    edited(records, at, positions={TOPICS.assign: -1})


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (drop_a_state, "revisions rise by one"),
        (repeat_a_state, "revisions rise by one"),
        (lower_an_epoch, "epochs never fall"),
        (invent_a_cause, "every state has a cause that exists"),
        (rise_from_the_dead, "nothing after a terminal state without an assign"),
        (lose_a_row, "the table has what the history says"),
        (lose_a_dead_letter, "no applied command is lost"),
        (turn_positions_back, "positions never fall"),
    ],
)
def test_each_damage_is_found(damage: Callable[[list[Record]], None], rule: str) -> None:
    records = a_run()
    damage(records)
    assert rule in {finding.rule for finding in lint(records, TOPICS)}
