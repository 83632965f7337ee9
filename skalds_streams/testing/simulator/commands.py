"""From a command of a plan to the record that a publisher sends."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import orjson

from skalds_streams.coordinator.batch import Output
from skalds_streams.core.partition import partition_of
from skalds_streams.testing.simulator.broker import EPOCH_MS
from skalds_streams.testing.simulator.hosts import REFUSE
from skalds_streams.topics import Topics

MALFORMED = (None, b"", b"{", b"[1]", b'{"taskIds": []}')


def record_for(kind: str, how: Mapping[str, Any], topics: Topics, rng: random.Random) -> tuple[int, Output]:
    """(partition, record) of an assign, cancel or update."""
    topic = {"assign": topics.assign, "cancel": topics.cancel, "update": topics.update}[kind]
    first = how["tasks"][0]
    partition = rng.randrange(topics.partitions) if "astray" in how else partition_of(first, topics.partitions)
    key = None if "astray" in how and rng.random() < 0.5 else first.encode()
    if "malformed" in how:
        value = MALFORMED[how["malformed"]]
        return partition, Output(topic, key, value if "padding" not in how else (value or b"{") + b"x" * how["padding"])
    return partition, Output(topic, key, orjson.dumps(_document(kind, how)))


def _document(kind: str, how: Mapping[str, Any]) -> dict[str, Any]:
    doc: dict[str, Any] = {"taskIds": how["tasks"]}
    if kind == "update":
        doc["attachments"] = _parameters(how)
        doc["merge"] = how["merge"]
    if kind == "assign":
        if how["described"] or "padding" in how:
            doc["tasks"] = [_task(task_id, how) for task_id in how["tasks"]]
        for name in ("action", "recipient"):
            if name in how:
                doc[name] = how[name]
    return doc


def _task(task_id: str, how: Mapping[str, Any]) -> dict[str, Any]:
    task: dict[str, Any] = {"id": task_id, "className": how.get("class", "Cam"), "source": "simulator"}
    if how["parameters"] or "padding" in how:
        task["attachments"] = _parameters(how)
    if "deadline_s" in how:
        task["deadlineDateTime"] = EPOCH_MS + int(how["deadline_s"] * 1000)
    return task


def _parameters(how: Mapping[str, Any]) -> dict[str, Any]:
    padding = {"padding": "x" * how["padding"]} if "padding" in how else {}
    return {f"k{how['n'] % 3}": how["n"], **({REFUSE: True} if how.get("refuse") else {}), **padding}
