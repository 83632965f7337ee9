"""The number of partitions: what is said at start, and how a watch finds that it has changed."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from skalds_streams.errors import TopicResizedError
from skalds_streams.proxy import partition_count
from skalds_streams.proxy.partition_count import PartitionWatch, remedy, said_at_start, wrong_counts
from skalds_streams.topics import Topics

pytestmark = pytest.mark.anyio

TOPICS = Topics.named(app="x", partitions=6)
SPECS = TOPICS.specs()
RIGHT = {spec.name: spec.partitions for spec in SPECS}


def test_nothing_is_said_of_right_and_of_missing_topics() -> None:
    assert said_at_start(SPECS, RIGHT) is None
    assert said_at_start(SPECS, {TOPICS.assign: 6}) is None
    assert wrong_counts(SPECS, {}) == []


def test_a_setting_that_differs_from_every_topic_may_be_what_is_wrong() -> None:
    said = said_at_start(Topics.named(app="x", partitions=7).specs(), RIGHT)
    assert said is not None
    assert said.startswith("topic task.assign has 6 partitions, it must have 7, as every topic of this system.")
    assert "set KAFKA_TOPIC_PARTITIONS=6. If partitions were added since: Kafka can't take partitions away" in said


def test_one_topic_that_differs_was_changed() -> None:
    said = said_at_start(SPECS, {**RIGHT, TOPICS.report: 7})
    assert said is not None
    assert said.startswith("topic skald.report has 7 partitions, it must have 6: their number was changed. Kafka can't")
    assert "KAFKA_TOPIC_PARTITIONS" not in said


@pytest.mark.parametrize("name", [TOPICS.history, TOPICS.deadletter, TOPICS.heartbeat, TOPICS.state])
def test_a_topic_that_no_task_is_rebuilt_from_is_deleted_alone(name: str) -> None:
    said = said_at_start(SPECS, {**RIGHT, name: 9})
    assert said is not None
    assert f"delete this topic (kafka-topics.sh --delete --topic {name}) and start again" in said


def test_the_others_are_not() -> None:
    assert {spec.name for spec in SPECS if "--delete" not in remedy(spec)} == {*TOPICS.inputs, TOPICS.changelog}


class Admin:
    """What the watch asks. Each look takes the next answer; the last one is kept."""

    answers: deque[dict[str, int] | Exception]
    made = closed = 0

    def __init__(self, **client: Any) -> None:
        type(self).made += 1

    async def start(self) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        type(self).closed += 1

    async def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        answer = self.answers.popleft() if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [
            {"topic": name, "partitions": [None] * answer.get(name, 0), "error_code": 0 if name in answer else 3}
            for name in names
        ]


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> type[Admin]:
    made = type("Admin", (Admin,), {"answers": deque()})
    monkeypatch.setattr(partition_count, "Admin", made)
    monkeypatch.setattr(partition_count, "SURE_S", 0.0)
    return made


async def test_a_difference_that_stays_ends_the_watch_with_the_sentence(admin: type[Admin]) -> None:
    grown = {**RIGHT, TOPICS.cancel: 8}
    admin.answers += [RIGHT, KafkaConnectionError(), RIGHT, grown, RIGHT, grown, grown]
    with pytest.raises(TopicResizedError, match=r"topic task\.cancel has 8 partitions now, it must have 6") as raised:
        await asyncio.wait_for(PartitionWatch(SPECS, {}, look_s=0).run(), 5)
    assert "this node decides nothing any more and ends. Kafka can't take partitions away" in str(raised.value)
    assert len(admin.answers) == 1
    assert (admin.made, admin.closed) == (2, 2), "a new client after an error, and none is left open"


async def test_a_topic_that_is_missing_for_a_moment_is_nothing(admin: type[Admin]) -> None:
    admin.answers += [{name: count for name, count in RIGHT.items() if name != TOPICS.assign}]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(PartitionWatch(SPECS, {}, look_s=0).run(), 0.05)
    assert admin.closed == 1
