"""Topics that are not as they should be: what is said, what is mended, and what is left to a person."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from skalds_streams.errors import TopicError
from skalds_streams.proxy import topic_repair
from skalds_streams.proxy.admin import Admin as Client
from skalds_streams.proxy.topic_repair import carry_out, plan
from skalds_streams.proxy.topic_rules import Found, deviations
from skalds_streams.proxy.topic_setup import verify
from skalds_streams.topics import Topics, TopicSpec

pytestmark = pytest.mark.anyio

TOPICS = Topics.named(app="x", partitions=3)
SPECS = {spec.name: spec for spec in TOPICS.specs()}
BROKERS_DEFAULTS = {
    "cleanup.policy": "delete",
    "message.timestamp.type": "CreateTime",
    "retention.ms": "604800000",
    "max.message.bytes": "1048588",
    "segment.bytes": "1073741824",
    "min.insync.replicas": "1",
    "unclean.leader.election.enable": "false",
}


def right(spec: TopicSpec, **settings: str) -> Found:
    """The topic as we would have made it, on one broker."""
    changed = {name.replace("_", "."): value for name, value in settings.items()}
    own = {**spec.config, **changed}
    return Found(spec.partitions, 1, 1, {**BROKERS_DEFAULTS, **own}, own)


def all_right() -> dict[str, Found]:
    return {name: right(spec) for name, spec in SPECS.items()}


def said(spec: TopicSpec, found: Found) -> list[tuple[str, str, str, bool]]:
    return [(item.name, item.found, item.wanted, item.must) for item in deviations(spec, found)]


def test_what_we_make_ourselves_is_right() -> None:
    assert verify(list(SPECS.values()), all_right(), 1) == []
    assert plan(list(SPECS.values()), all_right(), 1).topics == 0


def test_a_topic_as_a_broker_makes_it_by_itself() -> None:
    changelog = replace(right(SPECS[TOPICS.changelog]), config=BROKERS_DEFAULTS, own={})
    assert said(SPECS[TOPICS.changelog], changelog) == [
        ("cleanup.policy", "delete", "compact", True),
        ("max.message.bytes", "1048588", "16777216", False),
        ("segment.bytes", "1073741824", "67108864", False),
    ]
    assign = replace(right(SPECS[TOPICS.assign]), config=BROKERS_DEFAULTS, own={})
    assert said(SPECS[TOPICS.assign], assign) == [
        ("message.timestamp.type", "CreateTime", "LogAppendTime", False),
    ]


def test_more_than_is_wanted_is_right() -> None:
    spec = SPECS[TOPICS.assign]
    assert said(spec, right(spec, retention_ms="-1")) == []
    assert said(spec, right(spec, retention_ms="999999999999")) == []
    assert said(spec, right(spec, retention_ms="1000")) == [("retention.ms", "1000", "604800000", False)]


def test_with_three_replicas_two_must_have_a_record() -> None:
    spec = SPECS[TOPICS.report]
    found = replace(right(spec, unclean_leader_election_enable="true"), replicas=3, in_sync=3)
    assert said(spec, found) == [
        ("min.insync.replicas", "1", "2", False),
        ("unclean.leader.election.enable", "true", "false", False),
    ]


def test_an_error_names_the_command_and_a_warning_too() -> None:
    found = all_right()
    found[TOPICS.cancel] = right(SPECS[TOPICS.cancel], message_timestamp_type="CreateTime")
    assert verify(list(SPECS.values()), found, 1) == [
        "topic task.cancel has message.timestamp.type=CreateTime, not LogAppendTime: order between topics follows the"
        " publishers' clocks (`skalds-streams topics fix` mends it)"
    ]
    for name in (TOPICS.changelog, TOPICS.state):
        found = {**all_right(), name: right(SPECS[name], cleanup_policy="delete")}
        with pytest.raises(TopicError, match=rf"{name} .*must be compact: what must be kept would be deleted\. Mend"):
            verify(list(SPECS.values()), found, 1)


def test_too_few_replicas_are_a_warning_and_a_persons_work() -> None:
    [warning] = verify(list(SPECS.values()), all_right(), 3)
    assert "task.assign" in warning
    assert "fewer than 3 replicas" in warning
    assert [words for _, words in plan(list(SPECS.values()), all_right(), 3).left] == [warning]


def test_a_plan_creates_changes_and_leaves() -> None:
    found = all_right()
    del found[TOPICS.deadletter]
    found[TOPICS.update] = right(SPECS[TOPICS.update], retention_ms="5")
    repair = plan(list(SPECS.values()), found, 1)
    assert [spec.name for spec in repair.missing] == [TOPICS.deadletter]
    assert {name: [item.name for item in items] for name, items in repair.changes.items()} == {
        TOPICS.update: ["retention.ms"]
    }
    assert (repair.left, repair.topics) == ([], 2)


def test_partition_counts_are_left_and_nothing_is_created_beside_them() -> None:
    found = all_right()
    del found[TOPICS.deadletter]
    for name in (TOPICS.assign, TOPICS.history):
        found[name] = replace(found[name], partitions=4)
    repair = plan(list(SPECS.values()), found, 1)
    assert [topic for topic, _ in repair.left] == [TOPICS.assign, TOPICS.history, TOPICS.deadletter]
    assert "begin afresh" in repair.left[0][1]
    assert repair.topics == 0


def test_two_in_sync_are_not_asked_for_while_one_is() -> None:
    found = {name: replace(topic, replicas=3, in_sync=3) for name, topic in all_right().items()}
    for name, topic in found.items():
        found[name] = replace(topic, config={**topic.config, "min.insync.replicas": "2"})
    found[TOPICS.assign] = replace(right(SPECS[TOPICS.assign]), replicas=3, in_sync=1)
    repair = plan(list(SPECS.values()), found, 3)
    assert repair.topics == 0
    assert "every write would stop" in repair.left[0][1]


class Admin:
    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.altered: dict[str, dict[str, str]] = {}

    async def alter_configs(self, resources: list[Any]) -> list[Any]:
        self.altered |= {item.name: item.configs for item in resources}
        return [SimpleNamespace(resources=[(self.code, "no", 2, item.name) for item in resources])]


async def test_settings_that_are_not_ours_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def visible(*_args: object) -> None:
        return None

    monkeypatch.setattr(topic_repair, "wait_visible", visible)
    found = all_right()
    found[TOPICS.update] = right(SPECS[TOPICS.update], retention_ms="5", compression_type="zstd")
    repair = plan(list(SPECS.values()), found, 1)
    admin, done = Admin(), list[str]()
    await carry_out(cast("Client", admin), repair, done.append)
    assert done == [TOPICS.update]
    assert admin.altered == {
        TOPICS.update: {
            "message.timestamp.type": "LogAppendTime",
            "retention.ms": "604800000",
            "compression.type": "zstd",
        }
    }
    with pytest.raises(TopicError, match=r"task\.update\.attachment could not be changed: TopicAuthorizationFailed"):
        await carry_out(cast("Client", Admin(29)), repair, done.append)
