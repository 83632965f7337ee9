"""Creates the topics that are missing and checks those that are there, before anything subscribes.

A wrong setting is one clear error: the topic, what it is, what it must be, the command that mends it. CreateTime on an
existing input is a warning only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError, TopicAlreadyExistsError, for_code
from aiokafka.errors import KafkaError as ClientError

from skalds_streams.errors import KafkaError, TopicError, UnreachableError
from skalds_streams.proxy.partition_count import counts_of, said_at_start
from skalds_streams.topics import TopicSpec

VISIBLE_TIMEOUT_S = 15.0
MUST_HOLD = ("cleanup.policy",)
SHOULD_HOLD = ("message.timestamp.type",)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TopicReport:
    """What `ensure_topics` did. `warnings` are sentences for people."""

    created: Sequence[str] = ()
    warnings: Sequence[str] = field(default_factory=list)


async def ensure_topics(
    specs: Sequence[TopicSpec], client: Mapping[str, Any], *, replication_factor: int
) -> TopicReport:
    """Create and verify. Raises UnreachableError when no broker answers, TopicError for a topic that is not as it must
    be.

    replication_factor: wanted; never more than there are brokers. From 3 brokers on, min.insync.replicas is 2.
    """
    admin = AIOKafkaAdminClient(**client)
    try:
        await admin.start()
    except (KafkaConnectionError, KafkaTimeoutError, OSError) as error:
        with suppress(ClientError, OSError):
            await admin.close()
        raise UnreachableError(
            f"no Kafka broker answers at {client['bootstrap_servers']} (KAFKA_HOST, KAFKA_PORT): {error}"
        ) from None
    try:
        brokers = len((await admin.describe_cluster())["brokers"])
        created = await _create_missing(admin, specs, min(replication_factor, brokers))
        await _wait_visible(admin, specs)
        warnings = await _verify(admin, specs)
        return TopicReport(created, warnings)
    finally:
        await admin.close()


async def _create_missing(admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec], replicas: int) -> list[str]:
    there = set(await admin.list_topics())
    missing = [spec for spec in specs if spec.name not in there]
    if not missing:
        return []
    safe = {"min.insync.replicas": "2"} if replicas >= 3 else {}
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


async def _wait_visible(admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec]) -> None:
    """A topic that was just created is not in every broker's metadata at once; a consumer that subscribes too early
    never sees it.
    """
    names = [spec.name for spec in specs]
    try:
        async with asyncio.timeout(VISIBLE_TIMEOUT_S):
            while True:
                described = await admin.describe_topics(names)
                if all(
                    item["error_code"] == 0 and all(p["leader"] >= 0 for p in item["partitions"]) for item in described
                ):
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise KafkaError(f"the topics were created but have no leader after {VISIBLE_TIMEOUT_S:g} s") from None


async def _verify(admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec]) -> list[str]:
    by_name = {spec.name: spec for spec in specs}
    trouble = said_at_start(specs, counts_of(await admin.describe_topics(list(by_name))))
    if trouble is not None:
        raise TopicError(trouble)
    warnings: list[str] = []
    configs = await _configs(admin, list(by_name))
    for name, config in configs.items():
        spec = by_name[name]
        for key in MUST_HOLD:
            wanted = spec.config.get(key, "delete")
            if config.get(key) != wanted:
                raise TopicError(
                    f"topic {name} has {key}={config.get(key)}, it must be {wanted}. Mend it with:"
                    f" kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config {key}={wanted}"
                )
        for key in SHOULD_HOLD:
            wanted = spec.config.get(key, "")
            if wanted and config.get(key) != wanted:
                warnings.append(
                    f"topic {name} has {key}={config.get(key)}: order between topics follows the publishers' clocks"
                )
    return warnings


async def _configs(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs(resources):
        for resource in response.resources:
            name, entries = resource[3], resource[4]
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found
