"""Replay by the code that users run: whatever was lived is rebuilt, and replaying in parts is replaying at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import orjson
from hypothesis import assume, given
from hypothesis import strategies as st

from skalds_streams.model.changelog import ChangelogState
from skalds_streams.model.documents import encode_positions, encode_row
from skalds_streams.model.record import Record
from skalds_streams.replay.recording import Entry, Recording, merge_partitions, read_entry
from skalds_streams.replay.timeline import Step, Timeline
from skalds_streams.replay.verify import Verdict, Verifier
from skalds_streams.topics import POSITIONS_KEY
from tests.property.world import LIVES, SECRECY, TOPICS, World, lived


def recording_of(world: World) -> Recording:
    """What `gather` would read of this world. What is read of its history says what was written."""
    entries: dict[int, list[Entry]] = {0: [], 1: []}
    for number in (0, 1):
        for offset, output in enumerate(world.written.get((TOPICS.history, number), ())):
            entry = read_entry(Record(output.topic, number, offset, output.key, output.value, 0))
            assert entry is not None
            assert orjson.loads(orjson.dumps(entry.to_doc())) == orjson.loads(output.value or b"")
            entries[number].append(entry)
    inputs = {
        (record.topic, record.partition, record.offset): record for log in world.inputs.values() for record in log
    }
    ends = {number: len(found) for number, found in entries.items()}
    return Recording(merge_partitions(entries), inputs, dict(world.rows), {}, ends, inputs_read=len(inputs))


def replayed(recording: Recording, after: Timeline | None = None) -> tuple[list[Step], Timeline]:
    """Every step of a recording. `after`: go on from the rows that this timeline has come to."""
    timeline = Timeline(recording, topics=TOPICS, secrecy=SECRECY)
    if after is not None:
        timeline._last = dict(after._last)
    return list(timeline.steps()), timeline


def verdict_of(recording: Recording, steps: Sequence[Step]) -> Verdict:
    verifier = Verifier(recording, secrecy=SECRECY, history_topic=TOPICS.history)
    for step in steps:
        verifier.add(step)
    return verifier.verdict()


def named(recording: Recording, history: Sequence[Entry]) -> Recording:
    """A part of the history, with the inputs that it names and without the table: nothing of what came later."""
    keys = {entry.input_key for entry in history}
    inputs = {key: record for key, record in recording.inputs.items() if key in keys}
    return Recording(history, inputs)


@given(LIVES, st.integers(0, 255), st.integers(0, 255))
def test_replaying_the_first_part_and_then_the_rest_is_replaying_all(data: bytes, cut: int, again: int) -> None:
    """Replaying all leads to the table. A cut may lie anywhere, inside a batch and inside one event's tasks, too."""
    world = lived(data)
    recording = recording_of(world)
    at_once, whole = replayed(recording)
    verdict = verdict_of(recording, at_once)
    assert verdict.is_verified, verdict.findings
    assert (verdict.tasks, verdict.bases) == (len(world.rows), 0)
    rebuilt = {step.entry.task_id: step.after.row for step in at_once}
    assert {task_id: rebuilt[task_id] for task_id in world.rows} == world.rows

    size = len(recording.history)
    steps: list[Step] = []
    before: Timeline | None = None
    for begin, end in pairwise(sorted([0, cut % (size + 1), again % (size + 1), size])):
        found, before = replayed(named(recording, recording.history[begin:end]), before)
        steps += found
    assert steps == at_once
    assert before is not None
    assert before._last == whole._last


@given(LIVES, st.integers(0, 255))
def test_what_is_left_when_the_beginning_is_no_longer_kept_still_leads_to_the_table(data: bytes, cut: int) -> None:
    world = lived(data)
    recording = recording_of(world)
    # No skald reports parameters that it was never given.
    assume(all(entry.row.applied_version <= entry.row.attachments_version for entry in recording.history))
    kept = recording.history[cut % (len(recording.history) + 1) :]
    begins = {place: len(log) for place, log in world.inputs.items()}
    for entry in kept:
        topic, partition, offset = entry.input_key
        begins[topic, partition] = min(begins[topic, partition], offset)
    inputs = {key: record for key, record in recording.inputs.items() if key[2] >= begins[key[0], key[1]]}
    left = replace(recording, history=kept, inputs=inputs, inputs_begin=begins)
    steps, _ = replayed(left)
    verdict = verdict_of(left, steps)
    assert verdict.is_verified, verdict.findings
    assert verdict.tasks + verdict.without_history == len(world.rows)
    assert verdict.decisions + verdict.bases == len(kept)


def loaded(state: ChangelogState) -> ChangelogState:
    """The same state, written down and read again."""
    again = ChangelogState()
    for task_id, row in state.rows.items():
        again.apply(0, task_id.encode(), encode_row(row))
    for number, positions in state.positions.items():
        again.apply(number, POSITIONS_KEY, encode_positions(positions))
    return again


@given(LIVES, st.integers(0, 255))
def test_what_is_written_down_and_read_again_is_the_same(data: bytes, cut: int) -> None:
    """The changelog in two parts, the state dumped and loaded between them."""
    world = lived(data)
    cut %= len(world.changelog) + 1
    state = ChangelogState()
    for record in world.changelog[:cut]:
        state.apply(*record)
    state = loaded(state)
    for record in world.changelog[cut:]:
        state.apply(*record)
    assert state == loaded(state) == world.state
    assert all(world.positions[number] == positions for number, positions in state.positions.items())
