"""Asks the consumer group whether a partition is ours: a commit with our generation, of what is applied anyway.

The broker favours whoever opened a journal last, not the rightful owner; so before opening again, the group is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from aiokafka.errors import KafkaError as ClientError
from faust.exceptions import ConsumerNotStarted

from skalds_streams.errors import KafkaError
from skalds_streams.model.documents import Positions

ASK_AGAIN_S = 0.5
ASK_TIMEOUT_S = 10.0

log = structlog.get_logger(__name__)

NOT_OURS = (CommitFailedError, IllegalGenerationError, IllegalStateError, UnknownMemberIdError)


WATCH_S = 1.0


async def watch_membership(consumer: Callable[[], Any]) -> None:
    """Raises KafkaError when what keeps this process in the group has died: aiokafka only logs that, and the process
    would be in no group for ever. consumer: as for GroupQuestion.
    """
    while True:
        await asyncio.sleep(WATCH_S)
        coordinator = getattr(getattr(consumer()._thread, "_consumer", None), "_coordinator", None)
        routine = getattr(coordinator, "_coordination_task", None)
        if routine is not None and routine.done() and not routine.cancelled() and routine.exception() is not None:
            raise KafkaError(f"this process can't be in its consumer group: {routine.exception()}")


class GroupQuestion:
    """`is_ours` for the journals. The consumer is Faust's own, which lives in another thread with a loop of its own."""

    def __init__(self, consumer: Callable[[], Any]) -> None:
        """consumer: returns Faust's Consumer (its aiokafka driver)."""
        self._consumer = consumer

    async def is_ours(self, partition: int, positions: Positions) -> bool:
        """Ask until there is an answer."""
        offsets = {TopicPartition(topic, partition): offset + 1 for topic, offset in positions.offsets.items()}
        if not offsets:
            return partition in {tp.partition for tp in self._consumer().assignment()}
        while True:
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S + ASK_AGAIN_S):
                    await self._commit(offsets)
                return True
            except (ClientError, ConsumerNotStarted, TimeoutError, OSError) as error:
                # aiokafka says CommitFailedError, too, when a rebalance is only under way.
                cause = error.__cause__ if isinstance(error, CommitFailedError) else error
                if isinstance(error, NOT_OURS) and not isinstance(cause, RebalanceInProgressError):
                    log.info("group.not_ours", partition=partition, error=repr(cause))
                    return False
                log.info("group.unknown", partition=partition, error=repr(cause))
                await asyncio.sleep(ASK_AGAIN_S)

    async def _commit(self, offsets: dict[TopicPartition, int]) -> None:
        thread = self._consumer()._thread
        await thread.call_thread(_commit_in_thread, thread, offsets)


async def _commit_in_thread(thread: Any, offsets: dict[TopicPartition, int]) -> None:
    """Bounded here, too: what is given up outside would go on here, and the thread has two hands for all that Faust
    asks of it.
    """
    async with asyncio.timeout(ASK_TIMEOUT_S):
        await thread._ensure_consumer().commit(offsets)
