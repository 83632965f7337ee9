"""When a crashed task is tried again: a pure function of how often it crashed. For ever by default, slower each time.

1 s, doubling to 60 s, or what its class says, with jitter of ±10 % that is a hash of (task id, attempt): replay
computes the same time again.
"""

from __future__ import annotations

import zlib

from skalds_streams.core.options import BACKOFF_FIRST_MS, BACKOFF_MOST_MS, of_class
from skalds_streams.core.row import Row

STABLE_MS = 60_000
"""A run of this length forgets the crashes before it."""
CRASH_LOOPING_ATTEMPTS = 3
"""From this many crashes without a stable minute on, a task is shown as crash looping."""


def backoff_ms(task_id: str, attempt: int, first_ms: int = BACKOFF_FIRST_MS, most_ms: int = BACKOFF_MOST_MS) -> int:
    """Wait before try number `attempt` + 1, in ms; `attempt` counts the crashes so far and is at least 1.

    first_ms, most_ms: the first pause and the longest.
    """
    doubled: int = first_ms * 2 ** min(max(attempt, 1) - 1, 30)
    base = min(doubled, most_ms)
    jitter = zlib.crc32(f"{task_id}/{attempt}".encode()) % 2001 - 1000
    return base + base * jitter // 10_000


def longest_ms(most_ms: int = BACKOFF_MOST_MS) -> int:
    """The longest pause with jitter. A try that is further away was planned by a wall clock that was wrong."""
    return most_ms + most_ms // 10


BACKOFF_LONGEST_MS = longest_ms()
"""Of a class that says nothing else."""


def after_crash(row: Row, now_ms: int) -> tuple[int, int | None]:
    """(crashes to be remembered after one more, when it is tried again: None for never). What the task's document does
    not say says its class, as it was where the run was placed.
    """
    options = of_class(row.of_class)
    attempt = attempts_after_crash(row.attempt, row.running_since_ms, now_ms)
    most = options.max_restarts if row.max_restarts is None else row.max_restarts
    if most is not None and attempt > most:
        return attempt, None
    return attempt, now_ms + backoff_ms(row.task_id, attempt, options.backoff_first_ms, options.backoff_most_ms)


def attempts_after_crash(attempt: int, running_since_ms: int, now_ms: int) -> int:
    """Number of crashes to be remembered after one more: starts over when the last run was stable."""
    stable = running_since_ms > 0 and now_ms - running_since_ms >= STABLE_MS
    return 1 if stable else attempt + 1
