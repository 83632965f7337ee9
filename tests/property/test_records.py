"""Whatever bytes come in: they are understood or refused with a reason, and no record stops its partition."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from hypothesis import assume, given
from hypothesis import strategies as st

from skalds_streams.coordinator.batch import Staged, Stager, advanced, outputs
from skalds_streams.core.invariants import check_row
from skalds_streams.core.membership import Members
from skalds_streams.core.placement import Load
from skalds_streams.core.row import Row
from skalds_streams.errors import WireError
from skalds_streams.model.changelog import ChangelogState
from skalds_streams.model.codec import Parsed, parse
from skalds_streams.model.documents import Positions
from skalds_streams.model.record import Record
from tests.fuzz.wire import placeless
from tests.property.world import HERE, LIMITS, LIVES, SECRECY, THERE, TOPICS, World, lived, paths

PARTITION = 0

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
    (TOPICS.report, {**RUN, "kind": "Found", "task": {"id": "t", "className": "Cam", "source": "YAML"}}),
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


@st.composite
def odd_documents(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid document, up to two of its values replaced by something else."""
    topic, doc = draw(st.sampled_from(VALID))
    doc = json.loads(json.dumps(doc))
    for _ in range(draw(st.integers(0, 2))):
        *way, last = draw(st.sampled_from(paths(doc)))
        inner: Any = doc
        for step in way:
            inner = inner[step]
        if draw(st.booleans()) or not isinstance(inner, dict):
            inner[last] = draw(JUNK)
        else:
            del inner[last]
        if not paths(doc):
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


STREAMS = st.lists(ANYTHING, max_size=6)


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


def refused(world: World) -> list[bytes]:
    """The reasons of its dead letters."""
    letters = (item for number in (0, 1) for item in world.written.get((TOPICS.deadletter, number), ()))
    return [dict(item.headers)["reason"] for item in letters]


@given(LIVES)
def test_whatever_parses_is_decided_without_raising(data: bytes) -> None:
    """What decide raises would be the dead letter's reason, and what parse raises, if it is no WireError."""
    world = lived(data)
    assert not [reason for reason in refused(world) if reason.startswith(b"internal error")]
    for row in world.rows.values():
        check_row(row)
    for (topic, number), log in world.inputs.items():
        assert world.positions[number].offsets[topic] == len(log) - 1


@given(LIVES, st.integers(0, 255), st.integers(0, 255))
def test_redelivery_changes_nothing_wherever_the_batches_are_cut(data: bytes, cut: int, back: int) -> None:
    """Every batch comes in two parts, and each part begins with records that came before."""
    world, again = lived(data), World()
    came: dict[int, list[Record]] = {0: [], 1: []}
    for batch in world.batches:
        middle = cut % (len(batch.records) + 1)
        for part in (batch.records[:middle], batch.records[middle:]):
            former = came[batch.partition][-(back % 16) :] if back % 16 else []
            staged = again.feed(batch.partition, [*former, *part], batch.now_ms)
            assert staged.skipped == len(former)
            came[batch.partition] += part
    assert again.outcome() == world.outcome()
    for number, records in came.items():
        staged = again.feed(number, records, world.now_ms + 1)
        assert (staged.is_empty, staged.skipped) == (True, len(records))
    assert again.outcome() == world.outcome()


COMMANDS_OF_MANY: Sequence[tuple[str, Mapping[str, Any]]] = (
    (TOPICS.assign, {"reason": "r"}),
    (TOPICS.assign, {"tasks": [{"id": THERE[0], "className": "Cam", "source": "s", "attachments": {"fps": 7}}]}),
    (TOPICS.assign, {"action": "restart", "recipient": "a"}),
    (TOPICS.assign, {"action": "pause"}),
    (TOPICS.cancel, {}),
    (TOPICS.update, {"attachments": {"fps": 9, "u": None}}),
    (TOPICS.update, {"attachments": {"fps": 9, "u": None}, "merge": True}),
)


def _sent(world: World, topic: str, doc: Mapping[str, Any], *places: tuple[int, Sequence[str]]) -> dict[str, Row]:
    """The rows after a command for these ids in these partitions, without what says where it came from."""
    world.now_ms += 1_000
    for partition, ids in places:
        tasks = [task for task in doc.get("tasks", ()) if task["id"] in ids]
        value = orjson.dumps({**doc, "taskIds": ids, "tasks": tasks})
        world.put(topic, partition, b"k", value, world.now_ms)
    world.decide()
    return {name: placeless(row) for name, row in world.rows.items()}


@given(LIVES, st.sampled_from(COMMANDS_OF_MANY), st.booleans())
def test_an_id_that_is_forwarded_ends_as_if_sent_to_its_own_partition(
    data: bytes, command: tuple[str, Mapping[str, Any]], with_another: bool
) -> None:
    """Whole records, through the report topic; what came before has been through it, too."""
    ids = [HERE[0]] if with_another else []
    world = lived(data)
    offset = len(world.inputs.get((command[0], 0), ()))
    row = world.rows.get(THERE[0])
    assume(row is None or row.forwarded.get(f"{command[0]}/0", -1) < offset)  # no odd copy has claimed its place
    forwarded = _sent(world, *command, (0, [*ids, THERE[0]]))
    apart = [(0, ids)] if ids else []
    direct = _sent(lived(data), *command, *apart, (1, THERE[:1]))
    assert THERE[0] in direct
    assert forwarded == direct
