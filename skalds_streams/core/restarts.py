"""When a crashed task is tried again: a pure function of how often it crashed. For ever by default, slower each time.

1 s, doubling to 60 s, with jitter of ±10 % that is a hash of (task id, attempt): replay computes the same time again.
"""

from __future__ import annotations

import zlib

BACKOFF_FIRST_MS = 1_000
BACKOFF_MOST_MS = 60_000
BACKOFF_LONGEST_MS = BACKOFF_MOST_MS + BACKOFF_MOST_MS // 10
"""With jitter. A try that is further away than this was planned by a wall clock that was wrong."""
STABLE_MS = 60_000
"""A run of this length forgets the crashes before it."""
CRASH_LOOPING_ATTEMPTS = 3
"""From this many crashes without a stable minute on, a task is shown as crash looping."""


def backoff_ms(task_id: str, attempt: int) -> int:
    """Wait before try number `attempt` + 1, in ms; `attempt` counts the crashes so far and is at least 1."""
    doubled: int = BACKOFF_FIRST_MS * 2 ** min(max(attempt, 1) - 1, 16)
    base = min(doubled, BACKOFF_MOST_MS)
    jitter = zlib.crc32(f"{task_id}/{attempt}".encode()) % 2001 - 1000
    return base + base * jitter // 10_000


def attempts_after_crash(attempt: int, running_since_ms: int, now_ms: int) -> int:
    """Number of crashes to be remembered after one more: starts over when the last run was stable."""
    stable = running_since_ms > 0 and now_ms - running_since_ms >= STABLE_MS
    return 1 if stable else attempt + 1
