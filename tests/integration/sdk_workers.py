"""Workers that test_sdk.py runs in real hosts: with metrics, and with programs that end with them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from skalds_streams.worker import release_handler, run_main_handler
from tests.integration.host_workers import Base

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]


class Measuring(Base):
    """Sets metrics from its first line on."""

    def initialize(self, data: object) -> None:
        self.metric("started", 1)

    @run_main_handler
    def main(self) -> None:
        for value in range(1_000):
            self.metric("value", value)
        time.sleep(600)


class Spawning(Base):
    """Starts a program from a thread that is over at once; the program must not be."""

    @run_main_handler
    def main(self) -> None:
        starter = threading.Thread(target=self.start)
        starter.start()
        starter.join()
        self.sign(str(self.process.pid))
        time.sleep(600)

    def start(self) -> None:
        self.process: subprocess.Popen[bytes] = self.spawn(SLEEPS)

    @release_handler
    def release(self) -> None:
        self.sign("program ended" if self.process.poll() is not None else "program runs")
