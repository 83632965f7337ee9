"""A node without Kafka: real processes, a real file, and no broker anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import aiohttp
import orjson
import psutil
import pytest

from tests.integration.system import LAUNCH, ROOT, free_port, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

FAUST = ("-m", "faust", "-A", "skalds_streams", "worker", "-l", "info")
COMMAND = ("-c", "from skalds_streams.cli import main; main()", "edge")


class Edge:
    """One process in the edge mode, and its file."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.file, self.log_path, self.port = directory / "tasks.yaml", directory / "log", free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SKALD", "KAFKA"))},
            "KAFKA_PORT": "1",
            "SKALD_ID": "edge",
            "SKALDS_DATA_DIR": str(directory / "data"),
            "SKALDS_WORKERS": "tests.integration.system_workers",
            "SKALDS_WEB_PORT": str(self.port),
            "PYTHONPATH": str(ROOT),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, text: str) -> None:
        self.file.write_text(dedent(text))

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), sys.executable, *arguments]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=self.environment | environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self.process

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    async def get(self, path: str) -> Any:
        """JSON or text; None when nobody answers, or not with 200."""
        assert self.process is not None
        assert self.process.poll() is None, f"it ended:\n{self.log()[-3000:]}"
        try:
            url = f"http://127.0.0.1:{self.port}{path}"
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                text = await answer.text()
                return (orjson.loads(text) if "json" in answer.content_type else text) if answer.ok else None
        except (aiohttp.ClientError, OSError):
            return None

    async def row(self, task_id: str, status: str, **fields: Any) -> dict[str, Any]:
        seen: Any = None

        async def shown() -> bool:
            nonlocal seen
            seen = await self.get(f"/api/tasks/{task_id}")
            return bool(
                seen and seen["status"] == status and all(seen[name] == value for name, value in fields.items())
            )

        try:
            await until(shown, f"{task_id} is {status} {fields}", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {seen}\n{self.log()[-3000:]}") from None
        found: dict[str, Any] = seen
        return found

    async def shows(self, text: str) -> None:
        """Page and log both say it."""

        async def said() -> bool:
            return text in (await self.get("/") or "") and text in self.log()

        await until(said, f"page and log say {text!r}", 60)


@pytest.fixture
def edges(tmp_path: Path) -> Iterator[list[Edge]]:
    made = [Edge(tmp_path / "first"), Edge(tmp_path / "second")]
    yield made
    for edge in made:
        if edge.process is not None and edge.process.poll() is None:
            edge.process.kill()
            edge.process.wait()


async def test_a_file_and_its_edits_without_a_broker(edges: list[Edge], tmp_path: Path) -> None:
    edge, trace = edges[0], tmp_path / "trace"
    edge.write(f"""\
        TaskWorkers:
          stays:
            className: Idle
            attachments: {{fps: 30, trace: "{trace}"}}
          goes:
            className: Slow
        """)
    process = edge.start(*FAUST, SKALD_MODE="edge", YAML_FILE=str(edge.file))
    await edge.row("goes", "Running")
    epoch = (await edge.row("stays", "Running", recipient="edge"))["epoch"]

    text = f"""\
        TaskWorkers:
          stays:
            className: Idle
            attachments:
              fps: 10
              trace: "{trace}"
          comes:
            className: OneShot
          odd:
            classNam: Idle
          unknown:
            className: Idel
        """
    edge.write(text)
    await edge.row("stays", "Running", update_state="applied", applied_version=2, epoch=epoch)
    await edge.row("goes", "Cancelled", holder=None)
    await edge.row("comes", "Finished")
    await edge.shows("tasks.yaml:10: TaskWorkers.odd.classNam: no field of a task; className is one")
    await edge.shows("tasks.yaml:12: TaskWorkers.unknown.className: no class Idel; there is Crash, Deaf, Idle, ")

    edge.write(text.replace("fps: 10", "fps: 500").split("  odd:")[0])
    await edge.shows("tasks.yaml:5: TaskWorkers.stays.attachments.fps: Input should be less than or equal to 120")
    broken = text.replace("fps: 10", "fps: [10")
    edge.write(broken)
    await edge.shows("tasks.yaml:6: not YAML")
    row = await edge.row("stays", "Running", epoch=epoch)
    assert row["attachments_masked"]["fps"] == 10
    assert trace.read_text().split("\n") == [f"start {epoch}", "fps 10", ""]
    assert edge.file.read_text() == dedent(broken)

    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2  # the zygote and a host
    process.send_signal(signal.SIGINT)
    await until(lambda: process.poll() is not None, "it has ended")
    assert process.returncode == 0, edge.log()[-3000:]
    await until(lambda: not any(item.is_running() for item in family), "nothing is left")


async def test_a_single_process_ends_with_its_first_task(edges: list[Edge]) -> None:
    well, badly = edges
    well.write("TaskWorkers: {one: {className: OneShot}, two: {klass: Idle}}")
    badly.write("TaskWorkers: {one: {className: Lock, attachments: {doors: [{pin: canary-4711}]}}}")
    processes = [
        well.start(*COMMAND, "--single", str(well.file)),
        badly.start(*FAUST, SKALD_MODE="single_process", YAML_FILE=str(badly.file)),
    ]
    for process in processes:
        await until(lambda process=process: process.poll() is not None, "it has ended", 60)
    assert [process.returncode for process in processes] == [0, 1], well.log()[-2000:] + badly.log()[-2000:]
    assert "task one has failed: no door opens with ***" in badly.log()
    assert "canary" not in badly.log()
    assert not [path for path in (well.file.parent / "data" / "logs").rglob("*") if path.name.startswith("two")]


async def test_a_wrong_file_at_the_start_is_one_clear_error(edges: list[Edge]) -> None:
    edge = edges[0]
    edge.write("TaskWorkers:\n  a: {className: Idle\n  b: 1\n")
    processes = [
        edge.start(*FAUST, SKALD_MODE="edge", YAML_FILE=str(edge.file)),
        edge.start(*COMMAND, "--check", str(edge.file)),
    ]
    for process in processes:
        await until(lambda process=process: process.poll() is not None, "it has ended", 60)
    assert [process.returncode for process in processes] == [1, 1]
    assert edge.log().count("tasks.yaml:3: not YAML") == 2
    assert "Traceback" not in edge.log()
