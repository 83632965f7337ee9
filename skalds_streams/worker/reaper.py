"""The parent of one host: a process that waits until the host has ended, and ends all that the host has started. The
zygote forks it, and it forks the host.

Rules:

- It is a subreaper: whatever the host's descendants do to get away (`setsid`, a double fork, a group of their own),
  they become children of this process as soon as their own parents are gone.
- They are reaped at once while the host lives, so that no zombie stays, and killed when it has ended. The kernel's
  word that there is no child left (ECHILD) is the proof that nothing runs any more: only then is the host's end told.
- When the zygote dies it kills the host and does the same. It holds the node's lock until then.
- It runs no user code, and has one thread.

Not in its power: processes of another user, which it may not kill, are waited for; and if somebody kills it, the
zygote does its work (`zygote`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skalds_streams.worker import kernel

PARENT_DIED = signal.SIGUSR1
"""What the zygote's death sends to reapers, and the skald's to the zygote."""
SIGNALS = frozenset({signal.SIGCHLD, PARENT_DIED})
POLL_S = 0.05
"""Pause between two attempts to kill what does not end."""
COMPLAIN_S = 5.0
"""Then it says, once, what it waits for."""
NAMED_MOST = 5


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its raw wait status, and the most memory that it had (resident), in bytes."""

    pid: int
    status: int
    peak_bytes: int


def prepare(zygote: int) -> bool:
    """Before the fork of the host. False when the zygote is gone already."""
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.setsid()  # so that no descendant can ever be in the process group of another host
    kernel.set_child_subreaper()
    kernel.set_parent_death_signal(PARENT_DIED)
    kernel.set_name("skald-reaper")
    return os.getppid() == zygote


def until_nothing_is_left(host: int, zygote: int) -> Ended:
    """Wait for the host's end, then end the rest. How the host ended."""
    ended = _until_ended(host, zygote)
    _end_all(host)
    return ended


def _until_ended(host: int, zygote: int) -> Ended:
    while True:
        for ended in _dead_children():
            if ended.pid == host:
                return ended
        if os.getppid() != zygote:
            os.kill(host, signal.SIGKILL)
        signal.sigwait(SIGNALS)


def _dead_children() -> Iterator[Ended]:
    """Reap, one by one. Ends when those that are left live. Raises ChildProcessError for none."""
    while True:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid == 0:
            return
        yield Ended(pid, status, usage.ru_maxrss * 1024)


def _end_all(host: int) -> None:
    """Kill until there is no child left. Those of a killed child come to us in the same moment, and are next."""
    complain_at = time.monotonic() + COMPLAIN_S
    while True:
        for pid in kernel.children():
            kernel.kill_with_group(pid)
        try:
            for _ in _dead_children():
                pass
        except ChildProcessError:
            return
        signal.sigtimedwait({signal.SIGCHLD}, POLL_S)
        if time.monotonic() >= complain_at:
            complain_at = float("inf")
            sys.stderr.write(
                f"worker host {host} has ended and can't be reported: what it started does not end: {_described()}\n"
            )


def _described() -> str:
    """Our children, for a person: pid, name, owner."""
    found = []
    for pid in kernel.children():
        process = Path(f"/proc/{pid}")
        try:
            found.append(f"process {pid} ({(process / 'comm').read_text().strip()}, user {process.stat().st_uid})")
        except OSError:
            continue
    more = f" and {len(found) - NAMED_MOST} more" if len(found) > NAMED_MOST else ""
    return ", ".join(found[:NAMED_MOST]) + more
