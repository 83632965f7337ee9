"""What of the host needs no process: what is saved, and when it is sent."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from skalds_streams.worker import host
from skalds_streams.worker.frames import recv_frame, send_frame
from skalds_streams.worker.secrets import SecretPolicy

LEASE = {"op": "lease", "until_ms": 1}


class Saver:
    """A run that saves."""

    saved: str | None = None


Conversation = tuple[host.Host, Saver, socket.socket]


@pytest.fixture
def conversation() -> Iterator[Conversation]:
    """A host in this process, its run, and the skald's end of the socket."""
    ours, theirs = socket.socketpair()
    wakeup, wakeup_end = socket.socketpair()
    with ours, theirs, wakeup, wakeup_end:
        made, saver = host.Host(theirs, SecretPolicy(), -1), Saver()
        made._run, made._wakeup = cast("Any", saver), wakeup
        ours.settimeout(20)
        yield made, saver, ours
        os.close(made._saved_fd)


def received(skald: socket.socket) -> dict[str, Any]:
    got = recv_frame(skald)
    assert got is not None
    return got[0]


def test_of_many_states_the_last_is_sent_when_it_is_time(conversation: Conversation) -> None:
    made, saver, skald = conversation
    made._save_at = time.monotonic() + 3_600
    for number in range(100):
        saver.saved = f'{{"n":{number}}}'
        made._ring()
        send_frame(skald, LEASE)
        assert made._next_frame() is not None
    made._save_at = 0
    send_frame(skald, LEASE)
    assert made._next_frame() is not None
    made.send({"op": "finished"})
    assert [received(skald), received(skald)] == [{"op": "saved", "state": '{"n":99}'}, {"op": "finished"}]
    assert made._save_at > time.monotonic(), "and not again at once"


def test_the_first_state_is_sent_at_once_and_one_that_must_wait_is_not_forgotten(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, saver, skald = conversation
    monkeypatch.setattr(host, "SAVE_EVERY_S", 0.01)
    for state in ("{}", '{"n":1}', '{"n":2}'):
        saver.saved = state
        made._ring()
        send_frame(skald, LEASE)
        assert made._next_frame() is not None
    while made._save_waits:
        made._look_at_saved(has_news=False)
    assert received(skald) == {"op": "saved", "state": "{}"}
    made.send({"op": "finished"})
    last: dict[str, Any] = {}
    while (frame := received(skald))["op"] == "saved":
        last = frame
    assert last["state"] == '{"n":2}'


def test_nothing_wakes_the_thread_of_a_worker_that_saves_nothing(conversation: Conversation) -> None:
    made, _, skald = conversation
    send_frame(skald, LEASE)
    assert made._next_frame() is not None
    assert (made._save_waits, made._save_at) == (False, 0.0)


def test_a_state_is_sent_once(conversation: Conversation) -> None:
    made, saver, skald = conversation
    made._send_saved()
    for state in ("{}", "{}", '{"n":1}'):
        saver.saved = state
        made._send_saved()
        made._send_saved()
    made.send({"op": "finished"})
    assert [received(skald).get("state", "none") for _ in range(3)] == ["{}", '{"n":1}', "none"]
