"""Creates the topics that are missing and checks those that are there, before anything subscribes.

A wrong setting is one clear error: the topic, what it is, what it must be, the command that mends it. What is not
wrong but worse than it could be is a warning (`topic_rules`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError as ClientError
from aiokafka.errors import KafkaTimeoutError, TopicAlreadyExistsError, for_code
from aiokafka.protocol.metadata import MetadataRequest

from skalds_streams.errors import TopicError, UnreachableError
from skalds_streams.proxy.admin import DEAD, Admin
from skalds_streams.proxy.partition_count import said_at_start
from skalds_streams.proxy.topic_rules import INSYNC, SAFE_REPLICAS, Found, deviations, said_of_thin, thin
from skalds_streams.topics import TopicSpec

VISIBLE_TIMEOUT_S = 15.0
TOPIC_SETTING = 1
"""Kafka's number for a setting that was made for the topic itself."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TopicReport:
    """What `ensure_topics` did. `warnings` are sentences for people."""

    created: Sequence[str] = ()
    warnings: Sequence[str] = field(default_factory=list)


@asynccontextmanager
async def open_admin(client: Mapping[str, Any]) -> AsyncIterator[Admin]:
    """A started admin client, closed at the end. Raises UnreachableError when no broker answers, now or later."""
    admin = Admin(**client)
    try:
        await admin.start()
        yield admin
    except (*DEAD, KafkaTimeoutError, OSError) as error:
        raise UnreachableError(
            f"no Kafka broker answers at {client['bootstrap_servers']} (KAFKA_HOST, KAFKA_PORT): {error}"
        ) from None
    finally:
        with suppress(ClientError, OSError):
            await admin.close()


async def ensure_topics(
    specs: Sequence[TopicSpec], client: Mapping[str, Any], *, replication_factor: int
) -> TopicReport:
    """Create and verify. Raises UnreachableError when no broker answers, or too few are up, TopicError for a topic that
    is not as it must be.

    replication_factor: wanted; never more than there are brokers. From 3 brokers on, min.insync.replicas is 2.
    """
    async with open_admin(client) as admin:
        replicas = await replicas_for(admin, replication_factor)
        there = set(await admin.list_topics())
        missing = [spec for spec in specs if spec.name not in there]
        created = await create_topics(admin, missing, replicas) if missing else []
        await wait_visible(admin, specs)
        return TopicReport(created, verify(specs, await describe(admin, specs), replicas))


async def replicas_for(admin: Admin, replication_factor: int) -> int:
    """How many replicas a topic gets: never more than there are brokers."""
    return min(replication_factor, len((await admin.describe_cluster())["brokers"]))


async def create_topics(admin: Admin, missing: Sequence[TopicSpec], replicas: int) -> list[str]:
    """Returns their names. Raises TopicError."""
    safe = {INSYNC: "2"} if replicas >= SAFE_REPLICAS else {}
    new = [NewTopic(spec.name, spec.partitions, replicas, topic_configs={**spec.config, **safe}) for spec in missing]
    response = await admin.create_topics(new, timeout_ms=10_000)
    for topic, code, *message in response.topic_errors:
        if code not in (0, TopicAlreadyExistsError.errno):
            raise TopicError(
                f"topic {topic} could not be created: {for_code(code).__name__} {message[0] if message else ''}".strip()
            )
    created = [spec.name for spec in missing]
    log.info("topics.created", topics=created)
    return created


async def wait_visible(admin: Admin, specs: Sequence[TopicSpec]) -> None:
    """A topic that was just created is not in every broker's metadata at once; a consumer that subscribes too early
    never sees it, and a broker that does not know it yet can't describe it. One that is there has no leader while its
    brokers start. Raises UnreachableError.
    """
    names = [spec.name for spec in specs]
    try:
        async with asyncio.timeout(VISIBLE_TIMEOUT_S):
            while names and not await _seen_by_all(admin, names):  # noqa: ASYNC110  # it is the brokers that are polled
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise UnreachableError(
            f"topics have no leader after {VISIBLE_TIMEOUT_S:g} s: brokers that have them are not up"
        ) from None


async def _seen_by_all(admin: Admin, names: Sequence[str]) -> bool:
    """Whether each broker knows a leader for every partition. One that does not answer is not waited for."""
    brokers = (await admin.describe_cluster())["brokers"]
    asked = (admin._client.send(broker["node_id"], MetadataRequest(list(names))) for broker in brokers)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    described = [answer.to_object()["topics"] for answer in answers if not isinstance(answer, BaseException)]
    return bool(described) and all(
        item["error_code"] == 0 and all(partition["leader"] >= 0 for partition in item["partitions"])
        for topics in described
        for item in topics
    )


def verify(specs: Sequence[TopicSpec], found: Mapping[str, Found], replicas: int) -> list[str]:
    """Returns warnings. Raises TopicError for the first topic that is not as it must be."""
    trouble = said_at_start(specs, {name: topic.partitions for name, topic in found.items()})
    if trouble is not None:
        raise TopicError(trouble)
    items = [item for spec in specs if spec.name in found for item in deviations(spec, found[spec.name])]
    for item in items:
        if item.must:
            raise TopicError(item.sentence)
    warnings = [f"{item.sentence} (`skalds-streams topics fix` mends it)" for item in items]
    few = thin(found, replicas)
    return [*warnings, said_of_thin(few, replicas)] if few else warnings


async def describe(admin: Admin, specs: Sequence[TopicSpec]) -> dict[str, Found]:
    """Those of the topics that are there. Creates nothing."""
    there = set(await admin.list_topics())
    names = [spec.name for spec in specs if spec.name in there]
    if not names:
        return {}
    settings = await _settings(admin, names)
    found: dict[str, Found] = {}
    for item in await admin.describe_topics(names):
        config, own = settings[item["topic"]]
        replicas = min((len(part["replicas"]) for part in item["partitions"]), default=0)
        in_sync = min((len(part["isr"]) for part in item["partitions"]), default=0)
        found[item["topic"]] = Found(len(item["partitions"]), replicas, in_sync, config, own)
    return found


async def _settings(admin: Admin, names: Sequence[str]) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Topic → (every setting, those that were made for the topic itself)."""
    found: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
    for response in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names]):
        for code, message, _, name, entries in response.resources:
            if code:
                raise TopicError(f"topic {name} could not be looked at: {for_code(code).__name__} {message or ''}")
            config = {entry[0]: entry[1] for entry in entries}
            found[name] = config, {entry[0]: entry[1] for entry in entries if entry[3] == TOPIC_SETTING}
    return found
