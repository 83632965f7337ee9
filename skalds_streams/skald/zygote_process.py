"""The zygote as the skald sees it: a child process, the channel to it, its pidfd. The pool says when to start one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress

from skalds_streams.worker.channel import Channel
from skalds_streams.worker.frames import Frame


class ZygoteProcess:
    """See the module. `gone`: how it has ended, in words."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        on_frame: Callable[[Frame], None],
        on_lost: Callable[[ZygoteProcess, str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self.started_at = self._loop.time()
        self.gone: asyncio.Future[str] = self._loop.create_future()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _launch_process(command, theirs.fileno())
        except OSError:
            ours.close()
            raise
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)
        self.channel = Channel(ours, on_frame, lambda _reason: self.kill())

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL; `gone` follows."""
        if not self.gone.done():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        code = self._process.wait()
        self.channel.drain()
        self.channel.close()
        os.close(self._pidfd)
        reason = f"exit code {code}" if code >= 0 else f"signal {-code}"
        self.gone.set_result(reason)
        self._on_lost(self, reason)


def _launch_process(command: Sequence[str], fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  # our own module
        [*command, "--fd", str(fd), "--parent", str(os.getpid())],
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
        stdout=2,  # what modules print at import belongs to the log of this process
        start_new_session=True,
    )
