"""A Kafka record as the rest of the code sees it:

no client library's type travels further than the reader that made this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """Bytes and where they came from. `timestamp_ms` is the record's time (the broker's with LogAppendTime)."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Sequence[tuple[str, bytes]] = ()

    @property
    def where(self) -> str:
        """ "topic/partition@offset", for messages to people."""
        return f"{self.topic}/{self.partition}@{self.offset}"
