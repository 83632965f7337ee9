"""How long this skald may let its workers run: until `lease_ms` after it *sent* its last acknowledged heartbeat.

    t0            beat n is sent, then acknowledged
    t0 + 10 beats the lease is over: the skald stops its workers (`lapsed` wakes)
    t0 + 11 beats the kernel kills what still runs (`worker.kernel.KillTimer`, armed in every host)
    t0 + 12 beats the earliest moment at which others may count it dead and place its tasks anew

Rules: time is CLOCK_BOOTTIME, which goes on while the machine sleeps. Renewals are absolute: a late one extends
nothing. Over is over for this incarnation, whatever is acknowledged later; `begin_anew` is for the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


def boottime_ms() -> int:
    """Milliseconds of CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Lease:
    """See the module. Not valid before the first renewal."""

    def __init__(
        self, lease_ms: int, beat_ms: int, on_renewed: Callable[[int], object] = lambda until_ms: None
    ) -> None:
        """on_renewed: told until when the kernel is to let workers live, in ms of CLOCK_BOOTTIME."""
        self._lease_ms, self._beat_ms, self._on_renewed = lease_ms, beat_ms, on_renewed
        self._until_ms: int | None = None
        self._begun_ms: int | None = None
        """When the first heartbeat was sent."""
        self._over = False

    @property
    def is_valid(self) -> bool:
        """Whether a worker may start now."""
        return self._until_ms is not None and not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether it has lapsed: `lapsed` has woken up, or is about to."""
        return self._over or (self._until_ms is not None and boottime_ms() >= self._until_ms)

    @property
    def remaining_ms(self) -> int | None:
        """How long it still lasts; None before the first renewal."""
        return None if self._until_ms is None else max(self._until_ms - boottime_ms(), 0)

    @property
    def kernel_until_ms(self) -> int:
        """When the kernel ends the workers, in ms of CLOCK_BOOTTIME."""
        return (self._until_ms or 0) + self._beat_ms

    def tried(self, sent_at_ms: int) -> None:
        """A heartbeat is sent now, and may be written whatever we hear of it."""
        if self._begun_ms is None:
            self._begun_ms = sent_at_ms

    def renew(self, sent_at_ms: int) -> None:
        """A heartbeat sent at this time was acknowledged."""
        if self._over or (self._until_ms is not None and boottime_ms() >= self._until_ms):
            return
        if self._until_ms is None and self._begun_ms is not None and boottime_ms() >= self._begun_ms + self._lease_ms:
            self._until_ms = self._begun_ms + self._lease_ms  # others may have counted it dead since its first
            return
        self._until_ms = max(sent_at_ms + self._lease_ms, self._until_ms or 0)
        self._on_renewed(self.kernel_until_ms)

    async def lapsed(self) -> None:
        """Wait until it is over."""
        poll_s = self._beat_ms / 1000
        while (left_ms := self.remaining_ms) is None or left_ms > 0:  # noqa: ASYNC110  # the clock is not the loop's
            await asyncio.sleep(poll_s if left_ms is None else min(left_ms / 1000, poll_s))
        self._over = True

    def begin_anew(self) -> None:
        """For a new incarnation."""
        self._until_ms, self._begun_ms, self._over = None, None, False
