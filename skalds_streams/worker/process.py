"""What every host does with its own process, whatever runs in it: where its output goes, what it forks, its end."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from io import TextIOWrapper
from typing import NoReturn

from skalds_streams.worker import kernel

FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
"""Never blocked: faulthandler writes them down."""
LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"


def die() -> NoReturn:
    """End this process and all that it started, now."""
    kernel.kill_group(os.getpgrp())
    os._exit(1)


def leave(code: int) -> NoReturn:
    """End this process in order, and without waiting for threads that user code left behind."""
    atexit._run_exitfuncs()
    logging.shutdown()
    flush_output()
    os._exit(code)


def leave_signals_to_main() -> None:
    """For threads of ours: signals are the main thread's."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - FAULTS)


def redirect_output(fd: int) -> None:
    """Let stdout and stderr go to `fd`: those of this process, in Python and in C, and of all that it starts."""
    flush_output()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # before: one that was a file wants to know where in it it is
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    kernel.buffer_stdout_by_lines()


def configure_logging(handler: logging.Handler | None = None) -> None:
    """What the worker and its libraries log goes to stderr, or to the handler; time and task come before every line
    that is printed. A logging setup of the user's modules is left alone.
    """
    if not logging.root.handlers:
        handler = handler or logging.StreamHandler(sys.stderr)
        logging.basicConfig(level=logging.INFO, handlers=[handler], format=LOG_FORMAT)


def flush_output() -> None:
    """Empty the buffers of stdout and stderr, whatever state user code left them in."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # closed by user code, or a full disk
            continue


class Forks:
    """Cares for what user code forks: it is not the host, and does not outlive it for a moment. When a machine has
    stood still for longer than the lease, it might act before anybody who kills the group is awake.
    """

    def __init__(self, sock: socket.socket, settle: Callable[[], object]) -> None:
        """sock: the host's alone. settle: called in what was forked; lets signals mean what they mean anywhere."""
        self._sock, self._settle = sock, settle
        self._forking = threading.local()
        os.register_at_fork(before=self._note, after_in_child=self._detach)

    def _note(self) -> None:
        """The kernel's death signal follows the thread that forks: only main will do."""
        self._forking.parent = os.getpid() if threading.get_native_id() == os.getpid() else None

    def _detach(self) -> None:
        parent = getattr(self._forking, "parent", None)
        if parent is not None:
            kernel.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
        self._settle()
        self._sock.close()
