"""Adds up a replay: does every decision lead to its history record, and does the last one lead to the live row? Pure.

Rules: a live row is compared with the rebuilt one of the same revision; a live row whose history is no longer kept
can't be rebuilt and is counted, not blamed; a task that is gone from the table must have ended before (terminal rows
leave after a retention).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skalds_streams.coordinator.batch import Secrecy
from skalds_streams.core.row import Row, Status
from skalds_streams.replay.compare import Difference, table_differences
from skalds_streams.replay.recording import Entry, Recording
from skalds_streams.replay.timeline import Rebuilt, Step


@dataclass(frozen=True, slots=True)
class Finding:
    """What differs for one task at one place. `row` is for masking what is shown of it."""

    task_id: str
    where: str
    """"revision 4 (taskworker.update/3@17)" or "live table"."""
    row: Row
    differences: Sequence[Difference]


@dataclass(slots=True)
class Verdict:
    """The sum. `tasks`: live rows that were rebuilt and compared."""

    tasks: int = 0
    decisions: int = 0
    bases: int = 0
    """Records that were taken as they are, because what came before is no longer kept."""
    without_history: int = 0
    gone: int = 0
    """Tasks with a history that have left the table since."""
    inputs: int = 0
    inputs_without_change: int = 0
    foreign: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_verified(self) -> bool:
        """Whether nothing differs."""
        return not self.findings

    @property
    def differing(self) -> int:
        """Number of places that differ: decisions and live rows."""
        return len(self.findings)

    @property
    def sentence(self) -> str:
        """The last line of a replay."""
        word = "verified" if self.is_verified else "NOT verified"
        return f"{word}: {_count(self.tasks, 'task')}, {_count(self.decisions, 'decision')}, {self.differing} differ"

    def to_doc(self) -> dict[str, Any]:
        """For `-o json`; the findings are masked by who shows them."""
        names = ("tasks", "decisions", "bases", "without_history", "gone", "inputs", "inputs_without_change", "foreign")
        return {
            "verified": self.is_verified,
            "differing": self.differing,
            **{name: getattr(self, name) for name in names},
        }


class Verifier:
    """Give it every step, then ask for the verdict."""

    def __init__(self, recording: Recording, *, secrecy: Secrecy, history_topic: str) -> None:
        self._recording, self._secrecy, self._history_topic = recording, secrecy, history_topic
        self._verdict = Verdict(
            inputs=recording.inputs_read,
            inputs_without_change=recording.inputs_read - len(recording.inputs),
            foreign=recording.foreign,
        )
        self._at_live: dict[str, Rebuilt] = {}
        self._first: dict[str, Entry] = {}
        self._last: dict[str, Entry] = {}
        self._before_table: dict[str, Entry] = {}

    def add(self, step: Step) -> None:
        """Take one step of the timeline."""
        entry, task_id = step.entry, step.entry.task_id
        if step.was_decided:
            self._verdict.decisions += 1
        else:
            self._verdict.bases += 1
        if step.differences:
            where = f"revision {entry.row.revision} ({self._history_topic}/{entry.partition}@{entry.offset})"
            self._verdict.findings.append(Finding(task_id, where, step.after.row, step.differences))
        self._first.setdefault(task_id, entry)
        self._last[task_id] = entry
        if entry.offset < self._recording.history_before.get(entry.partition, 0):
            self._before_table[task_id] = entry
        live = self._recording.rows.get(task_id)
        if live is not None and step.after.row.revision == live.revision:
            self._at_live[task_id] = step.after

    def verdict(self) -> Verdict:
        """Compare with the live table and add up. Call once, after the last step."""
        for task_id, live in self._recording.rows.items():
            self._check_live(task_id, live)
        for task_id, entry in self._before_table.items():
            if task_id not in self._recording.rows:
                self._check_gone(task_id, entry)
        return self._verdict

    def _check_live(self, task_id: str, live: Row) -> None:
        rebuilt = self._at_live.get(task_id)
        if rebuilt is None:
            first, last = self._first.get(task_id), self._last.get(task_id)
            if first is None or last is None or first.row.revision > live.revision:
                self._verdict.without_history += 1
                return
            found = [Difference("revision", last.row.revision, live.revision)]
        else:
            self._verdict.tasks += 1
            found = table_differences(
                rebuilt.row,
                live,
                self._secrecy,
                digest_known=rebuilt.digest,
                parameters=rebuilt.known,
                under_way=rebuilt.whole,
            )
        if found:
            self._verdict.findings.append(Finding(task_id, "live table", live, found))

    def _check_gone(self, task_id: str, entry: Entry) -> None:
        if entry.row.is_terminal or entry.row.status is Status.CREATED:
            self._verdict.gone += 1
            return
        found = Difference("row", f"{entry.row.status.value}, revision {entry.row.revision}", "not in the table")
        self._verdict.findings.append(Finding(task_id, "live table", entry.row, [found]))


def by_task(findings: Sequence[Finding]) -> Mapping[str, list[Finding]]:
    """The findings of each task, in order: the first is where it began."""
    grouped: dict[str, list[Finding]] = {}
    for finding in findings:
        grouped.setdefault(finding.task_id, []).append(finding)
    return grouped


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
