"""What stands in a record of task.deadletter, and what its event carries when it is sent again.

A dead letter is the record as it came (key, value), its own headers as `original.NAME`, and beside them reason and
source (`coordinator.batch` writes it). Sent again, the event has its own headers back and two more: `redrive.of`, the
place of the letter, and `redrive.count`, how often it was sent again by now. The event itself is thereby the mark that
a letter was sent again; there is no other. Reading and sending are the command line's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skalds_streams.model.record import Record

REASON = "reason"
ORIGINAL = "original."
REDRIVE_OF = "redrive.of"
"""Header: "topic/partition@offset" of the dead letter."""
REDRIVE_COUNT = "redrive.count"
NO_REASON = "none given: skalds_streams did not write this"

Header = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Source:
    """The input that became a dead letter."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter without its value.

    `at_ms`: when it was put there; `size` in bytes; `source` None: its headers don't say; `redrives`: how often its
    event had been sent again before it came here; `is_cut`: the value was too large, and only its beginning is kept.
    """

    topic: str
    partition: int
    offset: int
    at_ms: int
    key: bytes | None
    size: int
    reason: str
    source: Source | None
    redrives: int = 0
    is_cut: bool = False

    @property
    def spot(self) -> tuple[int, int]:
        """(partition, offset), what people name it by."""
        return self.partition, self.offset

    @property
    def where(self) -> str:
        """The value of `redrive.of`."""
        return f"{self.topic}/{self.partition}@{self.offset}"


def read_letter(record: Record) -> Letter:
    """The letter; of a record that somebody else wrote, what can be known."""
    texts: dict[str, str] = {}
    for name, value in record.headers:
        texts.setdefault(name, (value or b"").decode(errors="replace"))
    reason, size = texts.get(REASON) or NO_REASON, len(record.value or b"")
    return Letter(
        record.topic,
        record.partition,
        record.offset,
        record.timestamp_ms,
        record.key,
        size,
        reason,
        _source(texts),
        redrives=_number(texts.get(ORIGINAL + REDRIVE_COUNT)) or 0,
        is_cut=reason.endswith(f"; cut to {size} bytes"),
    )


def _source(texts: dict[str, str]) -> Source | None:
    topic = texts.get("source.topic")
    partition, offset = _number(texts.get("source.partition")), _number(texts.get("source.offset"))
    return Source(topic, partition, offset) if topic and partition is not None and offset is not None else None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 20 else None


def original_headers(record: Record) -> list[Header]:
    """The headers that the input had."""
    return [(name.removeprefix(ORIGINAL), value) for name, value in record.headers if name.startswith(ORIGINAL)]


def redrive_headers(record: Record, count: int) -> list[Header]:
    """The headers of its event when it is sent again, for the `count`-th time."""
    own = [item for item in original_headers(record) if item[0] not in (REDRIVE_OF, REDRIVE_COUNT)]
    return [*own, (REDRIVE_OF, record.where.encode()), (REDRIVE_COUNT, str(count).encode())]


def redrive_of(headers: Sequence[Header]) -> str | None:
    """Where the dead letter lies whose event this is; None for an event that was not sent again."""
    found = next((value for name, value in headers if name == REDRIVE_OF), None)
    return found.decode(errors="replace") if found else None


def redrive_reason(headers: Sequence[Header]) -> str | None:
    """The same as a reason, for an event that gives none."""
    place = redrive_of(headers)
    return f"redrive of {place}" if place else None
