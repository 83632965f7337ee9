"""The Task document: what a task is and how it wants to be run. Fields, order, defaults and spellings are upstream's.

Rules: names and aliases are both read; enum values are kept as their strings; fields of ours leave no trace in a dump
while they are None. Times are integer milliseconds since the epoch. What happens to a task (holder, epoch, versions) is
in `core.row`, not here.
"""

from __future__ import annotations

import builtins
import time
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

DEADLINE_MS = 7 * 24 * 3600 * 1000
"""A Task made without a deadline gets now + 7 days, as upstream's."""

_BEYOND_UPSTREAM = frozenset({"requires", "weight", "max_restarts", "maxRestarts"})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class ModeEnum(str, Enum):  # noqa: UP042  # upstream's base: str() of a member is its name
    """How a task is meant to be run. Kept as upstream's; assignment does not depend on it here."""

    ACTIVE = "Active"
    PASSIVE = "Passive"
    PASSIVE_PROCESS = "PassiveProcess"

    @classmethod
    def list(cls) -> builtins.list[str]:
        """All values, in order of definition."""
        return [member.value for member in cls]


class TaskLifecycleStatus(str, Enum):  # noqa: UP042  # upstream's base: str() of a member is its name
    """Upstream's seven states, spelled exactly so on the wire."""

    CREATED = "Created"
    ASSIGNING = "Assigning"
    RUNNING = "Running"
    PAUSED = "Paused"
    FINISHED = "Finished"
    FAILED = "Failed"
    CANCELLED = "Cancelled"

    @classmethod
    def list(cls) -> builtins.list[str]:
        """All values, in order of definition."""
        return [member.value for member in cls]


class Task(BaseModel):
    """A Task document as upstream keeps it in MongoDB. `id`, `class_name` and `source` are required.

    `executor`: the skald it is pinned to, or None. `priority`: 0 (lowest) to 10. `attachments`: the parameters: None,
    an instance of the worker's model, or (beyond upstream) a dict. `mode` and `lifecycle_status` are held as strings.
    Beyond upstream: `requires`, labels that the skald must have; `weight`, units of a skald's capacity that it takes;
    `max_restarts`, tries after a crash before it is Failed. None: the class decides. Raises pydantic.ValidationError.
    """

    model_config = ConfigDict(populate_by_name=True, use_enum_values=True, validate_default=True)

    id: str
    class_name: str = Field(..., alias="className")
    source: str
    name: str | None = None
    description: str | None = None
    executor: str | None = None
    dependencies: list[str] | None = None
    mode: ModeEnum = ModeEnum.PASSIVE
    is_persistent: bool = Field(default=True, alias="isPersistent")
    create_date_time: int = Field(default_factory=_now_ms, alias="createDateTime")
    update_date_time: int = Field(default_factory=_now_ms, alias="updateDateTime")
    deadline_date_time: int = Field(default_factory=lambda: _now_ms() + DEADLINE_MS, alias="deadlineDateTime")
    lifecycle_status: TaskLifecycleStatus = Field(default=TaskLifecycleStatus.CREATED, alias="lifecycleStatus")
    priority: int = Field(default=0, ge=0, le=10)
    attachments: Any = None

    requires: dict[str, str] | None = None
    weight: int | None = Field(default=None, ge=1)
    max_restarts: int | None = Field(default=None, ge=0, alias="maxRestarts")

    @field_validator("attachments", mode="before")
    @classmethod
    def _check_attachments(cls, value: Any) -> Any:
        if value is None or isinstance(value, BaseModel | dict):
            return value
        raise ValueError(f"attachments must be a Pydantic BaseModel instance or a dict, not {type(value).__name__}")

    @model_serializer(mode="wrap")
    def _as_upstream(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        doc: dict[str, Any] = handler(self)
        return {name: value for name, value in doc.items() if value is not None or name not in _BEYOND_UPSTREAM}
