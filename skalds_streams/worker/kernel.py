"""What is asked of the Linux kernel about processes: death signals, names, process groups. Thin calls without state."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

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


def _prctl(option: int, argument: int | ctypes.c_char_p) -> None:
    value = argument if isinstance(argument, ctypes.c_char_p) else ctypes.c_ulong(argument)
    zero = ctypes.c_ulong(0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def kill_group(pgid: int, signum: int = signal.SIGKILL) -> bool:
    """Signal every process of a group. False when there is none, or none that we may signal."""
    try:
        os.killpg(pgid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def group_is_empty(pgid: int) -> bool:
    """No process of the group can run code any more. Zombies that nobody has reaped yet do not count."""
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # members of another user: look closer
    return not any(_runs_in_group(entry, pgid) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _runs_in_group(process: Path, pgid: int) -> bool:
    try:
        state, _parent, group = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[:3]
        if int(group) != pgid:
            return False
        # A zombie leader can still have running threads.
        return state not in "ZX" or len(os.listdir(process / "task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False
