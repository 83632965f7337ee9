"""The Python in the README is real: the worker runs, the client snippet builds the event it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from skalds_streams.core import events
from skalds_streams.model.codec import Limits, parse
from skalds_streams.model.record import Record
from skalds_streams.settings import Settings
from skalds_streams.topics import Topics
from skalds_streams.worker import BaseTaskWorker

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def block_with(text: str) -> str:
    found = [block for block in BLOCKS if text in block]
    assert len(found) == 1, text
    return found[0]


def test_the_worker_is_a_worker_with_checked_parameters() -> None:
    scope: dict[str, Any] = {"__name__": "readme_workers"}
    exec(block_with("class Cam(BaseTaskWorker"), scope)
    cam = scope["Cam"]
    assert issubclass(cam, BaseTaskWorker)
    assert cam.get_data_model() is scope["CamParams"]
    with pytest.raises(ValidationError):
        scope["CamParams"](fps=0)


def test_the_client_snippet_sends_an_assign_that_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, str, str]] = []

    class Receipt:
        def result(self, timeout: float) -> str:
            return f"within {timeout}"

    class Proxy:
        def __init__(self, config: Any) -> None:
            assert (config.host, config.port) == ("localhost", 9092)

        def produce(self, topic_name: str, key: str, value: str) -> Receipt:
            sent.append((topic_name, key, value))
            return Receipt()

    monkeypatch.setattr("skalds_streams.proxy.kafka.KafkaProxy", Proxy)
    exec(block_with("kafka_proxy.produce"), {"__name__": "readme_client"})
    topics = Topics.named(app="skalds")
    ((topic, key, value),) = sent
    (event,) = parse(Record(topic, 4, 0, key.encode(), value.encode(), 1), topics, Limits()).events
    assert isinstance(event, events.Assign)
    assert (event.spec.class_name, event.spec.recipient, event.spec.attachments) == ("Camera", "skald-1", {"fps": 10})


def test_every_setting_that_the_readme_names_exists() -> None:
    known = {f"SKALDS_{name.upper()}" for name in Settings.model_fields}
    for field in Settings.model_fields.values():
        known |= {str(choice) for choice in getattr(field.validation_alias, "choices", ())}
    named = set(re.findall(r"`((?:SKALDS?|KAFKA|REDIS)_[A-Z_]+)`", README))
    assert named
    assert named <= known
