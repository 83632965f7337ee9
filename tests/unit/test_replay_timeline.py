"""Replay meets the live code: histories are written by coordinator.batch and rebuilt; tampering is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from skalds_streams.coordinator.batch import Output, Secrecy, Stager, advanced, outputs
from skalds_streams.core.membership import Members
from skalds_streams.core.partition import partition_of
from skalds_streams.core.placement import Load
from skalds_streams.core.row import Row, Status
from skalds_streams.model.changelog import ChangelogState
from skalds_streams.model.codec import Limits
from skalds_streams.model.documents import Positions
from skalds_streams.model.event import TaskEvent
from skalds_streams.model.record import Record
from skalds_streams.replay.compare import hides
from skalds_streams.replay.recording import Entry, Recording, merge_partitions, read_entry
from skalds_streams.replay.timeline import Step, Timeline
from skalds_streams.replay.verify import Verdict, Verifier
from skalds_streams.topics import Topics

SECRECY = Secrecy(frozenset({"password"}), b"key")
TOPICS = Topics.named(app="test", partitions=2)


class World:
    """A broker's topics in lists, and coordinators that decide batch by batch with the live code."""

    def __init__(self) -> None:
        self.members, self.now_ms, self.beats = Members(), 1_795_528_000_000, 0
        self.logs: dict[tuple[str, int], list[Record]] = {}
        self.positions = {number: Positions({}) for number in range(TOPICS.partitions)}
        self.state = ChangelogState()
        self.beat("a", "a1")

    def beat(self, skald_id: str, incarnation: str, **more: Any) -> None:
        doc = {"v": 1, "skald_id": skald_id, "incarnation": incarnation, "n": self.beats, "running": 0}
        self.members.apply({**doc, "classes": {"Cam": "x"}, "capacity": 8, "state": "up", **more}, self.beats)
        self.beats += 1

    def put(self, topic: str, task_id: str, value: bytes | None, *, partition: int | None = None) -> Record:
        number = partition_of(task_id, TOPICS.partitions) if partition is None else partition
        log = self.logs.setdefault((topic, number), [])
        record = Record(topic, number, len(log), task_id.encode(), value, self.now_ms)
        log.append(record)
        return record

    def command(self, topic: str, *ids: str, **fields: Any) -> None:
        event = TaskEvent(taskIds=list(ids), **fields)
        self.put(topic, ids[0], event.model_dump_json(by_alias=True).encode())
        self.decide()

    def assign(self, task_id: str, attachments: Any = None, **fields: Any) -> None:
        doc = {"id": task_id, "className": "Cam", "source": "test", "attachments": attachments}
        self.command(TOPICS.assign, task_id, tasks=[doc], **fields)

    def report(self, task_id: str, kind: str, **fields: Any) -> None:
        holder = self.state.rows[task_id].holder
        run = {"epoch": holder.epoch, "incarnation": holder.incarnation} if holder else {}
        doc = {"v": 1, "kind": kind, "task_id": task_id, **run, **fields}
        self.put(TOPICS.report, task_id, orjson.dumps(doc))
        self.decide()

    def decide(self) -> None:
        """Every partition takes what has come as one batch; forwards are delivered and decided, too."""
        self.now_ms += 10
        forwards: list[tuple[str, dict[str, Any]]] = []
        for number in range(TOPICS.partitions):
            pending = [
                record
                for topic in TOPICS.inputs
                for record in self.logs.get((topic, number), ())
                if record.offset > self.positions[number].offsets.get(topic, -1)
            ]
            forwards += self._batch(number, pending)
        for task_id, doc in forwards:
            self.put(TOPICS.report, task_id, orjson.dumps(doc))
        if forwards:
            self.decide()

    def _batch(self, number: int, records: list[Record]) -> list[tuple[str, dict[str, Any]]]:
        stager = Stager(
            self.state.rows,
            self.positions[number],
            topics=TOPICS,
            members=self.members,
            load=Load(),
            limits=Limits(),
            now_ms=self.now_ms,
        )
        staged = stager.add(records)
        self.positions[number] = advanced(self.positions[number], staged)
        for output in outputs(staged, self.positions[number], TOPICS, SECRECY):
            self._write(number, output)
        return staged.forwards

    def _write(self, number: int, output: Output) -> None:
        log = self.logs.setdefault((output.topic, number), [])
        log.append(Record(output.topic, number, len(log), output.key, output.value, self.now_ms))
        if output.topic == TOPICS.changelog:
            self.state.apply(number, output.key, output.value)

    def recording(self) -> Recording:
        by_partition: dict[int, list[Entry]] = {}
        for (topic, number), log in self.logs.items():
            if topic == TOPICS.history:
                entries = [read_entry(record) for record in log]
                by_partition[number] = [entry for entry in entries if entry is not None]
        inputs = {
            (record.topic, record.partition, record.offset): record
            for (topic, _), log in self.logs.items()
            for record in log
            if topic in TOPICS.inputs
        }
        ends = {number: len(entries) for number, entries in by_partition.items()}
        return Recording(
            merge_partitions(by_partition), inputs, dict(self.state.rows), {}, ends, inputs_read=len(inputs)
        )


def play(recording: Recording) -> tuple[list[Step], Verdict]:
    verifier = Verifier(recording, secrecy=SECRECY, history_topic=TOPICS.history)
    steps = list(Timeline(recording, topics=TOPICS, secrecy=SECRECY).steps())
    for step in steps:
        verifier.add(step)
    return steps, verifier.verdict()


def lived() -> World:
    """A task's life with a bit of everything."""
    world = World()
    world.assign("cam-1", {"fps": 30, "password": "hunter2"}, reason="first")
    world.report("cam-1", "Running", version=1)
    world.command(TOPICS.update, "cam-1", attachments={"fps": 10}, merge=True)
    world.report("cam-1", "Applied", version=2)
    world.command(TOPICS.update, "cam-1", attachments={"fps": -1, "password": "other"})
    world.report("cam-1", "Refused", version=3, error={"type": "ValueError", "message": "fps must be positive"})
    world.assign("cam-2", {"fps": 5}, recipient="b")
    world.report("cam-1", "Failed", error={"type": "RuntimeError", "message": "boom", "traceback": ["x"]})
    row = world.state.rows["cam-1"]
    world.report("cam-1", "Retry", epoch=row.epoch, attempt=row.attempt)
    world.beat("b", "b1")
    world.report("cam-2", "Retry", epoch=0, attempt=0)
    world.command(TOPICS.cancel, "cam-1", "cam-2", reason="night")
    world.report("cam-1", "Stopped", steps=["SIGTERM after 5 s"])
    world.report("cam-2", "Stopped")
    return world


def change_history(recording: Recording, task_id: str, revision: int, **fields: Any) -> Recording:
    history = [
        replace(entry, row=replace(entry.row, **fields))
        if (entry.task_id, entry.row.revision) == (task_id, revision)
        else entry
        for entry in recording.history
    ]
    return replace(recording, history=history)


def fields_of(verdict: Verdict) -> list[tuple[str, str, str]]:
    return [(f.task_id, f.where.split(" (")[0], d.field) for f in verdict.findings for d in f.differences]


def test_what_was_lived_is_rebuilt() -> None:
    world = lived()
    steps, verdict = play(world.recording())
    assert verdict.sentence == f"verified: 2 tasks, {len(steps)} decisions, 0 differ"
    assert all(step.was_decided for step in steps)
    rebuilt = {step.entry.task_id: step.after.row for step in steps}
    assert rebuilt == world.state.rows
    assert rebuilt["cam-1"].status is Status.CANCELLED


def test_what_a_class_said_at_a_placement_is_in_the_records_and_decides_the_crash() -> None:
    world = World()
    world.beat("a", "a1", options={"Cam": {"weight": 2, "max_restarts": 1, "backoff_first_ms": 30_000}})
    world.assign("cam-1", {})
    world.beat("a", "a1", options={})  # its next process has another version; the heartbeats are not kept for replay
    world.report("cam-1", "Failed", error={"type": "RuntimeError"})
    row = world.state.rows["cam-1"]
    assert 27_000 <= row.retry_at_ms - world.now_ms <= 33_000
    world.report("cam-1", "Retry", epoch=row.epoch, attempt=row.attempt)
    assert world.state.rows["cam-1"].of_class is None
    steps, verdict = play(world.recording())
    assert verdict.sentence == "verified: 1 task, 3 decisions, 0 differ"
    assert [step.after.row.units for step in steps] == [2, 2, 1]
    _, verdict = play(change_history(world.recording(), "cam-1", 2, of_class={"backoff_first_ms": 1_000}))
    assert ("cam-1", "revision 2", "of_class.weight") in fields_of(verdict)


def test_what_a_catalogue_has_said_is_a_record_like_others() -> None:
    world = World()
    world.command(TOPICS.assign, "t")
    world.report("t", "Found", task={"id": "t", "className": "Cam", "source": "YAML", "attachments": {"fps": 3}})
    assert world.state.rows["t"].attachments == {"fps": 3}
    steps, verdict = play(world.recording())
    assert (len(steps), verdict.is_verified) == (2, True)
    assert steps[-1].after.row == world.state.rows["t"]
    later = world.recording()
    steps, verdict = play(replace(later, history=later.history[1:]))
    assert verdict.is_verified


def test_forwarded_commands_are_found_at_their_reports() -> None:
    world = World()
    ids = [f"t{number}" for number in range(8)]
    world.command(
        TOPICS.assign,
        *ids,
        tasks=[{"id": name, "className": "Cam", "source": "test", "attachments": {"n": name}} for name in ids],
    )
    steps, verdict = play(world.recording())
    assert verdict.is_verified
    assert verdict.tasks == 8
    assert {step.entry.row.why.topic for step in steps} == {TOPICS.assign, TOPICS.report}


def test_the_decisions_of_one_partition_come_in_the_order_of_its_history() -> None:
    steps, _ = play(lived().recording())
    for number in range(TOPICS.partitions):
        offsets = [step.entry.offset for step in steps if step.entry.partition == number]
        assert offsets == sorted(offsets)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"status": Status.PAUSED}, "status"),
        ({"note": "nothing happened"}, "note"),
        ({"attachments_version": 7}, "attachments_version"),
        ({"applied_version": 0}, "applied_version"),
        ({"error": {"type": "X"}}, "error"),
    ],
)
def test_a_tampered_history_record_is_found_and_only_it(fields: dict[str, Any], found: str) -> None:
    _, verdict = play(change_history(lived().recording(), "cam-1", 3, **fields))
    assert fields_of(verdict) == [("cam-1", "revision 3", found)]
    assert verdict.sentence.startswith("NOT verified: 2 tasks, ")
    assert verdict.sentence.endswith(", 1 differ")


def test_a_tampered_live_row_is_found() -> None:
    recording = lived().recording()
    rows = dict(recording.rows)
    rows["cam-1"] = replace(rows["cam-1"], attempt=3, attachments={"fps": 99})
    _, verdict = play(replace(recording, rows=rows))
    assert set(fields_of(verdict)) == {
        ("cam-1", "live table", "attempt"),
        ("cam-1", "live table", "attachments.fps"),
        ("cam-1", "live table", "attachments.password"),
    }
    shown = {d.field: (d.rebuilt, d.recorded) for f in verdict.findings for d in f.differences}
    assert shown["attachments.password"] == ("***", None)


def test_a_tampered_digest_is_found() -> None:
    recording = lived().recording()
    history = [
        replace(entry, digest="0" * 32) if (entry.task_id, entry.row.revision) == ("cam-1", 2) else entry
        for entry in recording.history
    ]
    _, verdict = play(replace(recording, history=history))
    assert fields_of(verdict) == [("cam-1", "revision 2", "attachments_digest")]


def test_a_recorded_placement_must_be_one_that_the_row_allows() -> None:
    world = World()
    world.beat("b", "b1")
    world.assign("cam-2", {"fps": 5}, recipient="b")
    recording = world.recording()
    holder = recording.history[0].row.holder
    assert holder is not None
    _, verdict = play(change_history(recording, "cam-2", 1, holder=replace(holder, skald_id="a")))
    assert ("cam-2", "revision 1", "holder.skald_id") in fields_of(verdict)


def test_a_removed_history_record_is_found() -> None:
    recording = lived().recording()
    history = [entry for entry in recording.history if (entry.task_id, entry.row.revision) != ("cam-1", 4)]
    steps, verdict = play(replace(recording, history=history))
    assert fields_of(verdict) == [("cam-1", "revision 5", "why")]
    assert [step.base for step in steps if step.base] == ["revision 3 is followed by 5"]


@pytest.mark.parametrize("repeated", [1, 3])
def test_a_repeated_history_record_is_found(repeated: int) -> None:
    recording = lived().recording()
    at = next(
        at for at, entry in enumerate(recording.history) if (entry.task_id, entry.row.revision) == ("cam-1", repeated)
    )
    history = [*recording.history[: at + 1], recording.history[at], *recording.history[at + 1 :]]
    _, verdict = play(replace(recording, history=history))
    assert not verdict.is_verified


def test_a_cause_that_does_not_exist_is_found() -> None:
    recording = lived().recording()
    inputs = {
        key: record for key, record in recording.inputs.items() if (key[0], record.key) != (TOPICS.cancel, b"cam-1")
    }
    _, verdict = play(replace(recording, inputs=inputs))
    assert {found[2] for found in fields_of(verdict)} == {"why"}


def test_another_input_than_the_one_that_was_decided_is_found() -> None:
    recording = lived().recording()
    inputs = dict(recording.inputs)
    key = next(key for key in inputs if key[0] == TOPICS.cancel)
    other = TaskEvent(taskIds=["cam-1", "cam-2"], reason="morning").model_dump_json(by_alias=True).encode()
    inputs[key] = replace(inputs[key], value=other)
    _, verdict = play(replace(recording, inputs=inputs))
    assert {found[2] for found in fields_of(verdict)} >= {"why.reason"}


# -- a beginning that is no longer kept --------------------------------------------------------------------------------


def cut(recording: Recording, task_id: str, before_revision: int, *, keep_inputs: bool = False) -> Recording:
    """As if retention had removed the first records of a task, and the inputs that caused them."""
    gone = [entry for entry in recording.history if entry.task_id == task_id and entry.row.revision < before_revision]
    inputs = dict(recording.inputs)
    begins: dict[tuple[str, int], int] = {}
    if not keep_inputs:
        for topic, partition, offset in (entry.input_key for entry in gone):
            begins[topic, partition] = max(begins.get((topic, partition), 0), offset + 1)
        inputs = {key: record for key, record in inputs.items() if key[2] >= begins.get((key[0], key[1]), 0)}
    history = [entry for entry in recording.history if entry not in gone]
    return replace(recording, history=history, inputs=inputs, inputs_begin=begins)


def only(task_id: str) -> Callable[[Recording], Recording]:
    def keep(recording: Recording) -> Recording:
        history = [entry for entry in recording.history if entry.task_id == task_id]
        return replace(recording, history=history, rows={task_id: recording.rows[task_id]})

    return keep


@pytest.mark.parametrize("first", range(2, 11))
def test_a_task_without_its_beginning_starts_from_its_first_record(first: int) -> None:
    whole = only("cam-1")(lived().recording())
    recording = cut(whole, "cam-1", first)
    assert len(recording.history) == len(whole.history) - first + 1
    steps, verdict = play(recording)
    assert verdict.is_verified, fields_of(verdict)
    assert steps[0].base is not None
    assert verdict.bases + verdict.decisions == len(steps)
    assert verdict.tasks == 1


def test_parameters_that_only_the_live_table_still_has_are_taken_by_their_digest() -> None:
    world = World()
    world.assign("cam-1", {"fps": 30, "password": "hunter2"})
    world.report("cam-1", "Running", version=1)
    world.report("cam-1", "Stopped")
    steps, verdict = play(cut(world.recording(), "cam-1", 2))
    assert verdict.is_verified
    assert [step.after.known for step in steps] == [True, True]


def test_parameters_that_nobody_knows_any_more_are_compared_by_digest() -> None:
    world = World()
    world.assign("cam-1", {"fps": 30, "password": "hunter2"})
    world.report("cam-1", "Running", version=1)
    world.command(TOPICS.update, "cam-1", attachments={"fps": 10}, merge=True)
    world.command(TOPICS.update, "cam-1", attachments={"password": "new"}, merge=True)
    recording = cut(world.recording(), "cam-1", 2)
    steps, verdict = play(recording)
    assert verdict.is_verified, fields_of(verdict)
    assert [step.after.known for step in steps] == [False, False, False], "a refusal would bring back the unknown ones"
    world.report("cam-1", "Applied", version=3)
    steps, verdict = play(cut(world.recording(), "cam-1", 2))
    assert verdict.is_verified, fields_of(verdict)
    assert steps[-1].after.known, "no refusal can come any more"


def test_unknown_parameters_of_a_live_row_are_compared_by_digest() -> None:
    world = World()
    world.assign("cam-1", {"fps": 30, "password": "hunter2"})
    world.report("cam-1", "Running", version=1)
    world.report("cam-1", "Stopped")
    recording = cut(world.recording(), "cam-1", 2)
    live = replace(recording.rows["cam-1"], attachments={"fps": 30, "password": "hunter3"})
    steps, verdict = play(replace(recording, rows={"cam-1": live}))
    assert [step.after.known for step in steps] == [False, False]
    assert fields_of(verdict) == [("cam-1", "live table", "attachments_digest")]


def test_an_assign_with_the_same_unknown_parameters_changes_no_version() -> None:
    world = World()
    world.assign("cam-1", {"password": "hunter2"})
    world.report("cam-1", "Running", version=1)
    world.assign("cam-1", {"password": "hunter2"})
    world.command(TOPICS.update, "cam-1", attachments={"password": "new"})
    steps, verdict = play(cut(world.recording(), "cam-1", 2))
    assert verdict.is_verified, fields_of(verdict)
    assert [step.after.known for step in steps] == [False, True, True]


def test_a_tampered_record_after_a_lost_beginning_is_still_found() -> None:
    recording = cut(lived().recording(), "cam-1", 3)
    _, verdict = play(change_history(recording, "cam-1", 5, attachments_version=9))
    assert fields_of(verdict) == [("cam-1", "revision 5", "attachments_version")]


def test_a_task_that_came_back_after_its_row_was_removed_starts_above_the_floor() -> None:
    world = World()
    world.assign("cam-1", {"fps": 1})
    world.report("cam-1", "Running", version=1)
    world.report("cam-1", "Finished")
    number = partition_of("cam-1", TOPICS.partitions)
    world.positions[number] = replace(world.positions[number], epoch_floor=4, revision_floor=9)
    world.state.apply(number, b"cam-1", None)
    world.assign("cam-1", {"fps": 2})
    steps, verdict = play(world.recording())
    assert verdict.is_verified, fields_of(verdict)
    assert [(step.after.row.revision, step.after.row.epoch) for step in steps][-1] == (10, 5)
    assert steps[-1].before is None


# -- what is not in the table, or not ours -----------------------------------------------------------------------------


def test_a_row_without_history_is_counted_and_a_lost_row_is_found() -> None:
    recording = lived().recording()
    old = Row("old", status=Status.CANCELLED, revision=4)
    _, verdict = play(replace(recording, rows={**recording.rows, "old": old}))
    assert (verdict.is_verified, verdict.without_history) == (True, 1)
    world = World()
    world.assign("cam-1", {"fps": 1})
    _, verdict = play(replace(world.recording(), rows={}))
    assert fields_of(verdict) == [("cam-1", "live table", "row")]


def test_a_terminal_row_may_leave_and_a_task_newer_than_the_table_is_not_missed() -> None:
    recording = lived().recording()
    _, verdict = play(replace(recording, rows={}))
    assert (verdict.is_verified, verdict.gone) == (True, 2)
    world = World()
    world.assign("cam-1", {"fps": 1})
    _, verdict = play(replace(world.recording(), rows={}, history_before={}))
    assert (verdict.is_verified, verdict.gone) == (True, 0)


def test_a_live_row_that_is_newer_than_the_history_is_found() -> None:
    recording = lived().recording()
    rows = {**recording.rows, "cam-2": replace(recording.rows["cam-2"], revision=99)}
    _, verdict = play(replace(recording, rows=rows))
    assert fields_of(verdict) == [("cam-2", "live table", "revision")]


def test_records_of_others_on_the_history_topic_are_no_entries() -> None:
    for value in (b'{"attachments":{"fps":1}}', b"not json", b"[1]", None, b'"text"'):
        assert read_entry(Record(TOPICS.history, 0, 0, b"cam-1", value, 0)) is None


def test_an_entry_is_the_document_that_was_written() -> None:
    world = lived()
    for (topic, _), log in world.logs.items():
        for record in log if topic == TOPICS.history else ():
            entry = read_entry(record)
            assert entry is not None
            assert orjson.loads(orjson.dumps(entry.to_doc())) == orjson.loads(record.value or b"")


def test_ignored_events_are_counted() -> None:
    world = lived()
    world.put(TOPICS.report, "cam-1", b'{"kind":"Stopped","task_id":"cam-1","epoch":1,"incarnation":"zz"}')
    world.put(TOPICS.cancel, "cam-1", b"no json")
    world.decide()
    recording = world.recording()
    named = {entry.input_key for entry in recording.history}
    recording = replace(recording, inputs={key: item for key, item in recording.inputs.items() if key in named})
    _, verdict = play(recording)
    assert (verdict.is_verified, verdict.inputs_without_change) == (True, 2)


@pytest.mark.parametrize(
    ("masked", "value", "same"),
    [
        ("***", {"any": 1}, True),
        ("a *** b", "a secret b", True),
        ("a *** b", "a secret c", False),
        (["***", 1], ["x", 1], True),
        (["***", 1], ["x", 2], False),
        (1, 1, True),
        (1, True, False),
    ],
)
def test_a_mask_stands_for_what_it_hides(masked: Any, value: Any, same: bool) -> None:
    assert hides(masked, value) is same
