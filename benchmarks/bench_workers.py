"""The worker of `benchmarks.workers`: it tells the benchmark, by a datagram, when which of its methods began.

Importing does nothing; the variable BENCH_SOCKET names the socket.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Sequence

import orjson
from pydantic import BaseModel

from skalds_streams.worker import BaseTaskWorker, release_handler, run_main_handler, update_event_handler

VARIABLE = "BENCH_SOCKET"
TICK_S = 0.1


class Params(BaseModel):
    """`number`: told back, so that each update is known by it. `seconds`: how long a release takes."""

    number: int = 0
    seconds: float = 0.0


class Idle(BaseTaskWorker[Params]):
    """Waits to be stopped."""

    def initialize(self, data: Params) -> None:
        self._number, self._seconds = data.number, data.seconds

    @run_main_handler
    def main(self) -> None:
        self._tell("main")
        threading.Event().wait()

    @update_event_handler
    def on_update(self, data: Params) -> None:
        self._number = data.number
        self._tell("update")

    def _tell(self, what: str, late_ms: Sequence[float] = ()) -> None:
        told = {
            "what": what,
            "task": self.task_id,
            "ns": time.monotonic_ns(),
            "pid": os.getpid(),
            "number": self._number,
            "late_ms": [round(late, 3) for late in late_ms],
        }
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(orjson.dumps(told), os.environ[VARIABLE])


class Releasing(Idle):
    """Takes its time to release."""

    @release_handler
    def release(self) -> None:
        time.sleep(self._seconds)


class Ticker(Idle):
    """Ticks, notes how late each tick is, and tells it when it is asked."""

    @run_main_handler
    def main(self) -> None:
        self._late_ms: list[float] = []
        self._tell("main")
        due = time.monotonic()
        while True:
            due += TICK_S
            time.sleep(max(due - time.monotonic(), 0.0))
            self._late_ms.append(1000 * (time.monotonic() - due))

    @update_event_handler
    def on_update(self, data: Params) -> None:
        self._number = data.number
        noted, self._late_ms = self._late_ms, []
        self._tell("ticks", noted)


class Crasher(Idle):
    """Fails as soon as it runs."""

    @run_main_handler
    def main(self) -> None:
        self._tell("main")
        raise RuntimeError("crashes at once")


class IdleShared(Idle):
    """The same, in a host that it shares."""

    isolation = "shared"

    @run_main_handler
    async def main(self) -> None:  # type: ignore[override]
        self._tell("main")
        await asyncio.get_running_loop().create_future()
