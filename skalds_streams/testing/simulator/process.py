"""One life of a simulated process: the real `Runtime` on its link, and what Faust's worker does around it.

A `Seat` is a place where a process is started again and again: a skald id on a machine, with the lock that the next
life gets only when the former and all its hosts are gone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from aiokafka.errors import KafkaError as ClientError

from skalds_streams.errors import AdmissionError, ConfigError, SkaldsError
from skalds_streams.proxy.client import REQUEST_TIMEOUT_MS
from skalds_streams.runtime import Runtime
from skalds_streams.settings import BEATS_A_LEASE, Settings
from skalds_streams.skald.identity import Identity
from skalds_streams.testing.simulator.broker import EPOCH_MS, Broker
from skalds_streams.testing.simulator.edges import DATA_DIR, HERE
from skalds_streams.testing.simulator.faust import FaustConsumer
from skalds_streams.testing.simulator.hosts import Habits, Pool
from skalds_streams.testing.simulator.loop import OWNER, VirtualLoop
from skalds_streams.testing.simulator.machines import LeaseWatch, Machine
from skalds_streams.testing.simulator.network import Link, Weather
from skalds_streams.testing.simulator.witness import Witness

LOCK_WAIT_S = 30.0
LOCK_POLL_S = 0.1
STOP_MOST_S = 14.0
"""As `application.STOP_MOST_S`."""


@dataclass(slots=True)
class Grounds:
    """What all processes of a world stand on."""

    loop: VirtualLoop
    broker: Broker
    witness: Witness
    outside: Context
    weather: Weather
    habits: Habits
    capacity: int
    retention_ms: int
    lease_ms: int
    hold_ms: int
    skew_ms: int
    rng: random.Random
    log: Callable[[Life, str, str, Mapping[str, Any]], None]
    fatal: Callable[[Life, BaseException], None]
    exited: Callable[[Life], None]


@dataclass(slots=True)
class Seat:
    """See the module. `twin`: on another machine than the one that its skald id belongs to."""

    number: int
    skald_id: str
    twin: bool = False
    lives: list[Life] = field(default_factory=list)
    written: tuple[str, ...] = ()
    """Incarnations in the lock's file."""
    machine: Machine = field(default_factory=Machine)

    @property
    def prefix(self) -> str:
        """What the names of all incarnations of this seat begin with, and no others."""
        return f"{self.skald_id}{'x' if self.twin else ''}."

    @property
    def life(self) -> Life | None:
        return self.lives[-1] if self.lives and not self.lives[-1].over else None

    def is_free(self, claimant: Life) -> bool:
        """Whether nobody else has the lock: neither a life nor one of its hosts."""
        others = [life for life in self.lives if life is not claimant and life.identity is not None]
        return all(life.over and not (life.pool and life.pool.hosts) for life in others)


class Life:
    """One process from its start to its end. Its callbacks carry its number."""

    def __init__(self, grounds: Grounds, seat: Seat, number: int) -> None:
        self.grounds, self.seat, self.number = grounds, seat, number
        self.over = False
        self.paused = False
        self.identity: Identity | None = None
        self.pool: Pool | None = None
        self.faust: FaustConsumer | None = None
        self.runtime: Runtime | None = None
        self.incarnation = f"{seat.prefix}{len(seat.lives)}"
        self.renewals = 0
        self._stop = asyncio.Event()
        self._task: asyncio.Future[None] | None = None
        self._skew_ms = int(grounds.rng.uniform(-1, 1) * grounds.skew_ms)
        inside = grounds.outside.copy()
        inside.run(OWNER.set, number)
        inside.run(HERE.set, self)
        rng = random.Random(grounds.rng.getrandbits(48))
        self.link = Link(grounds.loop, grounds.broker, rng, grounds.weather, inside, grounds.outside)
        beat_ms = grounds.lease_ms // BEATS_A_LEASE
        self.watch = self.link.watch = LeaseWatch(grounds.lease_ms, beat_ms, self.boottime_ms, self._complain)
        if seat.machine.rate != 1.0:
            grounds.loop.rates[number] = seat.machine.rate
        seat.lives.append(self)

    def _complain(self, rule: str, text: str) -> None:
        self.grounds.broker.complain(rule, f"{self.incarnation}: {text}")

    def begin(self) -> None:
        grounds = self.grounds
        grounds.loop.call_soon(self._create, context=self.link.inside)

    def _create(self) -> None:
        self._task = asyncio.ensure_future(self._guarded(), loop=self.grounds.loop)

    async def _guarded(self) -> None:
        try:
            await self._main()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # the edge of a process
            self._on_fatal(error)

    async def _main(self) -> None:
        settings = settings_for(self.seat.skald_id, self.grounds)
        self.runtime = Runtime(
            settings,
            consumer=lambda: self.faust,
            reading=lambda: self.faust is not None and self.faust.reading,
            on_fatal=self._on_fatal,
        )
        try:
            await self.runtime.start()
        except (SkaldsError, ClientError, TimeoutError, OSError) as error:
            self.log("warning", "process.not_started", {"error": repr(error)})
            self.exit()
            return
        runtime = self.runtime
        self.faust = FaustConsumer(
            self.link, runtime.topics, self.instance, lambda: runtime.journals, runtime.may_rejoin
        )
        consuming = asyncio.create_task(self._consume(self.faust), name="faust")
        await self._stop.wait()
        self.grounds.loop.call_later(STOP_MOST_S, self.exit)
        await runtime.leave()
        consuming.cancel()
        await asyncio.gather(consuming, return_exceptions=True)
        with suppress(ClientError, TimeoutError):
            await self.faust.stop()
        await runtime.close()
        self.exit()

    async def _consume(self, faust: FaustConsumer) -> None:
        try:
            await faust.run()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # the edge of Faust's consumer: it ends the process
            self._on_fatal(error)

    @property
    def instance(self) -> str:
        return self.seat.skald_id

    def _on_fatal(self, error: BaseException) -> None:
        if isinstance(error, AdmissionError):  # one of two with the same id has to end
            self.log("warning", "process.not_admitted", {"error": str(error)})
        else:
            self.grounds.fatal(self, error)
        self._stop.set()

    # -- what happens to it

    def terminate(self) -> None:
        """SIGTERM."""
        self.grounds.loop.call_soon(self._stop.set, context=self.link.inside)

    def exit(self) -> None:
        """It is gone, by itself or by kill -9."""
        if self.over:
            return
        self.over = self.link.gone = True
        self.grounds.loop.kill(self.number)
        if self.pool is not None:
            self.pool.orphan()
        self._silence()
        self.grounds.exited(self)

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True
        self.grounds.loop.pause(self.number)
        self._silence()

    def resume(self) -> None:
        """SIGCONT."""
        self.paused = False
        self.watch.resumed()
        self.grounds.loop.resume(self.number)
        self._sound()

    def freeze(self) -> None:
        """The whole machine is frozen, but for its kernel's timers."""
        self.pause()
        self.seat.machine.frozen = True

    def thaw(self) -> None:
        self.resume()
        self.seat.machine.thaw()

    def power_off(self) -> None:
        """It and all its hosts are gone at once."""
        if self.pool is not None:
            self.pool.power_off()
        self.exit()

    def cut(self) -> None:
        """Its network is gone."""
        self.link.partitioned = True
        self._silence()

    def mend(self) -> None:
        """Its network is back."""
        self.link.heal()
        self._sound()

    def _silence(self) -> None:
        if self.faust is not None:
            group, outside = self.grounds.broker.group, self.grounds.outside.copy()
            for member in (self.faust.member, self.faust.landed):
                outside.run(group.silent, member)

    def _sound(self) -> None:
        """The group hears of it again, unless it has given it up."""
        if self.faust is None or self.over or self.paused or self.link.partitioned:
            return
        group = self.grounds.broker.group
        heard, landed = group.heard(self.faust.member), group.heard(self.faust.landed)
        if not (heard or landed):
            self.grounds.loop.call_later(self.grounds.rng.uniform(0, 1.0), self.faust.notice)

    # -- what the code in it asks for (edges.Surroundings)

    def client_options(self) -> dict[str, Any]:
        return {"_link": self.link, "request_timeout_ms": REQUEST_TIMEOUT_MS}

    def wall_ms(self) -> int:
        return EPOCH_MS + int(self.grounds.loop.now * 1000) + self._skew_ms + self.seat.machine.jump_ms

    def boottime_ms(self) -> int:
        return int(self.grounds.loop.now * self.seat.machine.rate * 1000)

    async def claim(self) -> Identity:
        """As `skald.identity.claim_identity`."""
        until = self.grounds.loop.now + LOCK_WAIT_S
        while not self.seat.is_free(self):
            if self.grounds.loop.now >= until:
                raise ConfigError(f"another process on this machine runs as skald {self.seat.skald_id!r}")
            await asyncio.sleep(LOCK_POLL_S)
        self.identity = Identity(self.seat.skald_id, self.incarnation, -1, self.seat.written)
        self.seat.written = (*self.seat.written, self.incarnation)
        return self.identity

    def renewed(self, identity: Identity) -> Identity:
        """As `skald.identity.renewed`."""
        self.renewals += 1
        self.watch.begin_anew()
        self.incarnation = f"{identity.incarnation.partition('+')[0]}+{self.renewals}"
        replaces = (*identity.replaces, identity.incarnation)
        self.identity = Identity(identity.skald_id, self.incarnation, -1, replaces, identity.lapses + 1)
        self.seat.written = (*replaces, self.incarnation)
        return self.identity

    def forget(self, identity: Identity) -> None:
        """As `skald.identity.forget_predecessors`."""
        self.seat.written = (identity.incarnation,)

    def new_pool(self) -> Pool:
        self.pool = Pool(
            self.link,
            self.grounds.witness,
            self.grounds.habits,
            self.link.rng,
            self.seat.machine,
            self.watch,
            lambda: self.incarnation,
        )
        return self.pool

    def log(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        self.grounds.log(self, level, event, fields)


_SETTINGS: dict[tuple[str | int, ...], Settings] = {}


def settings_for(skald_id: str, grounds: Grounds) -> Settings:
    """Made once a kind: reading the environment is no part of a world."""
    partitions = grounds.broker.topics.partitions
    key = (skald_id, grounds.capacity, partitions, grounds.retention_ms, grounds.lease_ms, grounds.hold_ms)
    if key not in _SETTINGS:
        _SETTINGS[key] = Settings.load(
            _env_file=None,
            skald_id=skald_id,
            capacity=grounds.capacity,
            kafka_topic_partitions=partitions,
            redis_enabled=False,
            data_dir=DATA_DIR,
            terminal_retention_ms=grounds.retention_ms,
            lease_ms=grounds.lease_ms,
            hold_ms=grounds.hold_ms,
        )
    return _SETTINGS[key]
