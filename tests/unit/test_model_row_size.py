"""The bounds of a row at full size: they leave room in every record, whatever settings say."""

from __future__ import annotations

import pytest

from skalds_streams.core.membership import Members
from skalds_streams.core.placement import REASON_MAX_CHARS, REASONS_MOST, Load, choose
from skalds_streams.core.row import Row, Status, Wanted
from skalds_streams.errors import ConfigError
from skalds_streams.model.row_size import ENVELOPE_BYTES, field_bytes_most, history_bytes_most, row_bytes_most
from skalds_streams.settings import ATTACHMENTS_BYTES_MOST, Settings
from skalds_streams.topics import RECORD_BYTES, Topics

PARTITIONS_MOST = 1_000


def test_every_field_of_a_row_has_a_bound() -> None:
    assert set(field_bytes_most(100, 6)) == set(Row("t").to_doc())
    assert all(len(name) + len('"":,') <= 32 for name in Row("t").to_doc())


def test_the_largest_row_and_its_history_fit_into_their_records() -> None:
    topics = Topics.named(app="x")
    specs = {spec.name: spec.config.get("max.message.bytes") for spec in topics.specs()}
    assert (specs[topics.changelog], specs[topics.history]) == (RECORD_BYTES, RECORD_BYTES)
    for most in (row_bytes_most, history_bytes_most):
        assert most(ATTACHMENTS_BYTES_MOST, PARTITIONS_MOST) + ENVELOPE_BYTES <= int(RECORD_BYTES)


def test_settings_allow_no_more_than_fits() -> None:
    assert Settings.load(max_attachments_bytes=ATTACHMENTS_BYTES_MOST, kafka_topic_partitions=PARTITIONS_MOST)
    for more in (
        {"max_attachments_bytes": ATTACHMENTS_BYTES_MOST + 1},
        {"kafka_topic_partitions": PARTITIONS_MOST + 1},
    ):
        with pytest.raises(ConfigError):
            Settings.load(**more)


def test_a_row_keeps_so_many_reasons_whoever_beats_next() -> None:
    members, row = Members(), Row("t", class_name="Cam", wanted=Wanted.RUN, status=Status.ASSIGNING)
    for at in range(2 * REASONS_MOST):
        doc = {"skald_id": f"s{at:03}", "incarnation": f"i{at}", "capacity": 0, "labels": {}, "classes": {"Cam": "h"}}
        members.apply({**doc, "options": {"Cam": {"requires": {"g" * 400: "y" * 400}}}}, at)
    waiting = choose(row, members, Load()).waiting
    assert waiting["*"] == f"and {REASONS_MOST} more that can't take it"
    assert list(waiting)[:2] == ["s000", "s001"]
    assert max(map(len, waiting.values())) == REASON_MAX_CHARS
    members.apply({"skald_id": "s000", "incarnation": "i0", "n": 2}, 2 * REASONS_MOST)
    assert choose(row, members, Load()).waiting == waiting
