"""A node without Kafka, in pieces: its file as it is edited, its log, its epochs, its settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from skalds_streams.application import SkaldsApp
from skalds_streams.cli.edge import edge
from skalds_streams.coordinator.task_source import TaskSource
from skalds_streams.core.row import Row, Status
from skalds_streams.edge.log import EPOCHS_A_LIFE, LocalLog, LocalView, next_epochs
from skalds_streams.edge.states import LocalStates
from skalds_streams.errors import ConfigError
from skalds_streams.model.codec import Limits
from skalds_streams.model.task_file import TaskFileError
from skalds_streams.settings import Settings
from skalds_streams.topics import Topics

GOOD, OTHER, BROKEN = "TaskWorkers: {a: {className: A}}", "TaskWorkers: {b: {className: B}}", "TaskWorkers: {a: ["
TOPICS = Topics.named(app="edge", partitions=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.yaml"
    path.write_text(GOOD)
    return path


def test_a_change_counts_when_the_file_looks_the_same_twice(file: Path) -> None:
    source = TaskSource(file)
    assert list(source.first().tasks) == ["a"]
    assert source.look() is None
    file.write_text("TaskWorkers: {}")  # an editor begins to write
    assert source.look() is None
    file.write_text(OTHER)
    assert source.look() is None
    found = source.look()
    assert found is not None
    assert list(found.tasks) == ["b"]
    assert (source.look(), source.problem) == (None, None)


def test_a_broken_edit_is_a_problem_until_it_is_mended(file: Path) -> None:
    source = TaskSource(file)
    source.first()
    file.write_text(BROKEN)
    assert [source.look() for _ in range(3)] == [None] * 3
    assert str(source.problem).startswith(f"{file}:1: not YAML")
    file.write_text(GOOD)
    assert source.look() is None
    assert source.problem is not None
    assert source.look() is not None
    assert source.problem is None


def test_a_file_that_is_gone_changes_nothing_and_may_come_back_as_it_was(file: Path) -> None:
    source = TaskSource(file)
    source.first()
    file.unlink()
    assert source.look() is None
    assert source.problem == f"{file} can't be read: No such file or directory"
    file.write_text(GOOD)
    assert [source.look(), source.look(), source.problem] == [None, None, None]
    file.unlink()
    with pytest.raises(TaskFileError, match="can't be read"):
        TaskSource(file).first()


class Local:
    """A log with one node that runs class A."""

    def __init__(self, floor: int = 0) -> None:
        self.view = LocalView(TOPICS, Settings().agreed)
        self.clock_ms = 1_000
        self.log = LocalLog(TOPICS, self.view, Limits(), lambda: self.clock_ms, epoch_floor=floor)
        self.beat()

    def beat(self, number: int = 1) -> None:
        doc = {"skald_id": "s", "incarnation": "s1", "n": number, "classes": {"A": "x"}, "capacity": 8}
        self.view.show_beat(doc, 1_000)

    def assign(self, **task: object) -> str | None:
        doc = {"id": "t", "source": "YAML", "className": "A", "executor": "s", **task}
        return self.log.append(TOPICS.assign, "t", {"taskIds": ["t"], "tasks": [doc], "reason": "tasks.yaml:2"})

    @property
    def row(self) -> Row:
        return self.view.rows["t"]


def test_a_record_is_decided_at_once_and_its_row_is_shown() -> None:
    local = Local(floor=EPOCHS_A_LIFE)
    with local.view.subscribe() as changes:
        assert local.assign(attachments={"fps": 1}) is None
        assert changes._tasks == {"t"}
    holder = local.row.holder
    assert holder is not None
    assert (holder.skald_id, holder.incarnation, holder.epoch) == ("s", "s1", EPOCHS_A_LIFE + 1)
    assert (local.row.why.offset, local.row.why.reason) == (0, "tasks.yaml:2")
    local.assign(attachments={"fps": 2})
    assert (local.row.attachments_version, local.row.why.offset) == (2, 1)
    local.log.append(TOPICS.cancel, "t", {"taskIds": ["t"]})
    assert local.row.wanted.value == "cancel"


def test_the_order_of_edits_is_the_order_of_records_though_the_clock_was_set_back() -> None:
    local = Local()
    local.assign()
    local.log.append(TOPICS.cancel, "t", {"taskIds": ["t"]})
    local.clock_ms = 500
    local.assign(attachments={"fps": 1})
    assert (local.row.wanted.value, local.row.note) == ("run", None)


async def _report(local: Local, kind: str, **more: object) -> None:
    doc = {"kind": kind, "task_id": "t", "epoch": local.row.epoch, "incarnation": "s1", **more}
    await local.log.send_reports([("t", doc)])


@pytest.mark.anyio
async def test_reports_go_the_same_way() -> None:
    local = Local()
    local.assign()
    await _report(local, "Running", version=1)
    assert local.row.status is Status.RUNNING
    await _report(local, "Finished")
    assert local.row.status is Status.FINISHED
    local.assign(attachments={"fps": 3})
    assert (local.row.status, local.row.epoch) == (Status.ASSIGNING, 2)


def test_what_the_limits_forbid_is_said_and_changes_nothing() -> None:
    local = Local()
    problem = local.assign(attachments={"text": "x" * 300_000})
    assert problem is not None
    assert "SKALDS_MAX_ATTACHMENTS_BYTES" in problem
    assert not local.view.rows


def test_the_one_node_never_falls_silent_to_itself() -> None:
    local = Local()
    for number in range(2, 50):
        local.beat(number)
    (member,) = local.view.members
    assert not local.view.members.is_silent(member)
    local.assign()
    assert local.row.holder is not None


def test_epochs_never_go_back(tmp_path: Path) -> None:
    path = tmp_path / "edge" / "s.epochs"
    assert [next_epochs(path) for _ in range(3)] == [0, EPOCHS_A_LIFE, 2 * EPOCHS_A_LIFE]
    path.write_text("x")
    with pytest.raises(ConfigError, match="epochs"):
        next_epochs(path)


def test_an_edge_needs_its_file_and_has_no_kafka(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("edge", "single_process"):
        with pytest.raises(ConfigError, match=f"SKALD_MODE={mode} needs YAML_FILE"):
            Settings.load(skald_mode=mode)
    with pytest.raises(ConfigError, match="coordinator"):
        Settings.load(skald_mode="edge", yaml_file=file, role="coordinator")
    monkeypatch.setenv("SKALD_MODE", "EDGE")
    monkeypatch.setenv("YAML_FILE", str(file))
    settings = Settings.load(data_dir=tmp_path)
    assert (settings.skald_mode, settings.coordinates, settings.runs_workers) == ("edge", False, True)
    app = SkaldsApp(settings)
    services = {type(service).__name__ for service in app.boot_strategy.server()}
    assert not services & {"PositionedConsumer", "AgentManager", "JournalTableManager", "Conductor"}
    monkeypatch.setenv("SKALD_MODE", "")
    monkeypatch.setenv("YAML_FILE", " ")
    assert (Settings.load().skald_mode, Settings.load().yaml_file) == ("node", None)


def test_the_file_is_checked_without_running_anything(file: Path) -> None:
    good = CliRunner().invoke(edge, ["--check", str(file)])
    assert (good.exit_code, good.output.split(":")[1].strip()) == (
        0,
        "1 task, nothing wrong. Parameters are checked by the workers.",
    )
    file.write_text("TaskWorkers:\n  a:\n    classname: A\n")
    bad = CliRunner().invoke(edge, ["--check", str(file)])
    assert (bad.exit_code, bad.output.splitlines()[0]) == (
        1,
        f"{file}:3: TaskWorkers.a.classname: no field of a task; className is one",
    )


@pytest.mark.anyio
async def test_what_was_saved_is_for_the_runs_of_the_same_assign() -> None:
    states = LocalStates("edge-1", lambda: 5)
    states.save("t", 3, '{"page": 1}')
    states.save("t", 3, '{"page": 2}')
    states.save("t", 2, '{"page": 0}')
    found = await states.find("t", 2)
    assert found is not None
    assert (found.text, found.seq) == ('{"page": 2}', 2)
    assert await states.find("t", 4) is None
    assert await states.find("t", 2) is None, "it is gone for good"
