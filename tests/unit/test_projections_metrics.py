"""The Prometheus exposition: it parses, its numbers are those of the suppliers, and counters never fall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from skalds_streams.core.membership import Members
from skalds_streams.core.row import Holder, Row, Status, Wanted
from skalds_streams.projections.metrics import Metrics, MetricSources
from skalds_streams.skald.states import StateStatistics


@dataclass
class Counts:
    """What a journal counted."""

    events: int = 0
    batches: int = 0
    skipped: int = 0
    deadletters: int = 0
    reopened: int = 0
    fetched: int = 0


@dataclass
class World:
    """Suppliers that a test can turn."""

    rows: dict[str, Row] = field(default_factory=dict)
    members: Members = field(default_factory=Members)
    held: list[str] = field(default_factory=list)
    journals: list[Counts] = field(default_factory=list)
    lease_remaining_ms: int | None = None
    lapses: int = 0
    caught_up: bool = False
    redis_up: bool = False
    states: StateStatistics = field(default_factory=StateStatistics)

    def metrics(self) -> Metrics:
        return Metrics(
            MetricSources(
                rows=lambda: self.rows,
                members=lambda: self.members,
                held=lambda: self.held,
                journals=lambda: self.journals,
                journals_open=lambda: len(self.journals),
                lease_remaining_ms=lambda: self.lease_remaining_ms,
                lease_lapses=lambda: self.lapses,
                view_caught_up=lambda: self.caught_up,
                redis_up=lambda: self.redis_up,
                lease_ms=20_000,
                version="1.2.3",
                states=lambda: self.states,
            )
        )


def scrape(metrics: Metrics) -> dict[str, float]:
    """Samples by name and labels, e.g. `skalds_tasks{status=Running}`."""
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return samples


def running(task_id: str, **changes: Any) -> Row:
    return Row(task_id, wanted=Wanted.RUN, status=Status.RUNNING, holder=Holder("s1", "i1", 1), epoch=1, **changes)


def test_numbers_are_those_of_the_suppliers() -> None:
    world = World(held=["a"], journals=[Counts(5, 4, 3, 2, 1, 6), Counts(events=10)], caught_up=True)
    world.rows = {
        "a": running("a"),
        "b": running("b", attempt=3),
        "c": Row("c", wanted=Wanted.RUN, status=Status.ASSIGNING),
        "d": Row("d", status=Status.FAILED, attempt=9),
    }
    world.members.apply({"skald_id": "s2", "incarnation": "i2", "n": 1, "state": "up"}, 0)
    for n in range(5):
        world.members.apply({"skald_id": "s1", "incarnation": "i1", "n": n, "state": "up"}, n + 1)
    expected = {
        "skalds_tasks{status=Running}": 2,
        "skalds_tasks{status=Assigning}": 1,
        "skalds_tasks{status=Failed}": 1,
        "skalds_tasks{status=Paused}": 0,
        "skalds_tasks_waiting": 1,
        "skalds_tasks_crash_looping": 1,
        "skalds_tasks_held": 1,
        "skalds_members{state=up}": 1,
        "skalds_members{state=silent}": 1,
        "skalds_journal_events_total": 15,
        "skalds_journal_batches_total": 4,
        "skalds_journal_skipped_total": 3,
        "skalds_journal_deadletters_total": 2,
        "skalds_journal_reopened_total": 1,
        "skalds_journal_fetched_total": 6,
        "skalds_journals_open": 2,
        "skalds_view_caught_up": 1,
        "skalds_redis_up": 0,
        "skalds_build_info{version=1.2.3}": 1,
    }
    samples = scrape(world.metrics())
    assert {name: samples[name] for name in expected} == expected
    assert samples["process_resident_memory_bytes"] > 0


def test_counters_never_fall() -> None:
    world = World(journals=[Counts(events=100), Counts(events=7)])
    metrics = world.metrics()

    def events() -> float:
        return scrape(metrics)["skalds_journal_events_total"]

    assert events() == 107
    lost = world.journals.pop(0)
    lost.events += 1  # counted after the last scrape, before the partition went away
    assert events() == 108
    world.journals.append(Counts(events=2))
    assert events() == 110
    world.journals.clear()
    assert events() == 110


def test_the_lease_and_its_lapses() -> None:
    world = World()

    def lease() -> list[float]:
        samples = scrape(world.metrics())
        names = ("lease_remaining_seconds", "lease_duration_seconds", "lease_lapses_total")
        return [samples[f"skalds_{name}"] for name in names]

    assert lease() == [0, 20, 0], "no heartbeat was acknowledged yet: that is no lease"
    world.lease_remaining_ms = 19_250
    assert lease() == [19.25, 20, 0]
    world.lease_remaining_ms, world.lapses = 0, 2
    assert lease() == [0, 20, 2]


def test_who_takes_no_part_is_counted_by_the_reason() -> None:
    ours = {"lease_ms": 20_000, "cluster": "default"}
    world = World(members=Members(agreed=ours))

    def excluded() -> tuple[float, float]:
        samples = scrape(world.metrics())
        name = "skalds_members_excluded"
        return samples[f"{name}{{reason=settings}}"], samples[f"{name}{{reason=second_process}}"]

    world.members.apply({"skald_id": "a", "incarnation": "a1", "n": 1, "state": "up", "agreed": ours}, 0)
    assert excluded() == (0, 0)
    world.members.apply({"skald_id": "a", "incarnation": "a2", "n": 1, "state": "waiting", "agreed": ours}, 1)
    other = {**ours, "lease_ms": 4_000}
    world.members.apply({"skald_id": "b", "incarnation": "b1", "n": 1, "state": "waiting", "agreed": other}, 2)
    assert excluded() == (1, 1)
    world.members.apply({"skald_id": "a", "incarnation": "a2", "n": 2, "state": "leaving"}, 3)
    world.members.apply({"skald_id": "b", "incarnation": "b1", "n": 2, "state": "leaving"}, 4)
    assert excluded() == (0, 0)


def test_states_that_could_not_be_written_are_counted() -> None:
    world = World()
    assert scrape(world.metrics())["skalds_states_lost_total"] == 0, "an alert needs the zero before the first"
    world.states = StateStatistics(lost=3, not_written=1)
    samples = scrape(world.metrics())
    assert (samples["skalds_states_lost_total"], samples["skalds_states_not_written_total"]) == (3, 1)


def test_no_sample_grows_with_tasks() -> None:
    world = World()
    few = len(scrape(world.metrics()))
    world.rows = {f"t{number}": running(f"t{number}") for number in range(50)}
    assert len(scrape(world.metrics())) == few


def test_nothing_is_asked_before_a_scrape() -> None:
    def never() -> Any:
        raise AssertionError("asked too early")

    supplier: Callable[[], Any] = never
    Metrics(MetricSources(*[supplier] * 9, lease_ms=1, version="1"))
