"""Frames: a 4-byte big-endian length, then that many bytes of JSON, at most 1 MiB. Descriptors travel with a frame by
SCM_RIGHTS.

Here is the blocking side, for zygote and host. It never reads past the end of a frame, so the descriptors that come
with the bytes are the frame's own. The asyncio side is `channel`.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from skalds_streams.errors import HostError

Frame = dict[str, Any]

FRAME_MAX_BYTES = 1 << 20
FDS_MAX = 4
"""Descriptors that one frame may carry."""
HEADER = struct.Struct(">I")
ANCILLARY_BYTES = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)


def encode(frame: Frame) -> bytes:
    """The frame as bytes, header included. Raises HostError above FRAME_MAX_BYTES."""
    body = json.dumps(frame, separators=(",", ":")).encode()
    if len(body) > FRAME_MAX_BYTES:
        raise HostError(f"frame {frame.get('op')!r} has {len(body)} bytes, more than {FRAME_MAX_BYTES}")
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> Frame:
    """The frame in these bytes. Raises HostError when there is none."""
    try:
        frame = json.loads(body)
    except ValueError as error:
        raise HostError(f"a frame is not JSON: {error}") from None
    if not isinstance(frame, dict):
        raise HostError("a frame is not a JSON object")
    return frame


class Decoder:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete now. Raises HostError when the peer does not speak frames."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            size = body_size(self._buffer)
            if len(self._buffer) < HEADER.size + size:
                return
            body = bytes(self._buffer[HEADER.size : HEADER.size + size])
            del self._buffer[: HEADER.size + size]
            yield decode(body)


def body_size(header: bytes | bytearray) -> int:
    """How many bytes follow. Raises HostError above FRAME_MAX_BYTES."""
    size: int = HEADER.unpack_from(header)[0]
    if size > FRAME_MAX_BYTES:
        raise HostError(f"a frame announces {size} bytes, more than {FRAME_MAX_BYTES}")
    return size


def rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Ancillary data for `sendmsg` that hands the descriptors over."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []


def received_fds(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in what `recvmsg` returned."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def send_frame(sock: socket.socket, frame: Frame, fds: Sequence[int] = ()) -> None:
    """Send a frame whole; blocks. Raises OSError when the peer is gone."""
    data = encode(frame)
    sent = sock.sendmsg([data], rights(fds))
    if sent < len(data):
        sock.sendall(memoryview(data)[sent:])


def recv_frame(sock: socket.socket) -> tuple[Frame, list[int]] | None:
    """The next frame and its descriptors (close-on-exec, the caller's to close); blocks. None at the stream's end."""
    header, fds = _recv_exactly(sock, HEADER.size)
    body, more = _recv_exactly(sock, body_size(header)) if header else (b"", [])
    if not body:
        for fd in fds + more:
            os.close(fd)
        return None
    return decode(body), fds + more


def _recv_exactly(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """`size` bytes and the descriptors that came with them; no bytes when the stream ends before."""
    data = bytearray()
    fds: list[int] = []
    while len(data) < size:
        try:
            chunk, ancillary, _, _ = sock.recvmsg(size - len(data), ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            chunk, ancillary = b"", []
        fds += received_fds(ancillary)
        if not chunk:
            return b"", fds
        data += chunk
    return bytes(data), fds
