"""Prometheus metrics: read from suppliers when they are scraped, in a registry of our own.

Rules: prefix `skalds_`, base units, no label whose values grow with tasks. What a journal counted stays counted when
its partition goes to another process: a counter never falls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from skalds_streams.core.admission import outsiders
from skalds_streams.core.membership import Members
from skalds_streams.core.restarts import CRASH_LOOPING_ATTEMPTS
from skalds_streams.core.row import Row, Status
from skalds_streams.skald.states import StateStatistics

_COUNTED = {
    "events": "Input records whose outcome is committed.",
    "batches": "Transactions committed.",
    "skipped": "Input records that an earlier transaction had already applied.",
    "deadletters": "Records sent to task.deadletter.",
    "reopened": "Times a journal was opened again after an error.",
    "fetched": "Input records that Faust had left out and that were read from the topic.",
}


class JournalCounts(Protocol):
    """Counts of one journal since it began. The object lives on and keeps its last counts when the journal closes."""

    @property
    def events(self) -> int:
        """Input records whose outcome is committed."""

    @property
    def batches(self) -> int:
        """Transactions committed."""

    @property
    def skipped(self) -> int:
        """Input records that were applied before."""

    @property
    def deadletters(self) -> int:
        """Records sent to task.deadletter."""

    @property
    def reopened(self) -> int:
        """Openings after an error."""

    @property
    def fetched(self) -> int:
        """Input records read from the topic because they were not delivered."""


@dataclass(frozen=True, slots=True)
class MetricSources:
    """Where the numbers come from. Each is asked at every scrape and must not block."""

    rows: Callable[[], Mapping[str, Row]]
    members: Callable[[], Members]
    held: Callable[[], Iterable[str]]
    """Ids of the tasks that run in this process's hosts."""
    journals: Callable[[], Sequence[JournalCounts]]
    """One a journal that this process owns now."""
    journals_open: Callable[[], int]
    lease_remaining_ms: Callable[[], int | None]
    """What is left of this process's lease; None when it has none yet."""
    lease_lapses: Callable[[], int]
    """How often it has lapsed since the process began."""
    view_caught_up: Callable[[], bool]
    redis_up: Callable[[], bool]
    lease_ms: int
    """How long a lease is."""
    version: str
    states: Callable[[], StateStatistics] = StateStatistics
    """What became of saved states. A node without Kafka loses none."""


class Metrics:
    """The exposition of one process."""

    def __init__(self, sources: MetricSources) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Skalds(sources))
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Text exposition, UTF-8."""
        return generate_latest(self._registry)


class _Skalds(Collector):
    def __init__(self, sources: MetricSources) -> None:
        self._sources = sources
        self._known: dict[int, JournalCounts] = {}
        self._retired: Counter[str] = Counter()

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering asks no supplier."""
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._tasks()
        yield from self._members()
        yield from self._lease()
        yield from self._journals()
        yield from self._states()
        sources = self._sources
        yield GaugeMetricFamily(
            "skalds_view_caught_up", "1 when the view has read all that was there at start.", sources.view_caught_up()
        )
        yield GaugeMetricFamily("skalds_redis_up", "1 when the last write to Redis was answered.", sources.redis_up())
        build = GaugeMetricFamily("skalds_build_info", "Always 1; the version is in the label.", labels=["version"])
        build.add_metric([sources.version], 1)
        yield build

    def _tasks(self) -> Iterator[Metric]:
        rows = list(self._sources.rows().values())
        by_status = Counter(row.status for row in rows)
        tasks = GaugeMetricFamily(
            "skalds_tasks", "Tasks of the whole cluster by status, as this process's view has them.", labels=["status"]
        )
        for status in Status:
            tasks.add_metric([status.value], by_status[status])
        yield tasks
        waiting = sum(1 for row in rows if row.is_waiting)
        yield GaugeMetricFamily("skalds_tasks_waiting", "Tasks that are wanted and held by no skald.", waiting)
        looping = sum(1 for row in rows if row.attempt >= CRASH_LOOPING_ATTEMPTS and not row.is_terminal)
        yield GaugeMetricFamily(
            "skalds_tasks_crash_looping", f"Tasks with {CRASH_LOOPING_ATTEMPTS} or more crashes in a row.", looping
        )
        held = sum(1 for _ in self._sources.held())
        yield GaugeMetricFamily("skalds_tasks_held", "Tasks that run on this skald.", held)

    def _members(self) -> Iterator[Metric]:
        members = self._sources.members()
        by_state = Counter("silent" if members.is_silent(member) else member.state for member in members)
        family = GaugeMetricFamily(
            "skalds_members", "Living skalds by state; silent: its heartbeats have stopped.", labels=["state"]
        )
        for state in sorted({"up", "silent", *by_state}):
            family.add_metric([state], by_state[state])
        yield family
        by_reason = Counter("settings" if outsider.differing else "second_process" for outsider in outsiders(members))
        family = GaugeMetricFamily(
            "skalds_members_excluded",
            "Processes that are there and take no part: their settings differ, or another has their skald id.",
            labels=["reason"],
        )
        for reason in ("settings", "second_process"):
            family.add_metric([reason], by_reason[reason])
        yield family

    def _lease(self) -> Iterator[Metric]:
        sources = self._sources
        yield CounterMetricFamily(
            "skalds_lease_lapses",
            "Times that this process's lease lapsed and its workers ended.",
            sources.lease_lapses(),
        )
        yield GaugeMetricFamily(
            "skalds_lease_remaining_seconds",
            "What is left of this process's lease; 0 while it has none. Near skalds_lease_duration_seconds when all is"
            " well.",
            (sources.lease_remaining_ms() or 0) / 1000,
        )
        yield GaugeMetricFamily("skalds_lease_duration_seconds", "How long a lease is.", sources.lease_ms / 1000)

    def _states(self) -> Iterator[Metric]:
        counts = self._sources.states()
        yield CounterMetricFamily(
            "skalds_states_lost",
            "Saved states of workers here that were given up: Kafka refuses the record, or this node may not write it.",
            counts.lost,
        )
        yield CounterMetricFamily(
            "skalds_states_not_written",
            "Runs that ended here before their last saved state was written: the next run may find an older one.",
            counts.not_written,
        )

    def _journals(self) -> Iterator[Metric]:
        present = {id(counts): counts for counts in self._sources.journals()}
        for key, counts in self._known.items():
            if key not in present:
                self._retired.update({name: getattr(counts, name) for name in _COUNTED})
        self._known = present
        for name, text in _COUNTED.items():
            total = self._retired[name] + sum(getattr(counts, name) for counts in present.values())
            yield CounterMetricFamily(f"skalds_journal_{name}", text, total)
        yield GaugeMetricFamily("skalds_journals_open", "Journals open in this process.", self._sources.journals_open())
