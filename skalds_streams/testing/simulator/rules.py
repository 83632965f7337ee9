"""What must hold after every event of a world. One small class a rule; a broken one raises ViolationError.

I1 one run at a time; I3 what was freed never runs again; history is a chain of legal steps with one cause each; the
positions never fall; nothing inside the product complains; nobody is placed on the dead or the drained, or elsewhere
while its last skald is waited for; only a crash uses up restarts. The end of a world is judged in `verdict`.
"""

from __future__ import annotations

from typing import Any

import orjson

from skalds_streams.core.control import broken_controls
from skalds_streams.core.invariants import check_step
from skalds_streams.core.row import Release, Row
from skalds_streams.errors import InvariantError
from skalds_streams.model.documents import Positions, encode_row
from skalds_streams.testing.simulator.ledger import Ledger, Step, Where, command_of, public
from skalds_streams.testing.simulator.plan_leases import KEEP
from skalds_streams.testing.simulator.roll import Roll
from skalds_streams.testing.simulator.storage import Entry, size_of
from skalds_streams.testing.simulator.witness import Act, Witness


class ViolationError(Exception):
    """A rule was broken. `rule` names it."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class Rule:
    """A rule's ears. Each rule overrides what it needs."""

    def on_act(self, act: Act) -> None:
        """Before the act is entered."""

    def on_step(self, step: Step) -> None:
        """Before the step is entered."""

    def on_row(self, row: Row) -> None:
        """Before the row of the changelog is entered, after the steps of its batch."""

    def on_positions(self, partition: int, positions: Positions) -> None:
        """Before they are entered."""

    def on_deadletter(self, source: Where, letter: Entry) -> None:
        """Before it is entered."""


class OneAtATime(Rule):
    """I1: no task runs twice at once, unless the one that runs already is of a class that keeps running."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def on_act(self, act: Act) -> None:
        if act.what != "begin":
            return
        for other in self._witness.active.get(act.task_id, ()):
            if not other.keeps:
                what = f"{act.task_id} begins as epoch {act.epoch} at {act.incarnation}"
                raise ViolationError("I1", f"{what} while epoch {other.epoch} runs at {other.incarnation}")


class Margin(Rule):
    """Measures how long after the last act of a run that was counted dead the next one begins. Breaks no rule.

    Classes that keep running are left out.
    """

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._ended: dict[str, float] = {}
        self._counted: set[str] = set()
        self.smallest_s: float | None = None

    def on_step(self, step: Step) -> None:
        before, after = step.before, step.after
        if before is not None and before.holder is not None and after.holder != before.holder:
            silent = after.why.kind == "Lost" and "silent for" in (after.why.reason or "") and before.class_name != KEEP
            (self._counted.add if silent else self._counted.discard)(after.task_id)

    def on_act(self, act: Act) -> None:
        if act.what == "end":
            self._ended[act.task_id] = act.at
        elif act.what == "begin" and act.task_id in self._counted and act.task_id in self._ended:
            margin_s = act.at - self._ended[act.task_id]
            self.smallest_s = min(margin_s, margin_s if self.smallest_s is None else self.smallest_s)


class Placements(Rule):
    """Nobody is placed on an incarnation that was dead, or on a skald that was drained, by what the one who placed it
    had read; and what a skald ran that has said that it comes back stays for it, unless that skald could not begin it.
    """

    def __init__(self, roll: Roll, ledger: Ledger) -> None:
        self._roll, self._ledger = roll, ledger

    def on_step(self, step: Step) -> None:
        before, after = step.before, step.after
        if after.holder is None or (before is not None and before.holder == after.holder):
            return
        holder = after.holder
        if self._roll.was_dead(holder.incarnation, holder.seen):
            raise ViolationError("death is final", f"{after.task_id} is placed on {holder.incarnation}")
        ran_on = self._roll.ran_on(holder.incarnation, after.task_id, holder.seen)
        if self._roll.was_drained(holder.skald_id, holder.seen) and not ran_on:
            raise ViolationError("drain", f"{after.task_id} is placed on {holder.skald_id}, which is drained")
        last = None if before is None else _last_skald(before)
        if last in (None, holder.skald_id) or after.recipient not in (None, last):
            return
        if after.why.kind == "Assign" and command_of(self._ledger, after)[0]["action"] == "move":
            return  # somebody asked for it
        if self._roll.is_waited_for(last or "", holder.seen) and not self._given_back(after):
            raise ViolationError("hold", f"{after.task_id} is placed on {holder.skald_id}, but {last} comes back")

    def _given_back(self, row: Row) -> bool:
        why = row.why
        return why.kind == "Stopped" and b'"elsewhere":true' in (
            self._ledger.inputs[why.topic, why.partition, why.offset].value or b""
        )


def _last_skald(row: Row) -> str | None:
    if row.holder is None:
        return row.last_skald
    return None if row.release is Release.MOVE else row.holder.skald_id


class FreedIsOver(Rule):
    """I3 and more: an epoch runs only where it was placed, and never after the row was freed of it."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._placed: set[tuple[str, int, str]] = set()
        self._freed: dict[str, int] = {}

    def on_step(self, step: Step) -> None:
        before, after = step.before, step.after
        if after.holder is not None:
            self._placed.add((after.task_id, after.holder.epoch, after.holder.incarnation))
        if before is None or before.holder is None or before.holder == after.holder:
            return
        self._freed[after.task_id] = max(self._freed.get(after.task_id, 0), before.holder.epoch)
        for active in self._witness.active.get(after.task_id, ()):
            if active.epoch == before.holder.epoch and not active.keeps:
                raise ViolationError(
                    "freed while it runs", f"{after.task_id} epoch {active.epoch}, by {after.why.kind}"
                )

    def on_act(self, act: Act) -> None:
        if act.what != "begin":
            return
        if (act.task_id, act.epoch, act.incarnation) not in self._placed:
            raise ViolationError("held only", f"{act.task_id} epoch {act.epoch} runs at {act.incarnation}, not placed")
        if act.epoch <= self._freed.get(act.task_id, 0):
            raise ViolationError("I3", f"{act.task_id} epoch {act.epoch} begins after it was freed")


class OnlyCrashesCount(Rule):
    """A task's restarts are used up by its own crashes: not by a lapse, nor by a node that is lost or has no host.

    Classes that keep running are left out, as their epoch may change while a crash is on its way.
    """

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def on_step(self, step: Step) -> None:
        before, after = step.before, step.after
        if before is None or before.holder is None or before.class_name == KEEP or after.attempt <= before.attempt:
            return
        if (after.task_id, before.holder.epoch) not in self._witness.crashed:
            raise ViolationError("only crashes count", f"{after.task_id}: {after.error} is attempt {after.attempt}")


class LegalSteps(Rule):
    """History is a chain: each record follows the one before, and the changelog holds the last of them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._epochs: dict[str, int] = {}
        self._revisions: dict[str, int] = {}

    def on_step(self, step: Step) -> None:
        before, after = step.before, step.after
        try:
            check_step(before, after)
        except InvariantError as error:
            raise ViolationError("legal steps", str(error)) from error
        for broken in broken_controls(before, after):
            raise ViolationError("control is acknowledged", f"{after.task_id}, revision {after.revision}: {broken}")
        if after.revision <= self._revisions.get(after.task_id, 0):
            raise ViolationError("revisions rise", f"{after.task_id}: {after.revision}")
        self._revisions[after.task_id] = after.revision
        placed = after.holder is not None and (before is None or before.holder != after.holder)
        if placed and after.epoch <= self._epochs.get(after.task_id, 0):
            raise ViolationError("epochs rise", f"{after.task_id} is placed again under epoch {after.epoch}")
        self._epochs[after.task_id] = max(self._epochs.get(after.task_id, 0), after.epoch)

    def on_row(self, row: Row) -> None:
        told = self._ledger.latest.get(row.task_id)
        if told != public(row):
            raise ViolationError("one truth", f"{row.task_id}: the changelog and history differ at {row.revision}")


class OneCause(Rule):
    """I4: a record causes at most one step of a task, in the order of its topic, and so does a forwarded one."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._causes: set[tuple[str, Where]] = set()
        self._origins: set[tuple[str, Where]] = set()
        self._last: dict[tuple[str, int], int] = {}

    def on_step(self, step: Step) -> None:
        row, why = step.after, step.after.why
        cause: Where = (why.topic, why.partition, why.offset)
        if cause not in self._ledger.inputs:
            raise ViolationError("I4", f"{row.task_id}: {why.kind} by {cause}, which no input is")
        if (row.task_id, cause) in self._causes:
            raise ViolationError("I4", f"{row.task_id}: {why.kind} {cause} was applied twice")
        self._causes.add((row.task_id, cause))
        if why.offset < self._last.get(cause[:2], -1):
            raise ViolationError("I4", f"{row.task_id}: {cause} was applied after {self._last[cause[:2]]}")
        self._last[cause[:2]] = why.offset
        origin = origin_of(self._ledger, cause)
        if why.kind == "Expired":  # a row that is forgotten forgets what was forwarded to it, long after it came
            self._origins = {item for item in self._origins if item[0] != row.task_id}
        elif origin is not None:
            if (row.task_id, origin) in self._origins:
                raise ViolationError("I4", f"{row.task_id}: {why.kind}, forwarded from {origin}, was applied twice")
            self._origins.add((row.task_id, origin))


class PositionsRise(Rule):
    """The last applied offset of an input never falls."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def on_positions(self, partition: int, positions: Positions) -> None:
        former = self._ledger.positions.get(partition)
        for topic, offset in former.offsets.items() if former is not None else ():
            if positions.offsets.get(topic, -1) < offset:
                raise ViolationError(
                    "positions rise", f"{topic}/{partition}: {offset} → {positions.offsets.get(topic, -1)}"
                )


class OnlyBadLetters(Rule):
    """A dead letter is one that its sender got wrong, or that fits nowhere; none is our own fault. It holds the record
    as it came, cut where that fits nowhere.
    """

    def __init__(self, ledger: Ledger, most_bytes: int) -> None:
        """most_bytes: of a batch that the broker takes."""
        self._ledger, self._most_bytes = ledger, most_bytes

    def on_deadletter(self, source: Where, letter: Entry) -> None:
        reason = dict(letter.headers)["reason"].decode()
        came, kept = self._ledger.inputs[source].value, letter.value
        if reason.startswith("internal error"):
            raise ViolationError("only bad letters", f"{source}: {reason}")
        unwritable = reason.startswith("can't be written")
        if unwritable and not may_exceed(self._ledger, source, self._most_bytes):
            raise ViolationError("only bad letters", f"{source}: {reason}, and would have fitted")
        if came != kept and not (unwritable and kept and (came or b"").startswith(kept) and "cut to" in reason):
            raise ViolationError("only bad letters", f"{source}: the letter is not what came")


GROWTH_BYTES = 900
"""About the most that one event adds to a row beside parameters: a new row, or why it waits, an error, a cause."""


def may_exceed(ledger: Ledger, source: Where, most_bytes: int) -> bool:
    """Whether a record may be too large to be applied: by bounds from above, not by what the code that decides says."""
    entry = ledger.inputs[source]
    doc = _object(entry.value)
    own = size_of(entry)
    if doc is None:
        return own + GROWTH_BYTES > most_bytes
    kept = 2 if b"attachments" in (entry.value or b"") else 1
    """Parameters that run are kept beside the new ones until those are answered."""
    named = doc.get("taskIds") or [doc.get("task_id")]
    rows = [ledger.rows[name] for name in dict.fromkeys(named) if name in ledger.rows]
    before = sum(len(encode_row(row)) for row in rows)
    return kept * before + len(named) * (own + GROWTH_BYTES) > most_bytes


def _object(value: bytes | None) -> dict[str, Any] | None:
    try:
        doc = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    return doc if isinstance(doc, dict) else None


def origin_of(ledger: Ledger, cause: Where) -> Where | None:
    """Where a forwarded command came from; None for a record that is not forwarded."""
    if cause[0] != ledger.topics.report:
        return None
    doc: dict[str, Any] = orjson.loads(ledger.inputs[cause].value or b"{}")
    if doc.get("kind") != "Forwarded":
        return None
    first = doc["cause"]
    return first["topic"], first["partition"], first["offset"]


def all_rules(ledger: Ledger, witness: Witness, roll: Roll, most_bytes: int) -> list[Rule]:
    """One object of each rule, listening to nothing yet."""
    return [
        Placements(roll, ledger),
        OneAtATime(witness),
        FreedIsOver(witness),
        OnlyCrashesCount(witness),
        LegalSteps(ledger),
        OneCause(ledger),
        PositionsRise(ledger),
        OnlyBadLetters(ledger, most_bytes),
    ]
