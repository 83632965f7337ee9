"""The recorded inputs decided once more, in the order in which they were applied: that of the history. Pure.

Each history record names the input that caused it. That input is parsed by `model.codec` and decided by
`core.decide`, as live, from the row rebuilt so far: `now_ms` is the record's `updated_at_ms`, and a placement is
taken from the record (the heartbeats that it rested on are long gone) and only checked for being legal. What comes
out is compared with the record, field by field.

- A task's first record is decided from nothing. If that does not lead to it and its revision says that there were
  records before, the record itself is the base from which the task goes on, and the step says so. The same when the
  cause is no longer kept.
- Parameters come from the inputs. Below a base they are unknown until an input or the live table has those of the
  recorded digest; until then the digest of the record is taken for granted, and whether an event changed them is read
  from it.
- After a record that differs, the next one is decided from the rebuilt row and, if that does not lead to it either,
  from the recorded one, so that one odd record does not make all that follow odd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from skalds_streams.coordinator.batch import Secrecy
from skalds_streams.core import events
from skalds_streams.core.decide import Context, Decision, decide
from skalds_streams.core.invariants import check_step
from skalds_streams.core.placement import Choice
from skalds_streams.core.row import Json, Row
from skalds_streams.errors import SkaldsError, WireError
from skalds_streams.model.codec import Limits, parse
from skalds_streams.model.documents import digest
from skalds_streams.replay.compare import Difference, history_differences
from skalds_streams.replay.recording import Entry, Recording
from skalds_streams.topics import Topics

UNLIMITED = Limits(record_bytes=2**31, ids_per_event=2**31, attachments_bytes=2**31)
"""What was applied once is not refused because a limit has been lowered since."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A row as replay knows it.

    `known`: its parameters are the real ones; if not, they are masked ones with the digest `digest`. `whole`: it was
    decided from the task's first record on; if not, updates may be under way that no record tells of.
    """

    row: Row
    known: bool
    digest: str | None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One history record explained: event → decision → row."""

    entry: Entry
    event: events.Event | None
    before: Row | None
    after: Rebuilt
    base: str | None = None
    """Why the record was taken as it is instead of decided; None when it was decided."""
    differences: Sequence[Difference] = ()

    @property
    def was_decided(self) -> bool:
        """Whether the row comes from a decision, not from the record."""
        return self.base is None


class Timeline:
    """Iterate once over `steps`; memory is one row a task."""

    def __init__(self, recording: Recording, *, topics: Topics, secrecy: Secrecy) -> None:
        self._recording, self._topics, self._secrecy = recording, topics, secrecy
        self._last: dict[str, tuple[Rebuilt, ...]] = {}
        """What the next record of a task may follow from: the rebuilt row; after a difference the recorded one, too."""

    def steps(self) -> Iterator[Step]:
        """Every history record, explained, in the recording's order."""
        for entry in self._recording.history:
            step = self._step(entry)
            follows: tuple[Rebuilt, ...] = (step.after,)
            if step.differences and step.was_decided:
                follows += (self._as_recorded(entry, step.event),)
            self._last[entry.task_id] = follows
            yield step

    def _step(self, entry: Entry) -> Step:
        event, missing, wrong = self._event(entry)
        last = self._last.get(entry.task_id, ())
        if event is None:
            return self._based(entry, None, last, f"its cause {_place(entry)} {missing}", wrong=wrong)
        tries = [Attempt(self, entry, event, item) for item in last if item.row.revision + 1 == entry.row.revision]
        fresh = Attempt(self, entry, event, None)
        may_be_new = isinstance(event, events.Command) and all(item.row.revision < entry.row.revision for item in last)
        for attempt in [*tries, fresh] if may_be_new else tries:
            if not attempt.differences:
                return attempt.step
        if tries:
            return tries[0].step
        if last:
            reason = f"revision {last[0].row.revision} is followed by {entry.row.revision}"
            return self._based(entry, event, last, reason, wrong=True)
        if entry.row.revision > 1:
            return self._based(entry, event, last, f"the {entry.row.revision - 1} changes before it are no longer kept")
        return fresh.step

    def _event(self, entry: Entry) -> tuple[events.Event | None, str, bool]:
        """(the event, or why there is none, whether that is wrong)."""
        topic, partition, offset = entry.input_key
        if topic not in self._topics.inputs or partition != entry.partition:
            return None, "is no input of this partition", True
        record = self._recording.inputs.get(entry.input_key)
        if record is None:
            if offset < self._recording.inputs_begin.get((topic, partition), 0):
                return None, "is no longer kept", False
            return None, "does not exist", True
        try:
            parsed = parse(record, self._topics, UNLIMITED)
        except WireError as error:
            return None, f"can't be understood ({error})", True
        for event in parsed.events:
            if event.task_id == entry.task_id:
                return event, "", False
        return None, "does not name this task", True

    def _based(
        self, entry: Entry, event: events.Event | None, last: Sequence[Rebuilt], reason: str, *, wrong: bool = False
    ) -> Step:
        found = (Difference("why", reason, _place(entry)),) if wrong else ()
        before = last[0].row if last else None
        return Step(entry, event, before, self._as_recorded(entry, event), base=reason, differences=found)

    def _as_recorded(self, entry: Entry, event: events.Event | None) -> Rebuilt:
        """The record as a row, with its parameters if somebody knows them."""
        return self.with_parameters(
            entry, entry.row, [item.row.attachments for item in self._last.get(entry.task_id, ())], event
        )

    # -- for attempts --------------------------------------------------------------------------------------------------

    def with_parameters(
        self, entry: Entry, row: Row, candidates: Sequence[Json | None], event: events.Event | None
    ) -> Rebuilt:
        """The row with the parameters that have the recorded digest, or with the masked ones if nobody has them."""
        live = self._recording.rows.get(entry.task_id)
        for parameters in (*candidates, entry.masked, _given(event), live.attachments if live else None):
            if self.digest(parameters) == entry.digest:
                return Rebuilt(replace(row, attachments=parameters), not _may_come_back(row), entry.digest)
        return Rebuilt(replace(row, attachments=entry.masked), False, entry.digest)

    def digest(self, parameters: Json | None) -> str | None:
        """As history records have it."""
        return digest(parameters, self._secrecy.digest_key)

    def compare(self, entry: Entry, rebuilt: Rebuilt, members_offset: int) -> list[Difference]:
        """What the record says otherwise."""
        return history_differences(rebuilt.row, members_offset, entry, self._secrecy, parameters=rebuilt.known)


class Attempt:
    """One event decided from one row, and how far that is from the record.

    `start` None: from nothing, above the floors that the record implies.
    """

    def __init__(self, timeline: Timeline, entry: Entry, event: events.Event, start: Rebuilt | None) -> None:
        self._timeline, self._entry, self._event = timeline, entry, event
        self._start = self._learned(start) if start is not None else None

    @property
    def differences(self) -> Sequence[Difference]:
        """How far the decision is from the record."""
        return self.step.differences

    @cached_property
    def step(self) -> Step:
        """The decision, made once."""
        before = self._start.row if self._start else None
        try:
            decision = decide(before, self._event, self._context())
            if decision.row is not None:
                check_step(before, decision.row)
        except SkaldsError as error:
            return self._undecided(f"{type(error).__name__}: {error}")
        if decision.row is None:
            return self._undecided(f"ignored: {decision.ignored}")
        after = self._settled(decision.row)
        members_offset = decision.choice.members_offset if decision.choice else -1
        found = self._timeline.compare(self._entry, after, members_offset) + _illegal(decision, self._entry)
        return Step(self._entry, self._event, before, after, differences=tuple(found))

    def _context(self) -> Context:
        recorded = self._entry.row
        placed = 1 if recorded.holder is not None else 0
        return Context(
            recorded.updated_at_ms, self._choose, max(recorded.epoch - placed, 0), max(recorded.revision - 1, 0)
        )

    def _choose(self, _row: Row) -> Choice:
        recorded = self._entry.row
        if recorded.holder is not None:
            return Choice(
                recorded.holder.skald_id,
                recorded.holder.incarnation,
                members_offset=self._entry.members_offset,
                of_class=recorded.of_class,
            )
        return Choice(waiting=recorded.waiting or {})

    def _learned(self, start: Rebuilt) -> Rebuilt:
        """With the event's own parameters, if they are those that the row has had all along."""
        given = _given(self._event)
        if start.known or given is None or self._timeline.digest(given) != start.digest:
            return start
        return replace(start, row=replace(start.row, attachments=given), known=not _may_come_back(start.row))

    def _settled(self, row: Row) -> Rebuilt:
        whole = self._start.whole if self._start else self._entry.row.revision == 1
        if self._start is None or self._start.known:
            known = whole or self._start is not None or not _may_come_back(row)
            return Rebuilt(row, known, self._timeline.digest(row.attachments), whole)
        changed = self._entry.digest != self._start.digest and not isinstance(self._event, events.Refused)
        row = replace(row, attachments_version=self._start.row.attachments_version + int(changed))
        return self._timeline.with_parameters(self._entry, row, [row.attachments], self._event)

    def _undecided(self, outcome: str) -> Step:
        """The record says that something changed, and by our decision nothing does. The row goes on as recorded."""
        after = self._timeline.with_parameters(
            self._entry, self._entry.row, [self._start.row.attachments if self._start else None], self._event
        )
        found = Difference("decision", outcome, f"revision {self._entry.row.revision}")
        return Step(self._entry, self._event, self._start.row if self._start else None, after, differences=(found,))


def _may_come_back(row: Row) -> bool:
    """Whether an update may be under way whose refusal would bring back parameters that no record has."""
    return row.holder is not None and row.attachments_version != row.applied_version


def _given(event: events.Event | None) -> Json | None:
    """All parameters that the event itself carries; None when it carries none, or a part of them."""
    if isinstance(event, events.Assign | events.Found):
        return event.spec.attachments
    if isinstance(event, events.Update) and not event.merge and isinstance(event.attachments, dict):
        return event.attachments
    return None


def _illegal(decision: Decision, entry: Entry) -> list[Difference]:
    """A recorded placement is not computed again, but it must name a skald that the row allows; a wait must say why."""
    row, found = decision.row, []
    if row is not None and decision.choice is not None and row.holder is not None:
        if not row.holder.skald_id or not row.holder.incarnation:
            found.append(Difference("holder", "a placement names a skald and its incarnation", str(entry.row.holder)))
        if row.class_name is None:
            found.append(Difference("holder", "no placement without a class", row.holder.skald_id))
        if row.recipient is not None and row.holder.skald_id != row.recipient:
            found.append(Difference("holder.skald_id", f"the recipient {row.recipient}", row.holder.skald_id))
    elif row is not None and row.waiting is not None and not row.waiting:
        found.append(Difference("waiting", "a reason a skald", "none"))
    return found


def _place(entry: Entry) -> str:
    topic, partition, offset = entry.input_key
    return f"{topic}/{partition}@{offset}" if topic else "(no cause)"
