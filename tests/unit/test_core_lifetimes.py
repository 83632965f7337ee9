"""Deadlines, and rows that are forgotten: what is due, what it does, and that a fencing token never goes back."""

from __future__ import annotations

import orjson

from skalds_streams.coordinator.batch import Secrecy, Staged, Stager, advanced, outputs
from skalds_streams.core.due import RETENTION_MS, find_due
from skalds_streams.core.membership import Members
from skalds_streams.core.partition import partition_of
from skalds_streams.core.placement import Load
from skalds_streams.core.row import Holder, Row, Status, Wanted
from skalds_streams.model.changelog import ChangelogState
from skalds_streams.model.codec import Limits
from skalds_streams.model.documents import Positions
from skalds_streams.model.record import Record
from skalds_streams.topics import Topics

TOPICS = Topics.named(app="x")
PARTITION = partition_of("t", TOPICS.partitions)
DONE = Row("t", class_name="Cam", status=Status.FINISHED, wanted=Wanted.RUN, epoch=4, revision=9, updated_at_ms=1_000)


class World:
    """One partition without a broker: records in, changelog out."""

    def __init__(self, row: Row | None = None) -> None:
        self.rows: dict[str, Row] = {row.task_id: row} if row else {}
        self.positions = Positions({})
        self.members = Members()
        self.log = ChangelogState(rows=dict(self.rows))
        self.history: list[dict[str, object]] = []

    def skald(self, name: str = "a") -> World:
        doc = {"skald_id": name, "incarnation": f"{name}1", "classes": {"Cam": ""}, "capacity": 9, "state": "up"}
        self.members.apply(doc, 0)
        return self

    def feed(self, *documents: tuple[str, dict[str, object]], now_ms: int) -> Staged:
        records = [
            Record(topic, PARTITION, self.positions.offsets.get(topic, -1) + 1 + at, b"t", orjson.dumps(doc), now_ms)
            for at, (topic, doc) in enumerate(documents)
        ]
        stager = Stager(
            self.rows, self.positions, topics=TOPICS, members=self.members, load=Load(), limits=Limits(), now_ms=now_ms
        )
        staged = stager.add(records)
        self.positions = advanced(self.positions, staged)
        for output in outputs(staged, self.positions, TOPICS, Secrecy()):
            if output.topic == TOPICS.changelog:
                self.log.apply(PARTITION, output.key, output.value)
            elif output.topic == TOPICS.history:
                self.history.append(orjson.loads(output.value or b""))
        self.rows = dict(self.log.rows)
        return staged


def expired(revision: int) -> tuple[str, dict[str, object]]:
    return TOPICS.report, {"v": 1, "kind": "Expired", "task_id": "t", "epoch": 4, "revision": revision}


def assign(**task: object) -> tuple[str, dict[str, object]]:
    doc = {"id": "t", "className": "Cam", "source": "test", **task}
    return TOPICS.assign, {"taskIds": ["t"], "tasks": [doc]}


def test_a_row_is_forgotten_after_its_retention_and_leaves_its_floors() -> None:
    assert not list(find_due([DONE], Members(), Load(), 1_000 + RETENTION_MS - 1))
    (due,) = find_due([DONE], Members(), Load(), 1_000 + RETENTION_MS)
    assert (due.kind, due.revision) == ("Expired", 9)
    world = World(DONE)
    world.feed(expired(9), now_ms=2_000)
    assert world.rows == {}
    assert (world.positions.epoch_floor, world.positions.revision_floor) == (4, 10)
    assert (world.history[0]["revision"], world.history[0]["note"]) == (
        10,
        "forgotten: ended longer ago than the retention",
    )
    assert world.log.positions[PARTITION] == world.positions


def test_who_comes_next_under_the_id_starts_above_even_in_the_same_batch() -> None:
    apart = World(DONE).skald()
    apart.feed(expired(9), now_ms=2_000)
    apart.feed(assign(), now_ms=3_000)
    together = World(DONE).skald()
    together.feed(expired(9), assign(), now_ms=3_000)
    for world in (apart, together):
        assert (world.rows["t"].epoch, world.rows["t"].revision) == (5, 11)


def test_a_row_that_changed_since_is_not_forgotten() -> None:
    world = World(DONE)
    world.feed(expired(8), now_ms=2_000)
    assert world.rows == {"t": DONE}


def test_a_deadline_cancels_what_runs_and_what_waits() -> None:
    world = World().skald()
    world.feed(assign(deadlineDateTime=5_000), now_ms=1_000)
    row = world.rows["t"]
    assert row.deadline_at_ms == 5_000
    assert not list(find_due([row], world.members, Load(), 4_999))
    (due,) = find_due([row], world.members, Load(), 5_000)
    assert (due.kind, due.deadline_at_ms) == ("Deadline", 5_000)
    report = {"v": 1, "kind": "Deadline", "task_id": "t", "epoch": 1, "deadline_at_ms": 5_000}
    world.feed((TOPICS.report, report), now_ms=5_100)
    row = world.rows["t"]
    assert (row.wanted, row.holder is not None, row.note) == (Wanted.CANCEL, True, "deadline at 5000 has passed")
    assert not list(find_due([row], world.members, Load(), 9_000))
    waiting = World()
    waiting.feed(assign(deadlineDateTime=5_000), now_ms=1_000)
    waiting.feed((TOPICS.report, report), now_ms=5_100)
    assert waiting.rows["t"].status is Status.CANCELLED


def test_upstreams_default_deadline_is_not_one() -> None:
    world = World().skald()
    world.feed(assign(), now_ms=1_000)
    assert world.rows["t"].deadline_at_ms == 0


def test_a_new_assign_is_not_ended_by_the_deadline_of_the_former() -> None:
    world = World().skald()
    world.feed(assign(deadlineDateTime=5_000), now_ms=1_000)
    stopped = {"v": 1, "kind": "Finished", "task_id": "t", "epoch": 1, "incarnation": "a1"}
    world.feed((TOPICS.report, stopped), now_ms=6_000)
    world.feed(assign(), now_ms=7_000)
    row = world.rows["t"]
    assert (row.deadline_at_ms, row.holder) == (0, Holder("a", "a1", 2))


def test_another_deadline_than_the_one_seen_changes_nothing() -> None:
    world = World().skald()
    world.feed(assign(deadlineDateTime=9_000), now_ms=1_000)
    report = {"v": 1, "kind": "Deadline", "task_id": "t", "epoch": 1, "deadline_at_ms": 5_000}
    world.feed((TOPICS.report, report), now_ms=5_100)
    assert world.rows["t"].wanted is Wanted.RUN
