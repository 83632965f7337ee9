"""The ledger and the oracle on a run without a broker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from skalds_streams.model.record import Record
from skalds_streams.testing.ledger import Ledger, check, read
from skalds_streams.testing.lint import Logs
from skalds_streams.testing.oracle import judge, opinions
from tests.unit.test_testing_lint import PARTITION, TOPICS, a_run


def logs_of(records: list[Record]) -> Logs:
    return Logs.of(records, TOPICS)


def test_what_was_acknowledged_must_be_there_and_applied(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    ledger = Ledger(path)
    records = a_run()
    assign = next(record for record in records if record.topic == TOPICS.assign)
    ledger.acknowledged(ledger.invoked(TOPICS.assign, "t", assign.value), PARTITION, assign.offset)
    ledger.unknown(ledger.invoked(TOPICS.assign, "t", b"maybe"), "timed out")
    ledger.close()
    assert check(read(path), logs_of(records)) == []
    ledger = Ledger(path)
    ledger.acknowledged(ledger.invoked(TOPICS.assign, "t", b"{}"), PARTITION, 9)
    ledger.acknowledged(ledger.invoked(TOPICS.assign, "t", b"other"), PARTITION, assign.offset)
    ledger.close()
    assert [(item.rule, item.what) for item in check(read(path), logs_of(records))] == [
        ("what was acknowledged is in the log", "sending 3 is not there"),
        ("what was acknowledged is in the log", "sending 4 differs"),
    ]
    behind = [record for record in records if record.topic != TOPICS.changelog]
    assert [item.rule for item in check(read(path)[:1], logs_of(behind))] == ["what was acknowledged is applied"]


def test_a_ledger_whose_last_line_was_cut_off_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    ledger = Ledger(path)
    ledger.invoked("x", None, None)
    ledger.close()
    path.write_bytes(path.read_bytes() + b'{"number": 2, "top')
    assert [(entry.number, entry.offset) for entry in read(path)] == [(1, None)]


def test_the_oracle_agrees_with_what_the_coordinator_writes() -> None:
    assert judge(logs_of(a_run()), TOPICS) == []


def command(topic: str, offset: int, at_ms: int, **event: Any) -> Record:
    return Record(topic, PARTITION, offset, b"t", orjson.dumps({"taskIds": ["t"], **event}), at_ms)


def test_the_oracle_knows_the_order_of_commands() -> None:
    assign, cancel = command(TOPICS.assign, 0, 10), command(TOPICS.cancel, 0, 10)
    pause = command(TOPICS.assign, 1, 20, action="pause")
    for records, wanted in (
        ([assign], "run"),
        ([cancel], "cancel"),
        ([assign, cancel], "cancel"),
        ([assign, replace(cancel, timestamp_ms=9)], "run"),
        ([assign, cancel, pause], "pause"),
        ([assign, pause, replace(cancel, timestamp_ms=20)], "cancel"),
    ):
        assert opinions(logs_of(records), TOPICS)["t"].wanted == wanted


def test_the_oracle_says_so_when_a_task_ends_otherwise() -> None:
    records = a_run()
    last = max(at for at, record in enumerate(records) if record.topic == TOPICS.history)
    document = {**orjson.loads(records[last].value or b""), "status": "Running", "wanted": "run"}
    records[last] = replace(records[last], value=orjson.dumps(document))
    assert {item.rule for item in judge(logs_of(records), TOPICS)} == {
        "the last command holds",
        "a state that the commands allow",
    }
