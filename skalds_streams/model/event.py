"""The events that anyone may publish: TaskEvent and UpdateTaskWorkerEvent, with upstream's fields, order and spellings.

Rules: a plain event dumps to upstream's bytes, so fields of ours leave no trace while they are None. snake_case
(`model_dump_json()`) and camelCase (`model_dump_json(by_alias=True)`) are both read, mixed even; unknown fields are
ignored. Limits on size and number are the codec's. Times are integer milliseconds since the epoch.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StrictStr,
    field_validator,
    model_serializer,
)

from skalds_streams.model.task import Task

Action = Literal["restart", "pause", "resume", "move"]

_BEYOND_UPSTREAM = frozenset({"tasks", "attachments", "action", "to", "reason", "merge"})


def now_ms() -> int:
    """The wall clock, integer milliseconds since the epoch: what new documents are stamped with."""
    return time.time_ns() // 1_000_000


class TaskEvent(BaseModel):
    """One event of task.assign, task.cancel or task.update.attachment. Only `task_ids` (`taskIds`) is required.

    `task_ids`: strings; anything else is refused with its index (upstream lets a number through, which then finds no
    task). `recipient` pins the tasks to that skald. Beyond upstream, left out of dumps while None: `tasks`, Task
    documents (dicts or `Task`) for assign; `attachments`, the new parameters for update, and `merge`, true when they
    are an RFC 7386 patch; `action` of an assign, and `to`, the skald that a move prefers this once, without pinning;
    `reason`, free text kept with the cause.
    Raises pydantic.ValidationError.
    """

    model_config = ConfigDict(populate_by_name=True)

    id: str | None = None
    title: str | None = None
    initiator: str | None = None
    recipient: str | None = None
    create_date_time: int = Field(default_factory=now_ms, alias="createDateTime")
    update_date_time: int = Field(default_factory=now_ms, alias="updateDateTime")
    task_ids: list[StrictStr] = Field(..., alias="taskIds")

    tasks: list[Any] | None = None
    attachments: Any = None
    action: Action | None = None
    to: str | None = None
    reason: str | None = None
    merge: bool | None = None

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, value: list[Any] | None) -> list[Any] | None:
        for at, item in enumerate(value or ()):
            if not isinstance(item, Task | dict):
                kind = type(item).__name__
                raise ValueError(f"tasks[{at}] must be a Task document, not {kind}")  # noqa: TRY004  # pydantic's rule
        return value

    @model_serializer(mode="wrap")
    def _as_upstream(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        doc: dict[str, Any] = handler(self)
        return {name: value for name, value in doc.items() if value is not None or name not in _BEYOND_UPSTREAM}


class UpdateTaskWorkerEvent(BaseModel):
    """New parameters of one task; its id is the record's key.

    `attachments`: None, an instance of the worker's parameter model, or (beyond upstream, whose own dumps can't be
    read back) a dict. `...`, the placeholder in upstream's documentation, counts as None. Dumped as upstream does:
    every field with its default filled in, by field name unless `by_alias=True`. Raises pydantic.ValidationError.
    """

    model_config = ConfigDict(populate_by_name=True)

    attachments: Any = None

    @field_validator("attachments", mode="before")
    @classmethod
    def _check_attachments(cls, value: Any) -> Any:
        if value is ...:
            return None
        if value is None or isinstance(value, BaseModel | dict):
            return value
        raise ValueError(f"attachments must be a Pydantic BaseModel instance or a dict, not {type(value).__name__}")
