"""A broker's topics in lists, and partitions that decide what comes with the live code. A life of it is drawn as bytes.

Sixteen bytes a step: what is sent, to whom, how odd it is, and when. Documents are told by how they relate to the rows
that they meet, so that reports hit their runs often, but not always. A drawn strategy a field would take most of the
time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from hypothesis import strategies as st

from skalds_streams.coordinator.batch import Output, Secrecy, Staged, Stager, advanced, outputs
from skalds_streams.core.membership import Members
from skalds_streams.core.partition import partition_of
from skalds_streams.core.placement import Load
from skalds_streams.core.row import Row
from skalds_streams.model.changelog import ChangelogState
from skalds_streams.model.codec import Limits
from skalds_streams.model.documents import Positions
from skalds_streams.model.record import Record
from skalds_streams.topics import Topics

TOPICS = Topics.named(app="x", partitions=2)
LIMITS = Limits(record_bytes=5_000, ids_per_event=5, attachments_bytes=500, fan_out_bytes=1_000)
SECRECY = Secrecy(frozenset({"password"}), b"k")
STEP_BYTES = 16
STEPS_MOST = 9
START_MS = 1_795_528_000_000

_NAMES = "abcdefghijklmnopqrstuvwxyz"
HERE = [name for name in _NAMES if partition_of(name, 2) == 0][:2]
THERE = [name for name in _NAMES if partition_of(name, 2) == 1][:2]
"""Two tasks of partition 0 and two of partition 1."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one partition took at once."""

    partition: int
    now_ms: int
    records: Sequence[Record]


def members() -> Members:
    """One skald that has room for everything, and one for three tasks; they describe the class that both have
    differently.
    """
    found = Members()
    doc = {"skald_id": "a", "incarnation": "a1", "classes": {"Cam": ""}, "capacity": 10**6}
    found.apply({**doc, "options": {"Cam": {"max_restarts": 1, "backoff_most_ms": 1_000}}}, 0)
    doc = {"skald_id": "b", "incarnation": "b1", "classes": {"Cam": "", "Feed": ""}, "capacity": 3}
    options = {"Cam": {"weight": 2}, "Feed": {"requires": {"zone": "b"}}}
    found.apply({**doc, "options": options, "labels": {"zone": "b"}}, 1)
    return found


@dataclass(slots=True)
class World:
    """See the module. `put` sends, `decide` makes both partitions take what has come, `feed` is one batch of one."""

    now_ms: int = START_MS
    state: ChangelogState = field(default_factory=ChangelogState)
    positions: dict[int, Positions] = field(default_factory=lambda: {0: Positions({}), 1: Positions({})})
    members: Members = field(default_factory=members)
    loads: dict[int, Load] = field(default_factory=lambda: {0: Load(), 1: Load()})
    inputs: dict[tuple[str, int], list[Record]] = field(default_factory=dict)
    written: dict[tuple[str, int], list[Output]] = field(default_factory=dict)
    """History and dead letters by topic and partition; not the changelog, which depends on the batches."""
    changelog: list[tuple[int, bytes | None, bytes | None]] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)

    @property
    def rows(self) -> Mapping[str, Row]:
        return self.state.rows

    def put(self, topic: str, partition: int, key: bytes | None, value: bytes | None, at_ms: int) -> None:
        log = self.inputs.setdefault((topic, partition), [])
        log.append(Record(topic, partition, len(log), key, value, at_ms))

    def decide(self) -> None:
        forwards: list[tuple[str, dict[str, Any]]] = []
        for number in (0, 1):
            offsets = self.positions[number].offsets
            pending = [
                record
                for topic in TOPICS.inputs
                for record in self.inputs.get((topic, number), ())[offsets.get(topic, -1) + 1 :]
            ]
            if pending:
                self.batches.append(Batch(number, self.now_ms, pending))
                forwards += self.feed(number, pending, self.now_ms).forwards
        for task_id, doc in forwards:
            self.put(TOPICS.report, partition_of(task_id, 2), task_id.encode(), orjson.dumps(doc), self.now_ms)
        if forwards:
            self.decide()

    def feed(self, number: int, records: Sequence[Record], now_ms: int) -> Staged:
        stager = Stager(
            self.rows,
            self.positions[number],
            topics=TOPICS,
            members=self.members,
            load=self.loads[number],
            limits=LIMITS,
            now_ms=now_ms,
        )
        staged = stager.add(records)
        if staged.is_empty:
            return staged
        self.positions[number] = advanced(self.positions[number], staged)
        for output in outputs(staged, self.positions[number], TOPICS, SECRECY):
            if output.topic == TOPICS.changelog:
                self.changelog.append((number, output.key, output.value))
                self.state.apply(number, output.key, output.value)
            else:
                self.written.setdefault((output.topic, number), []).append(output)
        return staged

    def outcome(self) -> Mapping[str, Any]:
        """Everything that delivery must not change."""
        return {"rows": dict(self.rows), "positions": self.positions, "written": self.written}


# -- documents


def pick(choices: Sequence[Any], byte: int) -> Any:
    return choices[byte % len(choices)]


COMMANDS = (TOPICS.assign, TOPICS.cancel, TOPICS.update)
RUN_REPORTS = ("Running", "Applied", "Refused", "Stopped", "Failed", "Finished", "Lost")
_OURS = ("Retry", "Deadline", "Expired", "Found")
_KINDS = (
    *(*COMMANDS, TOPICS.assign, TOPICS.update, "worker update", "Forwarded"),
    *("Running", "Running", "Running", "Applied", *RUN_REPORTS, *_OURS),
)
_WHO = (*[HERE[:1]] * 6, THERE[:1], HERE[1:], [HERE[0], THERE[0]], [*HERE, *THERE])
_PARAMETERS: Sequence[Mapping[str, Any] | None] = (
    {"fps": 1, "password": "p"},
    {"fps": 2, "url": "rtsp://user:secret@host/1"},
    {},
    None,
    {"fps": {"x": 1, "y": None}},
    {"url": None, "deep": {"a": {"b": [1, None]}}},
)
_TASKS: Sequence[Mapping[str, Any] | None] = (
    {"className": "Cam"},
    {"class_name": "Cam", "maxRestarts": 0},
    None,
    {"className": "Feed", "weight": 2, "priority": 3},
    {"className": "Cam", "executor": "b", "max_restarts": 1},
    {"className": "Cam", "priority": 10},
    {"className": "Cam", "requires": {"gpu": "yes"}},
    {"className": "Cam", "weight": 3},
    {"className": "Nobody"},
)
_ACTIONS = (None, None, None, None, "restart", "pause", "resume", "move")
_DELAYS_MS = (0, 0, 1, 7, 40, 60, 900, 900, 2_000, 2_000, 70_000, 8 * 24 * 3600 * 1000)
_SKEWS_MS = (0, 0, 0, -3, -40, 30, 60, -1_000, 10_000)
"""How far a record's time is from the clock of who decides."""
_OFTEN_0 = (*[0] * 12, 1, -1)
_DEEP: Any = json.loads('{"a":' * 300 + "1" + "}" * 300)
JUNK: Sequence[Any] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**53, 2**53 + 1, 2**63, 2**70, 1.5, -0.0, 1e300, float("nan"),
    "", "t", "x" * 700, "\ud800", "a\0", "0", "Running", "Assign", "pause", TOPICS.assign, [], [1], ["a"], ["a", None],
    [[]], {}, {"a": None}, {"": {"": 0}}, [{"id": "a"}], [{"id": "a", "className": "Cam", "source": "s"}], _DEEP,
)  # fmt: skip
"""What stands where something else should."""
_TRUNK = (b"", b"{", b"null", b"[]", b"\xff", b'{"taskIds":["a"]', b"\x1f\x8b\x08\0", b"1" * 6_000, None)


def _command(topic: str, ids: Sequence[str], data: bytes) -> dict[str, Any]:
    snake = data[9] & 1
    doc: dict[str, Any] = {"task_ids" if snake else "taskIds": ids, "initiator": "me", "id": None}
    doc["create_date_time" if snake else "createDateTime"] = START_MS
    if topic == TOPICS.update:
        return {**doc, "attachments": pick(_PARAMETERS[:3], data[10]) or {"n": data[11]}, "merge": bool(data[9] & 2)}
    if topic == TOPICS.assign:
        task, action = pick(_TASKS, data[11]), pick(_ACTIONS, data[12])
        if task is not None:
            more = {"deadlineDateTime": START_MS + 3_000} if data[9] % 8 == 7 else {}
            described = {**task, **more, "source": "s", "attachments": pick(_PARAMETERS, data[10])}
            doc["tasks"] = [{**described, "id": name} for name in ids[: 1 + data[9] % 4]]
        doc |= {"action": action, "recipient": pick((None, None, None, "a"), data[13])}
        doc["to"] = pick((None, "a", "b", "z"), data[13] >> 2)
    return doc


def _report(kind: str, task_id: str, row: Row | None, data: bytes) -> dict[str, Any]:
    epoch, off = row.epoch if row else 0, pick(_OFTEN_0, data[9])
    holder = row.holder if row and data[10] % 8 else None
    doc: dict[str, Any] = {"v": 1, "kind": kind, "task_id": task_id, "epoch": epoch + off}
    doc["incarnation"] = holder.incarnation if holder else "z9"
    if kind in ("Running", "Applied", "Refused"):
        doc["version"] = (row.attachments_version if row else 0) + pick(_OFTEN_0, data[11])
    if kind in ("Refused", "Failed"):
        doc |= {"error": {"type": "E", "message": "boom"}, "retryable": data[11] % 4 > 0}
    if kind == "Stopped":
        doc["steps"] = ["SIGTERM after 5 s"]
    if kind == "Retry":
        doc["attempt"] = row.attempt if row else 0
    if kind == "Deadline":
        doc["deadline_at_ms"] = row.deadline_at_ms if row else 0
    if kind == "Expired":
        doc["revision"] = (row.revision if row else 0) + off
    if kind == "Found":
        task = pick(_TASKS, data[11]) or {"className": "Cam"}
        doc["task"] = {**task, "id": task_id, "source": "YAML", "attachments": pick(_PARAMETERS, data[12])}
    return doc


def _fits(kind: str, row: Row) -> bool:
    """Whether a report of this kind could mean something to the row."""
    if kind in ("Retry", "Found"):
        return row.is_waiting
    if kind == "Deadline":
        return row.deadline_at_ms > 0
    return row.is_terminal if kind == "Expired" else row.holder is not None


def _copy(task_id: str, now_ms: int, data: bytes) -> dict[str, Any]:
    """A command as the journal of another partition hands it over, delivered twice now and then.

    It says that it comes from its own, so that it does not take the place of those that really are forwarded.
    """
    command, topic = pick((("Assign", COMMANDS[0]), ("Cancel", COMMANDS[1]), ("Update", COMMANDS[2])), data[9])
    cause = {"kind": command, "topic": topic, "partition": partition_of(task_id, 2), "offset": data[11] % 20}
    cause |= {"at_ms": now_ms + pick(_SKEWS_MS, data[12]), "reason": None}
    doc = {"v": 1, "kind": "Forwarded", "task_id": task_id, "command": command, "cause": cause, "spec": None}
    task = pick(_TASKS, data[13])
    if command == "Assign" and task is not None:
        doc["spec"] = {"class_name": task.get("className"), "attachments": {"n": data[11]}, "weight": 1}
    return {**doc, "attachments": {"n": data[11]} if command == "Update" else None, "merge": False}


def paths(value: Any) -> list[tuple[Any, ...]]:
    """Where in a JSON value something stands. As deep as it may be, so without recursion."""
    found: list[tuple[Any, ...]] = []
    waiting: list[tuple[Any, tuple[Any, ...]]] = [(value, ())]
    while waiting:
        inner, path = waiting.pop()
        names = inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        for name in names:
            found.append((*path, name))
            waiting.append((inner[name], found[-1]))
    return found


def _spoiled(doc: dict[str, Any], where: int, what: int) -> dict[str, Any]:
    """The document with one of its values replaced, or left out."""
    spoiled: dict[str, Any] = orjson.loads(orjson.dumps(doc))
    *way, last = pick(paths(spoiled), where)
    inner: Any = spoiled
    for name in way:
        inner = inner[name]
    if what < 200 or not isinstance(inner, dict):
        inner[last] = pick(JUNK, what)
    else:
        del inner[last]
    return spoiled


def _step(world: World, data: bytes) -> None:
    kind, ids = pick(_KINDS, data[0]), pick(_WHO, data[1])
    world.now_ms += pick(_DELAYS_MS, data[2])
    at_ms = world.now_ms + pick(_SKEWS_MS, data[3])
    task_id, topic = ids[0], kind if kind in COMMANDS else TOPICS.report
    if data[1] % 8 and (kind in RUN_REPORTS or kind in _OURS):
        fitting = [name for name, row in world.rows.items() if _fits(kind, row)]
        if fitting:
            task_id = pick(fitting, data[1] >> 3)
        else:
            kind = topic = TOPICS.assign
    if kind in COMMANDS:
        doc = _command(kind, ids, data)
    elif kind == "worker update":
        topic, doc = TOPICS.update, {"attachments": pick(_PARAMETERS[:3], data[10])}
    elif kind == "Forwarded":
        doc = _copy(task_id, world.now_ms, data)
    else:
        doc = _report(kind, task_id, world.rows.get(task_id), data)
    oddness = data[4] % 24
    value: bytes | None = orjson.dumps(doc)
    if oddness == 23:
        value = pick(_TRUNK, data[5])
    elif oddness >= 19:
        # Unlike orjson it also writes NaN, huge numbers and lone surrogates.
        value = json.dumps(_spoiled(doc, data[5], data[6])).encode()
    partition = partition_of(task_id, 2) ^ (data[7] % 16 == 15)
    key = pick((*[task_id.encode()] * 8, None, b"", b"\xff", b"k"), data[7] >> 4)
    world.put(topic, partition, key, value, at_ms)
    if data[8] % 4:
        world.decide()


def lived(data: bytes) -> World:
    """A world that has been through these steps, with nothing left to decide."""
    world = World()
    for at in range(0, len(data) - STEP_BYTES + 1, STEP_BYTES):
        _step(world, data[at : at + STEP_BYTES])
    world.decide()
    return world


LIVES = st.binary(min_size=STEP_BYTES * STEPS_MOST, max_size=STEP_BYTES * STEPS_MOST) | st.binary(
    max_size=STEP_BYTES * STEPS_MOST
)
