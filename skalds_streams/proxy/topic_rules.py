"""What a topic that is there may be like: its settings as found against its `TopicSpec`. Pure; asking and mending are
`topic_setup` and `topic_repair`.

Rules: a deviation that would make us lose or misread tasks must be mended before a node starts, any other is a
warning. More than what is wanted (a longer retention, larger records) is no deviation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from skalds_streams.topics import TopicSpec

INSYNC = "min.insync.replicas"
UNCLEAN = "unclean.leader.election.enable"
POLICY = "cleanup.policy"
SAFE_REPLICAS = 3
"""From so many replicas on, two of them must have a record before it is acknowledged."""


@dataclass(frozen=True, slots=True)
class Found:
    """A topic as the broker describes it.

    `replicas`, `in_sync`: the fewest of any partition; `config`: every setting; `own`: those that were set for this
    topic, the others are the broker's defaults.
    """

    partitions: int
    replicas: int
    in_sync: int
    config: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Deviation:
    """One setting that is not as it should be. `must`: a node refuses to start; `why`: what follows from it."""

    topic: str
    name: str
    found: str
    wanted: str
    why: str
    must: bool = False

    @property
    def sentence(self) -> str:
        """For people, with the command that mends it."""
        if self.must:
            return (
                f"topic {self.topic} has {self.name}={self.found}, it must be {self.wanted}: {self.why}."
                " Mend it with: skalds-streams topics fix"
            )
        return f"topic {self.topic} has {self.name}={self.found}, not {self.wanted}: {self.why}"


def deviations(spec: TopicSpec, found: Found) -> list[Deviation]:
    """Every setting that is not as it should be. Number of partitions and replicas are judged elsewhere."""
    return list(_deviations(spec, found))


def _deviations(spec: TopicSpec, found: Found) -> Iterator[Deviation]:
    def differs(name: str, wanted: str, why: str, *, must: bool = False) -> Deviation:
        return Deviation(spec.name, name, found.config.get(name, "unknown"), wanted, why, must)

    policy = spec.config.get(POLICY, "delete")
    if found.config.get(POLICY) != policy:
        why = "what must be kept would be deleted" if policy == "compact" else "records would vanish under later ones"
        yield differs(POLICY, policy, why, must=True)
    stamp = "message.timestamp.type"
    if stamp in spec.config and found.config.get(stamp) != spec.config[stamp]:
        yield differs(stamp, spec.config[stamp], "order between topics follows the publishers' clocks")
    for name, why in (
        ("retention.ms", "what is older can't be replayed"),
        ("max.message.bytes", "a large record is refused"),
    ):
        if name in spec.config and _amount(found, name) < int(spec.config[name]):
            yield differs(name, spec.config[name], why)
    name = "segment.bytes"
    if name in spec.config and _amount(found, name) > int(spec.config[name]):
        yield differs(name, spec.config[name], "more is read than needed when it is read from its beginning")
    if found.replicas >= SAFE_REPLICAS and _amount(found, INSYNC) < 2:
        yield differs(INSYNC, "2", "a record that was acknowledged may be on one broker only")
    if found.replicas > 1 and found.config.get(UNCLEAN) == "true":
        yield differs(UNCLEAN, "false", "records that were acknowledged may be lost with a broker")


def _amount(found: Found, name: str) -> float:
    """A number; -1 means without an end, and what can't be read counts as right."""
    try:
        amount = int(found.config[name])
    except (KeyError, ValueError):
        return float("nan")
    return float("inf") if amount < 0 else amount


def thin(found: Mapping[str, Found], wanted: int) -> list[str]:
    """The topics that have fewer replicas than wanted, by name."""
    return sorted(name for name, topic in found.items() if topic.replicas < wanted)


def said_of_thin(names: Sequence[str], wanted: int) -> str:
    """What a person must do about topics with too few replicas."""
    return (
        f"{', '.join(names)}: fewer than {wanted} replicas, so that a broker that is lost may take records along. Add"
        " replicas with kafka-reassign-partitions.sh, or set KAFKA_REPLICATION_FACTOR to what is wanted."
    )
