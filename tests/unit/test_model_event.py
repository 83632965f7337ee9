"""TaskEvent and UpdateTaskWorkerEvent against what upstream 0.3.8 puts on the wire, byte for byte."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skalds_streams.model.event import TaskEvent, UpdateTaskWorkerEvent
from skalds_streams.model.task import Task

FROM_CONTROLLER = (
    '{"id":"task_123","title":null,"initiator":null,"recipient":null,'
    '"createDateTime":1795528034781,"updateDateTime":1795528034781,"taskIds":["task_123"]}'
)
FROM_SNIPPET = (
    '{"id":null,"title":null,"initiator":"system_controller","recipient":"skalds-1",'
    '"create_date_time":1795528037269,"update_date_time":1795528037269,"task_ids":["task_123"]}'
)
FROM_SKALD = '{"attachments":{"fix_frame":77,"fail_in":"","run_s":1000000.0}}'


class Camera(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    fix_frame: int = Field(30, alias="fixFrame")
    fail_in: str = Field("", alias="failIn")
    run_s: float = Field(1e6, alias="runS")


def test_a_plain_event_dumps_to_the_controllers_bytes():
    event = TaskEvent(id="task_123", createDateTime=1795528034781, updateDateTime=1795528034781, taskIds=["task_123"])
    assert event.model_dump_json(by_alias=True) == FROM_CONTROLLER


def test_a_plain_event_dumps_to_the_snippets_bytes():
    event = TaskEvent.model_validate(
        {
            "task_ids": ["task_123"],
            "initiator": "system_controller",
            "recipient": "skalds-1",
            "create_date_time": 1795528037269,
            "update_date_time": 1795528037269,
        }
    )
    assert event.model_dump_json() == FROM_SNIPPET


@pytest.mark.parametrize(("wire", "by_alias"), [(FROM_CONTROLLER, True), (FROM_SNIPPET, False)])
def test_both_spellings_are_read_and_come_back_as_they_were(wire: str, by_alias: bool):
    assert TaskEvent.model_validate_json(wire).model_dump_json(by_alias=by_alias) == wire


def test_spellings_may_mix_and_unknown_fields_are_ignored():
    event = TaskEvent.model_validate_json('{"taskIds":["a","b"],"create_date_time":1,"updateDateTime":2,"x":0}')
    assert (event.task_ids, event.create_date_time, event.update_date_time) == (["a", "b"], 1, 2)
    assert not hasattr(event, "x")


def test_times_default_to_now_in_milliseconds():
    before = time.time_ns() // 1_000_000
    event = TaskEvent(taskIds=["a"])
    assert before <= event.create_date_time <= event.update_date_time <= time.time_ns() // 1_000_000


@pytest.mark.parametrize(
    ("ids", "place"),
    [
        ([1, 2], ("taskIds", 0)),
        (["a", None], ("taskIds", 1)),
        (["a", b"c"], ("taskIds", 1)),
        ("abc", ("taskIds",)),
    ],
)
def test_what_is_no_list_of_strings_is_refused_with_its_place(ids: Any, place: tuple[object, ...]):
    with pytest.raises(ValidationError) as caught:
        TaskEvent(taskIds=ids)
    assert caught.value.errors()[0]["loc"] == place


def test_task_ids_are_required():
    with pytest.raises(ValidationError, match="taskIds"):
        TaskEvent.model_validate_json('{"id":"a"}')


def test_fields_of_ours_are_written_when_they_are_set():
    event = TaskEvent(
        taskIds=["a"], attachments={"fixFrame": 3}, action="move", to="b", reason="disk full", merge=False
    )
    doc = json.loads(event.model_dump_json(by_alias=True))
    assert list(doc)[:7] == list(json.loads(FROM_CONTROLLER))
    assert {name: doc[name] for name in list(doc)[7:]} == {
        "attachments": {"fixFrame": 3},
        "action": "move",
        "to": "b",
        "reason": "disk full",
        "merge": False,
    }


def test_tasks_may_be_documents_or_dicts_and_are_read_back_as_dicts():
    task = Task(id="a", className="Cam", source="test", attachments=Camera())
    event = TaskEvent(taskIds=["a", "b"], tasks=[task, {"id": "b", "className": "Cam", "source": "test"}])
    again = TaskEvent.model_validate_json(event.model_dump_json(by_alias=True))
    assert again.tasks is not None
    assert [Task.model_validate(item).class_name for item in again.tasks] == ["Cam", "Cam"]
    assert again.tasks[0]["attachments"] == {"fixFrame": 30, "failIn": "", "runS": 1e6}


@pytest.mark.parametrize(
    "fields", [{"action": "explode"}, {"tasks": {"id": "a"}}, {"merge": "perhaps"}, {"createDateTime": "soon"}]
)
def test_fields_with_wrong_values_are_refused_by_name(fields: dict[str, Any]):
    with pytest.raises(ValidationError) as caught:
        TaskEvent.model_validate({"taskIds": ["a"], **fields})
    assert caught.value.errors()[0]["loc"] == tuple(fields)


def test_a_task_that_is_no_document_is_refused_with_its_index():
    with pytest.raises(ValidationError, match=r"tasks\[1\] must be a Task document, not int"):
        TaskEvent(taskIds=["a"], tasks=[{"id": "a"}, 3])


def test_an_update_dumps_to_the_skalds_bytes():
    assert UpdateTaskWorkerEvent(attachments=Camera(fixFrame=77)).model_dump_json() == FROM_SKALD


def test_an_update_dumps_by_alias_on_request():
    event = UpdateTaskWorkerEvent(attachments=Camera(fixFrame=77))
    assert event.model_dump_json(by_alias=True) == '{"attachments":{"fixFrame":77,"failIn":"","runS":1000000.0}}'


def test_an_update_can_be_read_back():
    event = UpdateTaskWorkerEvent.model_validate_json(FROM_SKALD)
    assert Camera.model_validate(event.attachments) == Camera(fixFrame=77)
    assert event.model_dump_json() == FROM_SKALD


@pytest.mark.parametrize("placeholder", [None, ...])
def test_an_update_without_attachments_is_null(placeholder: Any):
    assert UpdateTaskWorkerEvent(attachments=placeholder).model_dump_json() == '{"attachments":null}'


@pytest.mark.parametrize("value", ["text", 3, [1], Camera])
def test_an_update_takes_only_models_and_dicts(value: Any):
    with pytest.raises(ValidationError, match="attachments must be a Pydantic BaseModel instance or a dict"):
        UpdateTaskWorkerEvent(attachments=value)
