"""No sequence of events makes a row, or its record in the history, larger than `model.row_size` says.

The limits are scaled down, so that a handful of events reaches them; the sum at full size is in the unit tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skalds_streams.coordinator.batch import Secrecy, Stager, advanced, outputs
from skalds_streams.core import membership, options, placement, row, unanswered
from skalds_streams.core.membership import Members
from skalds_streams.core.partition import partition_of
from skalds_streams.core.placement import Load
from skalds_streams.core.row import Row
from skalds_streams.model import codec, row_size, specs
from skalds_streams.model.changelog import ChangelogState
from skalds_streams.model.codec import Limits
from skalds_streams.model.documents import Positions
from skalds_streams.model.record import Record
from skalds_streams.topics import Topics

TOPICS = Topics.named(app="x", partitions=2)
TASK = next(name for name in "abcdefgh" if partition_of(name, 2) == 0)
ATTACHMENTS_BYTES = 200
LIMITS = Limits(record_bytes=20_000, attachments_bytes=ATTACHMENTS_BYTES)
SCALED = {
    "UNANSWERED_CHARS": 100,
    "UNANSWERED_MOST": 12,
    "LABELS_MOST": 3,
    "LABEL_MAX_CHARS": 6,
    "REASONS_MOST": 2,
    "REASON_MAX_CHARS": 30,
    "NAME_MAX_CHARS": 12,
    "MAX_NAME": 12,
    "MAX_TEXT": 20,
    "MAX_STEPS": 3,
    "MAX_ERROR_BYTES": 600,
}
SECRECY = Secrecy(frozenset({"s"}), b"k", lambda class_name: ("b.*", "d.*.*"))
CHARS = ("\x01", "é", "𠀀", '"', "a", "://b@", "\u2028")
NAMES = [char * (12 // len(char)) for char in CHARS if ":" not in char]
SKALD = "1" + "\x01" * 11
LABELS = {f"{number}" + "\x01" * 5: "\x01" * 6 for number in range(3)}
STEP_BYTES = 6
STEPS = 12


@pytest.fixture(scope="module", autouse=True)
def _scaled_down() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (unanswered, membership, options, placement, row, codec, row_size, specs):
            for name, value in SCALED.items():
                if hasattr(module, name):
                    patch.setattr(module, name, value)
        yield


def _value(kind: int, most: int) -> Any:
    """A parameter of about so many bytes, of a kind that something makes longer."""
    char = CHARS[kind % len(CHARS)]
    return (
        [1] * (most // 2),
        char * (most // len(orjson.dumps(char))),
        [0.00001] * (most // 8),
        {f"{n}": n % 10 for n in range(most // 7)},
        {"s": "x", "": [None] * (most // 5)},
        None,
    )[kind % 6]


def _parameters(data: bytes) -> dict[str, Any]:
    """Just within the limit, as a rule; little of it where a merge is to add up."""
    most = (ATTACHMENTS_BYTES - 12, ATTACHMENTS_BYTES // 2, ATTACHMENTS_BYTES // 3, 10)[data[3] % 4]
    return {"abcds"[data[4] % 5]: _value(data[5], most)}


def _error(data: bytes) -> dict[str, Any]:
    size = (580, 60, 900)[data[3] % 3]
    return {
        "type": CHARS[data[4] % len(CHARS)] * 30,
        "message": CHARS[data[5] % len(CHARS)] * 30,
        "reason": "\x01" * 30,
        "s": 1,
        "traceback": _value(data[5], size),
    }


def _command(kind: str, data: bytes) -> dict[str, Any]:
    name = NAMES[data[3] % len(NAMES)]
    doc: dict[str, Any] = {"taskIds": [TASK], "reason": CHARS[data[4] % len(CHARS)] * 30}
    if kind == "update":
        return {**doc, "attachments": _parameters(data), "merge": bool(data[2] & 1)}
    if kind == "assign":
        longer = "\x01" if data[2] % 32 == 31 else ""
        labels = {label: text + longer for label, text in LABELS.items()}
        task = {
            "id": TASK,
            "className": NAMES[data[2] % len(NAMES)],
            "source": "s",
            "requires": labels if data[2] & 2 else {},
        }
        task |= {"attachments": _parameters(data), "executor": SKALD if data[2] % 16 == 1 else None}
        doc |= {"tasks": [task] if data[2] & 1 else [], "to": name}
        return {**doc, "action": (None, "restart", "move", "pause", None)[data[4] % 5]}
    return doc


def _report(kind: str, found: Row | None, data: bytes) -> dict[str, Any]:
    holder = found.holder if found is not None else None
    doc: dict[str, Any] = {"kind": kind, "task_id": TASK, "epoch": found.epoch if found else 0}
    doc |= {"incarnation": holder.incarnation if holder else "z", "attempt": found.attempt if found else 0}
    version = found.attachments_version if found is not None else 0
    doc |= {"version": max(version - data[2] % 4, 0), "steps": ["\x01" * 30] * 5, "reason": "\x01" * 30}
    return {**doc, "error": _error(data), "retryable": bool(data[2] % 8), "elsewhere": bool(data[2] & 1)}


def _forwarded(data: bytes) -> dict[str, Any]:
    kind = ("assign", "update", "cancel")[data[2] % 3]
    topic = {"assign": TOPICS.assign, "update": TOPICS.update, "cancel": TOPICS.cancel}[kind]
    cause = {"topic": topic, "partition": data[3] % 2, "offset": 2**50 + data[4], "at_ms": 9_000 + data[4]}
    doc = {"kind": "Forwarded", "task_id": TASK, "command": kind.title(), "cause": cause}
    return {**doc, "attachments": _parameters(data), "merge": True}


_KINDS: Sequence[str] = (
    *("assign", "assign", "assign", "update", "update", "update", "update", "update", "cancel", "Forwarded"),
    *("Running", "Running", "Running", "Applied", "Refused", "Failed", "Failed", "Stopped", "Stopped", "Lost"),
    *("Retry", "Retry", "Retry", "Finished"),
)


class Partition:
    """Partition 0 without a broker, with skalds whose names are as long as names can be."""

    def __init__(self, skalds: int) -> None:
        self.state, self.positions, self.members = ChangelogState(), Positions({}), Members()
        self.offsets: dict[str, int] = {}
        for at in range(skalds):
            name = f"{at}" + "\x01" * (30 if at == 4 else 11)
            doc = {
                "skald_id": name,
                "incarnation": f"{at}" + "é" * 11,
                "capacity": 10**6 if at in (1, 4) and skalds % 2 == 0 else 0,
            }
            weights = {name: {"weight": 1 + at, "max_restarts": 2**53} for name in NAMES}
            doc["labels"] = LABELS if at == 1 else {}
            self.members.apply({**doc, "classes": dict.fromkeys(NAMES, "h"), "options": weights}, at)

    def feed(self, data: bytes) -> None:
        """One event, or several updates while the run has answered none."""
        for at in range(5 if data[0] % 24 == 7 else 1):
            self._feed(bytes([*data[:5], (data[5] + at) % 256]))

    def _feed(self, data: bytes) -> None:
        kind, found = _KINDS[data[0] % len(_KINDS)], self.state.rows.get(TASK)
        topic = {"assign": TOPICS.assign, "update": TOPICS.update, "cancel": TOPICS.cancel}.get(kind, TOPICS.report)
        if topic != TOPICS.report:
            doc = _command(kind, data)
        else:
            doc = _forwarded(data) if kind == "Forwarded" else _report(kind, found, data)
        offset = self.offsets[topic] = self.offsets.get(topic, -1) + 1
        now_ms = 10_000 + 70_000 * sum(self.offsets.values())
        record = Record(topic, 0, offset, TASK.encode(), orjson.dumps(doc), now_ms)
        stager = Stager(
            self.state.rows,
            self.positions,
            topics=TOPICS,
            members=self.members,
            load=Load(),
            limits=LIMITS,
            now_ms=now_ms,
        )
        staged = stager.add([record])
        self.positions = advanced(self.positions, staged)
        for letter in staged.deadletters:
            assert b"internal error" not in dict(letter.headers)["reason"]
        for output in outputs(staged, self.positions, TOPICS, SECRECY):
            if output.topic == TOPICS.changelog:
                self.state.apply(0, output.key, output.value)
            elif output.topic == TOPICS.history:
                assert len(output.value or b"") <= row_size.history_bytes_most(ATTACHMENTS_BYTES, 2)


def check_fits(found: Row) -> None:
    most = row_size.field_bytes_most(ATTACHMENTS_BYTES, TOPICS.partitions)
    doc = found.to_doc()
    for name, value in doc.items():
        size = len(orjson.dumps(value))
        assert size <= most[name], f"{name} has {size} bytes, more than {most[name]}: {value}"
    assert len(orjson.dumps(doc)) <= row_size.row_bytes_most(ATTACHMENTS_BYTES, TOPICS.partitions)


@given(st.integers(0, 2**64 - 1), st.integers(1, 6))
def test_a_row_always_fits_into_its_record(seed: int, skalds: int) -> None:
    """A drawn number, not drawn bytes: those are too often zero to reach a limit."""
    partition, data = Partition(skalds), Random(seed).randbytes(STEP_BYTES * STEPS)
    partition.feed(bytes([0, 1, 3, 0, 0, 0]))
    for at in range(0, len(data), STEP_BYTES):
        partition.feed(data[at : at + STEP_BYTES])
        if TASK in partition.state.rows:
            check_fits(partition.state.rows[TASK])
