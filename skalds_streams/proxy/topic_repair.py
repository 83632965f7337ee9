"""Mends what can be mended in the topics without loss: creates missing ones, sets settings right.

Rules: a plan is made first and shown to whoever asked, carrying it out changes nothing else; a setting that is not
ours is kept as it is; partitions are never added, nothing is deleted, no retention is shortened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import for_code

from skalds_streams.errors import TopicError
from skalds_streams.proxy.admin import Admin
from skalds_streams.proxy.partition_count import remedy, said_at_start, wrong_counts
from skalds_streams.proxy.topic_rules import INSYNC, Deviation, Found, deviations, said_of_thin, thin
from skalds_streams.proxy.topic_setup import create_topics, describe, replicas_for, wait_visible
from skalds_streams.topics import TopicSpec

Done = Callable[[str], object]
"""Called with a topic's name once it is as it must be."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What is to be done. `left`: (topic, what a person must do), for what is not mended here."""

    missing: Sequence[TopicSpec] = ()
    changes: Mapping[str, Sequence[Deviation]] = field(default_factory=dict)
    left: Sequence[tuple[str, str]] = ()
    replicas: int = 1
    own: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Settings of the topics that are changed, as they were set before."""

    @property
    def topics(self) -> int:
        """How many are created or changed."""
        return len(self.missing) + len(self.changes)


async def plan_repair(admin: Admin, specs: Sequence[TopicSpec], replication_factor: int) -> Repair:
    """Look, and change nothing."""
    replicas = await replicas_for(admin, replication_factor)
    found = await describe(admin, specs)
    return plan(specs, found, replicas)


def plan(specs: Sequence[TopicSpec], found: Mapping[str, Found], replicas: int) -> Repair:
    """found: the topics that are there, by name; replicas: how many each should have."""
    left: list[tuple[str, str]] = []
    counts = {name: topic.partitions for name, topic in found.items()}
    wrong = wrong_counts(specs, counts)
    if wrong:
        left.append((wrong[0].name, said_at_start(specs, counts) or remedy(wrong[0])))
        left += [(spec.name, _counted(spec, counts[spec.name])) for spec in wrong[1:]]
    changes: dict[str, list[Deviation]] = {}
    for spec in specs:
        topic = found.get(spec.name)
        for item in deviations(spec, topic) if topic is not None else ():
            if item.name == INSYNC and topic is not None and topic.in_sync < int(item.wanted):
                left.append((spec.name, _would_stop(item)))
            else:
                changes.setdefault(spec.name, []).append(item)
    few = thin(found, replicas)
    if few:
        left.append((few[0], said_of_thin(few, replicas)))
    missing = [spec for spec in specs if spec.name not in found]
    if wrong:  # a new one would have a number that the others have not
        left += [(spec.name, f"topic {spec.name} is missing: made when the others are right.") for spec in missing]
        missing = []
    return Repair(missing, changes, left, replicas, {name: dict(found[name].own) for name in changes})


async def carry_out(admin: Admin, repair: Repair, done: Done) -> None:
    """Create and change, topic by topic. Raises TopicError for the first that the broker refuses."""
    for spec in repair.missing:
        await create_topics(admin, [spec], repair.replicas)
        done(spec.name)
    await wait_visible(admin, repair.missing)
    for name, items in repair.changes.items():
        # Kafka takes the whole list of a topic's own settings: what is not in it falls back to the broker's default.
        settings = {**repair.own[name], **{item.name: item.wanted for item in items}}
        responses = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, settings)])
        for response in responses:
            for code, message, *_ in response.resources:
                if code:
                    raise TopicError(f"topic {name} could not be changed: {for_code(code).__name__} {message or ''}")
        done(name)


def _counted(spec: TopicSpec, has: int) -> str:
    return f"topic {spec.name} has {has} partitions, it must have {spec.partitions}."


def _would_stop(item: Deviation) -> str:
    return (
        f"{item.sentence}. It is not set now, as too few replicas are in sync and every write would stop:"
        " run this again when all brokers are back."
    )
