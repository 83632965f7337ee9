"""Whatever bytes come in: they are understood or refused with a reason, and no record stops its partition."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from skalds_streams.coordinator.batch import Secrecy, Staged, Stager, advanced, outputs
from skalds_streams.core.invariants import check_row
from skalds_streams.core.membership import Members
from skalds_streams.core.placement import Load
from skalds_streams.core.row import Row
from skalds_streams.errors import WireError
from skalds_streams.model.changelog import ChangelogState
from skalds_streams.model.codec import Limits, Parsed, parse
from skalds_streams.model.documents import Positions
from skalds_streams.model.record import Record
from skalds_streams.topics import Topics

TOPICS = Topics.named(app="x", partitions=2)
PARTITION = 0
LIMITS = Limits(record_bytes=5_000, ids_per_event=5, attachments_bytes=500, fan_out_bytes=1_000)
SECRECY = Secrecy(frozenset({"password"}), b"k")

TASK = {"id": "t", "className": "Cam", "source": "s", "attachments": {"fps": 1, "password": "p"}, "weight": 2}
RUN = {"task_id": "t", "epoch": 1, "incarnation": "a1"}
CAUSE = {"kind": "Assign", "topic": TOPICS.assign, "partition": 1, "offset": 4, "at_ms": 900, "reason": None}
VALID: Sequence[tuple[str, Mapping[str, Any]]] = (
    (TOPICS.assign, {"taskIds": ["t", "u", "v", "w"], "tasks": [TASK], "reason": "r"}),
    (TOPICS.assign, {"task_ids": ["t"], "tasks": [TASK], "action": "restart", "recipient": "a"}),
    (TOPICS.assign, {"taskIds": ["t"], "action": "pause"}),
    (TOPICS.cancel, {"taskIds": ["t", "u"]}),
    (TOPICS.update, {"taskIds": ["t"], "attachments": {"fps": 2}, "merge": True}),
    (TOPICS.update, {"attachments": {"fps": 3}}),
    (TOPICS.report, {**RUN, "kind": "Running", "version": 1}),
    (TOPICS.report, {**RUN, "kind": "Applied", "version": 2}),
    (TOPICS.report, {**RUN, "kind": "Refused", "version": 3, "error": {"message": "no"}}),
    (TOPICS.report, {**RUN, "kind": "Stopped", "steps": ["SIGTERM after 5 s"]}),
    (TOPICS.report, {**RUN, "kind": "Failed", "error": {"type": "E"}, "retryable": True}),
    (TOPICS.report, {**RUN, "kind": "Finished"}),
    (TOPICS.report, {**RUN, "kind": "Lost"}),
    (TOPICS.report, {**RUN, "kind": "Retry", "attempt": 0}),
    (TOPICS.report, {**RUN, "kind": "Deadline", "deadline_at_ms": 5}),
    (TOPICS.report, {**RUN, "kind": "Expired", "revision": 3}),
    (TOPICS.report, {"kind": "Forwarded", "task_id": "t", "command": "Assign", "cause": CAUSE, "spec": {"weight": 1}}),
    (
        TOPICS.report,
        {
            "kind": "Forwarded",
            "task_id": "t",
            "command": "Update",
            "attachments": {"a": 1},
            "cause": {**CAUSE, "topic": TOPICS.update},
        },
    ),
)
JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["t", "u", "x" * 700, "\ud800", "a\0", 2**63, 1e300, "Running", TOPICS.assign]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        found += [item for key in value for item in _paths(value[key], (*path, key))]
    elif isinstance(value, list):
        found += [item for at in range(len(value)) for item in _paths(value[at], (*path, at))]
    return found


@st.composite
def odd_documents(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid document, up to two of its values replaced by something else."""
    topic, doc = draw(st.sampled_from(VALID))
    doc = json.loads(json.dumps(doc))
    for _ in range(draw(st.integers(0, 2))):
        *way, last = draw(st.sampled_from(_paths(doc)))
        inner: Any = doc
        for step in way:
            inner = inner[step]
        if draw(st.booleans()) or not isinstance(inner, dict):
            inner[last] = draw(JUNK)
        else:
            del inner[last]
        if not _paths(doc):
            break
    topic = draw(st.sampled_from([topic, topic, topic, *TOPICS.inputs]))
    return topic, json.dumps(doc).encode()  # unlike orjson it also writes NaN, huge numbers and lone surrogates


NESTED = st.integers(200, 1_200).map(
    lambda depth: b'{"taskIds":["t"],"attachments":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
)
ANYTHING = st.one_of(
    odd_documents(),
    st.tuples(st.sampled_from(TOPICS.inputs), st.binary(max_size=60)),
    st.tuples(st.sampled_from(TOPICS.inputs), JUNK.map(lambda value: json.dumps(value).encode())),
    st.tuples(st.just(TOPICS.update), NESTED),
)
KEYS = st.sampled_from([b"t", None, b"", b"\xff", b"k"])


def understood(record: Record) -> Parsed | str:
    """What it says, or why it is refused."""
    try:
        return parse(record, TOPICS, LIMITS)
    except WireError as error:
        return str(error)


@given(ANYTHING, KEYS, st.integers(-1, 2**62))
def test_the_parser_raises_nothing_but_a_wire_error(item: tuple[str, bytes], key: bytes | None, at_ms: int) -> None:
    topic, value = item
    for partition in range(TOPICS.partitions):
        answer = understood(Record(topic, partition, 3, key, value, at_ms))
        if isinstance(answer, str):
            assert 0 < len(answer) < 2_000
        else:
            assert answer.events or answer.forwards


class Partition:
    """A partition without a broker, with one skald that has room for everything."""

    def __init__(self) -> None:
        self.state = ChangelogState()
        self.positions = Positions({})
        self.members = Members()
        self.members.apply({"skald_id": "a", "incarnation": "a1", "classes": {"Cam": ""}, "capacity": 10**6}, 0)

    @property
    def rows(self) -> Mapping[str, Row]:
        return self.state.rows

    def feed(self, records: Sequence[Record]) -> Staged:
        stager = Stager(
            self.rows,
            self.positions,
            topics=TOPICS,
            members=self.members,
            load=Load(),
            limits=LIMITS,
            now_ms=10_000,
        )
        staged = stager.add(records)
        self.positions = advanced(self.positions, staged)
        for output in outputs(staged, self.positions, TOPICS, SECRECY):
            if output.topic == TOPICS.changelog:
                self.state.apply(PARTITION, output.key, output.value)
            elif output.topic == TOPICS.history:
                orjson.loads(output.value or b"")
        return staged


def _records(items: Sequence[tuple[str, bytes]]) -> list[Record]:
    return [Record(topic, PARTITION, at, b"t", value, 1_000 + at) for at, (topic, value) in enumerate(items)]


STREAMS = st.lists(ANYTHING, max_size=12)


@given(STREAMS)
def test_no_record_stops_its_partition(items: list[tuple[str, bytes]]) -> None:
    partition = Partition()
    for record in _records(items):
        staged = partition.feed([record])
        assert staged.offsets == {record.topic: record.offset}
        for letter in staged.deadletters:
            reason = dict(letter.headers)["reason"]
            assert not reason.startswith(b"internal error"), reason
            assert letter.value == record.value
    for row in partition.rows.values():
        check_row(row)


@given(STREAMS, st.integers(0, 12))
def test_redelivery_changes_nothing_wherever_the_batches_are_cut(items: list[tuple[str, bytes]], cut: int) -> None:
    records = _records(items)
    at_once, in_two = Partition(), Partition()
    at_once.feed(records)
    in_two.feed(records[:cut])
    in_two.feed(records)
    rows, positions = dict(in_two.rows), in_two.positions
    again = in_two.feed(records)
    assert (again.is_empty, again.skipped) == (True, len(records))
    assert (dict(in_two.rows), in_two.positions) == (rows, positions)
    assert dict(at_once.rows) == rows
    assert at_once.positions == positions
