"""The network between one process and the broker: requests that are slow, lost, answered late or not at all.

Rules: requests of one connection arrive in the order in which they were sent, and so do their answers; what has left a
process lands even if that process is stopped or killed meanwhile; a client that gets no answer asks again, so that what
is not idempotent may be done twice; a partitioned process loses requests, or has them land when the partition heals.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError

from skalds_streams.testing.simulator.broker import AgainError, Broker
from skalds_streams.testing.simulator.loop import VirtualLoop
from skalds_streams.testing.simulator.machines import LeaseWatch

T = TypeVar("T")
BACKOFF_S = 0.1
SILENCE_S = 10.0
"""After this long without an answer a client asks again."""
LATE_CHANCE = 0.5
"""Share of requests of a partitioned process that land when the partition heals; the others are lost."""

Reply = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad a network is. Shares are of requests."""

    usual_s: float = 0.003
    slow: float = 0.0
    slow_s: float = 12.0
    lost: float = 0.0
    unanswered: float = 0.0
    quick: float = 0.5
    """Share of losses that the client notices at once (a reset connection)."""
    gaps: float = 0.0
    """Share of what Faust has read soon after a rebalance, and drops a part of."""


class Connection:
    """Keeps order, both ways."""

    __slots__ = ("down", "up")

    def __init__(self) -> None:
        self.up = self.down = 0.0


class Call(Generic[T]):
    """One request with its retries. `future` gets the answer, in the context of its process."""

    __slots__ = ("attempts", "connection", "deadline", "future", "link", "on_attempt", "silence_s", "what")

    def __init__(
        self,
        link: Link,
        what: Callable[[Reply], None],
        connection: Connection,
        deadline: float | None,
        on_attempt: Callable[[], object],
    ) -> None:
        self.on_attempt = on_attempt
        self.link, self.what, self.connection, self.deadline = link, what, connection, deadline
        self.silence_s = SILENCE_S if deadline is None else min(max(deadline - link.loop.now, 0.1), SILENCE_S)
        self.future: asyncio.Future[T] = link.loop.create_future()
        self.attempts = 0

    def attempt(self) -> None:
        """Send, once more."""
        link = self.link
        if self.future.done() or self.connection in link.closed:
            return
        if self.deadline is not None and self.attempts and link.loop.now >= self.deadline:
            self.future.set_exception(KafkaTimeoutError())
            return
        self.attempts += 1
        self.on_attempt()
        if link.broker.is_away:
            self._again(link.rng.uniform(0.5, 2.0) * BACKOFF_S)
        elif link.partitioned:
            if link.rng.random() < LATE_CHANCE:
                link.held.append(self._arrive)
            self._again(self.silence_s)
        else:
            self._send()

    def _send(self) -> None:
        link, weather = self.link, self.link.weather
        roll = link.rng.random()
        if roll < weather.lost:
            self._again(BACKOFF_S if link.rng.random() < weather.quick else self.silence_s)
            return
        delay = link.rng.uniform(0.1, 1.0) * weather.usual_s
        if weather.slow and link.rng.random() < weather.slow:
            delay = link.rng.uniform(0.05, 1.0) * weather.slow_s
            if delay > self.silence_s:
                self._again(self.silence_s)
        self.connection.up = max(self.connection.up, link.loop.now + delay)
        link.loop.at(self.connection.up, self._arrive, context=link.outside)

    def _arrive(self) -> None:
        link = self.link
        if link.broker.is_away:
            link.loop.call_later(BACKOFF_S, self.attempt, context=link.inside)
            return
        try:
            self.what(self._reply)
        except Exception as error:  # noqa: BLE001  # the broker's answer, whatever it is
            self._reply(error)

    def _reply(self, result: Any) -> None:
        link, weather = self.link, self.link.weather
        if link.partitioned or (weather.unanswered and link.rng.random() < weather.unanswered):
            quick = not link.partitioned and link.rng.random() < weather.quick
            link.loop.call_later(BACKOFF_S if quick else self.silence_s, self.attempt, context=link.inside)
            return
        delay = link.rng.uniform(0.1, 1.0) * weather.usual_s
        self.connection.down = max(self.connection.down, link.loop.now + delay)
        link.loop.at(self.connection.down, self._resolve, result, context=link.inside)

    def _resolve(self, result: Any) -> None:
        if self.future.done():
            return
        if isinstance(result, AgainError):
            self._again(0.02)
        elif isinstance(result, BaseException):
            self.future.set_exception(result)
            self.future.exception()  # read once, so that one whom nobody awaits any more says nothing
        else:
            self.future.set_result(result)

    def _again(self, delay: float) -> None:
        self.link.loop.call_later(delay, self.attempt, context=self.link.inside)


class Link:
    """One process's way to the broker. `inside`: the context of the process; `outside`: that of the world."""

    def __init__(
        self, loop: VirtualLoop, broker: Broker, rng: random.Random, weather: Weather, inside: Context, outside: Context
    ) -> None:
        self.loop, self.broker, self.rng, self.weather = loop, broker, rng, weather
        self.inside, self.outside = inside, outside
        self.partitioned = False
        self.batch_bytes = rng.choice((500, 2_000, 16_384))
        """Most bytes of a plain producer's batch; aiokafka's is the last. Smaller ones take the same turns sooner."""
        self.held: list[Callable[[], None]] = []
        self.closed: set[Connection] = set()
        self.fenced_at: dict[int, float] = {}
        self.asked_at: dict[int, float] = {}
        """By partition: when its producer was fenced last, when the group said last that it is ours."""
        self.watch: LeaseWatch | None = None
        self.deaf_until = 0.0
        """What is read of heartbeats before this time is read then."""
        self.gone = False
        """Its process is over; what it has sent may land yet."""
        self.on_heal: dict[int, Callable[[], None]] = {}
        """Readers that look again when the broker can be reached again; by their number."""

    def request(
        self,
        what: Callable[[], T],
        connection: Connection,
        *,
        timeout_s: float | None = None,
        on_attempt: Callable[[], object] = lambda: None,
    ) -> asyncio.Future[T]:
        """Do something at the broker. Asked again until it is answered; KafkaTimeoutError after `timeout_s`."""
        return self.deferred(lambda reply: reply(what()), connection, timeout_s=timeout_s, on_attempt=on_attempt)

    def deferred(
        self,
        what: Callable[[Reply], None],
        connection: Connection,
        *,
        timeout_s: float | None = None,
        on_attempt: Callable[[], object] = lambda: None,
    ) -> asyncio.Future[Any]:
        """The same for what the broker answers in its own time."""
        deadline = None if timeout_s is None else self.loop.now + timeout_s
        call: Call[Any] = Call(self, what, connection, deadline, on_attempt)
        call.attempt()
        return call.future

    def most_bytes(self, asked: int | None) -> int:
        """Most bytes of a producer's batch: far below the broker's limit, as in a real cluster, so that only a record
        that is too large by itself is refused.
        """
        return min(asked or self.batch_bytes, self.broker.message_bytes // 4)

    async def connect(self) -> None:
        """Bootstrap. Raises KafkaConnectionError when no broker can be reached."""
        if self.broker.is_away or self.partitioned:
            await asyncio.sleep(self.rng.uniform(0.1, 1.0))
            raise KafkaConnectionError("no broker")

    @property
    def reaches(self) -> bool:
        return not self.partitioned and not self.broker.is_away

    def heal(self) -> None:
        """The partition is over: what was held lands, and readers look again."""
        self.partitioned = False
        held, self.held = self.held, []
        for arrive in held:
            self.loop.call_later(self.rng.uniform(0, 0.5), arrive, context=self.outside)
        self.look_again()

    def look_again(self) -> None:
        waiting, self.on_heal = self.on_heal, {}
        for number in sorted(waiting):
            waiting[number]()
