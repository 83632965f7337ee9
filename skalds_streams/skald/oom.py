"""Whether the kernel's OOM killer has just been at work: the one way to tell its SIGKILL from anybody else's.

The kernel names nobody to unprivileged programs, it only counts: per cgroup, or for the whole machine. A count that
rose within RECENT_S before a worker's process ended by SIGKILL is taken as the cause, which may be wrong when the
killer ended another process and somebody else the worker in the same seconds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

RECENT_S = 5.0
"""More than two beats of the default lease: `look` is called once a beat."""

CGROUPS = Path("/sys/fs/cgroup")


class OomKills:
    """`look` now and then, and ask `recent` when a process was killed."""

    def __init__(self, files: Sequence[Path] | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """files: those that may have the count, best first; the first that has it is read."""
        self._clock = clock
        candidates = list(_files()) if files is None else files
        self._file = next((path for path in candidates if _count(path) is not None), None)
        self._seen: deque[tuple[float, int]] = deque()
        self.look()

    def look(self) -> None:
        """Remember the count of this moment."""
        now, count = self._clock(), self._count()
        while len(self._seen) > 1 and self._seen[1][0] <= now - RECENT_S:
            self._seen.popleft()
        if count is not None:
            self._seen.append((now, count))

    def recent(self) -> bool:
        """Whether it rose since the last look that is RECENT_S old, or the first."""
        self.look()
        return bool(self._seen) and self._seen[-1][1] > self._seen[0][1]

    def _count(self) -> int | None:
        return _count(self._file) if self._file is not None else None


def _files() -> Iterator[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # In a container the path may be the host's, and the mounted root is what is meant.
        for place in (path.strip("/"), ""):
            if not controllers:
                yield CGROUPS / place / "memory.events"
            elif "memory" in controllers.split(","):
                yield CGROUPS / "memory" / place / "memory.oom_control"
    yield Path("/proc/vmstat")


def _count(path: Path) -> int | None:
    """The number behind the word oom_kill."""
    try:
        for line in path.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    except (OSError, ValueError):
        return None
    return None
