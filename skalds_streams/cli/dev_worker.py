"""The Faust worker that `dev` runs:

started, watched, started again when it dies, stopped; and the three example tasks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from rich.console import Console

from skalds_streams.devcluster.process import LAUNCH_PATH
from skalds_streams.model.event import TaskEvent
from skalds_streams.proxy.kafka import KafkaConfig, KafkaProxy, KafkaTopic

READY_S = 60.0
WAITING_S = 10.0
"""How long the worker may wait for what is not there: a broker, or another process of its id to end."""
STOP_S = 12.0
AGAIN_S = 1.0
DEATHS_MOST = 5
DEATHS_WITHIN_S = 60.0
SEND_S = 10.0

EXAMPLES: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("counter", "Counter", {}),
    ("camera", "Camera", {"fps": 30, "rtspUrl": "rtsp://viewer:secret@192.0.2.7/entrance"}),
    ("flaky", "Flaky", {}),
)


class WorkerDied(Exception):
    """The worker ended and is not started again. The text says why and shows the end of its log."""


class DevWorker:
    """One `faust -A skalds_streams worker` in a session of its own: the terminal's Ctrl-C does not reach it.

    It dies with us, however we end: alone it would look for a broker for ever. `start` from the main thread only: the
    kernel means the thread.
    """

    def __init__(self, data_dir: Path, environment: dict[str, str]) -> None:
        self.environment = environment
        self.url = f"http://127.0.0.1:{environment['SKALDS_WEB_PORT']}/"
        self.log_path = data_dir / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths: list[float] = []

    def start(self) -> None:
        tied_to_us = [sys.executable, "-I", "-S", str(LAUNCH_PATH), str(os.getpid())]
        command = [*tied_to_us, sys.executable, "-m", "faust", "-A", "skalds_streams", "worker", "-l", "info"]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter, no shell
                command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    @property
    def pid(self) -> int:
        if self._process is None:
            raise WorkerDied("the worker was not started")
        return self._process.pid

    def wait_ready(self) -> None:
        """Until /readyz says 200. Raises WorkerDied."""
        deadline, waits_since = time.monotonic() + READY_S, None
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                raise WorkerDied(f"the worker ended with {_ending(self._process.returncode)}:\n{self._tail()}")
            if self._get("readyz") is not None:
                return
            reason = self._waits_for()
            waits_since = None if reason is None else waits_since or time.monotonic()
            if waits_since is not None and time.monotonic() - waits_since > WAITING_S:
                raise WorkerDied(f"the worker still waits after {WAITING_S:g} s: {reason}")
            time.sleep(0.1)
        raise WorkerDied(f"the worker was not ready after {READY_S:g} s:\n{self._tail()}")

    def watch(self, console: Console, poll_s: float) -> None:
        """Look once: a worker that died is started again. Raises WorkerDied when it keeps dying."""
        time.sleep(poll_s)
        if self._process is None or self._process.poll() is None:
            return
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if now - at < DEATHS_WITHIN_S] + [now]
        if len(self._deaths) >= DEATHS_MOST:
            raise WorkerDied(f"the worker ended {DEATHS_MOST} times within {DEATHS_WITHIN_S:g} s:\n{self._tail()}")
        console.print(f"The node ended with {_ending(self._process.returncode)}: starting it again.")
        time.sleep(AGAIN_S)
        self.start()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for what is left of its group."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # the usual case: nobody is left

    def task(self, task_id: str) -> dict[str, Any] | None:
        found = self._get(f"api/tasks/{task_id}")
        return json.loads(found) if found is not None else None

    def _waits_for(self) -> str | None:
        """What the worker says that it waits for before it can begin."""
        try:
            self._ask("readyz")
        except urllib.error.HTTPError as error:
            with error:
                said = json.loads(error.read() or b"{}") if error.code == HTTPStatus.SERVICE_UNAVAILABLE else {}
            return said.get("waits_for")
        except OSError:
            pass
        return None

    def _get(self, path: str) -> bytes | None:
        try:
            return self._ask(path)
        except OSError:
            return None

    def _ask(self, path: str) -> bytes:
        """Raises OSError, HTTPError among them."""
        request = urllib.request.Request(self.url + path)  # noqa: S310  # always http to this machine
        token = self.environment.get("SKALDS_WEB_TOKEN")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310
            return bytes(answer.read())

    def _tail(self, lines: int = 15) -> str:
        try:
            text = self.log_path.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def assign_examples(worker: DevWorker) -> None:
    """Assign each example task that is not there yet, or has ended. Raises KafkaError."""
    environment = worker.environment
    config = KafkaConfig(
        host=environment["KAFKA_HOST"],
        port=int(environment.get("KAFKA_PORT", "9092")),
        username=environment.get("KAFKA_USERNAME", ""),
        password=environment.get("KAFKA_PASSWORD", ""),
    )
    prefix = environment.get("SKALDS_TOPIC_PREFIX", "")
    with KafkaProxy(config) as proxy:
        for task_id, class_name, attachments in EXAMPLES:
            there = worker.task(task_id)
            if there is not None and there["status"] in ("Assigning", "Running", "Paused"):
                continue
            task = {"id": task_id, "className": class_name, "source": "example", "attachments": dict(attachments)}
            event = TaskEvent(taskIds=[task_id], initiator="skalds-streams dev", tasks=[task])
            receipt = proxy.produce(
                prefix + KafkaTopic.TASK_ASSIGN, key=task_id, value=event.model_dump_json(by_alias=True)
            )
            receipt.result(timeout=SEND_S)


def _ending(code: int) -> str:
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
