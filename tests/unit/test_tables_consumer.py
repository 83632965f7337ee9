"""Faust's consumer: what it complains of."""

from __future__ import annotations

from types import SimpleNamespace

from faust.types import TP

from skalds_streams.tables.consumer import PositionedConsumer


def test_a_changelog_that_faust_does_not_read_on_is_no_complaint() -> None:
    asked: list[TP] = []
    consumer = PositionedConsumer.__new__(PositionedConsumer)
    consumer.app = SimpleNamespace(tables=SimpleNamespace(changelog_topics={"changelog"}))
    consumer._thread = SimpleNamespace(verify_event_path=lambda now, tp: asked.append(tp))
    for topic in ("changelog", "task.assign"):
        consumer.verify_event_path(0.0, TP(topic, 0))
    assert asked == [TP("task.assign", 0)]
