"""What runs on this machine, from /proc: families of processes, and everything that carries a run's mark."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One process that is no zombie."""

    pid: int
    parent: int
    name: str

    @property
    def is_zygote(self) -> bool:
        return self.name == "skald-zygote"

    @property
    def is_host(self) -> bool:
        return self.name.startswith("skald:")


def processes() -> dict[int, Process]:
    """All of them, by pid."""
    found = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError):
                pid = int(entry.name)
                head, _, rest = (entry / "stat").read_text(errors="replace").rpartition(")")
                state, parent = rest.split()[:2]
                if state not in "ZX":
                    found[pid] = Process(pid, int(parent), head.partition("(")[2])
    return found


def family(root: int) -> list[Process]:
    """A process and its descendants, parents first. Empty when it is gone."""
    everything = processes()
    if root not in everything:
        return []
    found, pending = [everything[root]], [root]
    while pending:
        parent = pending.pop()
        children = [item for item in everything.values() if item.parent == parent]
        found += children
        pending += [item.pid for item in children]
    return found


def marked(mark: str) -> list[Process]:
    """Processes whose environment at their start held `mark`, this one excepted."""
    found = []
    for item in processes().values():
        with suppress(OSError):
            if item.pid != os.getpid() and mark.encode() in (PROC / str(item.pid) / "environ").read_bytes():
                found.append(item)
    return found


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """A signal to each that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def descriptors(pid: int) -> int:
    """How many files and sockets it has open; 0 when it is gone."""
    try:
        return len(os.listdir(PROC / str(pid) / "fd"))
    except OSError:
        return 0
