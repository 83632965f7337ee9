"""Asking the group: which answer of the client means what."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    GroupCoordinatorNotAvailableError,
    IllegalGenerationError,
    IllegalStateError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from skalds_streams.coordinator import group
from skalds_streams.coordinator.group import GroupQuestion, watch_membership
from skalds_streams.errors import KafkaError
from skalds_streams.model.documents import Positions

pytestmark = pytest.mark.anyio

POSITIONS = Positions({"task.assign": 4})


def commit_failed(cause: Exception) -> CommitFailedError:
    error = CommitFailedError("the group has already rebalanced")
    error.__cause__ = cause
    return error


class Consumer:
    """Faust's consumer, its thread and aiokafka's consumer in one. `outcomes`: errors of the next commits."""

    def __init__(self, *outcomes: Exception | None, assigned: int = 0) -> None:
        self.outcomes = deque(outcomes)
        self.commits: list[Any] = []
        self._thread = self
        self._assigned = assigned
        self.hang: asyncio.Event | None = None

    async def call_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await function(*args)

    def _ensure_consumer(self) -> Consumer:
        return self

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition("task.assign", self._assigned)}

    async def commit(self, offsets: Any) -> None:
        self.commits.append(offsets)
        if self.hang is not None:
            await self.hang.wait()
        outcome = self.outcomes.popleft() if self.outcomes else None
        if outcome is not None:
            raise outcome


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "ASK_AGAIN_S", 0.0)


async def test_an_accepted_commit_of_what_is_applied_means_ours() -> None:
    consumer = Consumer(None)
    assert await GroupQuestion(lambda: consumer).is_ours(0, POSITIONS)
    assert consumer.commits == [{TopicPartition("task.assign", 0): 5}]


@pytest.mark.parametrize(
    "error",
    [
        UnknownMemberIdError(),
        IllegalGenerationError(),
        IllegalStateError("Partition is not assigned"),
        commit_failed(UnknownMemberIdError()),
        commit_failed(IllegalGenerationError()),
    ],
)
async def test_a_member_that_is_none_any_more_does_not_own_it(error: Exception) -> None:
    consumer = Consumer(error)
    assert not await GroupQuestion(lambda: consumer).is_ours(0, POSITIONS)
    assert len(consumer.commits) == 1


@pytest.mark.parametrize(
    "error",
    [
        RebalanceInProgressError(),
        commit_failed(RebalanceInProgressError()),
        GroupCoordinatorNotAvailableError(),
        TimeoutError(),
        OSError("x"),
    ],
)
async def test_what_is_no_answer_is_asked_again(error: Exception) -> None:
    consumer = Consumer(error, error, None)
    assert await GroupQuestion(lambda: consumer).is_ours(0, POSITIONS)
    assert len(consumer.commits) == 3


async def test_a_commit_that_hangs_ends_in_the_consumers_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """That thread has two hands; two commits that never end, and Faust fetches nothing any more."""
    monkeypatch.setattr(group, "ASK_TIMEOUT_S", 0.01)
    consumer = Consumer()
    consumer.hang = asyncio.Event()
    with pytest.raises(TimeoutError):
        await group._commit_in_thread(consumer, {})


async def test_without_positions_the_assignment_is_all_there_is() -> None:
    consumer = Consumer(assigned=3)
    question = GroupQuestion(lambda: consumer)
    assert await question.is_ours(3, Positions({}))
    assert not await question.is_ours(2, Positions({}))
    assert consumer.commits == []


async def test_the_end_of_the_routine_that_keeps_it_in_the_group_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "WATCH_S", 0.0)

    async def fail() -> None:
        raise AssertionError("boom")

    thread = SimpleNamespace(_consumer=None)
    watching = asyncio.create_task(watch_membership(lambda: SimpleNamespace(_thread=thread)))
    await asyncio.sleep(0.01)
    assert not watching.done()
    routine = asyncio.create_task(fail())
    thread._consumer = SimpleNamespace(_coordinator=SimpleNamespace(_coordination_task=routine))
    with pytest.raises(KafkaError, match="boom"):
        await watching
