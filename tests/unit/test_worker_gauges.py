"""The numbers that a worker sets: what is taken, what is sent and how often, and nothing that ends a job."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from skalds_streams.worker import gauges
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.gauges import GAUGES_MAX, Gauges, readings

WAIT_S = 30.0


class Sent:
    """What was sent, to be waited for."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._news = threading.Condition()

    def __call__(self, frame: Frame) -> None:
        with self._news:
            self.frames.append(frame)
            self._news.notify_all()

    def wait(self, **values: float | None) -> None:
        """Until these are the last values."""
        with self._news:
            assert self._news.wait_for(lambda: self.frames and self.frames[-1]["values"] == values, WAIT_S)


def test_the_last_value_of_each_arrives_and_far_fewer_frames_than_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "EVERY_S", 0.2)
    sent, numbers = Sent(), Gauges()
    numbers.set("early", 1)
    numbers.attach(sent)
    for value in range(10_000):
        numbers.set("fps", value)
    sent.wait(early=1.0, fps=9_999.0)
    numbers.set("fps", 3)
    sent.wait(early=1.0, fps=3.0)
    assert len(sent.frames) < 1_000


def test_what_is_left_at_the_end_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "EVERY_S", WAIT_S)
    sent, numbers = Sent(), Gauges()
    numbers.attach(sent)
    numbers.set("fps", 1)
    sent.wait(fps=1.0)
    numbers.set("fps", 2)
    numbers.flush()
    numbers.flush()
    assert [frame["values"] for frame in sent.frames] == [{"fps": 1.0}, {"fps": 2.0}]


@pytest.mark.parametrize("name", ["", "a b", "1st", "x" * 65, "ä", "a\n"])
def test_a_name_must_be_one(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a metric"):
        Gauges().set(name, 1)


def test_a_value_must_be_a_number() -> None:
    for wrong in ("1", None, [1]):
        value: Any = wrong
        with pytest.raises(TypeError, match="metric fps must be a number"):
            Gauges().set("fps", value)


def test_more_names_than_there_may_be_are_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    sent, numbers = Sent(), Gauges()
    for at in range(GAUGES_MAX + 5):
        numbers.set(f"n{at}", at)
    numbers.set("n0", 7)
    numbers.attach(sent)
    sent.wait(**{"n0": 7.0, **{f"n{at}": float(at) for at in range(1, GAUGES_MAX)}})
    assert len(caplog.records) == 1


def test_what_is_no_finite_number_is_none() -> None:
    sent, numbers = Sent(), Gauges()
    numbers.attach(sent)
    for name, value in (("nan", float("nan")), ("inf", float("inf")), ("huge", 10**400)):
        numbers.set(name, value)
    sent.wait(nan=None, inf=None, huge=None)


def test_a_process_that_the_worker_forked_sends_nothing() -> None:
    """Its host's socket is not its own any more: an attempt would count as the skald's end."""
    sent, numbers = Sent(), Gauges()
    numbers.attach(sent)
    before = os.getpid()
    numbers._pid = before + 1  # as in a fork
    numbers.set("fps", 1)
    assert numbers._sender is None


def test_a_frame_is_read_only_when_it_is_one() -> None:
    good = {"op": "metrics", "values": {"b": 1.5, "a": None}, "at_ms": 7}
    assert readings(good) == {"values": {"a": None, "b": 1.5}, "at_ms": 7}
    for bad in (
        {"values": {"a": "text"}},
        {"values": {"<b>": 1.0}},
        {"values": [1.0]},
        {"at_ms": "x"},
        {"values": {f"n{at}": 1.0 for at in range(GAUGES_MAX + 1)}},
    ):
        assert readings({**good, **bad}) is None


def test_a_flush_waits_for_what_is_just_being_sent() -> None:
    order: list[str] = []
    under_way, may_go_on = threading.Event(), threading.Event()

    def send(_: Frame) -> None:
        under_way.set()
        assert may_go_on.wait(WAIT_S)
        order.append("sent")

    numbers = Gauges()
    numbers.attach(send)
    numbers.set("fps", 1)
    assert under_way.wait(WAIT_S)
    threading.Timer(0.05, may_go_on.set).start()
    numbers.flush()
    assert order == ["sent"], "else the process could end before it is"
