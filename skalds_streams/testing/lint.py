"""The log lint: what must be true of the topics of any run, checked from outside.

    findings = lint(records, topics)

Rules: revisions of a task rise by one and epochs never fall; every state has a cause that exists; nothing follows a
terminal state without an assign; a holder leaves only by the end of its run; the last row of the changelog is the last
state of the history; positions never fall; each applied command changed the rows that it names, was forwarded, or is a
dead letter, once. It shares no code with the coordinator but the partitioner and the names of topics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from skalds_streams.core.partition import partition_of
from skalds_streams.model.record import Record
from skalds_streams.topics import POSITIONS_KEY, Topics

TERMINAL = ("Finished", "Failed", "Cancelled")
ENDS = ("Stopped", "Finished", "Failed", "Lost")
COMMANDS = ("Assign", "Cancel", "Update")

Place = tuple[str, int, int]
"""Topic, partition, offset."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that must not be: which rule, where, and what was seen."""

    rule: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}: {self.what}"


@dataclass(slots=True)
class Logs:
    """All records of a system's topics, sorted for the rules."""

    inputs: dict[Place, Record] = field(default_factory=dict)
    history: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    changelog: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    positions: dict[int, list[dict[str, int]]] = field(default_factory=lambda: defaultdict(list))
    deadletters: dict[Place, Record] = field(default_factory=dict)
    causes: dict[Place, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Which tasks each input changed."""

    @classmethod
    def of(cls, records: Iterable[Record], topics: Topics) -> Logs:
        """records: of every topic but the heartbeats, in offset order within a partition."""
        logs = cls()
        for record in records:
            logs._take(record, topics)
        return logs

    def _take(self, record: Record, topics: Topics) -> None:
        if record.topic in topics.inputs:
            self.inputs[record.topic, record.partition, record.offset] = record
        elif record.topic == topics.history and record.value:
            document = orjson.loads(record.value)
            self.history[document["task_id"]].append(document)
            why = document["why"]
            self.causes[why["topic"], why["partition"], why["offset"]].append(document["task_id"])
        elif record.topic == topics.deadletter:
            header = dict(record.headers)
            source = (header["source.topic"].decode(), int(header["source.partition"]), int(header["source.offset"]))
            self.deadletters[source] = record
        elif record.topic == topics.changelog and record.key == POSITIONS_KEY:
            self.positions[record.partition].append(orjson.loads(record.value or b"{}").get("positions", {}))
        elif record.topic == topics.changelog and record.key is not None:
            self.changelog[record.key.decode()] = orjson.loads(record.value) if record.value else None


def lint(records: Iterable[Record], topics: Topics) -> list[Finding]:
    """Every finding; an empty list is a clean run."""
    logs = Logs.of(records, topics)
    found: list[Finding] = []
    for task_id, states in logs.history.items():
        found += _states(task_id, states, logs)
        found += _table(task_id, states[-1], logs.changelog)
    for task_id, row in logs.changelog.items():
        if row is not None and task_id not in logs.history:
            found.append(Finding("a row has a history", task_id, f"revision {row['revision']} has none"))
    found += _positions(logs.positions)
    found += _inputs(logs, topics)
    return found


def _states(task_id: str, states: Sequence[Mapping[str, Any]], logs: Logs) -> Iterator[Finding]:
    before: Mapping[str, Any] | None = None
    for state in states:
        where = f"{task_id}, revision {state['revision']}"
        why = state["why"]
        place = (why["topic"], why["partition"], why["offset"])
        if place not in logs.inputs:
            yield Finding("every state has a cause that exists", where, f"{place[0]}/{place[1]}@{place[2]}")
        if before is not None:
            yield from _follows(where, before, state)
        before = state


def _follows(where: str, before: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[Finding]:
    kind = state["why"]["kind"]
    if state["revision"] != before["revision"] + 1:
        yield Finding("revisions rise by one", where, f"after {before['revision']}")
    if state["epoch"] < before["epoch"]:
        yield Finding("epochs never fall", where, f"{before['epoch']} → {state['epoch']}")
    if before["status"] in TERMINAL and state["status"] not in TERMINAL and kind != "Assign":
        yield Finding("nothing after a terminal state without an assign", where, f"{before['status']} by {kind}")
    if before["holder"] and before["holder"] != state["holder"] and kind not in ENDS:
        yield Finding("a holder leaves by the end of its run", where, f"by {kind}")
    if state["holder"] and state["holder"] != before["holder"] and state["epoch"] != before["epoch"] + 1:
        yield Finding("epoch + 1 at every placement", where, f"{before['epoch']} → {state['epoch']}")


def _table(task_id: str, last: Mapping[str, Any], changelog: Mapping[str, Any]) -> Iterator[Finding]:
    row = changelog.get(task_id)
    if row is None:
        if not str(last["note"]).startswith("forgotten"):
            yield Finding("the table has what the history says", task_id, "no row")
    elif any(row[name] != last[name] for name in ("revision", "status", "holder", "epoch", "wanted")):
        yield Finding("the table has what the history says", task_id, f"{row['revision']} against {last['revision']}")


def _positions(positions: Mapping[int, Sequence[Mapping[str, int]]]) -> Iterator[Finding]:
    for partition, written in positions.items():
        highest: dict[str, int] = {}
        for at in written:
            for topic, offset in at.items():
                if offset < highest.get(topic, -1):
                    yield Finding("positions never fall", f"{topic}/{partition}", f"{highest[topic]} → {offset}")
                highest[topic] = offset


def _inputs(logs: Logs, topics: Topics) -> Iterator[Finding]:
    """Each applied command changed the rows it names, was forwarded, or is a dead letter. Reports may be ignored."""
    forwarded = _forwarded(logs.inputs, topics)
    for place, record in logs.inputs.items():
        topic, partition, offset = place
        written = logs.positions.get(partition) or [{}]
        if offset > written[-1].get(topic, -1) or place in logs.deadletters:
            continue
        if topic != topics.report:
            for task_id in _named(record):
                own = partition_of(task_id, topics.partitions) == partition
                if own and task_id not in logs.causes.get(place, ()):
                    yield Finding("no applied command is lost", record.where, f"{task_id} knows nothing of it")
                if not own and (place, task_id) not in forwarded:
                    yield Finding("no applied command is lost", record.where, f"{task_id} was not forwarded")
        for task_id, count in _counts(logs.causes.get(place, ())).items():
            if count > 1:
                yield Finding("nothing is applied twice", record.where, f"{task_id}: {count} times")


def _counts(task_ids: Iterable[str]) -> Mapping[str, int]:
    counted: dict[str, int] = defaultdict(int)
    for task_id in task_ids:
        counted[task_id] += 1
    return counted


def _named(record: Record) -> list[str]:
    document = orjson.loads(record.value or b"{}")
    named = document.get("taskIds", document.get("task_ids"))
    return list(dict.fromkeys(named)) if named else [(record.key or b"").decode()]


def _forwarded(inputs: Mapping[Place, Record], topics: Topics) -> set[tuple[Place, str]]:
    found: set[tuple[Place, str]] = set()
    for (topic, _, _), record in inputs.items():
        if topic == topics.report:
            document = _json(record.value)
            if document.get("kind") == "Forwarded":
                cause = document["cause"]
                found.add(((cause["topic"], cause["partition"], cause["offset"]), document["task_id"]))
    return found


def _json(value: bytes | None) -> Mapping[str, Any]:
    try:
        document = orjson.loads(value or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}
