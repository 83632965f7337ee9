"""A machine of a world: its clocks, its being frozen or lost, and a second opinion on the leases given on it.

Rules: the monotonic clock of a machine runs at a constant rate, for its processes and for its kernel's timers; its wall
clock may jump; a frozen machine runs nobody's code, but its kernel's timers fire.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

DRIFT = 0.024
"""A clock runs up to so much faster or slower: any two are within 5 % of each other."""


@dataclass(slots=True)
class Machine:
    """See the module."""

    rate: float = 1.0
    jump_ms: int = 0
    """How far its wall clock is off."""
    frozen: bool = False
    lost: bool = False
    """It never comes back."""
    _held: list[Callable[[], None]] = field(default_factory=list)

    def run(self, callback: Callable[..., None], *args: Any) -> None:
        """Now, or when the machine is no longer frozen."""
        if self.frozen:
            self._held.append(partial(callback, *args))
        else:
            callback(*args)

    def thaw(self) -> None:
        self.frozen = False
        held, self._held = self._held, []
        for callback in held:
            callback()


class LeaseWatch:
    """What the lease of one process may be, by what its producer was told; the product's own reckoning is not asked."""

    def __init__(
        self, lease_ms: int, beat_ms: int, now_ms: Callable[[], int], complain: Callable[[str, str], None]
    ) -> None:
        """now_ms: CLOCK_BOOTTIME of its machine. complain: (rule, what was done against it)."""
        self._lease_ms, self._beat_ms, self._complain = lease_ms, beat_ms, complain
        self.now_ms = now_ms
        self._resumed_ms = -1
        self.begin_anew()

    def begin_anew(self) -> None:
        """For the next incarnation."""
        self._sent_ms = self._until_ms = -1

    def resumed(self) -> None:
        """The process goes on. What it does in this moment it decided before it was stopped."""
        self._resumed_ms = self.now_ms()

    def acknowledged(self, sent_ms: int) -> None:
        """A heartbeat that was sent at this time."""
        self._sent_ms = max(self._sent_ms, sent_ms)

    def renewed(self, kernel_until_ms: int) -> None:
        """The kernel is asked to let workers live until then."""
        if kernel_until_ms > self._sent_ms + self._lease_ms + self._beat_ms:
            self._complain("a lease counts from the sending", f"sent at {self._sent_ms}, until {kernel_until_ms}")
        if 0 <= self._until_ms <= self.now_ms():
            self._complain("a lapse is final", f"over at {self._until_ms}, renewed at {self.now_ms()}")
        self._until_ms = kernel_until_ms - self._beat_ms

    def starts(self, task_id: str) -> None:
        """A worker is started."""
        if self.now_ms() >= self._until_ms and self.now_ms() != self._resumed_ms:
            self._complain("no start without a lease", f"{task_id}: over at {self._until_ms}, now {self.now_ms()}")
