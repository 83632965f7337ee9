"""How many partitions our topics have: judged before anything subscribes, and watched while the process runs.

A task belongs to a partition by their number. When it changes, two coordinators may both take a task for theirs, and
nobody reads what is written to a new partition: a process that sees it must decide nothing any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.errors import TopicResizedError
from skalds_streams.proxy.admin import Admin
from skalds_streams.topics import TopicSpec

LOOK_S = 3.0
"""One request for the metadata of our topics, about 1 ms of a broker's time."""
SURE_S = 1.0
"""A difference counts when it is still there after this: a broker that has just started may know less than the others.
"""
LOOK_TIMEOUT_S = 10.0

BEGIN_AFRESH = (
    "Kafka can't take partitions away, and a task is found by their number: stop every node, then begin afresh with"
    " another SKALDS_TOPIC_PREFIX (publishers, too) or delete all topics of this system, and assign the tasks again."
)

log = structlog.get_logger(__name__)


def wrong_counts(specs: Sequence[TopicSpec], counts: Mapping[str, int]) -> list[TopicSpec]:
    """The topics that have another number of partitions than they must have. A topic that is missing is none of them.

    counts: number of partitions by topic.
    """
    return [spec for spec in specs if counts.get(spec.name, spec.partitions) != spec.partitions]


def said_at_start(specs: Sequence[TopicSpec], counts: Mapping[str, int]) -> str | None:
    """What is wrong with the first topic that has a wrong number, and what to do; None when none has.

    Where all topics agree on another number than the setting, the setting may be what is wrong.
    """
    wrong = wrong_counts(specs, counts)
    if not wrong:
        return None
    first, has = wrong[0], counts[wrong[0].name]
    same = {counts[spec.name] for spec in specs if spec.partitions == first.partitions and spec.name in counts}
    what = f"topic {first.name} has {has} partitions, it must have {first.partitions}"
    if len(same) == 1 and first.partitions != 1:
        return (
            f"{what}, as every topic of this system. If they were made with {has},"
            f" set KAFKA_TOPIC_PARTITIONS={has}. If partitions were added since: {BEGIN_AFRESH}"
        )
    return f"{what}: their number was changed. {remedy(first)}"


def said_while_running(spec: TopicSpec, has: int) -> str:
    """The sentence with which a process ends."""
    return (
        f"topic {spec.name} has {has} partitions now, it must have {spec.partitions}: their number was changed while"
        f" the system runs, so this node decides nothing any more and ends. {remedy(spec)}"
    )


def remedy(spec: TopicSpec) -> str:
    """What a person must do about a topic with a wrong number of partitions."""
    if spec.replaceable:
        return (
            f"Stop every node, delete this topic (kafka-topics.sh --delete --topic {spec.name}) and start again: it is"
            " made anew. What it holds is lost, no task is."
        )
    return BEGIN_AFRESH


class PartitionWatch:
    """Looks at the number of partitions of our topics, with an admin client of its own."""

    def __init__(self, specs: Sequence[TopicSpec], client: Mapping[str, Any], *, look_s: float = LOOK_S) -> None:
        self._specs, self._client, self._look_s = specs, client, look_s
        self._admin: Admin | None = None

    async def run(self) -> None:
        """Look until cancelled. Raises TopicResizedError. A broker that is away is asked again at the next look."""
        before: Mapping[str, int] = {}
        try:
            while True:
                wrong = await self._wrong()
                sure = [
                    spec for spec in self._specs if spec.name in wrong and before.get(spec.name) == wrong[spec.name]
                ]
                if sure:
                    raise TopicResizedError(said_while_running(sure[0], wrong[sure[0].name]))
                before = wrong
                await asyncio.sleep(SURE_S if wrong else self._look_s)
        finally:
            await self._close()

    async def _wrong(self) -> Mapping[str, int]:
        """Topic → its number of partitions, where that is not what it must be."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                counts = await self._counts()
        except (ClientError, OSError, TimeoutError) as error:
            log.debug("partitions.not_looked", error=repr(error))
            await self._close()
            return {}
        return {spec.name: counts[spec.name] for spec in wrong_counts(self._specs, counts)}

    async def _counts(self) -> dict[str, int]:
        if self._admin is None:
            self._admin = Admin(**self._client)
            await self._admin.start()
        return counts_of(await self._admin.describe_topics([spec.name for spec in self._specs]))

    async def _close(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with suppress(ClientError, OSError):
                await admin.close()


def counts_of(described: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Topic → number of partitions, of what an admin client describes; topics with an error are left out."""
    return {item["topic"]: len(item["partitions"]) for item in described if item["error_code"] == 0}
