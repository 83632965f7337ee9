"""Where what one of many runs in a process prints goes: the writing end of a pipe to the node.

Rules: it never blocks for longer than WAIT_S, as a loop waits meanwhile; what finds no room is left out, and the next
line says how much.
"""

from __future__ import annotations

import os
import select
import threading

WAIT_S = 0.1
CHUNK_BYTES = 4096
"""POSIX's PIPE_BUF on Linux: a pipe that is writable has room for so much."""


class TextPipe:
    """Owns `fd`. Any thread."""

    __slots__ = ("_left_out", "_lock", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._left_out = 0
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        """Write it, or what there is room for."""
        with self._lock:
            if self.fd < 0:
                return
            if self._left_out:
                left_out, self._left_out = self._left_out, 0
                text = f"\n… {left_out} bytes are left out: the node did not take them in time\n{text}"
            data = text.encode("utf-8", "backslashreplace")
            for at in range(0, len(data), CHUNK_BYTES):
                if not self._write(data[at : at + CHUNK_BYTES]):
                    self._left_out += len(data) - at
                    return

    def close(self) -> None:
        """What is written from now on goes nowhere."""
        with self._lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1

    def _write(self, chunk: bytes) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        ready = poll.poll(1000 * WAIT_S)
        if not ready or not ready[0][1] & select.POLLOUT:
            return False
        try:
            os.write(self.fd, chunk)
        except OSError:  # the node has closed it
            return False
        return True
