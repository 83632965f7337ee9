"""The commands of a run: tasks are assigned, updated, cancelled and assigned again all the time, every sending with a
line in the ledger; and what the history says of the tasks meanwhile.

When the history says that a cancel was applied, the witness is told: from then on no act of that task may come.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from skalds_streams.proxy.client import log_consumer
from skalds_streams.testing.ledger import Ledger
from skalds_streams.testing.verifiable import NAUGHTY, Steady, SteadyAsync, SteadyShared
from skalds_streams.testing.witness import Sayer
from skalds_streams.topics import Topics

EVERY_S = 0.25
OUTSTANDING_MOST = 64
SEND_MS = 40_000
ENDED = ("Finished", "Failed", "Cancelled")


def classes_of(count: int, dice: random.Random, only: str | None = None) -> dict[str, str]:
    """Task → class: at most half of them misbehave, no two in the same way. only: the class of all."""
    if only is not None:
        return {f"task-{number:02}": only for number in range(count)}
    naughty = [item.__name__ for item in NAUGHTY]
    dice.shuffle(naughty)
    chosen = naughty[: count // 2]
    steady = (Steady, SteadyAsync, SteadyShared)
    chosen += [steady[number % len(steady)].__name__ for number in range(count - len(chosen))]
    return {f"task-{number:02}": name for number, name in enumerate(chosen)}


class History:
    """What taskworker.update says, read from the beginning by a consumer of its own, and told on to the witness."""

    def __init__(self, topics: Topics, bootstrap: str, sayer: Sayer) -> None:
        self._topics, self._sayer = topics, sayer
        self._consumer = log_consumer({"bootstrap_servers": bootstrap})
        self.last: dict[str, Mapping[str, Any]] = {}
        """Task → its newest record."""

    async def run(self) -> None:
        """Until cancelled."""
        await self._consumer.start()
        try:
            self._consumer.assign([TopicPartition(self._topics.history, at) for at in range(self._topics.partitions)])
            while True:
                for records in (await self._consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        await self._take(orjson.loads(record.value))
        finally:
            await self._consumer.stop()

    async def _take(self, document: Mapping[str, Any]) -> None:
        task_id = document["task_id"]
        self.last[task_id] = document
        if document["status"] in ENDED and document["holder"] is None:
            while not await asyncio.to_thread(self._sayer.cancelled, task_id, document["epoch"]):  # noqa: ASYNC110  # to retry
                await asyncio.sleep(0.05)

    def status(self, task_id: str) -> str:
        return str(self.last.get(task_id, {}).get("status", ""))


@dataclass(slots=True)
class Sent:
    """Counts of sendings."""

    acknowledged: int = 0
    unknown: int = 0


class Commands:
    """Sends them. One loop."""

    def __init__(
        self,
        topics: Topics,
        bootstrap: str,
        ledger: Path,
        tasks: Mapping[str, str],
        dice: random.Random,
        lease_s: float,
    ) -> None:
        self._topics, self._tasks, self._dice, self._lease_s = topics, tasks, dice, lease_s
        self._ledger = Ledger(ledger)
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap, enable_idempotence=True, request_timeout_ms=SEND_MS
        )
        self._outstanding: set[asyncio.Task[bool]] = set()
        self._cancelled: set[str] = set()
        self.sent = Sent()

    async def start(self) -> None:
        await self._producer.start()

    async def stop(self) -> None:
        """What is under way becomes unknown."""
        for task in self._outstanding:
            task.cancel()
        await asyncio.gather(*self._outstanding, return_exceptions=True)
        await self._producer.stop()
        self._ledger.close()

    async def run(self) -> None:
        """Random commands until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            if len(self._outstanding) < OUTSTANDING_MOST:
                self._later(*self._draw())

    def _draw(self) -> tuple[str, str, dict[str, Any]]:
        task_id = self._dice.choice(list(self._tasks))
        if task_id in self._cancelled:
            self._cancelled.discard(task_id)
            return self._assign(task_id)
        roll = self._dice.random()
        if roll < 0.12:
            self._cancelled.add(task_id)
            return self._topics.cancel, task_id, {"taskIds": [task_id]}
        if roll < 0.2:
            return self._assign(task_id)
        attachments = {"fps": self._dice.randrange(1, 100)}
        return self._topics.update, task_id, {"taskIds": [task_id], "attachments": attachments, "merge": True}

    def _assign(self, task_id: str) -> tuple[str, str, dict[str, Any]]:
        attachments = {"fps": 1, "hold_s": 1.5 * self._lease_s, "quiet_s": 2 * self._lease_s}
        task = {"id": task_id, "className": self._tasks[task_id], "source": "chaos", "attachments": attachments}
        return self._topics.assign, task_id, {"taskIds": [task_id], "tasks": [task]}

    async def assign_all(self) -> None:
        """Until each is acknowledged."""
        await self._all([self._assign(task_id) for task_id in self._tasks])
        self._cancelled.clear()

    async def cancel_all(self) -> None:
        """Until each is acknowledged."""
        await self._all([(self._topics.cancel, task_id, {"taskIds": [task_id]}) for task_id in self._tasks])

    async def _all(self, commands: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
        """After all that was sent before."""
        await asyncio.gather(*self._outstanding, return_exceptions=True)
        for command in commands:
            while not await self._send(*command):  # noqa: ASYNC110  # to retry
                await asyncio.sleep(EVERY_S)

    def _later(self, topic: str, key: str, document: dict[str, Any]) -> None:
        task = asyncio.create_task(self._send(topic, key, document))
        self._outstanding.add(task)
        task.add_done_callback(self._outstanding.discard)

    async def _send(self, topic: str, key: str, document: dict[str, Any]) -> bool:
        value = orjson.dumps(document)
        number = self._ledger.invoked(topic, key, value)
        try:
            answer = await self._producer.send_and_wait(topic, value, key=key.encode())
        except KafkaError as error:
            self.sent.unknown += 1
            self._ledger.unknown(number, type(error).__name__)
            return False
        self.sent.acknowledged += 1
        self._ledger.acknowledged(number, answer.partition, answer.offset)
        return True


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel it and wait."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
