"""Upstream's Redis keys, the values that mean something, and their times to live. Pure: no client lives here.

| key | type | value |
|---|---|---|
| skalds:hash | hash | skald id → ms since the epoch of its last sign of life |
| skalds:mode:hash | hash | skald id → node or edge |
| skalds:{id}:heartbeat | string | a changing number, 0 to 199 |
| skalds:{id}:allow-task-class-name | list | class names |
| skalds:{id}:all-task | string | JSON {"tasks":[{"id","class_name"}],"existed_task_ids":[…],"timestamp"}, snake_case |
| task:{id}:heartbeat | string | a changing number, 0 to 199, while it runs; then one of the end values |
| task:{id}:exception | string | "" or the text of the last error |
"""

from __future__ import annotations

from typing import Final

SKALDS: Final = "skalds:hash"
SKALD_MODES: Final = "skalds:mode:hash"

HEARTBEAT_TTL_S: Final = 8
"""Of skalds:{id}:heartbeat, and of task:{id}:heartbeat while the task runs: two missed writes (3 s each), and 2 s."""
KEY_TTL_S: Final = 3600
"""Of all else that expires: the lists and documents of a skald, the fields of both hashes, a task's end value."""
SYNC_PERIOD_S: Final = 3
"""Upstream's writers repeat themselves this often."""
ONLINE_MS: Final = 10_000
"""A skald is online while its entry in skalds:hash is not older."""

HEARTBEAT_VALUES: Final = 200
"""A living heartbeat is a number below this that changes."""
TASK_SUCCEEDED: Final = 200
TASK_FAILED: Final = -1
TASK_CANCELLED: Final = -2


def skald_heartbeat(skald_id: str) -> str:
    """Key of a skald's sign of life, TTL HEARTBEAT_TTL_S."""
    return f"skalds:{skald_id}:heartbeat"


def skald_classes(skald_id: str) -> str:
    """Key of the list of classes a skald can run, TTL KEY_TTL_S."""
    return f"skalds:{skald_id}:allow-task-class-name"


def skald_tasks(skald_id: str) -> str:
    """Key of the JSON document of a skald's tasks, TTL KEY_TTL_S."""
    return f"skalds:{skald_id}:all-task"


def task_heartbeat(task_id: str) -> str:
    """Key of a task's sign of life or end value, TTL HEARTBEAT_TTL_S or, for an end value, KEY_TTL_S."""
    return f"task:{task_id}:heartbeat"


def task_exception(task_id: str) -> str:
    """Key of a task's last error, no TTL upstream."""
    return f"task:{task_id}:exception"
