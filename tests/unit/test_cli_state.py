"""Looking at a saved state, setting and resetting it: what is written, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import structlog
from click.testing import CliRunner, Result

from skalds_streams.cli import main, state
from skalds_streams.cli.state import Found
from skalds_streams.core.row import Holder, Row, Status, Wanted
from skalds_streams.model.saved import RESET, Saved, Spot, StateKey, StateRecord


@pytest.fixture(autouse=True)
def _as_on_any_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name in ("KAFKA_HOST", "KAFKA_PORT"):
        monkeypatch.delenv(name, raising=False)
    yield
    structlog.reset_defaults()


def row(status: Status = Status.PAUSED, wanted: Wanted = Wanted.PAUSE, **more: Any) -> Row:
    return Row("t", class_name="Cam", status=status, wanted=wanted, epoch=5, **{"first_epoch": 4, **more})


RUN, BY_HAND = StateKey("t", 5), StateKey("t", 5, by_hand=True)
SAVED = Saved(RUN, 7, 1_795_528_034_781, "node-1", '{"frame":1200,"password":"hunter2"}')
PAUSED = Found("t", row(), SAVED, None, Spot(RUN, 7, 10), (StateKey("t", 3), RUN))


class Cluster:
    """What there is, and what is written."""

    def __init__(self) -> None:
        self.found = PAUSED
        self.written: list[StateRecord] = []
        self.meanwhile: Found | None = None

    async def look(self, *args: Any) -> Found:
        return self.meanwhile if self.written and self.meanwhile is not None else self.found

    async def send(self, _cluster: Any, records: list[StateRecord]) -> None:
        self.written += records


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()

    async def connect(*args: Any) -> Any:
        return SimpleNamespace(client={}, topics=None)

    @asynccontextmanager
    async def reader(client: Any) -> Any:
        yield None

    for name, stand_in in (("connect", connect), ("open_reader", reader), ("look", made.look), ("_send", made.send)):
        monkeypatch.setattr(state, name, stand_in)
    return made


def call(*args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["state", *args], input=stdin)


def keys(records: list[StateRecord]) -> list[tuple[str, bytes | None]]:
    return [(item.key.encode().decode(), item.value) for item in records]


# -- show --------------------------------------------------------------------------------------------------------------


def test_show_prints_the_state_alone_to_stdout_and_whose_it_is_beside(cluster: Cluster) -> None:
    result = call("show", "t")
    assert orjson.loads(result.stdout) == {"frame": 1200, "password": "hunter2"}
    assert "t: saved by its run of epoch 5 on node-1 at 2026-" in result.stderr
    assert "35 bytes" in result.stderr


def test_show_as_json(cluster: Cluster) -> None:
    doc = orjson.loads(call("show", "t", "-o", "json").stdout)
    assert (doc["state"]["frame"], doc["epoch"], doc["by_hand"], doc["next_run_finds_it"]) == (1200, 5, False, True)
    cluster.found = Found("t", row(Status.FINISHED, Wanted.RUN), SAVED)
    assert orjson.loads(call("show", "t", "-o", "json").stdout)["next_run_finds_it"] is False
    assert "assigned again after Finished it begins anew" in call("show", "t").stderr


@pytest.mark.parametrize("saved", [None, Saved(BY_HAND, 1, 0, "", None)])
def test_nothing_saved_is_an_answer(cluster: Cluster, saved: Saved | None) -> None:
    cluster.found = Found("t", row(), saved)
    assert (call("show", "t").exit_code, call("show", "t").stdout) == (0, "t: nothing is saved\n")
    assert orjson.loads(call("show", "t", "-o", "json").stdout) == {"task_id": "t", "state": None}


def test_an_unknown_task_and_a_state_that_can_not_be_read_are_errors(cluster: Cluster) -> None:
    cluster.found = Found("t", None, None)
    assert (call("show", "t").exit_code, "there is no task 't' at localhost:9092" in call("show", "t").stderr) == (
        1,
        True,
    )
    cluster.found = Found("t", row(), None, "task.state/0@7 is not UTF-8", Spot(RUN, 7, 7), (RUN,))
    assert "task.state/0@7 is not UTF-8; `skalds-streams state reset` deletes it" in call("show", "t").stderr
    assert call("reset", "t", "--yes").exit_code == 0


# -- set and reset -----------------------------------------------------------------------------------------------------


def test_set_comes_after_the_last_run_whatever_that_still_writes(cluster: Cluster, tmp_path: Path) -> None:
    assert call("set", "t", '{"frame": 3}').exit_code == 0
    file = tmp_path / "state.yaml"
    file.write_text("frame: 4\n")
    cluster.found = Found("t", row(), Saved(BY_HAND, 2, 0, "", "{}"), None, Spot(BY_HAND, 2, 11), (BY_HAND,))
    assert call("set", "t", "-f", str(file)).exit_code == 0
    assert keys(cluster.written) == [("t@5+", b'{"frame":3}'), ("t@5+", b'{"frame":4}')]
    assert [dict(item.headers)["seq"] for item in cluster.written] == [b"1", b"3"]


def test_reset_is_written_down_before_what_was_saved_is_deleted(cluster: Cluster) -> None:
    result = call("reset", "t", "--yes")
    assert (result.exit_code, result.stdout) == (0, "t: reset, the next run begins without it\n")
    assert keys(cluster.written) == [("t@5+", RESET), ("t@3", None), ("t@5", None)]


@pytest.mark.parametrize("gone", [None, row(Status.CANCELLED, Wanted.CANCEL)])
def test_reset_of_what_no_run_will_ask_for_deletes_all(cluster: Cluster, gone: Row | None) -> None:
    cluster.found = Found("t", gone, SAVED, None, Spot(RUN, 7, 10), (RUN, BY_HAND))
    assert call("reset", "t", "--yes").exit_code == 0
    assert keys(cluster.written) == [("t@5", None), ("t@5+", None)]


def test_reset_of_nothing_writes_nothing(cluster: Cluster) -> None:
    cluster.found = Found("t", row(), None)
    assert (call("reset", "t", "--yes").stdout, cluster.written) == ("t: nothing was saved\n", [])


REFUSED: dict[str, tuple[Callable[[], Found], str]] = {
    "runs": (
        lambda: Found("t", row(Status.RUNNING, Wanted.RUN, holder=Holder("node-1", "i", 5)), SAVED),
        "t runs on node-1, and would save over it. Pause it first: skalds-streams assign t --action pause",
    ),
    "finished": (lambda: Found("t", row(Status.FINISHED, Wanted.RUN), SAVED), "assigned again after Finished it"),
    "never ran": (lambda: Found("t", row(first_epoch=6), None), "has not run since it was assigned"),
    "unknown": (lambda: Found("t", None, None), "there is no task 't'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_set_is_refused_when_no_run_would_find_it(cluster: Cluster, name: str) -> None:
    cluster.found = REFUSED[name][0]()
    result = call("set", "t", "{}")
    assert (result.exit_code, REFUSED[name][1] in result.stderr, cluster.written) == (1, True, [])


@pytest.mark.parametrize("name", ["runs", "unknown"])
def test_reset_is_refused_too(cluster: Cluster, name: str) -> None:
    cluster.found = REFUSED[name][0]()
    result = call("reset", "t", "--yes")
    assert (result.exit_code, REFUSED[name][1] in result.stderr, cluster.written) == (1, True, [])


def test_a_run_that_began_meanwhile_is_told(cluster: Cluster) -> None:
    cluster.meanwhile = Found("t", Row("t", epoch=6, first_epoch=4), SAVED)
    result = call("set", "t", "{}")
    assert (result.exit_code, "was started while this was written (epoch 6)" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("set", "t"), "give the state as JSON, or a file with -f"),
        (("set", "t", "{"), "the state is not JSON"),
        (("set", "t", "[1]"), "must hold an object"),
        (("set", "t", '{"a": "' + "x" * 70_000 + '"}'), "the limit is 65536"),
        (("set", " ", "{}"), "the task id is empty"),
        (("reset", "t"), "nobody can be asked here: give --yes"),
        (("reset", "t", "-o", "json"), "give --yes"),
        (("show",), "Missing argument 'ID'"),
    ],
)
def test_wrong_usage_is_said_and_writes_nothing(cluster: Cluster, args: tuple[str, ...], words: str) -> None:
    result = call(*args)
    assert (result.exit_code, words in result.stderr, cluster.written) == (2, True, [])


@pytest.mark.parametrize("name", ["show", "set", "reset"])
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = call(name, "--help")
    assert (result.exit_code, f"skalds-streams state {name} cam-1" in result.output) == (0, True)
