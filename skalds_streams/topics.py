"""The topics: names, who partitions them, and the settings each must have. One module, so that nobody else spells a
name.

`KafkaTopic` in `proxy.kafka` is upstream's public spelling of the same names. Creating and checking them is in
`proxy.topic_setup`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TASK_ASSIGN = "task.assign"
TASK_CANCEL = "task.cancel"
TASK_UPDATE_ATTACHMENT = "task.update.attachment"
TASK_WORKER_UPDATE = "taskworker.update"
TASK_DEADLETTER = "task.deadletter"
TASK_STATE = "task.state"
SKALD_REPORT = "skald.report"
SKALD_HEARTBEAT = "skald.heartbeat"

RETENTION_MS = 7 * 24 * 3600 * 1000
"""Inputs, reports and history are kept equally long: the horizon of replay."""
HEARTBEAT_RETENTION_MS = 3600 * 1000

RECORD_BYTES = str(16 * 1024 * 1024)
"""A dead letter is a record as it came, and headers; a row holds parameters several times while they change, and its
history masked ones, which may be longer (`model.row_size`)."""
SEGMENT_BYTES = str(64 * 1024 * 1024)
"""Only closed segments are compacted, and a journal reads all that is there before it opens."""
STATE_SEGMENT_BYTES = str(16 * 1024 * 1024)
"""Smaller: what many runs save is soon replaced, and who looks for one state reads the whole partition at first."""

POSITIONS_KEY = b"\0positions"
"""Key of the changelog record that holds a partition's positions. No task id starts with NUL."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What one topic must be."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)
    replaceable: bool = False
    """Whether it may be deleted and made anew while no node runs: no task is rebuilt from it."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The topic names of one application, prefix included."""

    assign: str
    cancel: str
    update: str
    history: str
    deadletter: str
    report: str
    heartbeat: str
    changelog: str
    state: str
    partitions: int

    @classmethod
    def named(cls, *, app: str, prefix: str = "", partitions: int = 6) -> Topics:
        """All names. `prefix` is put before each, the changelog's included."""
        return cls(
            assign=prefix + TASK_ASSIGN,
            cancel=prefix + TASK_CANCEL,
            update=prefix + TASK_UPDATE_ATTACHMENT,
            history=prefix + TASK_WORKER_UPDATE,
            deadletter=prefix + TASK_DEADLETTER,
            report=prefix + SKALD_REPORT,
            heartbeat=prefix + SKALD_HEARTBEAT,
            changelog=f"{prefix}{app}-ownership-changelog",
            state=prefix + TASK_STATE,
            partitions=partitions,
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        """Topics that a coordinator consumes."""
        return (self.assign, self.cancel, self.update, self.report)

    def specs(self) -> tuple[TopicSpec, ...]:
        """Every topic with the settings it must have."""
        log_append = {"message.timestamp.type": "LogAppendTime", "retention.ms": str(RETENTION_MS)}
        kept = {"retention.ms": str(RETENTION_MS)}
        large = {"max.message.bytes": RECORD_BYTES}
        count = self.partitions
        return (
            TopicSpec(self.assign, count, log_append),
            TopicSpec(self.cancel, count, log_append),
            TopicSpec(self.update, count, log_append),
            TopicSpec(self.report, count, log_append),
            TopicSpec(self.history, count, {**kept, **large}, replaceable=True),
            TopicSpec(self.deadletter, count, {**kept, **large}, replaceable=True),
            TopicSpec(self.changelog, count, {"cleanup.policy": "compact", "segment.bytes": SEGMENT_BYTES, **large}),
            TopicSpec(
                self.state, count, {"cleanup.policy": "compact", "segment.bytes": STATE_SEGMENT_BYTES}, replaceable=True
            ),
            TopicSpec(self.heartbeat, 1, {**log_append, "retention.ms": str(HEARTBEAT_RETENTION_MS)}, replaceable=True),
        )
