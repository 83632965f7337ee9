"""The oracle: a second, naive opinion on how each task must have ended, from the inputs alone. It shares no code with
`core.decide`.

It knows the order of commands (offsets inside a topic, times between topics, cancel at a tie) and says for each task
whether it is wanted, and with which class. It knows nothing of placement or crashes, so it names the states that are
possible once everything has been delivered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from skalds_streams.core.partition import partition_of
from skalds_streams.testing.lint import Finding, Logs
from skalds_streams.topics import Topics

ENDED = ("Finished", "Failed")


@dataclass(slots=True)
class Opinion:
    """What the commands of one task add up to. Times in ms; -1: never."""

    assigned_at: int = -1
    cancelled_at: int = -1
    action: str | None = None
    class_names: list[str] = field(default_factory=list)

    @property
    def wanted(self) -> str:
        if self.assigned_at < 0 or self.cancelled_at >= self.assigned_at:
            return "cancel"
        return "pause" if self.action == "pause" else "run"


def opinions(logs: Logs, topics: Topics) -> Mapping[str, Opinion]:
    """One opinion a task, from every command that is no dead letter."""
    found: dict[str, Opinion] = defaultdict(Opinion)
    for place in sorted(logs.inputs):
        if place in logs.deadletters:
            continue
        for task_id, kind, at_ms, document, forwarded in _commands(place, logs, topics):
            opinion = found[task_id]
            if kind == "Assign" and _only_moves(task_id, document):
                continue
            if kind == "Cancel":
                opinion.cancelled_at = max(opinion.cancelled_at, at_ms)
            elif kind == "Assign" and not (forwarded and at_ms < opinion.assigned_at):
                opinion.assigned_at = max(opinion.assigned_at, at_ms)
                if opinion.cancelled_at < opinion.assigned_at:
                    opinion.action = document.get("action")
                opinion.class_names += _class_names(task_id, document)
    return found


def judge(logs: Logs, topics: Topics) -> list[Finding]:
    """Tasks whose last state can't be how their commands end. Call it when everything has been delivered."""
    found: list[Finding] = []
    for task_id, opinion in opinions(logs, topics).items():
        states = logs.history.get(task_id)
        if not states:
            found.append(Finding("every task that a command names has a history", task_id, "none"))
            continue
        last = states[-1]
        if any(state["why"]["kind"] == "Deadline" for state in states):
            continue  # its clock is not the oracle's
        found += _compare(task_id, opinion, last)
    return found


def _compare(task_id: str, opinion: Opinion, last: Mapping[str, Any]) -> Iterator[Finding]:
    if last["status"] != "Created" and last["wanted"] != opinion.wanted:
        yield Finding("the last command holds", task_id, f"{last['wanted']}, the oracle says {opinion.wanted}")
    possible = {
        "run": ("Assigning", "Running", *ENDED),
        "pause": ("Paused", *ENDED),
        "cancel": ("Cancelled", "Created", *ENDED),
    }[opinion.wanted]
    if last["status"] not in possible:
        yield Finding("a state that the commands allow", task_id, f"{last['status']} when {opinion.wanted} is wanted")
    if opinion.class_names and last["class_name"] not in opinion.class_names:
        yield Finding("a class that some assign named", task_id, str(last["class_name"]))


def _commands(
    place: tuple[str, int, int], logs: Logs, topics: Topics
) -> Iterator[tuple[str, str, int, Mapping[str, Any], bool]]:
    """(task id, kind, time in ms, document, forwarded) of one input record."""
    topic, partition, _ = place
    record = logs.inputs[place]
    document = orjson.loads(record.value or b"{}")
    if topic == topics.report:
        if document.get("kind") == "Forwarded":
            yield document["task_id"], document["command"], document["cause"]["at_ms"], _event_of(document), True
        return
    kind = {topics.assign: "Assign", topics.cancel: "Cancel"}.get(topic, "Update")
    for task_id in dict.fromkeys(document.get("taskIds", document.get("task_ids")) or ()):
        if partition_of(task_id, topics.partitions) == partition:
            yield task_id, kind, record.timestamp_ms, document, False


def _event_of(forwarded: Mapping[str, Any]) -> Mapping[str, Any]:
    spec = forwarded.get("spec") or {}
    task = {"id": forwarded["task_id"], "className": spec.get("class_name")}
    recipient = forwarded.get("recipient")
    return {
        "action": forwarded.get("action"),
        "recipient": recipient,
        "tasks": [task] if spec.get("class_name") else [],
    }


def _only_moves(task_id: str, document: Mapping[str, Any]) -> bool:
    """A move that describes nothing says where a task runs, not that it should."""
    said = document.get("recipient") or _class_names(task_id, document)
    return document.get("action") == "move" and not said


def _class_names(task_id: str, document: Mapping[str, Any]) -> list[str]:
    tasks = document.get("tasks") or ()
    return [task.get("className", task.get("class_name")) for task in tasks if task.get("id") == task_id]
