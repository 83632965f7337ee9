"""docs/workers.md: its worker does what the page says, its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from skalds_streams.cli import main
from skalds_streams.worker import BaseTaskWorker, baseclass, installed
from tests.unit.test_worker_run import Stage, only_process, stage
from tests.unit.test_worker_standalone import run

__all__ = ["stage"]

PAGE = (Path(__file__).parents[2] / "docs" / "workers.md").read_text()
(WORKER,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def feed() -> Any:
    scope: dict[str, Any] = {"__name__": "feed"}
    exec(compile(WORKER, "feed.py", "exec"), scope)
    return scope["Feed"]


def test_the_command_of_the_page_runs_its_worker(tmp_path: Path) -> None:
    (options,) = re.findall(r"python feed.py (--symbol .*)", PAGE)
    (tmp_path / "feed.py").write_text(WORKER)
    code, _, err = run(tmp_path / "feed.py", *options.split())
    told = [line.partition("worker.Feed: ")[2] for line in err.splitlines() if "worker.Feed: " in line]
    prices = [f"ABC: price {at}, run 0" for at in (1, 2, 3)]
    assert (code, told) == (0, ["connected", *prices, "all 3 prices seen", "disconnected"])


@only_process
def test_its_worker_takes_and_refuses_updates_as_the_page_says(stage: Stage, feed: Any) -> None:
    class Watched(feed):  # type: ignore[misc]  # made from a text
        @baseclass.run_main_handler
        def follow(self) -> None:
            stage.update(symbol="ABC", everyS=0.5)
            stage.update(symbol="XYZ")
            stage.update(symbol="ABC", everyS=0)
            stage.calls.append(self.params.every_s)

    assert stage.play(Watched, {"symbol": "ABC"}) == {"op": "finished"}
    assert (stage.ops, stage.calls) == (["running", "applied", "refused", "refused"], [0.5])
    answers = [frame["error"] for frame in stage.sent[2:4]]
    assert [(error["type"], error["field"]) for error in answers] == [
        ("ValueError", None),
        ("ValidationError", "everyS"),
    ]


def test_what_can_not_be_helped_fails_at_once(stage: Stage, feed: Any) -> None:
    last = stage.play(feed, {"symbol": "GONE"})
    assert (last["op"], last["retryable"], last["error"]["type"]) == ("failed", False, "NonRetryableError")


def test_the_tables_name_what_there_is() -> None:
    methods = set(re.findall(r"`self\.(\w+)", PAGE)) - {"params"}
    worker = BaseTaskWorker.__new__(type("W", (BaseTaskWorker,), {"initialize": lambda _self, _data: None}))
    assert methods >= {"metric", "spawn", "epoch", "logger"}
    assert not [name for name in methods if not hasattr(worker, name)]
    options = re.findall(r"^\| `(\w+)` \| `?\"?([\w.]+)\"?`? \|", PAGE, flags=re.MULTILINE)
    assert {name: str(getattr(BaseTaskWorker, name)) for name, _ in options} == dict(options)
    assert set(re.findall(r"`@(\w+)`", PAGE)) == {getattr(baseclass, role) for role in ROLES}
    assert f'[project.entry-points."{installed.GROUP}"]' in PAGE


ROLES = ("BEFORE", "MAIN", "AFTER", "RELEASE", "UPDATE")


def test_its_commands_exist() -> None:
    for name in re.findall(r"^skalds-streams (\w+)", PAGE, flags=re.MULTILINE):
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0
