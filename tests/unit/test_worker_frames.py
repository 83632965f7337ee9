"""Frames and what failed runs say: sizes, limits, descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from skalds_streams.errors import HostError
from skalds_streams.worker import frames, outcome


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_frames_arrive_whole_and_one_by_one(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    frames.send_frame(left, {"op": "a", "text": "ü\ud800"})
    frames.send_frame(left, {"op": "b"})
    left.close()

    assert frames.recv_frame(right) == ({"op": "a", "text": "ü\ud800"}, [])
    assert frames.recv_frame(right) == ({"op": "b"}, [])
    assert frames.recv_frame(right) is None


def test_descriptors_belong_to_their_frame_and_are_not_inherited(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    reading, writing = os.pipe()
    frames.send_frame(left, {"op": "plain"})
    frames.send_frame(left, {"op": "with"}, [reading, writing])
    os.close(reading)
    os.close(writing)

    assert frames.recv_frame(right) == ({"op": "plain"}, [])
    received = frames.recv_frame(right)
    assert received is not None
    frame, fds = received
    assert (frame, len(fds), [os.get_inheritable(fd) for fd in fds]) == ({"op": "with"}, 2, [False, False])
    os.write(fds[1], b"x")
    assert os.read(fds[0], 1) == b"x"
    for fd in fds:
        os.close(fd)


def test_the_end_within_a_frame_is_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    left.sendall(frames.encode({"op": "cut"})[:-1])
    left.close()

    assert frames.recv_frame(right) is None


def test_too_large_frames_are_neither_sent_nor_awaited(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    with pytest.raises(HostError, match=r"frame 'big' has \d+ bytes"):
        frames.encode({"op": "big", "text": "x" * frames.FRAME_MAX_BYTES})
    left.sendall(frames.HEADER.pack(frames.FRAME_MAX_BYTES + 1))
    with pytest.raises(HostError, match="announces"):
        frames.recv_frame(right)


def test_the_decoder_cuts_any_chunks() -> None:
    sent = [{"op": "a", "n": number} for number in range(20)]
    stream = b"".join(frames.encode(frame) for frame in sent)
    for size in (1, 3, 7, len(stream)):
        decoder = frames.Decoder()
        chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert [frame for chunk in chunks for frame in decoder.feed(chunk)] == sent


@pytest.mark.parametrize("body", [b"nonsense", b"[1]"])
def test_what_is_no_frame_is_an_error(body: bytes) -> None:
    with pytest.raises(HostError, match="not"):
        list(frames.Decoder().feed(frames.HEADER.pack(len(body)) + body))


def test_messages_are_capped_valid_and_never_raise() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    assert outcome.message_of(ValueError("{braces} %s")) == "{braces} %s"
    assert outcome.message_of(ValueError("lone \ud800")) == "lone ?"
    long = outcome.message_of(ValueError("ü" * 5000))
    assert len(long.encode()) <= outcome.MESSAGE_MAX_BYTES
    assert long.endswith("…")
    assert outcome.describe(Unprintable())["message"] == "<Unprintable without a readable message>"


def test_the_traceback_is_its_last_lines() -> None:
    def even(depth: int) -> None:
        odd(depth - 1)

    def odd(depth: int) -> None:
        if depth < 0:
            raise ValueError("deep")
        even(depth - 1)

    try:
        even(30)
    except ValueError as error:
        described = outcome.describe(error)

    assert len(described["traceback"]) == outcome.TRACEBACK_LINES
    assert described["traceback"][-1] == "ValueError: deep"
    assert described["type"] == "ValueError"
