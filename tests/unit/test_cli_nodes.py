"""Drain, undrain, move, rebalance and plan: what is asked for, and how a task on its way is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
import structlog
from click.testing import CliRunner
from rich.console import Console

from skalds_streams.cli import main
from skalds_streams.cli.describe import facts
from skalds_streams.cli.kafka import Table
from skalds_streams.cli.moving import AT_ONCE, STAGES, Board, Moving, Stage, _turn, stage
from skalds_streams.cli.options import Options
from skalds_streams.cli.planning import check_node, check_tasks, print_plan, reasons_words, state_of
from skalds_streams.cli.ps import summary
from skalds_streams.core.membership import Members
from skalds_streams.core.plans import Step
from skalds_streams.core.row import Holder, Release, Row, Status, Wanted
from skalds_streams.errors import SkaldsError
from skalds_streams.web.words import situation

BEFORE = Row("t", class_name="Cam", wanted=Wanted.RUN, status=Status.RUNNING, holder=Holder("a", "a1", 1), epoch=1)
BEFORE = replace(BEFORE, revision=5)
STEP = Step("t", "a", "b")


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


class View:
    """Rows and members as a view has them."""

    def __init__(self, *rows: Row, skalds: tuple[str, ...] = ("a", "b")) -> None:
        self.rows = {row.task_id: row for row in rows}
        self.members = Members()
        for offset, skald_id in enumerate(skalds):
            self.members.apply({"skald_id": skald_id, "incarnation": f"{skald_id}1", "state": "up"}, offset)


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["drain"], "Missing argument 'NODE'"),
        (["undrain"], "Missing argument 'NODE'"),
        (["move"], "Missing argument"),
        (["move", "t", "--timeout", "-1"], "-1"),
        (["rebalance", "--most", "0"], "0"),
        (["plan"], "give either --lose NODE or --drain NODE"),
        (["plan", "--lose", "a", "--drain", "b"], "give either --lose NODE or --drain NODE"),
    ],
)
def test_wrong_usage(args: list[str], complaint: str) -> None:
    result = CliRunner().invoke(main, args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (None, Stage(STAGES, "has ended meanwhile (forgotten)", True)),
        (replace(BEFORE, holder=None, status=Status.FINISHED), Stage(STAGES, "has ended meanwhile (Finished)", True)),
        (replace(BEFORE, wanted=Wanted.CANCEL), Stage(STAGES, "is not wanted any more (cancel)", True)),
        (BEFORE, Stage(0, "runs on a")),
        (replace(BEFORE, release=Release.MOVE), Stage(0, "a is stopping it")),
        (
            replace(BEFORE, note="not moved: it is pinned to a", revision=6),
            Stage(0, "stays on a: it is pinned to a", False),
        ),
        (
            replace(BEFORE, holder=None, status=Status.ASSIGNING, waiting={"b": "full 8/8"}),
            Stage(1, "Assigning: No skald can take it: b: full 8/8"),
        ),
        (replace(BEFORE, holder=Holder("b", "b1", 2), epoch=2, status=Status.ASSIGNING), Stage(2, "starts on b")),
        (replace(BEFORE, holder=Holder("b", "b1", 2), epoch=2), Stage(STAGES, "runs on b (epoch 2)", True)),
        (
            replace(BEFORE, holder=Holder("a", "a1", 2), epoch=2),
            Stage(STAGES, "runs on a again: nobody else could take it", False),
        ),
    ],
)
def test_how_far_a_task_is(row: Row | None, expected: Stage) -> None:
    assert stage(STEP, BEFORE, row, lambda value: value) == expected


def test_a_task_that_waited_has_arrived_when_it_runs() -> None:
    waited = replace(BEFORE, holder=None, status=Status.ASSIGNING)
    runs = replace(BEFORE, holder=Holder("b", "b1", 2), epoch=2)
    assert stage(Step("t", None, "b"), waited, runs, lambda value: value).ok


def test_only_so_many_are_under_way_at_once() -> None:
    movings = [Moving(STEP, BEFORE, sent=False) for _ in range(AT_ONCE + 3)]
    assert len(_turn(movings)) == AT_ONCE
    for moving in movings[:5]:
        moving.sent = True
    movings[0].stage = Stage(STAGES, "", True)
    assert len(_turn(movings)) == AT_ONCE - 4


def board(*, terminal: bool = True, silent: bool = False) -> tuple[Board, Any]:
    file = StringIO()
    return Board(Console(file=file, force_terminal=terminal, width=100), silent=silent), file


def test_each_task_has_a_bar_in_a_terminal_and_a_line_at_its_end() -> None:
    shown, file = board()
    moving = Moving(Step("[red]cam\x1b[2J", "a", "b"), BEFORE, Stage(2, "starts on b"))
    with shown.shown(1):
        shown.show(moving)
        moving.stage = Stage(STAGES, "runs on b (epoch 2)", True)
        shown.show(moving)
        shown.show(moving)
    said = file.getvalue()
    assert "starts on b" in said
    assert said.count("runs on b (epoch 2)") == 1
    assert "[red]cam\\x1b[2J" in said, "neither markup nor what a terminal obeys"


@pytest.mark.parametrize(("silent", "expected"), [(False, "t: runs on b\n"), (True, "")])
def test_without_a_terminal_there_are_lines_and_for_json_none(silent: bool, expected: str) -> None:
    shown, file = board(terminal=False, silent=silent)
    with shown.shown(1):
        shown.show(Moving(STEP, BEFORE, Stage(STAGES, "runs on b", True)))
    assert file.getvalue() == expected


def test_unknown_names_are_told_with_those_that_exist() -> None:
    view: Any = View(BEFORE)
    check_node(view, "a")
    check_node(view, "gone", ["gone"])
    check_tasks(view, ["t"])
    with pytest.raises(SkaldsError, match="there is no skald 'x'; there are a, b"):
        check_node(view, "x")
    with pytest.raises(SkaldsError, match=r"there is no task 'x'; there is t$"):
        check_tasks(view, ["x"])
    with pytest.raises(SkaldsError, match="there is no skald at all"):
        check_node(View(skalds=()), "x")  # type: ignore[arg-type]
    many: Any = View(skalds=tuple(f"n{number:02}" for number in range(30)))
    with pytest.raises(SkaldsError, match="n19 and 10 more"):
        check_node(many, "x")
    assert (state_of(view, "a"), state_of(view, "x")) == ("up", "")


def test_a_plan_is_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [STEP, Step("u", "a", None, {"b": "full 8/8", "c": "no class Cam"})]
    print_plan(Options(), steps, {"t": BEFORE}, nothing="nothing", stays="would stay")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["t", "Cam", "a", "b"]
    assert lines[2].split("stay", 1)[1].strip() == "b: full 8/8; c: no class Cam"
    assert lines[3] == "1 task would move, 1 would stay"
    print_plan(Options(), [], {}, nothing="a has no tasks", stays="would stay")
    assert capsys.readouterr().out == "a has no tasks\n"
    print_plan(Options(output="json"), steps[:1], {}, nothing="", stays="")
    assert '"to": "b"' in capsys.readouterr().out
    assert reasons_words({"*": "no other skald is here"}) == "no other skald is here"


@pytest.mark.parametrize(
    ("stage_", "result"),
    [
        (Stage(STAGES, "runs", True), "done"),
        (Stage(0, "stays", False), "failed"),
        (Stage(1, "waits"), "open"),
    ],
)
def test_a_task_on_its_way_as_json(stage_: Stage, result: str) -> None:
    doc = Moving(STEP, BEFORE, stage_).to_doc()
    assert (doc["task_id"], doc["from"], doc["to"], doc["result"], doc["ok"]) == (
        "t",
        "a",
        "b",
        result,
        result == "done",
    )
    assert Moving(STEP, BEFORE, sent=False).to_doc()["result"] == "not sent"


def test_a_node_that_is_expected_back_and_one_that_is_drained_are_shown() -> None:
    view = View(skalds=("a", "b", "c"))
    view.members.apply({"skald_id": "a", "incarnation": "a1", "n": 2, "state": "holding"}, 7)
    view.members.apply({"kind": "drain", "skald_id": "b"}, 8)
    row = Row("t", class_name="Cam", wanted=Wanted.RUN, status=Status.ASSIGNING, waiting={"a": "is expected back"})
    assert situation(row, lambda value: value).text == "Waits for a, which is expected back"
    assert summary([row], view.members) == "1 task, 0 running; skalds: b draining 0/0, c up 0/0, a expected back"
    told = dict(facts(row, Table({"t": row}, view.members), frozenset(), 0))
    assert told["now"] == "Waits for a, which is expected back"
    assert "waits for" not in told
    held = replace(BEFORE, holder=Holder("z", "z1", 1, 99))
    told = dict(facts(held, Table({"t": held}, view.members), frozenset(), 0))
    assert told["held by"].startswith("z (not in the heartbeats)")


def test_what_a_class_decides_is_told_of_its_task() -> None:
    view = View(skalds=("a",))
    options = {"Cam": {"requires": {"gpu": "yes"}, "weight": 2, "max_restarts": 3}}
    view.members.apply({"skald_id": "a", "incarnation": "a1", "n": 2, "classes": {"Cam": "h"}, "options": options}, 9)
    row = Row("t", class_name="Cam", wanted=Wanted.RUN, status=Status.ASSIGNING)
    told = dict(facts(row, Table({"t": row}, view.members), frozenset(), 0))
    assert (told["requires"], told["weight"]) == ("gpu=yes, by its class", "2, by its class")
    assert (told["restarts"], told["priority"]) == ("at most 3, by its class", "0")
