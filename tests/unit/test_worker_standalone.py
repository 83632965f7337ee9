"""A worker in the terminal: what the options make of it, and all ways to end. Each is a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[2]
WAIT_S = 60

WORKER = '''
import threading
import time
from enum import IntEnum
from typing import Literal

from pydantic import BaseModel, Field, SecretStr

from skalds_streams.worker import BaseTaskWorker, release_handler, run_after_handler, run_main_handler


class Color(IntEnum):
    RED = 1
    BLUE = 2


class Place(BaseModel):
    row: int = 0


class Params(BaseModel):
    fps: int = Field(5, ge=1, description="Frames a second, 100% of them.")
    rtsp_url: str = Field("none", alias="rtspUrl")
    color: Color = Color.RED
    places: list[Place] = []
    loud: bool = False
    pin: SecretStr = SecretStr("canary")
    do: Literal["end", "fail", "wait"] = "end"


class Cam(BaseTaskWorker[Params]):
    """Looks at things."""

    def initialize(self, data: Params) -> None:
        self.params = data
        print("params", data.model_dump_json(exclude={"pin"}), flush=True)

    @run_main_handler
    def watch(self) -> None:
        threading.Thread(target=time.sleep, args=(600,)).start()  # keeps no process
        print("main", self.task_id, flush=True)
        if self.params.do == "fail":
            raise ConnectionError("no camera {here}")
        if self.params.do == "wait":
            time.sleep(600)

    @run_after_handler
    def after(self) -> None:
        print("after", flush=True)

    @release_handler
    def release(self, *signal: object) -> None:
        print("release", bool(signal), flush=True)
        if self.params.loud:
            time.sleep(600)


if __name__ == "__main__":
    Cam.cli()
'''


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    path = tmp_path / "my_worker.py"
    path.write_text(dedent(WORKER))
    return path


@contextmanager
def started(worker: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, str(worker), *options],
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(worker: Path, *options: str) -> tuple[int, list[str], str]:
    """(exit code, lines of stdout, stderr)."""
    with started(worker, *options) as process:
        out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, out.splitlines(), err


def until(process: subprocess.Popen[str], text: str) -> None:
    """Read its output up to a line that begins so."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(text):
            return
    pytest.fail(f"it ended without {text!r}")


def test_options_are_the_parameters_and_the_hooks_run_in_order(worker: Path) -> None:
    options = ("--fps", "7", "--rtspUrl", "5", "--color", "2", "--places", '[{"row": 3}]', "--loud", "--no-loud")
    code, (params, main, *rest), err = run(worker, *options)
    assert (code, rest) == (0, ["after", "release False"]), err
    expected = {"fps": 7, "rtsp_url": "5", "color": 2, "places": [{"row": 3}], "loud": False, "do": "end"}
    assert json.loads(params.removeprefix("params ")) == expected
    assert main.startswith("main MOCK_TASK_")


def test_help_shows_types_and_defaults(worker: Path) -> None:
    code, lines, _ = run(worker, "--help")
    text = " ".join(" ".join(lines).split())
    assert code == 0
    for part in (
        "Looks at things.",
        "--fps VALUE Frames a second, 100% of them. (integer ≥ 1; default 5)",
        "--rtsp-url VALUE, --rtsp_url VALUE, --rtspUrl VALUE",
        "--places JSON (list of Place; default [])",
        "--loud, --no-loud (boolean; default false)",
        "(end | fail | wait; default",
    ):
        assert part in text, part
    assert "canary" not in text


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--fps", "0"), "error: fps: Input should be greater than or equal to 1"),
        (("--places", '[{"row": "x"}]'), "error: places.0.row: "),
        (("--no-such", "0"), "unrecognized arguments: --no-such 0"),
    ],
)
def test_parameters_that_do_not_fit_are_wrong_usage(worker: Path, options: tuple[str, ...], complaint: str) -> None:
    code, lines, err = run(worker, *options)
    assert (code, lines) == (2, [])
    assert complaint in err
    assert "Traceback" not in err


def test_what_main_raises_ends_it_with_the_traceback(worker: Path) -> None:
    code, lines, err = run(worker, "--do", "fail")
    assert (code, lines[-1]) == (1, "release False")
    assert err.endswith("ConnectionError: no camera {here}\n")
    assert "my_worker.py" in err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_it_as_a_cancel_does(worker: Path, signum: int) -> None:
    with started(worker, "--do", "wait") as process:
        until(process, "main")
        process.send_signal(signum)
        out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out) == (0, "release True\n")
    assert "Traceback" not in err
    assert ("Ctrl-C again kills it" in err) == (signum == signal.SIGINT)


def test_a_second_ctrl_c_kills_it(worker: Path) -> None:
    with started(worker, "--do", "wait", "--loud") as process:
        until(process, "main")
        process.send_signal(signal.SIGINT)
        until(process, "release")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT_S)
    assert process.returncode == -signal.SIGINT


def test_a_class_that_cannot_run_says_why(worker: Path) -> None:
    worker.write_text(worker.read_text().replace("@run_main_handler", ""))
    code, lines, err = run(worker)
    assert (code, lines) == (1, [])
    assert err.strip() == "Cam can't run: Cam has no method with @run_main_handler"
