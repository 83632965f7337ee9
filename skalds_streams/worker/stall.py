"""Finds out that a worker is stuck: its class says `stall_s`, and main has not called `self.progress()` for so long.

Two watchers, as what is stuck may hold the GIL:

- The host's I/O thread asks `due_in_s`, and takes the stacks down when it is 0. The skald then stops the worker as it
  stops any, so that its release handler runs.
- The kernel: when neither `feed` nor the I/O thread has run for GIL_GRACE_S longer, a timer raises DUMP_SIGNAL, on
  which faulthandler (C code that needs no GIL) writes the stacks into a file in memory that the reaper has, too. A
  second timer kills the process KILL_AFTER_S later.

Only main is watched, from its beginning to its end. The clock is CLOCK_MONOTONIC: a machine that sleeps does not
count, a process that somebody stopped does. What does not live here: who is told (`host`, `shared`).
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Coroutine
from typing import Any

from skalds_streams.worker import kernel

DUMP_SIGNAL = signal.SIGRTMIN + 5
GIL_GRACE_S = 2.0
KILL_AFTER_S = 1.0
REARM_S = 0.5
"""The timers are set anew at most so often: `feed` may be called a million times a second."""
DUMP_MOST_BYTES = 32 * 1024
AWAITS_MOST = 20
LOOK_S = 1.0
"""How often a host's I/O thread looks after workers that are watched, at least."""


class Watch:
    """One run's clock. `feed` from any thread."""

    __slots__ = ("_fed_at", "_is_on", "stall_s")

    def __init__(self, stall_s: float) -> None:
        self.stall_s = stall_s
        self._fed_at = 0.0
        self._is_on = False

    def begin(self) -> None:
        """Main begins."""
        self._fed_at = time.monotonic()
        self._is_on = True

    def end(self) -> None:
        """Main is over, or known to be stuck."""
        self._is_on = False

    def feed(self) -> None:
        """The worker makes progress."""
        self._fed_at = time.monotonic()

    def due_in_s(self) -> float | None:
        """Seconds until it counts as stuck: 0 when it does. None: it is not watched."""
        return max(self._fed_at + self.stall_s - time.monotonic(), 0.0) if self._is_on else None


class KernelWatch:
    """One process's watch for who holds the GIL: the kernel takes the stacks down when `arm` is not called again in
    time, and then kills the process.
    """

    def __init__(self, dump_fd: int) -> None:
        """dump_fd: takes the stacks, also whenever somebody sends DUMP_SIGNAL."""
        self._dump_fd = dump_fd
        self._dump = kernel.Timer(DUMP_SIGNAL, time.CLOCK_MONOTONIC)
        self._kill = kernel.Timer(signal.SIGKILL, time.CLOCK_MONOTONIC)
        self._dump_at = float("inf")
        faulthandler.register(DUMP_SIGNAL, file=dump_fd, all_threads=True)

    def arm(self, stuck_at_s: float) -> None:
        """At this moment of CLOCK_MONOTONIC a thread of ours would look, if it could."""
        self._dump_at = dump_at = stuck_at_s + GIL_GRACE_S
        self._dump.arm(round(1000 * dump_at))
        self._kill.arm(round(1000 * (dump_at + KILL_AFTER_S)))

    def disarm(self) -> None:
        """Nobody is watched."""
        self._dump_at = float("inf")
        for timer in (self._kill, self._dump):
            timer.disarm()

    def has_fired(self) -> bool:
        """Whether the kernel has taken the stacks down since `arm`."""
        return time.monotonic() >= self._dump_at

    def take_down(self) -> str:
        """What each thread does now, as faulthandler writes it."""
        self._empty()
        faulthandler.dump_traceback(file=self._dump_fd, all_threads=True)
        return read_dump(self._dump_fd)

    def forget(self) -> None:
        """The stacks are not wanted any more: who was stuck came free, say."""
        if os.fstat(self._dump_fd).st_size:
            self._empty()

    def _empty(self) -> None:
        os.ftruncate(self._dump_fd, 0)
        os.lseek(self._dump_fd, 0, os.SEEK_SET)


class StallWatch(Watch):
    """The watch of a run that has the process for itself."""

    def __init__(self, stall_s: float, dump_fd: int) -> None:
        """dump_fd: takes the stacks."""
        super().__init__(stall_s)
        self._rearm_at = 0.0
        self._kernel = KernelWatch(dump_fd)

    def begin(self) -> None:
        """Main begins."""
        super().begin()
        self._rearm(self._fed_at)

    def end(self) -> None:
        """Main is over, or known to be stuck."""
        super().end()
        self._kernel.disarm()

    def feed(self) -> None:
        """The worker makes progress."""
        self._fed_at = now = time.monotonic()
        if now >= self._rearm_at:
            self._rearm(now)

    def due_in_s(self) -> float | None:
        """Seconds until it counts as stuck: 0 when it does. None: it is not watched."""
        if not self._is_on:
            self._kernel.disarm()  # another thread may have been about to arm them when main ended
            return None
        self._rearm(time.monotonic())
        due_in_s = super().due_in_s()
        if due_in_s:
            self._kernel.forget()
        return due_in_s

    def take_down(self) -> str:
        """It is stuck: what each thread does, as faulthandler writes it. The watch is over."""
        self.end()
        return self._kernel.take_down()

    def _rearm(self, now: float) -> None:
        self._rearm_at = now + REARM_S
        if self._is_on:
            self._kernel.arm(self._fed_at + self.stall_s)


def read_dump(fd: int) -> str:
    """What was written into the file, "" for nothing."""
    return os.pread(fd, DUMP_MOST_BYTES, 0).decode("utf-8", "replace")


def awaited(coroutine: Coroutine[Any, Any, Any] | None) -> list[str]:
    """Where a coroutine that is not running waits, innermost first, as faulthandler writes frames."""
    lines: list[str] = []
    inner: Any = coroutine
    while (frame := getattr(inner, "cr_frame", None)) is not None and len(lines) < AWAITS_MOST:
        lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
        inner = inner.cr_await
    return lines[::-1]
