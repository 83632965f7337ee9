"""Between bytes and the core's values: what is understood, what is refused and with which words, what is cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from skalds_streams.core import events
from skalds_streams.core.partition import partition_of
from skalds_streams.core.row import Cause, Holder, Release, Row, Status, Wanted
from skalds_streams.errors import WireError
from skalds_streams.model.codec import MAX_ERROR_BYTES, Limits, Parsed, parse
from skalds_streams.model.documents import Positions, decode_positions, decode_row, digest, encode_row, history_doc
from skalds_streams.model.record import Record
from skalds_streams.model.specs import MAX_INTEGER
from skalds_streams.topics import Topics

TOPICS = Topics.named(app="x", partitions=1)
MANY = Topics.named(app="x")


def record(topic: str, doc: Any, *, key: bytes | None = b"t", partition: int = 0) -> Record:
    return Record(topic, partition, 9, key, doc if isinstance(doc, bytes) else orjson.dumps(doc), 1_234)


def understood(topic: str, doc: Any, **more: Any) -> Any:
    (event,) = parse(record(topic, doc, **more), TOPICS, Limits()).events
    return event


def refused(topic: str, doc: Any, limits: Limits | None = None, **more: Any) -> str:
    with pytest.raises(WireError) as caught:
        parse(record(topic, doc, **more), TOPICS, limits or Limits())
    return str(caught.value)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


# -- commands


def test_an_assign_carries_its_task_and_its_cause() -> None:
    task = {
        "id": "t",
        "className": "Cam",
        "source": "s",
        "executor": "a",
        "attachments": {"fps": 1},
        "requires": {"gpu": "yes"},
        "weight": 2,
        "priority": 3,
        "maxRestarts": 4,
    }
    event = understood(TOPICS.assign, {"taskIds": ["t"], "tasks": [task], "reason": "why", "action": "restart"})
    assert event == events.Assign(
        "t",
        Cause("Assign", TOPICS.assign, 0, 9, 1_234, "why"),
        spec=events.TaskSpec("Cam", {"fps": 1}, "a", {"gpu": "yes"}, 2, 3, 4),
        release=Release.RESTART,
    )


def test_the_event_s_recipient_wins_over_the_document_s() -> None:
    task = {"id": "t", "className": "Cam", "source": "s", "executor": "a"}
    assert understood(TOPICS.assign, {"taskIds": ["t"], "tasks": [task], "recipient": "b"}).spec.recipient == "b"


@pytest.mark.parametrize(
    ("action", "then", "release"),
    [
        ("pause", Wanted.PAUSE, None),
        ("resume", Wanted.RUN, None),
        ("move", Wanted.RUN, Release.MOVE),
        (None, Wanted.RUN, None),
    ],
)
def test_actions(action: str | None, then: Wanted, release: Release | None) -> None:
    event = understood(TOPICS.assign, {"taskIds": ["t"], "action": action})
    assert (event.then, event.release, event.resume) == (then, release, action == "resume")


def test_a_move_may_name_a_skald_and_nothing_else_heeds_it() -> None:
    assert understood(TOPICS.assign, {"taskIds": ["t"], "action": "move", "to": "b"}).to == "b"
    assert understood(TOPICS.assign, {"taskIds": ["t"], "action": "move", "to": ""}).to is None
    assert understood(TOPICS.assign, {"taskIds": ["t"], "to": "b"}).to is None
    assert "to has 600 characters" in refused(TOPICS.assign, {"taskIds": ["t"], "action": "move", "to": "b" * 600})


def test_an_update_names_its_task_in_the_key_or_in_the_value() -> None:
    assert understood(TOPICS.update, {"attachments": {"fps": 2}}, key=b"k").task_id == "k"
    both = understood(TOPICS.update, {"task_ids": ["t"], "attachments": {"fps": 2}, "merge": True}, key=b"k")
    assert (both.task_id, both.attachments, both.merge) == ("t", {"fps": 2}, True)
    assert "no task id" in refused(TOPICS.update, {"attachments": {}}, key=None)
    assert "not UTF-8" in refused(TOPICS.update, {"attachments": {}}, key=b"\xff")


def test_an_id_named_twice_is_one_event() -> None:
    parsed = parse(record(TOPICS.cancel, {"taskIds": ["t", "u", "t"]}), TOPICS, Limits())
    assert [event.task_id for event in parsed.events] == ["t", "u"]


@pytest.mark.parametrize(
    ("topic", "doc", "reason"),
    [
        (TOPICS.assign, b"{", "not JSON"),
        (TOPICS.assign, b'"\xff"', "not JSON"),
        (TOPICS.assign, b"null", "not a JSON object but null"),
        (TOPICS.assign, b"true", "not a JSON object but a boolean"),
        (TOPICS.assign, {}, "not a TaskEvent: taskIds"),
        (TOPICS.assign, {"taskIds": []}, "taskIds is empty"),
        (TOPICS.assign, {"taskIds": [""]}, "not a task id"),
        (TOPICS.assign, {"taskIds": ["a\0b"]}, "not a task id"),
        (TOPICS.assign, {"taskIds": ["ü" * 257]}, "not a task id"),
        (TOPICS.assign, {"taskIds": ["t"], "action": "explode"}, "not a TaskEvent: action"),
        (TOPICS.assign, {"taskIds": ["t"], "recipient": "x" * 600}, "recipient has 600 characters"),
        (
            TOPICS.assign,
            {"taskIds": ["t"], "tasks": [{"id": "u", "className": "C", "source": ""}]},
            "tasks describes 'u'",
        ),
        (TOPICS.update, {"taskIds": ["t"]}, "attachments is missing"),
        (TOPICS.update, {"key": 1}, "neither taskIds nor attachments"),
        (TOPICS.update, {"taskIds": ["t"], "attachments": [1]}, "attachments must be an object, not an array"),
        (TOPICS.report, {"kind": "Running"}, "a report without task_id"),
        (TOPICS.report, {"kind": "Odd", "task_id": "t"}, "not a Odd report: ValueError: unknown kind"),
        (TOPICS.report, {"kind": ["x"], "task_id": "t"}, "not a an array report"),
        (TOPICS.report, {"kind": "Running", "task_id": "t"}, "not a Running report: KeyError: 'version'"),
    ],
)
def test_what_cant_be_understood_says_why(topic: str, doc: Any, reason: str) -> None:
    assert refused(topic, doc).startswith(reason)


def test_limits_name_the_setting_that_moves_them() -> None:
    limits = Limits(record_bytes=100, ids_per_event=2, attachments_bytes=10)
    assert "SKALDS_MAX_RECORD_BYTES" in refused(TOPICS.assign, {"taskIds": ["x" * 100]}, limits)
    assert "SKALDS_MAX_IDS_PER_EVENT" in refused(TOPICS.assign, {"taskIds": ["a", "b", "c"]}, limits)
    assert "SKALDS_MAX_ATTACHMENTS_BYTES" in refused(
        TOPICS.update, {"taskIds": ["a"], "attachments": {"x": "y" * 9}}, limits
    )


def test_parameters_times_tasks_have_a_limit() -> None:
    """1 MB that names 10,000 tasks would become gigabytes of rows."""
    doc = {"taskIds": [f"t{n}" for n in range(10_000)], "attachments": {"a": "x" * 2_000}}
    assert "10000 ids times 2008 bytes" in refused(TOPICS.update, doc)


def test_the_reason_of_an_event_is_cut() -> None:
    assert len(understood(TOPICS.cancel, {"taskIds": ["t"], "reason": "x" * 9_000}).cause.reason) == 2_048


# -- what can be read, but not written


@pytest.mark.parametrize("depth", [251, 254, 300, 900])
def test_parameters_nested_too_deep_are_refused(depth: int) -> None:
    """They can be read; writing the row would fail, for ever, at the head of the partition."""
    assert "nested too deep" in refused(TOPICS.update, {"taskIds": ["t"], "attachments": _raw(depth)})


def _raw(depth: int) -> Any:
    return orjson.Fragment(b'{"a":' * depth + b"1" + b"}" * depth)


def test_parameters_that_are_taken_fit_into_every_document() -> None:
    attachments = nested(250)
    event = understood(TOPICS.update, {"taskIds": ["t"], "attachments": _raw(250)})
    assert event.attachments == attachments
    row = Row("t", attachments=attachments, unanswered={"1": attachments})
    assert decode_row(encode_row(row)) == row
    assert orjson.dumps(history_doc(row, words=(), digest_key=b""))
    parsed = parse(record(MANY.update, {"taskIds": ["u"], "attachments": _raw(250)}, partition=_not(0)), MANY, Limits())
    assert orjson.dumps(parsed.forwards[0][1])


def _not(partition: int) -> int:
    return next(n for n in range(6) if n != partition_of("u", 6) and n != partition)


@pytest.mark.parametrize("field", ["weight", "maxRestarts", "deadlineDateTime"])
@pytest.mark.parametrize("value", ["9" * 30, 2**63, 1e18])
def test_numbers_that_a_row_cant_hold_are_refused(field: str, value: Any) -> None:
    task = {"id": "t", "className": "C", "source": "s", field: value}
    assert refused(TOPICS.assign, {"taskIds": ["t"], "tasks": [task]}).startswith("tasks[0]")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("className", "x" * 600),
        ("executor", "x" * 600),
        ("requires", {f"l{n}": "x" for n in range(65)}),
        ("requires", {"l": "x" * 600}),
    ],
)
def test_names_and_labels_have_limits(field: str, value: Any) -> None:
    task = {"id": "t", "className": "C", "source": "s", field: value}
    assert refused(TOPICS.assign, {"taskIds": ["t"], "tasks": [task]}).startswith("tasks[0]: ")


# -- reports

RUN = {"task_id": "t", "epoch": 3, "incarnation": "a1"}


@pytest.mark.parametrize(
    ("doc", "event"),
    [
        ({"kind": "Running", "version": 2}, events.Running("t", Cause("", "", 0, 0, 0), 3, "a1", version=2)),
        ({"kind": "Applied", "version": 2}, events.Applied("t", Cause("", "", 0, 0, 0), 3, "a1", version=2)),
        (
            {"kind": "Refused", "version": 2, "error": {"field": "fps"}},
            events.Refused("t", Cause("", "", 0, 0, 0), 3, "a1", version=2, error={"field": "fps"}),
        ),
        (
            {"kind": "Stopped", "steps": ["a", "b"]},
            events.Stopped("t", Cause("", "", 0, 0, 0), 3, "a1", steps=("a", "b")),
        ),
        (
            {"kind": "Finished", "steps": ["SIGKILL: alive 2 s after its last frame"]},
            events.Finished("t", Cause("", "", 0, 0, 0), 3, "a1", steps=("SIGKILL: alive 2 s after its last frame",)),
        ),
        (
            {"kind": "Failed", "steps": ["a"]},
            events.Failed("t", Cause("", "", 0, 0, 0), 3, "a1", steps=("a",)),
        ),
        (
            {"kind": "Stopped", "elsewhere": True},
            events.Stopped("t", Cause("", "", 0, 0, 0), 3, "a1", elsewhere=True),
        ),
        ({"kind": "Finished"}, events.Finished("t", Cause("", "", 0, 0, 0), 3, "a1")),
        (
            {"kind": "Failed", "error": None, "retryable": False},
            events.Failed("t", Cause("", "", 0, 0, 0), 3, "a1", retryable=False),
        ),
        ({"kind": "Lost"}, events.Lost("t", Cause("", "", 0, 0, 0), 3, "a1")),
        ({"kind": "Retry", "attempt": 2}, events.Retry("t", Cause("", "", 0, 0, 0), 3, 2)),
    ],
)
def test_reports(doc: dict[str, Any], event: Any) -> None:
    cause = Cause(doc["kind"], TOPICS.report, 0, 9, 1_234)
    assert understood(TOPICS.report, {**RUN, **doc}) == replace(event, cause=cause)


def test_a_report_in_a_foreign_partition_is_refused() -> None:
    with pytest.raises(WireError, match=f"belongs into partition {partition_of('t', 6)}"):
        parse(record(MANY.report, {**RUN, "kind": "Lost"}, partition=(partition_of("t", 6) + 1) % 6), MANY, Limits())


@pytest.mark.parametrize("value", ["3", 3.0, True, None, MAX_INTEGER + 1, [3]])
def test_an_epoch_is_a_whole_number(value: Any) -> None:
    assert refused(TOPICS.report, {**RUN, "kind": "Lost", "epoch": value}).startswith("not a Lost report: ValueError")


@pytest.mark.parametrize("error", [{"message": "x" * 100_000, "type": "E"}, _raw(400)])
def test_too_large_an_error_is_cut_because_the_end_of_a_run_must_be_heard(error: Any) -> None:
    event = understood(TOPICS.report, {**RUN, "kind": "Failed", "error": error})
    assert len(orjson.dumps(event.error)) < MAX_ERROR_BYTES
    assert event.error["traceback"] == []


# -- forwarded commands


def forwarded(topic: str, doc: dict[str, Any], task_id: str = "u") -> tuple[Parsed, dict[str, Any]]:
    """Send a command to the wrong partition, and its copy to the right one."""
    wrong = (partition_of(task_id, 6) + 1) % 6
    ((to, copy),) = parse(record(topic, doc, partition=wrong), MANY, Limits()).forwards
    assert to == task_id
    right = partition_of(task_id, 6)
    return parse(record(MANY.report, copy, partition=right), MANY, Limits()), copy


def direct(topic: str, doc: dict[str, Any], task_id: str = "u") -> Any:
    (event,) = parse(record(topic, doc, partition=partition_of(task_id, 6)), MANY, Limits()).events
    return event


@pytest.mark.parametrize(
    ("topic", "doc"),
    [
        (MANY.assign, {"taskIds": ["u"], "reason": "why", "recipient": "a", "action": "move"}),
        (MANY.assign, {"taskIds": ["u"], "action": "move", "to": "b"}),
        (
            MANY.assign,
            {"taskIds": ["u"], "tasks": [{"id": "u", "className": "C", "source": "s", "attachments": {"a": 1}}]},
        ),
        (
            MANY.assign,
            {"taskIds": ["u"], "tasks": [{"id": "u", "className": "C", "source": "s", "requires": {"g": "y"}}]},
        ),
        (MANY.cancel, {"taskIds": ["u"]}),
        (MANY.update, {"taskIds": ["u"], "attachments": {"a": None}, "merge": True}),
    ],
)
def test_a_forwarded_command_is_the_direct_one_with_an_origin(topic: str, doc: dict[str, Any]) -> None:
    parsed, copy = forwarded(topic, doc)
    (event,) = parsed.events
    assert isinstance(event, events.Command)
    assert (event.origin, event.origin_offset) == (f"{topic}/{copy['cause']['partition']}", 9)
    expected = direct(topic, doc)
    assert event.cause.topic == MANY.report
    assert replace(event, origin=None, origin_offset=-1, cause=expected.cause) == expected
    assert (event.cause.at_ms, event.cause.reason, event.cause.kind) == (
        *(expected.cause.at_ms, expected.cause.reason, expected.cause.kind),
    )


_CAUSE = {"kind": "Update", "topic": TOPICS.update, "partition": 0, "offset": 1, "at_ms": 5, "reason": None}
_UPDATE = {"kind": "Forwarded", "task_id": "t", "command": "Update", "cause": _CAUSE, "attachments": {}}
_ASSIGN = {**_UPDATE, "command": "Assign", "cause": {**_CAUSE, "topic": TOPICS.assign}}


@pytest.mark.parametrize(
    "doc",
    [
        {**_UPDATE, "attachments": None},
        {**_UPDATE, "attachments": [1]},
        {**_UPDATE, "command": "Explode"},
        {**_UPDATE, "command": ["Update"]},
        {**_UPDATE, "cause": None},
        {**_UPDATE, "cause": {**_CAUSE, "topic": "elsewhere"}},
        {**_UPDATE, "cause": {**_CAUSE, "topic": TOPICS.assign}},
        {**_UPDATE, "cause": {**_CAUSE, "partition": 1}},
        {**_UPDATE, "cause": {**_CAUSE, "at_ms": 2**60}},
        {**_UPDATE, "cause": {**_CAUSE, "offset": "1"}},
        {**_ASSIGN, "spec": {"weight": "x"}},
        {**_ASSIGN, "spec": {"weight": 0}},
        {**_ASSIGN, "spec": {"class_name": 3}},
        {**_ASSIGN, "spec": {"requires": ["gpu"]}},
        {**_ASSIGN, "spec": {"requires": {"gpu": 1}}},
        {**_ASSIGN, "spec": {"attachments": [1]}},
        {**_ASSIGN, "spec": "x"},
        {**_ASSIGN, "recipient": 7},
        {**_ASSIGN, "action": ["pause"]},
    ],
)
def test_a_copy_that_is_not_as_we_write_them_is_refused(doc: dict[str, Any]) -> None:
    assert parse(record(TOPICS.report, _UPDATE), TOPICS, Limits()).events
    assert parse(record(TOPICS.report, _ASSIGN), TOPICS, Limits()).events
    refused(TOPICS.report, doc)


# -- rows, positions, history

ROW = Row(
    "t",
    class_name="Cam",
    holder=Holder("a", "a1", 3),
    epoch=3,
    revision=7,
    wanted=Wanted.RUN,
    status=Status.RUNNING,
    attachments={"password": "s3cret", "url": "rtsp://me:s3cret@cam/1", "deep": [{"api_key": "s3cret"}]},
    unanswered={"1": {"password": "s3cret"}},
    error={"message": "can't reach rtsp://me:s3cret@cam/1"},
    refused={"error": {"message": "http://me:s3cret@x"}},
    why=Cause("Update", TOPICS.update, 0, 1, 2, "see https://me:s3cret@wiki/page"),
)


def test_no_secret_of_a_row_is_in_its_history() -> None:
    text = orjson.dumps(history_doc(ROW, words={"password", "apikey"}, digest_key=b"k"))
    assert b"s3cret" not in text
    assert b"***" in text


def test_a_row_of_a_version_that_had_fewer_fields_is_read_with_the_defaults() -> None:
    doc = ROW.to_doc()
    assert Row.from_doc(doc) == ROW
    for name in set(doc) - {"v", "task_id"}:
        older = {key: value for key, value in doc.items() if key != name}
        assert Row.from_doc(older) == replace(ROW, **{name: getattr(Row("t"), name)})
    with pytest.raises(ValueError, match="without task_id"):
        Row.from_doc({key: value for key, value in doc.items() if key != "task_id"})
    with pytest.raises(ValueError, match="'Lost' is not a valid Status"):
        Row.from_doc({**doc, "status": "Lost"})


def test_no_field_that_a_class_declares_as_secret_is_in_the_history() -> None:
    row = Row(
        "t",
        class_name="Cam",
        attachments={"login": {"pin": "canary-1"}, "fps": 3},
        error={"type": "ValueError", "message": "canary-1 is no pin", "traceback": ["  check('canary-1')"]},
        refused={"version": 2, "error": {"message": "not canary-1"}},
        why=Cause("Update", TOPICS.update, 0, 1, 2, "the pin is canary-1 now"),
    )
    doc = history_doc(row, words=(), paths=("login.pin",), digest_key=b"k")
    assert b"canary" not in orjson.dumps(doc)
    assert doc["attachments_masked"] == {"login": {"pin": "***"}, "fps": 3}
    assert doc["error"]["message"] == "*** is no pin"
    assert doc["attachments_digest"] == digest(row.attachments, b"k"), "of the real ones"


def test_history_has_a_digest_that_needs_the_key() -> None:
    doc = history_doc(ROW, words=(), digest_key=b"k")
    assert doc["attachments_digest"] == digest(ROW.attachments, b"k") != digest(ROW.attachments, b"other")
    assert digest({"a": 1, "b": 2}, b"k") == digest({"b": 2, "a": 1}, b"k")
    assert digest(None, b"k") is None


@pytest.mark.parametrize(
    "value",
    [
        b"{",
        b"[]",
        b"3",
        b"{}",
        b'{"v":2,"task_id":"t"}',
        b'{"v":1}',
        b'{"v":1,"task_id":"t","holder":{"x":1}}',
        b"\xff",
    ],
)
def test_what_is_no_row_of_ours_is_refused(value: bytes) -> None:
    with pytest.raises(WireError, match="not an ownership row"):
        decode_row(value)


def test_unknown_fields_of_a_row_are_ignored() -> None:
    doc = {**ROW.to_doc(), "later": 1}
    assert decode_row(orjson.dumps(doc)) == ROW


@pytest.mark.parametrize("value", [b"{", b"[]", b"{}", b'{"v":2,"positions":{}}', b'{"v":1,"positions":[]}'])
def test_what_is_no_positions_record_is_refused(value: bytes) -> None:
    with pytest.raises(WireError, match="positions"):
        decode_positions(value)


def test_positions() -> None:
    assert decode_positions(b'{"v":1,"positions":{"a":3},"epoch_floor":1,"revision_floor":2}') == Positions(
        {"a": 3}, 1, 2
    )
