"""The asyncio side of a frame socket. Never blocks, never starts a task: frames come in by callback.

Rules: what is to be sent and not yet taken by the kernel is at most QUEUE_MAX_BYTES. A peer that is gone or does not
speak frames closes the channel once, through `on_close`. What does not live here: what the frames mean.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from skalds_streams.errors import HostError
from skalds_streams.worker.frames import ANCILLARY_BYTES, Decoder, Frame, encode, received_fds, rights

QUEUE_MAX_BYTES = 4 << 20
READ_BYTES = 1 << 16


class Channel:
    """Owns `sock`. `on_close` gets the reason, "" when the peer just ended the stream; never after `close()`."""

    def __init__(self, sock: socket.socket, on_frame: Callable[[Frame], None], on_close: Callable[[str], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._on_frame = on_frame
        self._on_close = on_close
        self._decoder = Decoder()
        self._fds: deque[int] = deque()
        self._queue: deque[tuple[memoryview, list[int]]] = deque()
        self._queued_bytes = 0
        self._broken = False
        self.closed = False
        self._loop.add_reader(sock.fileno(), self._read)

    def send(self, frame: Frame, fds: Sequence[int] = ()) -> bool:
        """Send or queue a frame; its descriptors are duplicated. False: the peer is gone. HostError: too much waits."""
        data = memoryview(encode(frame))
        if self.closed or self._broken:
            return False
        if self._queued_bytes + len(data) > QUEUE_MAX_BYTES:
            raise HostError(f"a peer has not taken {self._queued_bytes} bytes: frame {frame.get('op')!r} is not sent")
        self._queue.append((data, [os.dup(fd) for fd in fds]))
        self._queued_bytes += len(data)
        if len(self._queue) == 1:
            self._write()
        return not self._broken

    def take_fd(self) -> int:
        """The descriptor that came with the frame just delivered; the caller's to close."""
        if not self._fds:
            raise HostError("a frame came without its descriptor")
        return self._fds.popleft()

    def drain(self) -> None:
        """Deliver all frames that have arrived already."""
        while not self.closed and self._read():
            pass

    def close(self) -> None:
        """Let go of the socket and of what is not sent yet."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for fd in [*self._fds, *(fd for _, fds in self._queue for fd in fds)]:
            os.close(fd)
        self._fds.clear()
        self._queue.clear()

    def _fail(self, reason: str) -> None:
        if not self.closed:
            self.close()
            self._on_close(reason)

    def _read(self) -> bool:
        """One read; False when there was nothing."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data, ancillary = b"", []
        self._fds.extend(received_fds(ancillary))
        if not data:
            self._fail("")
            return False
        try:
            for frame in self._decoder.feed(data):
                self._on_frame(frame)
                if self.closed:
                    return False
        except HostError as error:
            self._fail(str(error))
            return False
        return True

    def _write(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                sent = self._sock.sendmsg([data], rights(fds))
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._write)
                return
            except (
                OSError
            ):  # the peer is gone: what it sent before is still to be read, the end of the stream comes after it
                self._drop_queue()
                return
            for fd in fds:
                os.close(fd)
            self._queued_bytes -= sent
            if sent < len(data):
                self._queue[0] = (data[sent:], [])
            else:
                self._queue.popleft()
        self._loop.remove_writer(self._sock.fileno())

    def _drop_queue(self) -> None:
        self._broken = True
        self._loop.remove_writer(self._sock.fileno())
        for fd in (fd for _, fds in self._queue for fd in fds):
            os.close(fd)
        self._queue.clear()
        self._queued_bytes = 0
