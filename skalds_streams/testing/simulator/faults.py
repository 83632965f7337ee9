"""What happens to a world from outside: one method a fault, named as the action of a plan that asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from skalds_streams.coordinator.batch import Output
from skalds_streams.testing.simulator.broker import BROKERS
from skalds_streams.testing.simulator.process import Life, Seat
from skalds_streams.testing.simulator.storage import Entry

if TYPE_CHECKING:
    from skalds_streams.testing.simulator.world import World

NEVER_S = 1e9


class Faults:
    """See the module. `how` is the action's."""

    def __init__(self, world: World) -> None:
        self._world, self._loop, self._broker = world, world.loop, world.broker
        self.back: dict[int, float] = {}
        """Seat → how long it stays empty, once its process has ended."""
        self._at_beat: dict[str, Callable[[], None]] = {}

    def do(self, name: str, how: Mapping[str, Any]) -> None:
        """Now, or in the moment after the process's next heartbeat was written and before it hears of that."""
        if "at_beat" in how:
            seat = self._seat(how)
            if seat is not None:
                self._at_beat[seat.skald_id] = lambda: getattr(self, f"_{name}")(how)
            return
        getattr(self, f"_{name}")(how)

    def on_beat(self, entry: Entry) -> None:
        """A heartbeat was appended."""
        waiting = self._at_beat.pop((entry.key or b"").decode(), None)
        if waiting is not None:
            self._loop.at(self._loop.now, waiting, context=self._world.grounds.outside)

    def heal(self, seat: Seat) -> None:
        """What can come back comes back."""
        self._at_beat.clear()
        life, machine = seat.life, seat.machine
        machine.jump_ms = 0
        if machine.lost or life is None:
            return
        life.link.deaf_until = 0.0
        if life.link.partitioned:
            life.mend()
        if machine.frozen:
            life.thaw()
        elif life.paused:
            life.resume()

    def _seat(self, how: Mapping[str, Any]) -> Seat | None:
        """None: the plan has been made smaller."""
        seats = self._world.seats
        return seats[how["process"]] if how["process"] < len(seats) else None

    def _life(self, how: Mapping[str, Any]) -> Life | None:
        seat = self._seat(how)
        return seat.life if seat is not None else None

    # -- processes

    def _kill(self, how: Mapping[str, Any]) -> None:
        life = self._life(how)
        if life is not None:
            self.back[life.seat.number] = how["for_s"]
            if how["at_callback"]:
                self._loop.after(life.number, how["at_callback"], life.exit)
            else:
                life.exit()

    def _stop(self, how: Mapping[str, Any]) -> None:
        life = self._life(how)
        if life is not None:
            self.back[life.seat.number] = how["for_s"]
            life.terminate()

    def _pause(self, how: Mapping[str, Any]) -> None:
        life = self._life(how)
        if life is not None and not life.paused:
            life.pause()
            self._loop.call_later(how["for_s"], lambda: life.resume() if life.paused and not life.over else None)

    def _twin(self, how: Mapping[str, Any]) -> None:
        """A second process with the same skald id, on another machine."""
        seat = self._world.add_twin(f"s{how['process']}")
        self._loop.call_later(how["for_s"], self._world.end_twin, seat)

    # -- machines

    def _freeze(self, how: Mapping[str, Any]) -> None:
        life = self._life(how)
        if life is not None and not life.paused:
            life.freeze()
            self._loop.call_later(how["for_s"], lambda: life.thaw() if life.seat.machine.frozen else None)

    def _partition(self, how: Mapping[str, Any]) -> None:
        life = self._life(how)
        if life is not None and not life.link.partitioned:
            life.cut()
            self._loop.call_later(how["for_s"], lambda: life.mend() if self._may_mend(life) else None)

    def _deaf(self, how: Mapping[str, Any]) -> None:
        """Heartbeats reach it late, other records do not."""
        life = self._life(how)
        if life is not None:
            life.link.deaf_until = self._loop.now + how["for_s"]

    def _may_mend(self, life: Life) -> bool:
        return life.link.partitioned and not life.seat.machine.lost

    def _jump(self, how: Mapping[str, Any]) -> None:
        seat = self._seat(how)
        if seat is not None:
            seat.machine.jump_ms += how["by_ms"]

    def _lose(self, how: Mapping[str, Any]) -> None:
        """For good: the power, the network, or a stop in order by somebody who never starts it again."""
        seat = self._seat(how)
        if seat is None or seat.machine.lost:
            return
        seat.machine.lost = True
        life = seat.life
        if life is None:
            return
        if how["way"] == "power":
            life.power_off()
        elif how["way"] == "cut":
            life.cut()
        else:
            life.terminate()

    # -- people

    def _drain(self, how: Mapping[str, Any], kind: str = "drain") -> None:
        if self._broker.is_away:
            self._loop.call_later(0.2, self._drain, how, kind)
            return
        skald_id = f"s{how['process']}"
        value = orjson.dumps({"v": 1, "kind": kind, "skald_id": skald_id})
        topic = self._broker.topics.heartbeat
        self._broker.append(topic, 0, Output(topic, skald_id.encode(), value))

    def _undrain(self, how: Mapping[str, Any]) -> None:
        self._drain(how, "undrain")

    # -- the broker

    def _outage(self, how: Mapping[str, Any]) -> None:
        self._broker.is_away = True
        self._loop.call_later(how["for_s"], self._world.broker_back)

    def _leader(self, how: Mapping[str, Any]) -> None:
        partitions = list(self._broker.partitions.values())
        partition = partitions[how["pick"] % len(partitions)]
        partition.leader = (partition.leader + 1) % BROKERS

    def _compact(self, how: Mapping[str, Any]) -> None:
        topics = self._broker.topics
        self._broker.partitions[topics.changelog, how["pick"] % topics.partitions].compact()

    def _retention(self, how: Mapping[str, Any]) -> None:
        """The broker deletes the oldest part of an input."""
        topics, ledger = self._broker.topics, self._world.ledger
        inputs = [partition for partition in self._broker.partitions.values() if partition.topic in topics.inputs]
        partition = inputs[how["pick"] % len(inputs)]
        before = partition.begin + int((len(partition.entries) - partition.begin) * how["share"])
        known = len(ledger.deleted)
        ledger.take_deletion(partition, before)
        if len(ledger.deleted) > known:
            self._world.count("deleted before it was applied")
        partition.delete_before(before)

    def _rebalance(self, how: Mapping[str, Any]) -> None:
        self._broker.group.disturb()
