"""How every aiokafka client of this project is made:

address, security, and the one tuning that has no public option.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.consumer.fetcher import Fetcher

from skalds_streams.errors import KafkaError
from skalds_streams.model.record import Record
from skalds_streams.proxy.access import REQUEST_TIMEOUT_MS as REQUEST_TIMEOUT_MS
from skalds_streams.proxy.access import access_options
from skalds_streams.settings import Settings

PREFETCH_BACKOFF_S = 0.005
"""aiokafka asks a broker again only after this while a fetched partition is not drained;

its own 0.1 s was the p99 of a hop.
"""


def client_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments for AIOKafkaConsumer, AIOKafkaProducer and AIOKafkaAdminClient."""
    return access_options(settings.bootstrap, settings.kafka_username, settings.kafka_password.get_secret_value())


def log_consumer(client: Mapping[str, Any], *, committed: bool = True, **more: Any) -> AIOKafkaConsumer:
    """A consumer that reads partitions as a log: no group, nothing committed, from the beginning unless it is sought.

    committed: only records of committed transactions. more: further arguments of AIOKafkaConsumer. Not started.
    """
    return AIOKafkaConsumer(
        **client,
        group_id=None,
        isolation_level="read_committed" if committed else "read_uncommitted",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        **more,
    )


def look_at(future: asyncio.Future[Any]) -> None:
    """Take note of how a future has ended, so that nobody complains of an error that is not asked for."""
    if not future.cancelled():
        future.exception()


def check_alive(producer: AIOKafkaProducer) -> None:
    """Raises KafkaError when the producer can't send any more, ever: its sender has died of a defect, and says nothing.

    For after an error. The process must end then: whoever just tried again would do so for ever.
    """
    sender = producer._sender.sender_task
    if sender is not None and sender.done():
        raise KafkaError(
            f"a producer's sender has died: {sender.exception() if not sender.cancelled() else 'cancelled'!r}"
        )


def count_commits(producer: AIOKafkaProducer) -> Callable[[], int]:
    """How often a started producer has asked to end a transaction, from now on: aiokafka asks again when it gets no
    answer. What was not answered may be under way still.
    """
    sender, asked = producer._sender, 0
    ask = sender._do_txn_commit

    async def counted(commit: Any) -> None:
        nonlocal asked
        asked += 1
        await ask(commit)

    sender._do_txn_commit = counted
    return lambda: asked


def brokers_known(producer: AIOKafkaProducer) -> int:
    """How many brokers there are, as far as a started producer was told."""
    return len(producer.client.cluster.brokers())


def record_of(item: Any) -> Record:
    """A record of the client library as ours."""
    return Record(item.topic, item.partition, item.offset, item.key, item.value, item.timestamp, item.headers)


def tune_consumers() -> None:
    """Lower aiokafka's prefetch back-off for every consumer made from now on.

    Raises KafkaError when aiokafka has changed.
    """
    defaults = Fetcher.__init__.__kwdefaults__ or {}
    if "prefetch_backoff" not in defaults:
        raise KafkaError("this aiokafka has no prefetch_backoff: check PREFETCH_BACKOFF_S")
    defaults["prefetch_backoff"] = PREFETCH_BACKOFF_S
