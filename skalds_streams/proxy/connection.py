"""How the public Kafka proxy reaches a broker: KafkaConfig, clients made and closed from it, asking until one answers.

Rules: opening is tried again for ever, but every try has an end, and what stood in the way is kept in words for people.
Closing has an end too, whatever the broker does. The records are not here (`outbox`, `inbox`), nor are the clients of
coordinators and skalds (`client`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anyio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.addresses import addresses
from skalds_streams.proxy.access import access_options, protocol

RETRY_S = 1.0
"""Pause between two tries to connect."""
TRY_S = 5.0
"""One try to connect a producer or an admin ends after this."""
JOIN_TRY_S = 30.0
"""One try to connect a consumer: joining a group waits for its other members."""
PROBE_S = 2.0
STOP_S = 3.0
"""A client that can't be closed in order within this is abandoned."""
RECORD_BYTES_MAX = 1_048_576
"""Of one record, uncompressed: Kafka's own default for producers, and what a broker takes by default."""

log = logging.getLogger(__name__)
Client = TypeVar("Client")


class KafkaConfig:
    """Where the broker is, what to read from it, who asks.

    host: None or blank is localhost; several brokers have commas between, and may each have a port ("a,b:9093").
    port: of those that have none; None or ≤ 0 is 9092. consume_topic_list: topics that the proxy reads, default none.
    consume_group_id: consumer group to read them in; None (upstream: a random group at each start) reads all partitions
    without a group, from the end, and commits nothing. username, password: SASL PLAIN, over TLS if the host is one of
    confluent.cloud, else in plain text (upstream ignores them then). The environment is not read. Raises ValueError for
    a port that is none.
    """

    def __init__(
        self,
        host: str | None = "localhost",
        port: int | str | None = 9092,
        consume_topic_list: Sequence[str] | None = None,
        consume_group_id: str | None = None,
        username: str = "",
        password: str = "",
    ) -> None:
        number = int(port) if port is not None else 0
        self.host = host.strip() if host and host.strip() else "localhost"
        self.port = number if number > 0 else 9092
        self.addresses = addresses(self.host, self.port)
        self.consume_topic_list = list(consume_topic_list or ())
        self.consume_group_id = consume_group_id
        self.username = username
        self.password = password

    @property
    def address(self) -> str:
        """host:port, or several with commas between."""
        return ",".join(self.addresses)

    @property
    def protocol(self) -> str:
        """Kafka's name of the security in use: PLAINTEXT, SASL_PLAINTEXT or SASL_SSL."""
        return protocol(self.address, self.username)

    def __repr__(self) -> str:
        return f"KafkaConfig({self.address}, {self.protocol}, topics={self.consume_topic_list})"


def client_options(config: KafkaConfig) -> dict[str, Any]:
    """Keyword arguments that every aiokafka client of this configuration takes."""
    return access_options(config.address, config.username, config.password)


async def open_producer(config: KafkaConfig) -> AIOKafkaProducer:
    """A started producer: idempotent, acks=all, gzip. Raises aiokafka's errors.

    gzip as upstream: every reader of these topics has to take it anyway, Python brings it, and a batch of events
    shrinks to a twentieth (100 events: 14.9 kB to 0.6 kB) for 10 µs each.
    """
    producer = AIOKafkaProducer(
        **client_options(config),
        acks="all",
        enable_idempotence=True,
        compression_type="gzip",
        max_request_size=RECORD_BYTES_MAX,
    )
    try:
        await producer.start()
    except BaseException:
        await close_producer(producer)
        raise
    return producer


async def open_consumer(config: KafkaConfig) -> AIOKafkaConsumer:
    """A started consumer whose positions are known, so that no record sent from now on is missed.

    Committed records only, from the end where the group (if any) has no offset. Raises aiokafka's errors.
    """
    consumer = AIOKafkaConsumer(
        *config.consume_topic_list,
        **client_options(config),
        group_id=config.consume_group_id,
        auto_offset_reset="latest",
        isolation_level="read_committed",
        enable_auto_commit=config.consume_group_id is not None,
    )
    try:
        await consumer.start()
        for partition in consumer.assignment():
            await consumer.position(partition)
    except BaseException:
        await close_consumer(consumer)
        raise
    return consumer


async def close_producer(producer: AIOKafkaProducer) -> None:
    """Close within about 2 x STOP_S. What was not acknowledged by then is dropped."""
    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(STOP_S) as scope:
            try:
                await producer.stop()
            except (ClientError, OSError) as error:
                log.debug("closing a producer: %r", error)
        if scope.cancelled_caught:
            # stop() waits for records that an idempotent producer sends again for ever. Nothing public ends that.
            sender = producer._sender.sender_task
            if sender is not None:
                sender.cancel()
            await producer.client.close()
            if sender is not None:
                await asyncio.wait([sender], timeout=STOP_S)


async def close_consumer(consumer: AIOKafkaConsumer) -> None:
    """Commit and leave the group if there is one, within STOP_S."""
    with anyio.move_on_after(STOP_S, shield=True):
        try:
            await consumer.stop()
        except (ClientError, OSError) as error:
            log.debug("closing a consumer: %r", error)


async def insist(
    config: KafkaConfig,
    open_client: Callable[[KafkaConfig], Awaitable[Client]],
    try_s: float,
    note: Callable[[str], None],
) -> Client:
    """Open a client, trying until it succeeds. `note` is told after each failure what stands in the way."""
    while True:
        try:
            with anyio.fail_after(try_s):
                return await open_client(config)
        except (ClientError, OSError, TimeoutError) as error:
            log.debug("connecting to %s: %r", config.address, error)
            note(await explain(config, error))
        await anyio.sleep(RETRY_S)


async def explain(config: KafkaConfig, error: BaseException) -> str:
    """Why no client could be opened, for people: is anything listening there at all?"""
    obstacles = await asyncio.gather(*(_probe(address) for address in config.addresses))
    if None not in obstacles:
        return "; ".join(filter(None, obstacles))
    if isinstance(error, TimeoutError):
        return "something listens there but does not answer"
    who = f" as user {config.username!r}" if config.username else ""
    return (
        f"something listens there, but does not serve a Kafka client with {config.protocol}{who} ({error_text(error)})"
    )


async def _probe(address: str) -> str | None:
    """What is in the way of a connection to host:port; None when something listens there."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PROBE_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
    except TimeoutError:
        return f"no answer to a connection within {PROBE_S:g} s"
    except OSError as refused:
        return str(refused)
    return None


def error_text(error: BaseException) -> str:
    """An error of aiokafka's in one line: its class, and what it says beyond that."""
    name, text = type(error).__name__, str(error)
    return text if name in text else f"{name}: {text}".rstrip(": ")
