"""A command in a terminal of its own, as a person has it, and the processes that it leaves behind.

The command leads a session whose controlling terminal is a pty: what is typed goes to its foreground group, so ^C
really is Ctrl-C. Everything that it starts carries a mark in its environment, so that nobody can hide by leaving the
session.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
MARK = "SKALDS_E2E_MARK"
CONTROL_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")
OURS = (
    "KAFKA_",
    "REDIS_",
    "SKALD",
    "LOG_LEVEL",
    "PYTHON",
    "PYTEST",
    "MAKE",
    "MFLAGS",
    "VIRTUAL_ENV",
    "COLUMNS",
    "LINES",
)
POLL_S = 0.05
COLUMNS, ROWS = 100, 40


def until(condition: Callable[[], Any], what: str, timeout_s: float) -> Any:
    """Wait for a true value of `condition`; AssertionError names what did not happen."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(POLL_S)


def plain_environment(**more: str) -> dict[str, str]:
    """The environment of somebody who has just opened a terminal: no settings of ours, no active venv."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    venv = str(ROOT / ".venv/bin")
    path = os.pathsep.join(item for item in os.environ.get("PATH", "").split(os.pathsep) if item != venv)
    return {**kept, "PATH": path, "TERM": "xterm-256color", **more}


class Terminal:
    """Started by its constructor, in the repository's root. `close` ends what is left of it, by force."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.mark = secrets.token_hex(8)
        self._sessions: set[int] = set()
        self._raw = bytearray()
        self._hung_up = threading.Event()
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        # setsid makes its standard input the controlling terminal; it does not fork, so its pid is the command's.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            cwd=ROOT,
            env={**(environment or plain_environment()), MARK: self.mark},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, name="terminal", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # EIO: nobody has the terminal open any more
            while not self._hung_up.is_set():
                if select.select([self._master], [], [], POLL_S)[0]:
                    self._raw += os.read(self._master, 65536)

    @property
    def text(self) -> str:
        """All that was shown, without colours and cursor moves."""
        return CONTROL_SEQUENCES.sub("", bytes(self._raw).decode(errors="replace"))

    def wait_for(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """Wait until the pattern is shown. AssertionError with what was shown instead."""

        def shown() -> re.Match[str] | None:
            found = re.search(pattern, self.text)
            assert found or self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text}"
            return found

        try:
            found: re.Match[str] = until(shown, f"{pattern!r} is shown", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text[-3000:]}") from None
        return found

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def hang_up(self) -> None:
        """Close the window: SIGHUP to the foreground, and nobody hears what is said any more."""
        if not self._hung_up.is_set():
            self._hung_up.set()
            self._reader.join(10)
            os.close(self._master)

    def wait(self, timeout_s: float) -> int:
        """The exit code. AssertionError when it does not end."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {timeout_s:g} s:\n{self.text[-3000:]}") from None

    def processes(self) -> list[psutil.Process]:
        """Every living process that came from the command: by its mark, by descent, or by one of their sessions."""
        found = {item.pid: item for item in psutil.process_iter() if self._is_marked(item)}
        with suppress(psutil.NoSuchProcess):
            found |= {item.pid: item for item in psutil.Process(self.process.pid).children(recursive=True)}
        for pid in found:
            with suppress(ProcessLookupError):
                self._sessions.add(os.getsid(pid))
        self._sessions.discard(os.getsid(0))
        found |= {item.pid: item for item in psutil.process_iter() if _session(item.pid) in self._sessions}
        return [item for item in found.values() if _lives(item)]

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark
        except psutil.Error:
            return False

    def close(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.hang_up()


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
