"""The ledger: what a publisher sent and what became of each sending, one JSON line at a time, so that a crash of the
publisher loses nothing.

    ledger = Ledger(path)
    number = ledger.invoked(topic, key, value)
    ... ledger.acknowledged(number, partition, offset)      or      ledger.unknown(number, "timed out")

`check` says afterwards which acknowledged record is not where the broker said, or was never applied. What an applied
command must have done is the log lint's to say (`lint`). A sending without an answer may be in the log or not; both
are right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import orjson

from skalds_streams.testing.lint import Finding, Logs


@dataclass(slots=True)
class Entry:
    """One sending. `partition` and `offset` are None until the broker has answered."""

    number: int
    topic: str
    key: str | None
    digest: str
    partition: int | None = None
    offset: int | None = None
    unknown: str | None = None


class Ledger:
    """Append-only. Not thread-safe: one publisher, one ledger."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO = path.open("a")
        self._count = max((entry.number for entry in read(path)), default=0)

    def invoked(self, topic: str, key: str | None, value: bytes | None) -> int:
        """Write down what is about to be sent. Returns its number."""
        self._count += 1
        self._write({"number": self._count, "topic": topic, "key": key, "digest": digest_of(value)})
        return self._count

    def acknowledged(self, number: int, partition: int, offset: int) -> None:
        self._write({"number": number, "partition": partition, "offset": offset})

    def unknown(self, number: int, reason: str) -> None:
        """No answer came, or an error that leaves it open whether the record was written."""
        self._write({"number": number, "unknown": reason})

    def close(self) -> None:
        self._file.close()

    def _write(self, document: dict[str, Any]) -> None:
        self._file.write(orjson.dumps(document).decode() + "\n")
        self._file.flush()


def digest_of(value: bytes | None) -> str:
    """What a value is recognised by, 16 hex digits; of an absent value too."""
    return hashlib.sha256(b"\0" if value is None else b"\1" + value).hexdigest()[:16]


def read(path: Path) -> list[Entry]:
    """Every sending of a ledger, with its answer. A last line that was cut off is left out."""
    entries: dict[int, Entry] = {}
    for document in _lines(path):
        if "topic" in document:
            entries[document["number"]] = Entry(
                document["number"], document["topic"], document["key"], document["digest"]
            )
        elif document["number"] in entries:
            entry = entries[document["number"]]
            entry.partition, entry.offset = document.get("partition"), document.get("offset")
            entry.unknown = document.get("unknown")
    return list(entries.values())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            document = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        yield document


def check(entries: list[Entry], logs: Logs) -> list[Finding]:
    """Acknowledged sendings that are not in the log as sent, or that no journal has applied yet."""
    found: list[Finding] = []
    for entry in entries:
        if entry.partition is None or entry.offset is None:
            continue
        where = f"{entry.topic}/{entry.partition}@{entry.offset}"
        record = logs.inputs.get((entry.topic, entry.partition, entry.offset))
        if record is None:
            found.append(Finding("what was acknowledged is in the log", where, f"sending {entry.number} is not there"))
        elif digest_of(record.value) != entry.digest:
            found.append(Finding("what was acknowledged is in the log", where, f"sending {entry.number} differs"))
        else:
            written = logs.positions.get(entry.partition) or [{}]
            if written[-1].get(entry.topic, -1) < entry.offset:
                found.append(Finding("what was acknowledged is applied", where, f"sending {entry.number} still waits"))
    return found
