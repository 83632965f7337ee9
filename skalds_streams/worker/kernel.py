"""What is asked of the Linux kernel about processes: death signals, names, process groups, a timer that kills. Thin
calls.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

_IOLBF = 1
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36


def set_parent_death_signal(signum: int) -> None:
    """The kernel sends `signum` to this process when the *thread* that forked it ends. Check getppid() afterwards."""
    _prctl(_PR_SET_PDEATHSIG, signum)


def set_child_subreaper() -> None:
    """Orphans among our descendants become our children, so that they are reaped even where process 1 does not care."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """The name in `ps -o comm` and `top`; the kernel keeps 15 bytes."""
    _prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]))


@cache
def load_libc() -> ctypes.CDLL:
    """The C library, errno kept for each thread."""
    return ctypes.CDLL(None, use_errno=True)


def buffer_stdout_by_lines() -> None:
    """Let what C code prints leave this process line by line, as what Python prints does. It would wait for 4 KiB."""
    libc = load_libc()
    with suppress(AttributeError, ValueError):  # a C library that calls it otherwise
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, _IOLBF, ctypes.c_size_t(0))


def _prctl(option: int, argument: int | ctypes.c_char_p) -> None:
    value = argument if isinstance(argument, ctypes.c_char_p) else ctypes.c_ulong(argument)
    zero = ctypes.c_ulong(0)
    libc = load_libc()
    if libc.prctl(option, value, zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


class _Event(ctypes.Structure):
    """struct sigevent."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("pad", ctypes.c_char * 48),
    )


class _Times(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns"))


class Timer:
    """Sends a signal to this process at a moment of a clock. A fork does not inherit it."""

    _SIGNAL, _ABSOLUTE = 0, 1

    def __init__(self, signum: int, clock: int) -> None:
        self._libc = load_libc()
        self._timer = ctypes.c_void_p()
        event = _Event(signo=signum, notify=self._SIGNAL)
        create = getattr(self._libc, "timer_create", None)
        self.is_there = create is not None and create(clock, ctypes.byref(event), ctypes.byref(self._timer)) == 0
        """Whether the kernel has such a timer."""

    def arm(self, at_ms: int) -> bool:
        """Send it at this time of the clock, in ms, instead of any earlier said; at once when it has passed."""
        if not self.is_there:
            return False
        times = _Times(0, 0, at_ms // 1000, at_ms % 1000 * 1_000_000)
        return bool(self._libc.timer_settime(self._timer, self._ABSOLUTE, ctypes.byref(times), None) == 0)

    def disarm(self) -> None:
        """Send nothing."""
        if self.is_there:
            self._libc.timer_settime(self._timer, self._ABSOLUTE, ctypes.byref(_Times()), None)


class KillTimer:
    """Ends this process with SIGKILL at a moment of CLOCK_BOOTTIME, whatever it is doing then: stopped, holding the
    GIL, or asleep with its machine. A fork does not inherit it.

    Where the kernel has no such timer, an interval timer (SIGALRM) stands in, which the first two of these delay.
    """

    def __init__(self) -> None:
        self._timer = Timer(signal.SIGKILL, time.CLOCK_BOOTTIME)

    def arm(self, until_ms: int) -> None:
        """Kill at this time, in ms of CLOCK_BOOTTIME, instead of any earlier said; at once when it has passed."""
        if not self._timer.arm(until_ms):
            left_s = until_ms / 1000 - time.clock_gettime(time.CLOCK_BOOTTIME)
            signal.setitimer(signal.ITIMER_REAL, max(left_s, 0.000_001))


def kill_group(pgid: int, signum: int = signal.SIGKILL) -> bool:
    """Signal every process of a group. False when there is none, or none that we may signal."""
    try:
        os.killpg(pgid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill_with_group(pid: int) -> None:
    """SIGKILL a child of ours that we have not reaped, and its process group, in which nobody then gets to fork. Only
    the process itself if it is in our group.
    """
    try:
        group = os.getpgid(pid)
        if group == os.getpgrp():
            os.kill(pid, signal.SIGKILL)
        else:
            os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def children() -> list[int]:
    """Children of this process, which has one thread; zombies too. One may be left out when another ends meanwhile."""
    me = os.getpid()
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{me}/children").read_text().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _parent(entry) == me]


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def group_is_empty(pgid: int) -> bool:
    """No process of the group can run code any more. Zombies that nobody has reaped yet do not count."""
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # members of another user: look closer
    return not any(_runs_in_group(entry, pgid) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def group_is_ours(pgid: int) -> bool:
    """A process of the group, in our session, can run code. The number may be somebody else's by now."""
    try:
        os.killpg(pgid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    session = os.getsid(0)
    return any(_runs_in_group(entry, pgid, session) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _runs_in_group(process: Path, pgid: int, session: int | None = None) -> bool:
    try:
        fields = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[:4]
        state = fields[0]
        if int(fields[2]) != pgid or session not in (None, int(fields[3])):
            return False
        # A zombie leader can still have running threads.
        return state not in "ZX" or len(os.listdir(process / "task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False
