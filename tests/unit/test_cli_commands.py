"""The command line: what is typed becomes the events that were meant, or one clear line and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import orjson
import pytest
import structlog
from click.testing import CliRunner, Result

from skalds_streams import __version__
from skalds_streams.cli import COMMANDS, main
from skalds_streams.cli.commanding import Command
from skalds_streams.cli.options import Address, Options
from skalds_streams.cli.outcome import settle_pause, settle_run
from skalds_streams.errors import TopicError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("KAFKA_HOST", "KAFKA_PORT", "KAFKA_TOPIC_PARTITIONS", "SKALDS_WEB_BIND"):
        monkeypatch.delenv(name, raising=False)


class Sent:
    """Stands where commands would go to Kafka."""

    def __init__(self) -> None:
        self.commands: Sequence[Command] = ()
        self.wait_s = -1.0
        self.options = Options()
        self.answer: bool | Exception = True

    async def __call__(self, options: Options, commands: Sequence[Command], wait_s: float) -> bool:
        self.options, self.commands, self.wait_s = options, commands, wait_s
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    @property
    def docs(self) -> list[dict[str, Any]]:
        return [orjson.loads(command.event.model_dump_json(by_alias=True)) for command in self.commands]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    catcher = Sent()
    for name in ("assign", "update", "cancel"):
        monkeypatch.setattr(import_module(f"skalds_streams.cli.{name}"), "carry_out", catcher)
    return catcher


def call(*args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, args, input=stdin)


# -- the group ---------------------------------------------------------------------------------------------------------


def test_help_lists_the_commands_and_is_quick() -> None:
    result = call("--help")
    assert result.exit_code == 0
    for name in ("assign", "update", "cancel", "ps", "describe", "replay", "topics"):
        assert f"\n  {name} " in result.output
    code = (
        "import sys; from skalds_streams.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert not {"aiokafka", "faust", "rich", "pydantic", "orjson"} & set(loaded)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "dev"])
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"skalds-streams {name}" in result.output


def test_version() -> None:
    assert call("--version").output == f"skalds-streams, version {__version__}\n"


def test_an_unknown_command_is_wrong_usage() -> None:
    result = call("start")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "No such command 'start'" in result.stderr


def test_an_error_of_ours_is_one_line(sent: Sent) -> None:
    sent.answer = TopicError("topic task.assign is odd")
    result = call("cancel", "cam-1")
    assert (result.exit_code, result.stderr, result.stdout) == (1, "Error: topic task.assign is odd\n", "")


def test_ctrl_c_is_130(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(coroutine: Any) -> None:
        coroutine.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("skalds_streams.cli.cancel"), "run", interrupted)
    assert call("cancel", "cam-1").exit_code == 130


def test_what_did_not_work_out_is_1(sent: Sent) -> None:
    sent.answer = False
    assert call("cancel", "cam-1").exit_code == 1


@pytest.mark.parametrize("args", [["--kafka", "k:1", "cancel", "x"], ["cancel", "--kafka", "k:1", "x"]])
def test_common_options_stand_before_or_after_the_command(sent: Sent, args: list[str]) -> None:
    assert call(*args).exit_code == 0
    assert (sent.options.settings.bootstrap, sent.options.json) == ("k:1", False)


def test_after_the_command_wins(sent: Sent) -> None:
    assert call("--kafka", "k:1", "-o", "json", "cancel", "x", "--kafka", "j:2", "-o", "table").exit_code == 0
    assert (sent.options.kafka, sent.options.json) == (("j", 2), False)


def test_without_kafka_the_settings_say_where(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PORT", "1234")
    assert call("cancel", "x").exit_code == 0
    assert sent.options.settings.bootstrap == "localhost:1234"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("k:1", ("k", 1)),
        ("k", ("k", 9092)),
        ("[::1]:9", ("[::1]", 9)),
        ("[::1]", ("[::1]", 9092)),
        ("k:1,j", ("k:1,j", 9092)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert Address().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["k:", "k:x", ":1", "k:0", "k:65536", "k:-1", "k:1,j:x", ","])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Address().convert(text, None, None)
    assert call("--kafka", text, "ps").exit_code == 2


# -- assign, update, cancel --------------------------------------------------------------------------------------------


def test_assign_by_pairs(sent: Sent) -> None:
    args = (
        "assign",
        "cam-1",
        "--class",
        "Cam",
        "fps=30",
        "url=rtsp://c",
        "box.w=2",
        "--priority",
        "3",
        "--reason",
        "why",
    )
    result = call(*args, "--recipient", "s1")
    assert (result.exit_code, result.stderr) == (0, "")
    doc = sent.docs[0]
    assert doc["taskIds"] == ["cam-1"]
    assert doc["recipient"] == "s1"
    assert doc["reason"] == "why"
    assert doc["tasks"] == [
        {
            "id": "cam-1",
            "className": "Cam",
            "source": "CLI",
            "attachments": {"fps": 30, "url": "rtsp://c", "box": {"w": 2}},
            "priority": 3,
        }
    ]
    assert (sent.commands[0].topic, sent.commands[0].settle, sent.wait_s) == ("assign", settle_run, 10.0)


def test_assign_by_id_alone(sent: Sent) -> None:
    assert call("assign", "cam-1", "--action", "pause", "--no-wait").exit_code == 0
    assert "tasks" not in sent.docs[0]
    assert sent.docs[0]["action"] == "pause"
    assert (sent.commands[0].settle, sent.wait_s) == (settle_pause, 0.0)


def test_assign_a_file(sent: Sent, tmp_path: Path) -> None:
    path = tmp_path / "tasks.yaml"
    path.write_text("- {id: a, className: Cam}\n- {id: b, className: Cam, attachments: {fps: 1}}\n")
    assert call("assign", "-f", str(path), "--wait", "3").exit_code == 0
    assert [doc["tasks"][0]["id"] for doc in sent.docs] == ["a", "b"]
    assert [doc["taskIds"] for doc in sent.docs] == [["a"], ["b"]]
    assert sent.wait_s == 3.0


def test_assign_from_stdin(sent: Sent) -> None:
    assert call("assign", "cam-9", "-f", "-", stdin='{"className": "Cam"}').exit_code == 0
    assert sent.docs[0]["tasks"] == [{"id": "cam-9", "className": "Cam", "source": "CLI"}]


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["assign"], "give a task id"),
        (["assign", "fps=30"], "stands where the task id belongs"),
        (["assign", "cam-1", "fps=30"], "need --class"),
        (["assign", "cam-1", "--priority", "3"], "need --class"),
        (["assign", "cam-1", "--priority", "11", "--class", "Cam"], "11"),
        (["assign", "cam-1", "--action", "stop"], "'stop' is not one of"),
        (["assign", "cam-1", "--wait", "-1"], "-1"),
        (["assign", "-f", "/nonexistent"], "No such file"),
        (["assign", "cam-1", "-f", "-", "fps=3"], "-f brings the whole Task"),
        (["update", "cam-1"], "either KEY=VALUE or -f"),
        (["update", "cam-1", "fps=3", "-f", "-"], "either KEY=VALUE or -f"),
        (["update", "fps=3", "x=1"], "stands where the task id belongs"),
        (["cancel"], "Missing argument"),
        (["ps", "--status", "Gone"], "'Gone' is not one of"),
        (["ps", "--watch", "-o", "json"], "--watch shows a table"),
        (["replay", "-o", "xml"], "'xml' is not one of"),
        (["describe"], "Missing argument"),
    ],
)
def test_wrong_usage(sent: Sent, args: list[str], complaint: str) -> None:
    result = CliRunner().invoke(main, args, input="{}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr
    assert not sent.commands


@pytest.mark.parametrize(("flags", "merge"), [([], True), (["--merge"], True), (["--replace"], False)])
def test_update_by_pairs_merges(sent: Sent, flags: list[str], merge: bool) -> None:
    assert call("update", "cam-1", "fps=10", "mask=null", *flags).exit_code == 0
    assert sent.docs[0]["attachments"] == {"fps": 10, "mask": None}
    assert sent.docs[0]["merge"] is merge
    assert sent.commands[0].topic == "update"


@pytest.mark.parametrize(("flags", "merge"), [([], False), (["--merge"], True)])
def test_update_by_file_replaces(sent: Sent, tmp_path: Path, flags: list[str], merge: bool) -> None:
    path = tmp_path / "params.json"
    path.write_text('{"fps": 10}')
    assert call("update", "cam-1", "-f", str(path), *flags).exit_code == 0
    assert (sent.docs[0]["attachments"], sent.docs[0]["merge"]) == ({"fps": 10}, merge)


def test_cancel_many(sent: Sent) -> None:
    assert call("cancel", "a", "b", "a", "x=y", "--reason", "night").exit_code == 0
    assert [doc["taskIds"] for doc in sent.docs] == [["a"], ["b"], ["x=y"]]
    assert {doc["reason"] for doc in sent.docs} == {"night"}
