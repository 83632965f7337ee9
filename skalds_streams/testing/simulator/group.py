"""The consumer group: static members, generations, eager rebalances, session timeouts, offsets.

Rules as Kafka has them: a member that joins under an instance id that is known takes its place, without a rebalance,
and what it replaced is unknown from then on; a new member, a member that leaves or one that is not heard of for
SESSION_S begins a rebalance; one that waits for the answer to its join does not expire; a rebalance is over when every
member has joined again; an offset is committed only by a member of the present generation. A member hears of a
rebalance with its next heartbeat.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiokafka.errors import CommitFailedError

from skalds_streams.testing.simulator.loop import Handle, VirtualLoop
from skalds_streams.topics import Topics

SESSION_S = 10.0
HEARTBEAT_S = 1.0
REBALANCE_S = 60.0

UNKNOWN = 0
"""Member id of one that the group does not know."""

Joined = Callable[[int, int, tuple[int, ...]], None]
"""(member id, generation, partitions)"""


@dataclass(slots=True)
class Seat:
    """One instance id in the group."""

    instance: str
    member: int
    notice: Callable[[], None]
    """Tells the member that it has to join again."""
    knows: Callable[[], int]
    """The generation that it knows."""
    joined: Joined | None = None
    """How to answer its join, while it waits."""
    partitions: tuple[int, ...] = ()
    expiry: Handle | None = None


@dataclass(slots=True)
class Group:
    """See the module."""

    loop: VirtualLoop
    rng: random.Random
    topics: Topics
    generation: int = 0
    seats: dict[str, Seat] = field(default_factory=dict)
    committed: dict[tuple[str, int], int] = field(default_factory=dict)
    rebalancing: bool = False
    rebalances: int = 0
    _members: int = 0
    _late: Handle | None = None

    def join(
        self, instance: str, member: int, *, notice: Callable[[], None], knows: Callable[[], int], joined: Joined
    ) -> None:
        """JoinGroup and SyncGroup. `member`: the id it had, or UNKNOWN. Answered by `joined` when all have joined,
        or with UNKNOWN when another takes its place meanwhile.
        """
        seat = self.seats.get(instance)
        if seat is None or seat.member != member:
            self._members += 1
            fresh = Seat(instance, self._members, notice, knows, None, seat.partitions if seat else ())
            if seat is not None:
                pending = seat.joined
                self._forget(seat)
                self._tell(seat)
                if pending is not None:
                    pending(UNKNOWN, 0, ())
            self.seats[instance] = fresh
            if seat is not None and not self.rebalancing:
                joined(fresh.member, self.generation, fresh.partitions)
                return
            seat = fresh
        seat.joined = joined
        self._rebalance()
        self._complete()

    def leave(self, member: int) -> None:
        """LeaveGroup, sent by a member that goes for good."""
        for instance, seat in list(self.seats.items()):
            if seat.member == member:
                self._forget(seat)
                del self.seats[instance]
                self._rebalance()
                self._complete()

    def disturb(self) -> None:
        """A rebalance for no reason that a process could see, perhaps while another is under way."""
        if self.seats:
            self._rebalance()

    def commit(self, member: int, generation: int, offsets: Mapping[tuple[str, int], int]) -> None:
        """OffsetCommit. Raises CommitFailedError, as aiokafka does for an unknown member or another generation."""
        seat = next((seat for seat in self.seats.values() if seat.member == member), None)
        if seat is None:
            raise CommitFailedError("UnknownMemberId")
        if generation != self.generation:
            raise CommitFailedError("IllegalGeneration")
        self.committed.update(offsets)

    def silent(self, member: int) -> None:
        """Heartbeats of this member have stopped arriving."""
        for seat in self.seats.values():
            if seat.member == member and seat.expiry is None:
                wait_s = SESSION_S - self.rng.uniform(0, HEARTBEAT_S)
                seat.expiry = self.loop.call_later(wait_s, self._expire, seat)

    def heard(self, member: int) -> bool:
        """They arrive again. False: the member is unknown by now."""
        for seat in self.seats.values():
            if seat.member == member:
                if seat.expiry is not None:
                    seat.expiry.cancel()
                    seat.expiry = None
                if self.rebalancing and seat.joined is None:
                    self._tell(seat)
                return True
        return False

    def knows(self, member: int) -> bool:
        """Whether it still is a member."""
        return any(seat.member == member for seat in self.seats.values())

    # -- inside

    def _expire(self, seat: Seat) -> None:
        if seat.joined is not None:  # one that waits for its answer does not expire before it has it
            seat.expiry = self.loop.call_later(SESSION_S, self._expire, seat)
        elif self.seats.get(seat.instance) is seat:
            del self.seats[seat.instance]
            self._rebalance()
            self._complete()

    def _forget(self, seat: Seat) -> None:
        seat.joined = None
        if seat.expiry is not None:
            seat.expiry.cancel()

    def _tell(self, seat: Seat) -> None:
        self.loop.call_later(self.rng.uniform(0, HEARTBEAT_S), seat.notice)

    def _rebalance(self) -> None:
        if self.rebalancing:
            return
        self.rebalancing = True
        self.rebalances += 1
        for seat in self.seats.values():
            if seat.joined is None:
                self._tell(seat)
        self._late = self.loop.call_later(REBALANCE_S, self._drop_late)

    def _drop_late(self) -> None:
        for instance, seat in list(self.seats.items()):
            if seat.joined is None:
                self._forget(seat)
                del self.seats[instance]
        self._complete()

    def _complete(self) -> None:
        if not self.rebalancing or any(seat.joined is None for seat in self.seats.values()):
            return
        self.rebalancing = False
        if self._late is not None:
            self._late.cancel()
        self.generation += 1
        self._share()
        self.loop.call_later(2 * HEARTBEAT_S, self._look_for_deaf, self.generation)
        for seat in list(self.seats.values()):
            joined, seat.joined = seat.joined, None
            if joined is not None:
                joined(seat.member, self.generation, seat.partitions)

    def _look_for_deaf(self, generation: int) -> None:
        """One whose answer got lost beats with another generation, and hears that it has to join again."""
        if generation == self.generation and not self.rebalancing:
            for seat in self.seats.values():
                if seat.expiry is None and seat.knows() != generation:
                    self._tell(seat)

    def _share(self) -> None:
        """Even shares; who had a partition often keeps it, as the sticky assignor of Faust does."""
        seats = list(self.seats.values())
        if not seats:
            return
        self.rng.shuffle(seats)
        shares: dict[str, list[int]] = {seat.instance: [] for seat in seats}
        most = -(-self.topics.partitions // len(seats))
        sticky = self.rng.random() < 0.7
        left = []
        for number in range(self.topics.partitions):
            owner = next((seat for seat in seats if sticky and number in seat.partitions), None)
            if owner is not None and len(shares[owner.instance]) < most:
                shares[owner.instance].append(number)
            else:
                left.append(number)
        for number in left:
            min(shares.values(), key=len).append(number)
        for seat in seats:
            seat.partitions = tuple(sorted(shares[seat.instance]))
