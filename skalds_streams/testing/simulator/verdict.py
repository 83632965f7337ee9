"""How a world must have ended, once all faults are over and everything was delivered.

I2: what the last command by the design's order asks for is so: a wanted task runs exactly once with the last
parameters, a cancelled or paused one does not. I4: each input changed a row of each task that it names, or is a dead
letter, or was deleted before anybody applied it; nothing is asked of a task of which a report was. Nothing that another
could take is left on a drained skald. What nobody who is left can run is not judged. The view of every process is the
changelog. `unmet` is asked again and again until there is nothing, or the time is over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from skalds_streams.core.decide import AHEAD_MS
from skalds_streams.core.partition import partition_of
from skalds_streams.core.patch import merge_patch
from skalds_streams.core.row import Row, Status
from skalds_streams.testing.simulator.hosts import REFUSE
from skalds_streams.testing.simulator.ledger import Ledger, Where, command_of
from skalds_streams.testing.simulator.plan_leases import KEEP
from skalds_streams.testing.simulator.process import Life, Seat
from skalds_streams.testing.simulator.roll import Roll
from skalds_streams.testing.simulator.rules import origin_of
from skalds_streams.testing.simulator.witness import Active, Witness

NEVER = -1
ENDED = frozenset({Status.FINISHED, Status.FAILED})


@dataclass(slots=True)
class Order:
    """What the commands of one task add up to: a second opinion on `core.decide`. Times in ms."""

    assigned: int = NEVER
    cancelled: int = NEVER
    updated: int = NEVER
    wanted: str = "cancel"
    parameters: dict[str, Any] | None = None
    refusable: bool = False
    assigns: int = 0

    def take(self, row: Row, doc: Mapping[str, Any], forwarded: bool) -> None:
        """The next command, as it was applied with `row` as its outcome."""
        shown = row.updated_at_ms + AHEAD_MS
        is_behind = max(self.assigned, self.cancelled, self.updated) > shown
        at = row.why.at_ms if row.why.at_ms <= shown or is_behind else row.updated_at_ms
        if row.why.kind == "Cancel":
            self.cancelled = max(self.cancelled, at)
            if self.cancelled >= self.assigned:
                self.wanted = "cancel"
        elif row.why.kind == "Assign":
            self._assign(at, doc, forwarded)
        elif row.why.kind == "Update":
            self._update(at, doc, forwarded)
        elif row.why.kind == "Deadline":
            self.wanted = "cancel"

    def _assign(self, at: int, doc: Mapping[str, Any], forwarded: bool) -> None:
        if doc["action"] == "move" and not doc["described"]:
            return  # it says where, not whether
        if forwarded and at < self.assigned:
            return
        self.assigns += 1
        self.assigned = max(self.assigned, at)
        new = doc["parameters"]
        if new is not None and self.assigned >= self.updated:
            self._set(new, self.assigned)
        if self.assigned > self.cancelled:
            self.wanted = "pause" if doc["action"] == "pause" else "run"

    def _update(self, at: int, doc: Mapping[str, Any], forwarded: bool) -> None:
        if (self.updated == self.assigned or forwarded) and at < self.updated:
            return
        new = merge_patch(self.parameters or {}, doc["parameters"]) if doc["merge"] else doc["parameters"]
        self._set(new, max(at, self.updated))

    def _set(self, parameters: Any, at: int) -> None:
        self.parameters, self.updated = dict(parameters), at
        self.refusable = self.refusable or REFUSE in parameters


def order_of(ledger: Ledger, task_id: str) -> Order:
    """What all commands of a task add up to, in the order in which they were applied."""
    order = Order()
    for row in ledger.commands.get(task_id, ()):
        if row.why.kind == "Expired":
            order = Order()
        elif row.why.kind == "Deadline":
            order.take(row, {}, False)
        else:
            doc, forwarded = command_of(ledger, row)
            order.take(row, doc, forwarded)
    return order


class Verdict:
    """Judges the end."""

    def __init__(self, ledger: Ledger, witness: Witness, roll: Roll, capacity: int, seats: Sequence[Seat]) -> None:
        """seats: all that there ever were."""
        self._ledger, self._witness, self._roll, self._capacity = ledger, witness, roll, capacity
        self._lost = tuple(seat.prefix for seat in seats if seat.machine.lost)
        self._homes = [seat for seat in seats if not seat.twin and not seat.machine.lost]

    def unmet(self) -> str | None:
        """The first thing that is not as it must be; None when all is, or nobody is left."""
        if not self._homes:
            return None
        lives = [seat.life for seat in self._homes if seat.life is not None]
        for found in self._unmet(lives):
            return found
        return None

    def _runs(self, task_id: str) -> list[Active]:
        """What runs where somebody can do something about it. A machine without network keeps what is to be kept."""
        active = self._witness.active.get(task_id, [])
        return [run for run in active if not (run.keeps and self._lost and run.incarnation.startswith(self._lost))]

    def _unmet(self, lives: list[Life]) -> Iterator[str]:
        yield from self._unread()
        for task_id in sorted(self._ledger.commands.keys() - self._ledger.unreported):
            found = self._task(task_id)
            if found is not None:
                yield found
        for task_id in self._witness.active:
            if self._runs(task_id) and task_id not in self._ledger.rows and task_id not in self._ledger.unreported:
                yield f"I2: {task_id} runs, and there is no row"
        for life in lives:
            if life.runtime is None or dict(life.runtime.view.rows) != self._ledger.rows:
                yield f"view: {life.incarnation} does not see what the changelog says"

    def _unread(self) -> Iterator[str]:
        """Inputs that nobody has applied yet."""
        for topic, partition, offset in reversed(self._ledger.inputs):
            if (topic, partition, offset) in self._ledger.deleted:
                continue
            positions = self._ledger.positions.get(partition)
            if positions is None or positions.offsets.get(topic, NEVER) < offset:
                yield f"I2: {topic}/{partition}@{offset} is not applied"

    def _task(self, task_id: str) -> str | None:
        row, order = self._ledger.rows.get(task_id), order_of(self._ledger, task_id)
        active = self._runs(task_id)
        if row is None or row.status in ENDED:
            return f"I2: {task_id} has ended, and runs" if active else self._ended(task_id, row)
        if order.wanted != "run":
            if active:
                return f"I2: {task_id} runs, wanted is {order.wanted}"
            expected = Status.PAUSED if order.wanted == "pause" else Status.CANCELLED
            if row.status is not expected and (order.assigns or row.status is not Status.CREATED):
                return f"I2: {task_id} is {row.status.value}, wanted is {order.wanted}"
            return None
        if row.class_name is None or (row.holder is None and row.waiting is not None and not self._takers(row)):
            return f"I2: {task_id} runs, and waits" if active else None
        return self._running(row, order)

    def _ended(self, task_id: str, row: Row | None) -> str | None:
        if row is None or (task_id, row.epoch) in self._witness.ended_by_itself:
            return None
        return f"I2: {task_id} is {row.status.value}, but epoch {row.epoch} did not end by itself"

    def _running(self, row: Row, order: Order) -> str | None:
        active = self._runs(row.task_id)
        if len(active) != 1 or row.status is not Status.RUNNING:
            return f"I2: {row.task_id} is wanted, {len(active)} workers run, the row says {row.status.value}"
        worker = active[0]
        if row.holder is not None and row.holder.skald_id in self._roll.drained and self._takers(row):
            return f"drain: {row.task_id} runs at {row.holder.skald_id}, which is drained"
        if row.holder is None or (worker.epoch, worker.incarnation) != (row.holder.epoch, row.holder.incarnation):
            return f"I2: {row.task_id} runs elsewhere than the row says"
        if worker.keeps is not (row.class_name == KEEP):
            return f"I2: {row.task_id} runs as another class than {row.class_name}"
        if (worker.parameters or None) != (dict(row.attachments) if row.attachments else None):
            return f"I2: {row.task_id} runs with {worker.parameters}, the row has {row.attachments}"
        if not order.refusable and (order.parameters or None) != (worker.parameters or None):
            return f"I4: {row.task_id} runs with {worker.parameters}, the last command says {order.parameters}"
        return None

    def _takers(self, row: Row) -> list[str]:
        """Skalds that could take this task: not drained, and with room."""
        held: dict[str, int] = {}
        for other in self._ledger.rows.values():
            if other.holder is not None:
                held[other.holder.skald_id] = held.get(other.holder.skald_id, 0) + other.units
        open_to = {seat.skald_id for seat in self._homes} - self._roll.drained.keys()
        if row.recipient is not None:
            open_to &= {row.recipient}
        return [name for name in sorted(open_to) if held.get(name, 0) + row.units <= self._capacity]

    def unaccounted(self) -> str | None:
        """I4: an applied command that changed nothing of a task that it names, and is no dead letter."""
        ledger = self._ledger
        if not self._homes:
            return None
        known = {
            (row.task_id, origin_of(ledger, cause) or cause)
            for row, cause in (
                (row, (row.why.topic, row.why.partition, row.why.offset))
                for rows in ledger.commands.values()
                for row in rows
            )
        }
        gone = ledger.deadletters | ledger.deleted
        known |= {
            (orjson.loads(ledger.inputs[where].value or b"{}").get("task_id"), origin)
            for where in sorted(gone)
            if (origin := origin_of(ledger, where)) is not None
        }
        for where, entry in ledger.inputs.items():
            if where in gone or where[0] == ledger.topics.report:
                continue
            for task_id in self._named(where, entry.value):
                if (task_id, where) not in known:
                    own = partition_of(task_id, ledger.topics.partitions) == where[1]
                    return f"I4: {where} names {task_id}, which knows nothing of it{'' if own else ' (forwarded)'}"
        return None

    def _named(self, where: Where, value: bytes | None) -> list[str]:
        doc = orjson.loads(value or b"{}")
        return list(dict.fromkeys(doc.get("taskIds") or ()))
