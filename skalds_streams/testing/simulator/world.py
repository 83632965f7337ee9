"""One world: made from a plan, run to its end, healed, judged.

result = run(plan)
result.violation        None, or the rule that was broken and how
result.digest           of every committed record and every act: the same for the same plan, always
"""

from __future__ import annotations

import contextvars
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from skalds_streams.core.row import Row
from skalds_streams.model.documents import Positions
from skalds_streams.settings import BEATS_A_LEASE
from skalds_streams.testing.simulator.broker import BROKERS, Broker
from skalds_streams.testing.simulator.commands import record_for
from skalds_streams.testing.simulator.edges import edges
from skalds_streams.testing.simulator.faults import NEVER_S, Faults
from skalds_streams.testing.simulator.hosts import Habits
from skalds_streams.testing.simulator.ledger import Ledger, Step, Where
from skalds_streams.testing.simulator.loop import VirtualLoop
from skalds_streams.testing.simulator.machines import Machine
from skalds_streams.testing.simulator.network import Weather
from skalds_streams.testing.simulator.plan import Action, Plan
from skalds_streams.testing.simulator.process import Grounds, Life, Seat
from skalds_streams.testing.simulator.roll import Roll
from skalds_streams.testing.simulator.rules import Margin, ViolationError, all_rules
from skalds_streams.testing.simulator.storage import Entry, Partition, size_of
from skalds_streams.testing.simulator.verdict import Verdict
from skalds_streams.testing.simulator.witness import Act, Witness
from skalds_streams.topics import Topics

HEAL_S = 150.0
"""Longest back-off of a crash, an expired transaction and a lost member, one after the other, and a reserve."""
STAYS_S = 3.0
TWINS_S = 14.0
"""After the faults a twin comes back for so long: only a process on its machine can say that it has ended."""
TEXT_MOST = 1_000


@dataclass(slots=True)
class Result:
    """What became of a world."""

    plan: Plan
    violation: str | None = None
    rule: str | None = None
    digest: str = ""
    seconds: float = 0.0
    """Virtual time."""
    events: int = 0
    records: int = 0
    acts: int = 0
    trace: list[str] = field(default_factory=list)
    margin_beats: float | None = None
    """Smallest time between the last act of a run that was counted dead and the first of the next one, in beats."""
    seen: dict[str, int] = field(default_factory=dict)
    """How often what happened, for the summary."""


class World:
    """See the module."""

    def __init__(self, plan: Plan, *, trace: bool = False) -> None:
        self.plan, self._tracing = plan, trace
        self.result = Result(plan)
        self.loop = VirtualLoop()  # type: ignore[abstract]  # what it lacks is sockets, signals and processes
        self._outside = contextvars.copy_context()
        self._rng = random.Random(plan.noise)
        self.topics = Topics.named(app="skalds", partitions=plan.partitions)
        self.broker = Broker(self.loop, random.Random(self._rng.getrandbits(48)), self.topics, marker_s=plan.marker_s)
        self.broker.message_bytes, self.broker.segment_bytes = plan.message_bytes, plan.segment_bytes
        self.ledger, self.witness = Ledger(self.topics), Witness(self.loop)
        self._beat_ms = plan.lease_ms // BEATS_A_LEASE
        self._roll = Roll(math.ceil(plan.hold_ms / self._beat_ms) + 1)
        self._margin = Margin(self.witness)
        self.broker.skew_ms = [int(self._rng.uniform(-1, 1) * plan.skew_ms) for _ in range(BROKERS)]
        self._listen()
        self.grounds = Grounds(
            loop=self.loop,
            broker=self.broker,
            witness=self.witness,
            outside=self._outside,
            weather=Weather(slow=plan.slow, lost=plan.lost, unanswered=plan.unanswered, gaps=plan.gaps),
            habits=_habits(plan),
            capacity=plan.capacity,
            retention_ms=plan.retention_ms,
            lease_ms=plan.lease_ms,
            hold_ms=plan.hold_ms,
            skew_ms=min(plan.skew_ms, 200),
            rng=random.Random(self._rng.getrandbits(48)),
            log=self._log,
            fatal=self._fatal,
            exited=self._exited,
        )
        self.faults = Faults(self)
        self.seats = [self._seat(number, f"s{number}") for number in range(plan.processes)]
        self._lives = 0
        self._healing = False
        self._twins_over = False
        self._over = False

    # -- judging

    def _listen(self) -> None:
        most_bytes = min(self.plan.message_bytes, self.plan.segment_bytes)
        rules = [*all_rules(self.ledger, self.witness, self._roll, most_bytes), self._margin]

        def on_step(step: Step) -> None:
            for rule in rules:
                rule.on_step(step)

        def on_row(row: Row) -> None:
            for rule in rules:
                rule.on_row(row)

        def on_positions(partition: int, positions: Positions) -> None:
            for rule in rules:
                rule.on_positions(partition, positions)

        def on_deadletter(source: Where, letter: Entry) -> None:
            for rule in rules:
                rule.on_deadletter(source, letter)

        self.ledger.on_step, self.ledger.on_row = on_step, on_row
        self.ledger.on_positions, self.ledger.on_deadletter = on_positions, on_deadletter
        self.witness.on_act = lambda act: self._judged(lambda: self._take_act(act, rules))
        self.broker.on_append = self._take_append
        self.broker.complain = self._condemn
        self.broker.on_commit = lambda name, written: self._judged(lambda: self.ledger.take_commit(written))

    def _take_append(self, partition: Partition, entry: Entry) -> None:
        self.ledger.take_input(partition, entry)
        if partition.topic == self.topics.heartbeat:
            self._roll.take(entry.offset, entry.value or b"")
            self.faults.on_beat(entry)

    def _take_act(self, act: Act, rules: list[Any]) -> None:
        self.ledger.note(repr(act))
        self._note("worker", act.what, f"{act.task_id} epoch {act.epoch} v{act.version} at {act.incarnation}")
        for rule in rules:
            rule.on_act(act)

    def _judged(self, enter: Callable[[], None]) -> None:
        try:
            enter()
        except ViolationError as error:
            self._condemn(error.rule, str(error))

    def _condemn(self, rule: str, text: str) -> None:
        if self.result.violation is None and not self._over:
            self.result.rule, self.result.violation = (
                rule,
                f"{text if text.startswith(rule) else f'{rule}: {text}'}"[:TEXT_MOST] + f" (at {self.loop.now:.3f} s)",
            )
            self._note("VIOLATION", text, "")
            self.loop.halted = True

    # -- running

    def run(self) -> Result:
        with edges(self.plan.message_bytes):
            self._run()
        result = self.result
        result.digest = self.ledger.digest.hexdigest()
        result.seconds, result.events = self.loop.now, self.loop.events
        result.records, result.acts = self.ledger.records, self.witness.acts
        if self._margin.smallest_s is not None:
            result.margin_beats = self._margin.smallest_s * 1000 / self._beat_ms
        return result

    def _run(self) -> None:
        try:
            for seat in self.seats:
                self._start(seat, self._rng.uniform(0, 1.0))
            for action in self.plan.actions:
                self.loop.call_at(action.at, self._do, action)
            self._advance(self.plan.duration_s)
            self._heal()
        finally:
            self.witness.on_act = lambda act: None
            self.broker.on_commit = lambda name, written: None
            self.broker.on_append = lambda partition, entry: None
            self.broker.is_away = True
            self._over, self._tracing = True, False
            self.loop.dispose()

    def _advance(self, until: float) -> None:
        if self.loop.halted:
            return
        self.loop.advance(until)
        if self.loop.events > self.loop.events_most:
            self._condemn("bounded work", f"{self.loop.events} callbacks")
        if self.loop.errors and not self.loop.halted:
            self._condemn("no callback raises", self.loop.errors[0])

    def _heal(self) -> None:
        """Faults end. Then everything must come right, and stay so."""
        self._healing = True
        self._note("world", "heal", "")
        self.witness.calm = True
        calm = Weather()
        self.grounds.weather, self.grounds.habits.no_host = calm, 0.0
        self.grounds.habits.slow_stop = 0.0
        self.broker_back()
        for seat in self.seats:
            if seat.twin:
                self.loop.call_later(TWINS_S, self.end_twin, seat)
            if seat.life is None:
                self._start(seat, 0.5)
            else:
                seat.life.link.weather = calm
            self.faults.heal(seat)
        verdict = Verdict(self.ledger, self.witness, self._roll, self.plan.capacity, self.seats)
        self._await_verdict(verdict)

    def _await_verdict(self, verdict: Verdict) -> None:
        until, met_since = self.loop.now + HEAL_S, -1.0
        unmet: str | None = "nothing was looked at"
        while self.loop.now < until and not self.loop.halted:
            self._advance(self.loop.now + 1.0)
            unmet = verdict.unmet()
            if unmet is not None:
                met_since = -1.0
            elif met_since < 0:
                met_since = self.loop.now
            elif self.loop.now - met_since >= STAYS_S:
                break
        if self.loop.halted:
            return
        if unmet is not None:
            self._condemn(unmet.split(":")[0], unmet)
        lost = verdict.unaccounted()
        if lost is not None:
            self._condemn("I4", lost)

    # -- processes

    def _seat(self, number: int, skald_id: str, *, twin: bool = False) -> Seat:
        drift = self.plan.drift
        rate = 1.0 + drift * self._rng.choice((-1.0, 1.0, self._rng.uniform(-1, 1))) if drift else 1.0
        return Seat(number, skald_id, twin, machine=Machine(rate))

    def _start(self, seat: Seat, delay: float) -> None:
        def start() -> None:
            gone = seat.machine.lost or (seat.twin and self._twins_over)
            if not self._over and seat.life is None and not gone:
                self._lives += 1
                seat.machine.thaw()  # where a process can be started nothing is frozen
                life = Life(self.grounds, seat, self._lives)
                self._note("process", "start", life.incarnation)
                life.begin()

        self.loop.call_later(delay, start)

    def _exited(self, life: Life) -> None:
        """Somebody starts it again: Docker, systemd, a person."""
        self._note("process", "gone", life.incarnation)
        delay = 1.0 if self._healing else max(self.faults.back.pop(life.seat.number, 0.0), 1.0)
        self._outside.copy().run(self._start, life.seat, delay)

    def _fatal(self, life: Life, error: BaseException) -> None:
        self._condemn("no process gives up", f"{life.incarnation}: {error!r}")

    def _log(self, life: Life, level: str, event: str, fields: Mapping[str, Any]) -> None:
        self.count(event)
        if self._tracing:
            self._note(life.incarnation, event, " ".join(f"{name}={value}" for name, value in fields.items()))
        if level == "error" and not life.over:
            self._condemn("nothing complains", f"{life.incarnation}: {event} {dict(fields)}")

    # -- what happens

    def _do(self, action: Action) -> None:
        if self._healing:
            return
        self.count(action.do)
        self._note("world", action.do, str(dict(action.how)))
        if action.do in ("assign", "cancel", "update"):
            self._publish(action)
        else:
            self.faults.do(action.do, action.how)

    def _publish(self, action: Action) -> None:
        if self.broker.is_away:
            self.loop.call_later(0.2, self._publish, action)
            return
        partition, output = record_for(action.do, action.how, self.topics, self._rng)
        if size_of(output) > min(self.plan.message_bytes, self.plan.segment_bytes):
            self.count("refused")  # its publisher is told
            return
        for _ in range(2 if "twice" in action.how else 1):
            self.broker.append(output.topic, partition, output)

    def broker_back(self) -> None:
        if not self.broker.is_away:
            return
        self.broker.is_away = False
        for seat in self.seats:
            if seat.life is not None:
                seat.life.link.look_again()

    def add_twin(self, skald_id: str) -> Seat:
        """A second process of this id, on another machine."""
        seat = self._seat(len(self.seats), skald_id, twin=True)
        self.seats.append(seat)
        self._start(seat, 0.0)
        return seat

    def end_twin(self, seat: Seat) -> None:
        self._twins_over = self._healing
        if seat.life is not None:
            self.faults.back[seat.number] = NEVER_S
            seat.life.terminate()

    # -- telling

    def count(self, what: str) -> None:
        self.result.seen[what] = self.result.seen.get(what, 0) + 1

    def _note(self, who: str, what: str, more: str) -> None:
        if self._tracing:
            self.result.trace.append(f"{self.loop.now:9.3f}  {who:<10} {what} {more}")


def _habits(plan: Plan) -> Habits:
    return Habits(
        crash=plan.crash,
        finish=plan.finish,
        fatal=plan.fatal,
        no_host=plan.no_host,
        slow_stop=plan.slow_stop,
        dies_s=plan.dies_s,
    )


def run(plan: Plan, *, trace: bool = False) -> Result:
    """Run the world of a plan."""
    return World(plan, trace=trace).run()
