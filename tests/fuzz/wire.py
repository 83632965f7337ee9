"""Any bytes as one input record: understood or refused by the codec, and decided, written down and read again.

The first byte says topic, partition and key, the second which row the record meets, the rest is the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import orjson

from skalds_streams.core import events
from skalds_streams.core.decide import Context, decide
from skalds_streams.core.invariants import check_row, check_step
from skalds_streams.core.membership import Members
from skalds_streams.core.partition import partition_of
from skalds_streams.core.placement import Choice, Load, choose
from skalds_streams.core.row import NO_CAUSE, Control, Holder, Release, Row, Status, Wanted
from skalds_streams.errors import WireError
from skalds_streams.model.codec import Limits, Parsed, parse
from skalds_streams.model.documents import decode_row, encode_row, history_doc
from skalds_streams.model.record import Record
from skalds_streams.topics import Topics

TOPICS = Topics.named(app="fuzz", partitions=2)
LIMITS = Limits(record_bytes=32_000, ids_per_event=8, attachments_bytes=1_000, fan_out_bytes=2_000)
"""A copy for another partition is a little longer than the event, so records have room beyond MOST_BYTES."""
MOST_BYTES = 4_096
REASON_MOST = 8_000
NOW_MS = 1_795_528_037_269
KEYS = (b"task_123", None, b"", b"\xff\xfe")

_RUN = Holder("a", "a1", 1)
_HELD = Row(
    "t",
    class_name="Cam",
    wanted=Wanted.RUN,
    holder=_RUN,
    epoch=1,
    revision=1,
    status=Status.ASSIGNING,
    attachments={"fps": 1},
    attachments_version=1,
    assign_at_ms=NOW_MS - 9_000,
    update_at_ms=NOW_MS - 9_000,
)
_RUNS = replace(_HELD, status=Status.RUNNING, revision=2, applied_version=1, running_since_ms=NOW_MS - 8_000)
_FREE = replace(_HELD, holder=None, last_skald="a")
ROWS: Sequence[Row | None] = (
    None,
    _HELD,
    _RUNS,
    replace(_RUNS, attachments={"fps": 2}, attachments_version=2, unanswered={"1": {"fps": 1}}),
    replace(_RUNS, wanted=Wanted.CANCEL, cancel_at_ms=NOW_MS - 7_000),
    replace(_RUNS, wanted=Wanted.PAUSE),
    replace(_RUNS, release=Release.RESTART, deadline_at_ms=NOW_MS - 1),
    replace(_RUNS, release=Release.MOVE, recipient="b", max_restarts=0),
    replace(_FREE, waiting={"a": "full 8/8"}, requires={"gpu": "yes"}),
    replace(_FREE, attempt=3, retry_at_ms=NOW_MS + 500, error={"type": "E"}),
    replace(_FREE, status=Status.PAUSED, wanted=Wanted.PAUSE),
    replace(_FREE, status=Status.FINISHED),
    replace(_FREE, status=Status.FAILED, attempt=1),
    replace(_FREE, status=Status.CANCELLED, wanted=Wanted.CANCEL, cancel_at_ms=NOW_MS + 5),
    Row("t", revision=1, cancel_at_ms=NOW_MS - 5),
    Row("t", revision=1, attachments={}, update_at_ms=NOW_MS, forwarded={f"{TOPICS.assign}/1": 3}),
)
"""A task in every state that a record can meet."""


def _members() -> Members:
    found = Members()
    found.apply({"skald_id": "a", "incarnation": "a1", "classes": {"Cam": ""}, "capacity": 10**6}, 0)
    found.apply({"skald_id": "b", "incarnation": "b1", "classes": {"Feed": ""}, "labels": {"gpu": "yes"}}, 1)
    return found


_MEMBERS = _members()


def _choose(row: Row) -> Choice:
    return choose(row, _MEMBERS, Load())


_CONTEXT = Context(NOW_MS, _choose, epoch_floor=1, revision_floor=1)


def check(data: bytes) -> Parsed | None:
    """What the record says, None when it is refused. Raises whatever should never be raised."""
    if len(data) < 2:
        return None
    topic, partition, key = TOPICS.inputs[data[0] & 3], data[0] >> 2 & 1, KEYS[data[0] >> 3 & 3]
    record = Record(topic, partition, 40, key, data[2:], NOW_MS)
    row = ROWS[data[1] % len(ROWS)]
    try:
        parsed = parse(record, TOPICS, LIMITS)
    except WireError as error:
        _check_reason(str(error))
        return None
    assert parsed.events or parsed.forwards
    for event in parsed.events:
        _decided(row, event)
    if parsed.forwards:
        _check_copies(record, parsed, row)
    return parsed


def _check_reason(reason: str) -> None:
    """Something that a person can read."""
    assert 0 < len(reason) < REASON_MOST, reason


def _decided(row: Row | None, event: events.Event) -> Row | None:
    """The row after the event. It is sound, and the same after dump and load; the event can come once more."""
    before = replace(row, task_id=event.task_id) if row is not None else None
    decision = decide(before, event, _CONTEXT)
    after = decision.row
    if after is None:
        assert decision.ignored
        return None
    check_step(before, after)
    assert decode_row(encode_row(after)) == after
    orjson.dumps(history_doc(after, words=frozenset({"password"}), digest_key=b"k"))
    again = decide(after, event, _CONTEXT).row
    if again is not None:
        check_step(after, again)
    return after


def _check_copies(record: Record, parsed: Parsed, row: Row | None) -> None:
    """What is handed to another partition is understood there, and ends as the record would have ended there."""
    there = parse(replace(record, partition=1 - record.partition), TOPICS, LIMITS)
    direct = {event.task_id: event for event in there.events}
    assert set(direct) == {task_id for task_id, _ in parsed.forwards}
    for task_id, doc in parsed.forwards:
        number = partition_of(task_id, TOPICS.partitions)
        copy = Record(TOPICS.report, number, 41, task_id.encode(), orjson.dumps(doc), NOW_MS)
        (event,) = parse(copy, TOPICS, LIMITS).events
        copied, told = _decided(row, event), _decided(row, direct[task_id])
        assert (copied and placeless(copied)) == (told and placeless(told))


def placeless(row: Row) -> Row:
    """Without what says where it came from. A copy always changes its row, so it is never noted as "already so"."""
    controls = {name: _placeless_control(control) for name, control in row.controls.items()}
    return replace(row, forwarded={}, why=NO_CAUSE, note=None, controls=controls)


def _placeless_control(control: Control) -> Control:
    by = control.superseded_by
    by = replace(by, topic="", partition=0, offset=0) if by is not None else None
    return replace(control, topic="", partition=0, offset=0, superseded_by=by)


for _row in ROWS:
    if _row is not None:
        check_row(_row)
