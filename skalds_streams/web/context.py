"""What the pages may ask of the process they run in. Callables, so that the answer is that of the moment and nothing
is imported from above.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skalds_streams.core.row import Row
from skalds_streams.settings import Settings
from skalds_streams.skald.ring import LogFiles
from skalds_streams.view.cluster import ClusterView


def wall_ms() -> int:
    """The wall clock, in ms since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class WebContext:
    """See the module. No callable may block."""

    settings: Settings
    view: ClusterView
    skald_id: Callable[[], str]
    incarnation: Callable[[], str]
    readiness: Callable[[], Mapping[str, bool]]
    """Name → whether it is so. Ready is when all are."""
    metrics: Callable[[], bytes]
    """Prometheus exposition text."""
    describe_class: Callable[[str], Mapping[str, Any] | None]
    """Description (JSON schema and more) of a class that this node runs."""
    not_loadable: Callable[[], Mapping[str, str]]
    """Module of this node that could not be imported → traceback."""
    banners: Callable[[], Sequence[str]]
    """Sentences for people, e.g. "Redis does not answer"."""
    task_metrics: Callable[[str], Mapping[str, Any] | None] = lambda _task_id: None
    """{"values": {name: number or None}, "at_ms"} that a worker on this node said of itself."""
    now_ms: Callable[[], int] = wall_ms
    log_files: Callable[[], LogFiles | None] = lambda: None
    """The logs of the tasks that ran here; None where no workers run. To be read in threads."""

    def secret_paths(self, row: Row) -> tuple[str, ...]:
        """Which of the row's parameters its class declares as secret."""
        return self.view.members.secret_paths(row.class_name)
