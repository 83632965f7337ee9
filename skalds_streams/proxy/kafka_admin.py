"""KafkaAdmin: create, delete, list and describe topics, for plain (blocking) code.

Rules: what fails is raised; every call ends within CALL_S; asking about a topic never creates it. The topics that this
project needs are created and checked in `topic_setup`, not here.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import anyio
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError as ClientError
from aiokafka.errors import TopicAlreadyExistsError, for_code
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from skalds_streams.errors import KafkaError, TopicError, UnreachableError
from skalds_streams.proxy.access import REQUEST_TIMEOUT_MS
from skalds_streams.proxy.admin import Admin
from skalds_streams.proxy.background import BackgroundLoop
from skalds_streams.proxy.connection import (
    STOP_S,
    TRY_S,
    KafkaConfig,
    client_options,
    error_text,
    insist,
)

CONNECT_S = 10.0
CALL_S = 30.0
VISIBLE_S = 15.0
POLL_S = 0.05
REPLICATION_FACTOR = 3
"""Upstream's default. There are never more replicas than brokers."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic as it is. `config`: every setting, defaults included, as Kafka writes them."""

    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str] = field(default_factory=dict)


class KafkaAdmin:
    """Connects at construction, at most `connect_timeout_s` seconds; then raises UnreachableError."""

    def __init__(self, kafka_config: KafkaConfig | None = None, *, connect_timeout_s: float = CONNECT_S) -> None:
        self._config = kafka_config if kafka_config is not None else KafkaConfig()
        self.host, self.port = self._config.host, self._config.port
        self._client: Admin | None = None
        self._obstacle = ""
        self._ready = asyncio.Event()
        self._background = BackgroundLoop()
        try:
            self._background.start(self._run)
            self._background.run(self._ready.wait, timeout=connect_timeout_s)
        except TimeoutError:
            self._background.close()
            raise UnreachableError(
                f"no Kafka broker answers at {self._config.address} within {connect_timeout_s:g} s:"
                f" {self._obstacle or 'no answer'}"
            ) from None
        except BaseException:
            self._background.close()
            raise
        atexit.register(self.disconnect)

    @property
    def admin(self) -> KafkaAdmin | None:
        """This object while it is connected, else None."""
        return self if self._client is not None else None

    def create_topic(
        self,
        topic_name: str,
        partitions: int = 6,
        replication_factor: int = REPLICATION_FACTOR,
        config: Mapping[str, str] | None = None,
    ) -> bool:
        """Create a topic and wait until it can be used. False: there was one of that name already, it is left as it is.

        replication_factor: wanted; as many as there are brokers if they are fewer (upstream fails then). config:
        settings of the topic. Raises TopicError with the broker's reason.
        """
        return self._call(self._create, topic_name, partitions, replication_factor, config or {})

    def delete_topic(self, topic_name: str) -> None:
        """Delete a topic with all its records, and wait until it is gone. Raises TopicError, also if there is none."""
        self._call(self._delete, topic_name)

    def list_topics(self) -> list[str]:
        """Names of all topics but Kafka's own, sorted."""
        found = self._call(self._metadata)
        return sorted(name for name, item in found.items() if not item["is_internal"])

    def describe_topic(self, topic_name: str) -> TopicDescription:
        """Partitions, replicas and settings. Raises TopicError if there is no such topic."""
        return self._call(self._describe, topic_name)

    def disconnect(self) -> None:
        """Close the connection. A second call does nothing."""
        atexit.unregister(self.disconnect)
        self._background.close()

    def __enter__(self) -> KafkaAdmin:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.disconnect()

    # -- in the loop -----------------------------------------------------------------------------------------------

    async def _run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        task_status.started()
        client = self._client = await insist(self._config, _open, TRY_S, self._note)
        try:
            self._ready.set()
            await anyio.sleep_forever()
        finally:
            self._client = None
            await _close(client)

    def _note(self, obstacle: str) -> None:
        self._obstacle = obstacle

    def _call(self, func: Callable[..., Awaitable[Result]], *args: object) -> Result:
        try:
            return self._background.run(func, *args, timeout=CALL_S)
        except ClientError as error:
            raise KafkaError(f"{self._config.address}: {error_text(error)}") from error
        except TimeoutError as error:
            raise KafkaError(f"{self._config.address} does not answer") from error

    @property
    def _connected(self) -> Admin:
        if self._client is None:
            raise KafkaError("closed")
        return self._client

    async def _metadata(self) -> dict[str, Any]:
        """All topics: a request that names a topic would create it where brokers do so."""
        return {item["topic"]: item for item in await self._connected.describe_topics()}

    async def _create(self, name: str, partitions: int, replicas: int, config: Mapping[str, str]) -> bool:
        brokers = len((await self._connected.describe_cluster())["brokers"])
        new = NewTopic(name, partitions, min(replicas, brokers), topic_configs=dict(config))
        answer = await self._connected.create_topics([new], timeout_ms=REQUEST_TIMEOUT_MS)
        _, code, *message = answer.topic_errors[0]
        if code == TopicAlreadyExistsError.errno:
            return False
        if code:
            raise TopicError(
                f"topic {name} was not created: {for_code(code).__name__}: {message[0] if message else ''}"
            )
        await self._wait(name, there=True)
        return True

    async def _delete(self, name: str) -> None:
        if name not in await self._metadata():
            raise TopicError(f"there is no topic {name}")
        answer = await self._connected.delete_topics([name], timeout_ms=REQUEST_TIMEOUT_MS)
        code = answer.topic_error_codes[0][1]
        if code:
            raise TopicError(f"topic {name} was not deleted: {for_code(code).__name__}")
        await self._wait(name, there=False)

    async def _describe(self, name: str) -> TopicDescription:
        item = (await self._metadata()).get(name)
        if item is None:
            raise TopicError(f"there is no topic {name}")
        answers = await self._connected.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        config = {entry[0]: entry[1] for entry in answers[0].resources[0][4] if entry[1] is not None}
        replicas = min((len(part["replicas"]) for part in item["partitions"]), default=0)
        return TopicDescription(name, len(item["partitions"]), replicas, config)

    async def _wait(self, name: str, *, there: bool) -> None:
        """Until brokers show a topic with leaders, or do not show it any more."""
        try:
            with anyio.fail_after(VISIBLE_S):
                # a broker tells nobody when its metadata changes
                while _usable((await self._metadata()).get(name)) is not there:  # noqa: ASYNC110
                    await anyio.sleep(POLL_S)
        except TimeoutError:
            what = "created but has no leader" if there else "deleted but is still there"
            raise TopicError(f"topic {name} was {what} after {VISIBLE_S:g} s") from None


def _usable(item: Mapping[str, Any] | None) -> bool:
    return item is not None and item["error_code"] == 0 and all(part["leader"] >= 0 for part in item["partitions"])


async def _open(config: KafkaConfig) -> Admin:
    client = Admin(**client_options(config))
    try:
        await client.start()
    except BaseException:
        await _close(client)
        raise
    return client


async def _close(client: Admin) -> None:
    with anyio.move_on_after(STOP_S, shield=True), suppress(ClientError, OSError):
        await client.close()
