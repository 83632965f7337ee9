"""A server process that can't outlive us: how it is started, stopped, killed, paused, and what it last logged.

Rules:
- The child asks the kernel for SIGKILL when its parent ends, however it ends (`launch`). The kernel means the parent
  *thread*, so each child has a keeper thread that forks it and then only waits for it: `start()` may be called from
  any thread, and the keeper ends with the child. It is a daemon, so a forgotten `stop()` doesn't hang the
  interpreter: the child then dies at exit.
- The child has a session of its own: Ctrl-C in the terminal is not delivered to it, and it is stopped in order.
- A signal is only sent while the child is not reaped, so never to a stranger that got its pid.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from skalds_streams.devcluster import ports
from skalds_streams.errors import DevClusterError

POLL_S = 0.03
KILL_WAIT_S = 10.0
"""SIGKILL needs no consent; longer than this means a process stuck in the kernel."""
TAIL_LINES = 15
TAIL_BYTES = 16 * 1024
LAUNCH_PATH = Path(__file__).with_name("launch.py")
DROPPED_ENVIRONMENT = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH")
"""They would change our JVM behind our back."""


class Child:
    """One run of one program, from fork to exit status."""

    def __init__(self, command: Sequence[str], *, cwd: Path, output: Path, keep_fds: Sequence[int] = ()) -> None:
        self._command = [sys.executable, "-I", "-S", str(LAUNCH_PATH), str(os.getpid()), *command]
        self._cwd = cwd
        self._output = output
        self._keep_fds = tuple(keep_fds)
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        self._forked = threading.Event()
        self._ended = threading.Event()
        self._reap_lock = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name=f"keeper of {Path(command[0]).name}", daemon=True)

    def launch(self) -> None:
        """Fork and return at once. Raises `DevClusterError` when the process could not be made."""
        self._keeper.start()
        self._forked.wait()
        if self._error is not None:
            raise DevClusterError(f"{self._command[0]} does not start: {self._error}") from self._error

    def _keep(self) -> None:
        """Body of the keeper thread: fork, wait, reap."""
        try:
            self._process = process = self._fork()
        except OSError as error:
            self._error = error
            self._ended.set()
            return
        finally:
            self._forked.set()
        with suppress(ChildProcessError):  # somebody else in this process waits for any child
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._reap_lock:
            process.wait()
        self._ended.set()

    def _fork(self) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name not in DROPPED_ENVIRONMENT}
        with self._output.open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - programs of our own packages
                self._command,
                cwd=self._cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=self._keep_fds,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the program itself (the launcher becomes it)."""
        if self._process is None:
            raise DevClusterError("the process was not launched")
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is gone and reaped, or never came to be."""
        return not self._begun or self._ended.is_set()

    @property
    def _begun(self) -> bool:
        """False when an interrupt came before the keeper was started: nothing will ever be forked then."""
        return self._keeper.ident is not None

    @property
    def exit_code(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.returncode if self._process is not None and self.ended else None

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        if not self._begun:
            return
        self._forked.wait()
        with self._reap_lock:
            if self._process is not None and self._process.returncode is None:
                os.kill(self._process.pid, number)

    def wait(self, timeout_s: float) -> bool:
        """Wait until the process is reaped; False when it still lives after `timeout_s` seconds."""
        if not self._begun:
            return True
        if not self._ended.wait(timeout_s):
            return False
        self._keeper.join()
        return True


class ServerProcess(ABC):
    """One server of the cluster. A subclass says how to prepare its directory, the command, and when it answers.

    `start()` after `stop()` or `kill()` keeps data and port. All calls block; all times are seconds.
    """

    name: str
    start_timeout_s: float
    stop_grace_s: float

    def __init__(self, directory: Path, port: int, log_path: Path) -> None:
        self.directory = directory.absolute()
        self.port = port
        self.log_path = log_path.absolute()
        self.keep_fds: tuple[int, ...] = ()
        """Descriptors the child keeps open: the lock of the cluster's directory, so that it outlives a killed parent.
        """
        self._child: Child | None = None

    @property
    def host(self) -> str:
        """Address it listens on: 127.0.0.1."""
        return ports.HOST

    @property
    def running(self) -> bool:
        """Whether the process exists; a paused one does."""
        return self._child is not None and not self._child.ended

    @property
    def pid(self) -> int:
        """Process id. Raises `DevClusterError` when it does not run."""
        if self._child is None or self._child.ended:
            raise DevClusterError(f"{self.name} is not running")
        return self._child.pid

    def start(self) -> None:
        """Start and wait until it answers; no more when it runs. Raises `DevClusterError` with the last log lines."""
        self.launch()
        self.wait_until_answering()

    def launch(self) -> None:
        """Start without waiting. Raises `DevClusterError` when the port is taken or a needed package is absent."""
        if self.running:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.port == 0:
            self.port = ports.free_port()
        elif not ports.is_free(self.port):
            raise DevClusterError(f"{self.name}: port {self.port} on {self.host} is taken by another process")
        self._prepare()
        # kept before it is launched: an interrupt in between must not lose the child
        self._child = Child(self._command(), cwd=self.directory, output=self._output_path(), keep_fds=self.keep_fds)
        self._child.launch()

    def wait_until_answering(self) -> None:
        """Wait until it answers. Raises `DevClusterError`, with no process left, when it dies or takes too long."""
        deadline = time.monotonic() + self.start_timeout_s
        while not self.answers():
            if not self.running:
                code = self._child.exit_code if self._child is not None else None
                raise DevClusterError(f"{self.name} ended while starting (status {code}){self._last_words()}")
            if time.monotonic() > deadline:
                self.kill()
                raise DevClusterError(
                    f"{self.name} did not answer within {self.start_timeout_s:g} s" + self._last_words()
                )
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Stop in order, then by force after `stop_grace_s`. Resumes a paused server first. Safe to call twice."""
        if self._child is None:
            return
        self.ask_to_stop()
        if not self._child.wait(self.stop_grace_s):
            self.kill()

    def ask_to_stop(self) -> None:
        """Send what `stop()` sends, and don't wait. For servers that stop together."""
        if self._child is not None:
            self._child.send(signal.SIGTERM)
            self._child.send(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, as a crash would; returns when the process is gone."""
        if self._child is None:
            return
        self._child.send(signal.SIGKILL)
        if not self._child.wait(KILL_WAIT_S):
            raise DevClusterError(f"{self.name} (process {self._child.pid}) survives SIGKILL")

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing. Raises `DevClusterError` when it does not run."""
        self._send_running(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause()`. Raises `DevClusterError` when it does not run."""
        self._send_running(signal.SIGCONT)

    def _send_running(self, number: signal.Signals) -> None:
        if self._child is None or self._child.ended:
            raise DevClusterError(f"{self.name} is not running")
        self._child.send(number)

    def _last_words(self) -> str:
        """The ends of its logs, ready to be appended to an error."""
        parts = [(path, tail(path)) for path in dict.fromkeys((self._output_path(), self.log_path))]
        return "".join(f"\n--- {path}\n{text}" for path, text in parts if text)

    def _output_path(self) -> Path:
        """Where the process's own stdout and stderr go."""
        return self.log_path

    @abstractmethod
    def answers(self) -> bool:
        """Whether it answers a real request now."""

    @abstractmethod
    def _prepare(self) -> None:
        """Write what it needs into `self.directory`. Never touches data that is there."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The program and its arguments; it runs in `self.directory`."""


def tail(path: Path, lines_max: int = TAIL_LINES) -> str:
    """The last lines of a log, empty when there is none. Reads at most `TAIL_BYTES` bytes."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines_max:])
    except OSError:
        return ""
