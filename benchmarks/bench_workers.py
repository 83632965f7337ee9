"""The worker of `benchmarks.workers`: it tells the benchmark, by a datagram, when which of its methods began.

Importing does nothing; the variable BENCH_SOCKET names the socket.
"""

from __future__ import annotations

import os
import socket
import threading
import time

import orjson
from pydantic import BaseModel

from skalds_streams.worker import BaseTaskWorker, run_main_handler, update_event_handler

VARIABLE = "BENCH_SOCKET"


class Params(BaseModel):
    """`number`: told back, so that each update is known by it."""

    number: int = 0


class Idle(BaseTaskWorker[Params]):
    """Waits to be stopped."""

    def initialize(self, data: Params) -> None:
        self._number = data.number

    @run_main_handler
    def main(self) -> None:
        self._tell("main")
        threading.Event().wait()

    @update_event_handler
    def on_update(self, data: Params) -> None:
        self._number = data.number
        self._tell("update")

    def _tell(self, what: str) -> None:
        told = {
            "what": what,
            "task": self.task_id,
            "ns": time.monotonic_ns(),
            "pid": os.getpid(),
            "number": self._number,
        }
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(orjson.dumps(told), os.environ[VARIABLE])
