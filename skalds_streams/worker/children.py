"""Programs that a worker starts (`BaseTaskWorker.spawn`) and that end with it.

Rules: each is killed by the kernel in the moment in which the worker's process ends, however it ends
(PR_SET_PDEATHSIG). That signal follows the *thread* that forked, so one thread forks them all and lives as long as the
run. Each leads a process group of its own: a Ctrl-C in
the terminal is the worker's to handle, and at the end of a run the group is killed, what the program started included.
A program has no terminal to read from, unless it is given one.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from skalds_streams.worker import kernel

END_S = 2.0
"""What a killed program gets to be gone."""

Command = str | bytes | os.PathLike[str] | Sequence[str | bytes | os.PathLike[str]]
Process = subprocess.Popen[Any]


class Children:
    """Of one worker. Any thread."""

    def __init__(self, output_fd: int | None = None) -> None:
        """output_fd: where what they print goes, if it is not where this process's goes."""
        self._output_fd = output_fd
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._forker: _Forker | None = None
        self._processes: list[Process] = []

    def spawn(self, command: Command, **options: Any) -> Process:
        """Start a program; `options` are those of subprocess.Popen. Raises what Popen raises."""
        if self._pid != os.getpid():  # user code has forked: the thread and the children are its parent's
            self._begin()
        with self._lock:
            self._forker = self._forker or _Forker()
        options.setdefault("stdin", subprocess.DEVNULL)
        if self._output_fd is not None and not options.get("capture_output"):
            for name in ("stdout", "stderr"):
                options.setdefault(name, self._output_fd)
        if not options.get("start_new_session"):
            options.setdefault("process_group", 0)
        options["preexec_fn"] = partial(_tie, os.getpid(), options.get("preexec_fn"))
        return self._forker.submit(partial(self._start, command, options))

    def kill(self) -> bool:
        """Kill those that still run, with their process groups; whether something may still be there."""
        if self._pid != os.getpid():
            return False
        with self._lock:
            self._processes = [process for process in self._processes if _is_there(process)]
            left = list(self._processes)
        for process in left:
            _kill(process)
        return bool(left)

    def end(self) -> None:
        """Kill them and reap them. The thread that forked them ends."""
        if self._pid != os.getpid():
            return
        self.kill()
        with self._lock:
            forker, self._forker = self._forker, None
            left = list(self._processes)
            self._processes.clear()
        for process in left:
            with suppress(subprocess.TimeoutExpired):  # the kernel does not let go of it yet
                process.wait(END_S)
        if forker is not None:
            forker.end()

    def _start(self, command: Command, options: dict[str, Any]) -> Process:
        process = subprocess.Popen(command, **options)  # noqa: S603  # the user's own command
        with self._lock:
            self._processes = [item for item in self._processes if _is_there(item)]
            self._processes.append(process)
        return process


class _Forker:
    """The thread that forks, for as long as its children may live."""

    def __init__(self) -> None:
        kernel.load_libc()  # not in the child, where a lock may be held by a thread that is not there
        self._work: queue.SimpleQueue[tuple[Callable[[], Process], Future[Process]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="skald-spawn", daemon=True).start()

    def submit(self, start: Callable[[], Process]) -> Process:
        """What `start` returns or raises there."""
        answer: Future[Process] = Future()
        self._work.put((start, answer))
        return answer.result()

    def end(self) -> None:
        """Nothing is started here any more. The kernel kills what the thread forked and still runs."""
        self._work.put(None)

    def _run(self) -> None:
        while work := self._work.get():
            start, answer = work
            try:
                answer.set_result(start())
            except BaseException as error:  # noqa: BLE001  # it is raised where it was asked for
                answer.set_exception(error)


def _tie(parent: int, user_preexec: Callable[[], object] | None) -> None:
    """In the child, before the program: die with the parent, or at once if it is dead already."""
    kernel.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    if user_preexec is not None:
        user_preexec()


def _is_there(process: Process) -> bool:
    """It, or something that it has left in its process group."""
    return process.poll() is None or kernel.group_is_ours(process.pid)


def _kill(process: Process) -> None:
    """If it is not reaped yet, its number is its own, else that of the group which it has left."""
    if process.poll() is not None:
        if kernel.group_is_ours(process.pid):
            kernel.kill_group(process.pid)
        return
    try:
        is_leader = os.getpgid(process.pid) == process.pid
    except ProcessLookupError:
        return
    if not (is_leader and kernel.kill_group(process.pid)):
        process.kill()
