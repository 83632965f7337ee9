"""A task whose events have only its id: found in the catalogue, as a record, and only what the row lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skalds_streams.coordinator.task_source import FileCatalogue
from skalds_streams.core.due import find_due
from skalds_streams.core.placement import Load
from skalds_streams.core.row import Row, Status, Wanted
from skalds_streams.model.specs import Limits
from tests.unit.test_core_lifetimes import TOPICS, World

ONLY_ID = (TOPICS.assign, {"taskIds": ["t"]})
DOC = {"id": "t", "className": "Cam", "source": "YAML", "priority": 4, "attachments": {"fps": 30}}


def found(**changes: Any) -> tuple[str, dict[str, object]]:
    return TOPICS.report, {
        "v": 1,
        "kind": "Found",
        "task_id": "t",
        "task": {**DOC, **changes},
        "reason": "tasks.yaml:2",
    }


def row_of(world: World) -> Row:
    return world.rows["t"]


def due_of(world: World, catalogue: Any) -> list[Any]:
    return list(find_due(world.rows.values(), world.members, Load(), 2_000, catalogue=catalogue))


def test_a_task_without_a_document_is_looked_for_and_runs_with_what_is_found() -> None:
    world = World().skald()
    world.feed(ONLY_ID, now_ms=1_000)
    assert "no Task document" in str(row_of(world).waiting)
    assert not due_of(world, lambda task_id: None)
    (due,) = due_of(world, {"t": (DOC, "tasks.yaml:2")}.get)
    assert (due.kind, due.task, due.reason, due.revision) == ("Found", DOC, "tasks.yaml:2", 1)
    world.feed(found(), now_ms=2_000)
    row = row_of(world)
    assert (row.class_name, row.priority, row.attachments, row.attachments_version) == ("Cam", 4, {"fps": 30}, 1)
    assert row.holder is not None
    assert (row.status, row.why.kind, row.why.reason) == (Status.ASSIGNING, "Found", "tasks.yaml:2")
    assert world.feed(found(className="Other"), now_ms=3_000).ignored == 1
    assert not due_of(world, {"t": (DOC, "tasks.yaml:2")}.get)


def test_what_events_have_said_wins_over_the_catalogue() -> None:
    world = World().skald("a").skald("b")
    update = (TOPICS.update, {"taskIds": ["t"], "attachments": {"fps": 5}})
    world.feed((TOPICS.assign, {"taskIds": ["t"], "recipient": "b"}), update, now_ms=1_000)
    world.feed(found(executor="a"), now_ms=2_000)
    row = row_of(world)
    assert (row.recipient, row.attachments, row.class_name) == ("b", {"fps": 5}, "Cam")


def test_an_update_that_was_sent_after_the_assign_wins_over_what_is_found() -> None:
    world = World().skald()
    world.feed(ONLY_ID, now_ms=1_000)
    world.feed(found(), now_ms=3_000)
    world.feed((TOPICS.update, {"taskIds": ["t"], "attachments": {"fps": 9}}), now_ms=2_000)
    assert row_of(world).attachments == {"fps": 9}


def test_what_was_cancelled_or_described_meanwhile_is_left_alone() -> None:
    world = World().skald()
    world.feed(ONLY_ID, (TOPICS.cancel, {"taskIds": ["t"]}), now_ms=1_000)
    assert world.feed(found(), now_ms=2_000).ignored == 1
    assert (row_of(world).wanted, row_of(world).class_name) == (Wanted.CANCEL, None)


def test_a_document_that_nobody_would_take_is_a_dead_letter() -> None:
    world = World().skald()
    world.feed(ONLY_ID, now_ms=1_000)
    for document in (found(id="other"), found(priority=99), (TOPICS.report, {"kind": "Found", "task_id": "t"})):
        assert len(world.feed(document, now_ms=2_000).deadletters) == 1
    assert row_of(world).class_name is None


def test_the_file_is_a_catalogue_and_says_what_it_can_not_offer(tmp_path: Path) -> None:
    file = tmp_path / "tasks.yaml"
    large = "{className: Cam, attachments: {text: " + "x" * 200 + "}}"
    file.write_text(f"TaskWorkers:\n  t: {{className: Cam}}\n  large: {large}\n  odd: {{}}\n")
    catalogue = FileCatalogue(file, Limits(attachments_bytes=100))
    catalogue.open()
    assert catalogue.find("t") == ({"id": "t", "source": "YAML", "className": "Cam"}, f"{file}:2")
    assert (catalogue.find("large"), catalogue.find("odd"), catalogue.find("nobody")) == (None, None, None)
    assert [text.removeprefix(str(file)) for text in catalogue.problems] == [
        ":4: TaskWorkers.odd.className: it is missing",
        ":3: TaskWorkers.large: attachments have 211 bytes, the limit is 100 (SKALDS_MAX_ATTACHMENTS_BYTES)",
    ]
