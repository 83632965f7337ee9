"""The Task document against upstream's: spellings, order, defaults, what is refused."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from skalds_streams.model.task import DEADLINE_MS, ModeEnum, Task, TaskLifecycleStatus

DOCUMENT = (
    '{"id":"t1","className":"Cam","source":"YAML","name":null,"description":null,"executor":"skalds-1",'
    '"dependencies":null,"mode":"Active","isPersistent":true,"createDateTime":1,"updateDateTime":2,'
    '"deadlineDateTime":0,"lifecycleStatus":"Running","priority":3,"attachments":{"fixFrame":30}}'
)


class Camera(BaseModel):
    fix_frame: int = Field(30, alias="fixFrame")


def task(**fields: Any) -> Task:
    return Task.model_validate({"id": "t1", "class_name": "Cam", "source": "test", **fields})


def test_upstreams_document_is_read_and_comes_back_as_it_was():
    assert Task.model_validate_json(DOCUMENT).model_dump_json(by_alias=True) == DOCUMENT


def test_names_and_aliases_are_both_read():
    mixed = task(isPersistent=False, deadline_date_time=7, lifecycleStatus="Failed")
    assert (mixed.class_name, mixed.is_persistent, mixed.deadline_date_time) == ("Cam", False, 7)
    assert mixed.lifecycle_status == "Failed"


def test_defaults_are_upstreams():
    before = time.time_ns() // 1_000_000
    made = task()
    now = time.time_ns() // 1_000_000
    assert before <= made.create_date_time <= made.update_date_time <= now
    assert before + DEADLINE_MS <= made.deadline_date_time <= now + DEADLINE_MS
    doc = made.model_dump(exclude={"create_date_time", "update_date_time", "deadline_date_time"})
    assert doc == {
        "id": "t1",
        "class_name": "Cam",
        "source": "test",
        "name": None,
        "description": None,
        "executor": None,
        "dependencies": None,
        "mode": "Passive",
        "is_persistent": True,
        "lifecycle_status": "Created",
        "priority": 0,
        "attachments": None,
    }


def test_enum_values_are_held_as_strings():
    made = task(mode=ModeEnum.PASSIVE_PROCESS)
    assert (type(made.mode), type(made.lifecycle_status), type(task().mode)) == (str, str, str)


def test_the_spellings_of_states_and_modes():
    states = ["Created", "Assigning", "Running", "Paused", "Finished", "Failed", "Cancelled"]
    assert TaskLifecycleStatus.list() == states
    assert ModeEnum.list() == ["Active", "Passive", "PassiveProcess"]


def test_attachments_may_be_a_model_or_a_dict():
    assert task(attachments=Camera()).model_dump(by_alias=True)["attachments"] == {"fixFrame": 30}
    assert task(attachments={"any": 1}).attachments == {"any": 1}


def test_fields_of_ours_are_written_only_when_they_are_set():
    made = task(requires={"gpu": "yes"}, weight=4, maxRestarts=0)
    doc = json.loads(made.model_dump_json(by_alias=True))
    assert (doc["requires"], doc["weight"], doc["maxRestarts"]) == ({"gpu": "yes"}, 4, 0)
    assert not {"requires", "weight", "maxRestarts", "max_restarts"} & json.loads(task().model_dump_json()).keys()
    assert Task.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"priority": 11}, "priority"),
        ({"priority": -1}, "priority"),
        ({"lifecycleStatus": "running"}, "lifecycleStatus"),
        ({"mode": "passive"}, "mode"),
        ({"attachments": [1]}, "attachments"),
        ({"attachments": Camera}, "attachments"),
        ({"weight": 0}, "weight"),
        ({"max_restarts": -1}, "max_restarts"),
        ({"requires": {"gpu": 1}}, "requires"),
        ({"source": None}, "source"),
    ],
)
def test_wrong_values_are_refused_by_name(fields: dict[str, Any], place: str):
    with pytest.raises(ValidationError) as caught:
        task(**fields)
    assert caught.value.errors()[0]["loc"][0] == place


@pytest.mark.parametrize("missing", ["id", "className", "source"])
def test_required_fields(missing: str):
    doc = json.loads(DOCUMENT)
    del doc[missing]
    with pytest.raises(ValidationError, match=missing):
        Task.model_validate(doc)
