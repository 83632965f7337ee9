"""What became of a command, read from the history of its task. Pure: entries in, sentences and an outcome out.

The task's records count from the one that names our event as its cause; what is settled, and how, differs by command
(`settle_…`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from skalds_streams.cli.kafka import Sent
from skalds_streams.core.row import Row, Status, Wanted
from skalds_streams.model.record import Record
from skalds_streams.projections.masking import error_text
from skalds_streams.replay.recording import Entry
from skalds_streams.web.words import situation, update_state

Clean = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended. `word` for scripts ("running", "applied", "refused", "timeout" …), `reason` for people.

    `took_ms`: from the time of the record until what it asks was so, for cancel, pause, resume and restart.
    """

    ok: bool
    word: str
    reason: str = ""
    took_ms: int | None = None


Settle = Callable[[Row, Row], Outcome | None]
"""(the row that our event made, the row now) → the outcome, None while it is open."""


class Tracker:
    """Follows one command. `outcome` is set when it is settled."""

    def __init__(self, task_id: str, sent: Sent, settle: Settle, clean: Clean) -> None:
        """clean: masks secrets in texts about this task."""
        self.task_id, self.sent = task_id, sent
        self.outcome: Outcome | None = None
        self.last: Entry | None = None
        self._place = (sent.topic, sent.partition, sent.offset)
        self._settle, self._clean = settle, clean
        self._asked: Row | None = None
        self._said = self._held_back = ""
        self._is_patient = True

    def see(self, entry: Entry) -> str | None:
        """Take the next history record of the task. Returns a line for people when there is news."""
        if self.outcome is not None:
            return None
        row = entry.row
        if self._asked is None:
            if (row.why.topic, row.why.partition, row.why.offset) != self._place:
                return None
            self._asked = row
        self.last = entry
        outcome = self._settle(self._asked, row)
        if outcome is not None:
            self.outcome = replace(outcome, reason=self._clean(outcome.reason), took_ms=self._took_ms(row))
            return None
        line = status_line(row, self._clean)
        self._held_back = line if self._is_patient and _not_applied_yet(row, self._clean) else ""
        return self._news(line) if not self._held_back else None

    def lose_patience(self) -> str | None:
        """From now on say also that a worker has not applied its parameters yet. The line that was held back."""
        self._is_patient = False
        return self._news(self._held_back) if self.outcome is None else None

    def _news(self, line: str) -> str | None:
        if line in ("", self._said):
            return None
        self._said = line
        return line

    @property
    def is_of_unknown(self) -> bool:
        """Whether the event found no task: nobody has ever said what it is, so it is kept for when somebody does."""
        return self._asked is not None and self._asked.class_name is None

    def _took_ms(self, row: Row) -> int | None:
        return next((item.took_ms for item in row.controls.values() if item.place == self._place), None)

    def see_deadletter(self, letter: Record) -> None:
        """Take a dead letter; settled when it is our event."""
        headers = {name: value.decode(errors="replace") for name, value in letter.headers}
        where = (headers.get("source.topic"), headers.get("source.partition"), headers.get("source.offset"))
        if self.outcome is None and where == (self.sent.topic, str(self.sent.partition), str(self.sent.offset)):
            self.outcome = Outcome(False, "deadletter", f"not accepted: {headers.get('reason', 'no reason given')}")

    def give_up(self, waited_s: float) -> None:
        """The time is over."""
        if self.outcome is None:
            self.outcome = Outcome(False, "timeout", f"not done within {waited_s:g} s: {self._open_reason()}")

    def row_doc(self) -> Any:
        """The last history record that counted, masked; None when there was none."""
        return self._clean(self.last.to_doc()) if self.last is not None else None

    def _open_reason(self) -> str:
        if self.last is None:
            return f"no coordinator has answered yet; the event is kept at {self.sent} (is a skald running?)"
        return status_line(self.last.row, self._clean)


def status_line(row: Row, clean: Clean) -> str:
    """Status and what it waits for: "Assigning: No skald can take it: a: full 8/8"."""
    told = situation(row, clean).text or _not_applied_yet(row, clean)
    return f"{row.status.value}: {told}" if told else row.status.value


def _not_applied_yet(row: Row, clean: Clean) -> str:
    """That, when there is nothing else to say; else ""."""
    if row.holder is None or update_state(row) != "pending" or situation(row, clean).text:
        return ""
    return f"{row.holder.skald_id} has not applied version {row.attachments_version} yet"


def _superseded(asked: Row, row: Row) -> Outcome | None:
    if row is asked and row.note and row.note.startswith("superseded"):
        return Outcome(False, "superseded", row.note)
    return None


def _refused(row: Row, version: int) -> Outcome | None:
    if row.refused is None or int(row.refused.get("version", 0)) < version or row.applied_version >= version:
        return None
    error = row.refused.get("error")
    told = error_text(error) if isinstance(error, dict) else str(error)
    return Outcome(False, "refused", f"parameters refused: {told}; the former ones stay")


def _holder(row: Row) -> str:
    return f"{row.holder.skald_id} (epoch {row.holder.epoch})" if row.holder else "nobody"


def settle_run(asked: Row, row: Row) -> Outcome | None:
    """An assign: runs, with the parameters it was given."""
    if (lost := _superseded(asked, row)) is not None:
        return lost
    if row.status is Status.FINISHED:
        return Outcome(True, "finished", "finished already")
    if row.status is Status.FAILED:
        return Outcome(False, "failed", f"failed: {error_text(row.error) or 'no reason given'}")
    if row.wanted is not Wanted.RUN:
        word = "cancelled" if row.wanted is Wanted.CANCEL else "paused"
        return Outcome(False, word, f"{word} meanwhile by {row.why.topic}/{row.why.partition}@{row.why.offset}")
    if row.status is not Status.RUNNING or row.release is not None:
        return None
    if row.applied_version >= row.attachments_version:
        return Outcome(True, "running", f"running on {_holder(row)}")
    return _refused(row, asked.attachments_version)


def settle_pause(asked: Row, row: Row) -> Outcome | None:
    """An assign with action pause: does not run any more."""
    if (lost := _superseded(asked, row)) is not None:
        return lost
    if row.status is Status.PAUSED:
        return Outcome(True, "paused", "paused")
    if row.is_terminal:
        return Outcome(row.status is Status.FINISHED, row.status.value.lower(), f"{row.status.value.lower()} instead")
    if row.wanted is not Wanted.PAUSE:
        return Outcome(False, "superseded", f"wanted otherwise meanwhile: {row.wanted.value}")
    return None


def settle_update(asked: Row, row: Row) -> Outcome | None:
    """An update: applied by the worker, or kept for a task that does not run."""
    if (lost := _superseded(asked, row)) is not None:
        return lost
    version = asked.attachments_version
    if row.is_terminal or (row.holder is None and row.wanted is not Wanted.RUN):
        return Outcome(True, "kept", f"{row.status.value}: kept as version {version} for the next start")
    if row.status is Status.RUNNING and row.applied_version >= version:
        return Outcome(True, "applied", f"version {version} applied by {_holder(row)}")
    return _refused(row, version)


def settle_cancel(asked: Row, row: Row) -> Outcome | None:
    """A cancel: the worker has ended."""
    if (lost := _superseded(asked, row)) is not None:
        return lost
    if row.is_terminal:
        word = row.status.value.lower()
        return Outcome(True, word, word if row.status is Status.CANCELLED else f"had {word} before")
    if row.wanted is not Wanted.CANCEL:
        return Outcome(False, "superseded", f"wanted otherwise meanwhile: {row.wanted.value}")
    return None
