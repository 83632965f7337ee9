"""What may be saved, and what a worker is told of what may not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, Field

from skalds_streams.worker import BaseTaskWorker, run_main_handler
from skalds_streams.worker.saving import STATE_MAX_BYTES, decode_state, encode_state


class Progress(BaseModel):
    frame: int = Field(0, alias="frameNumber")
    seen: set[str] = set()


class Params(BaseModel):
    pass


class Worker(BaseTaskWorker[Params]):
    def initialize(self, data: Params) -> None:
        """Nothing."""

    @run_main_handler
    async def main(self) -> None:
        await self.save({"from": "async"})


def test_a_model_comes_back_through_its_own_validation() -> None:
    text = encode_state(Progress(frameNumber=7, seen={"a"}))
    assert Progress.model_validate(decode_state(text)) == Progress(frameNumber=7, seen={"a"})


def test_a_state_is_a_snapshot() -> None:
    worker, state = Worker(), {"n": 1}
    worker.save(state)
    state["n"] = 2
    assert worker._saved == '{"n":1}'


def test_save_is_for_sync_and_async_methods() -> None:
    worker = Worker()
    asyncio.run(worker.main())
    assert worker._saved == '{"from":"async"}'


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ([1], TypeError, "a dict or a pydantic model that dumps to one, not list"),
        (None, TypeError, "not NoneType"),
        ({"at": object()}, TypeError, "can't be written as JSON: Object of type object"),
        ({"x": float("nan")}, TypeError, "can't be written as JSON"),
        ({1: "a"}, TypeError, r"state has the key 1"),
        ({"a": [{"b": {2: 0}}]}, TypeError, r"state\['a'\]\[0\]\['b'\] has the key 2"),
        ({"a": "\ud800"}, ValueError, "not Unicode"),
        ({"a": "x" * STATE_MAX_BYTES}, ValueError, rf"has {STATE_MAX_BYTES + 8} bytes as JSON, the limit is 65536"),
        ({"a": "é" * (STATE_MAX_BYTES // 2)}, ValueError, "the limit is 65536"),
    ],
)
def test_what_can_not_be_kept_is_said_in_words(state: Any, error: type[Exception], words: str) -> None:
    worker = Worker()
    with pytest.raises(error, match=words):
        worker.save(state)
    assert worker._saved is None


def test_the_largest_state_is_taken() -> None:
    assert len(encode_state({"a": "x" * (STATE_MAX_BYTES - 8)})) == STATE_MAX_BYTES


def test_a_class_may_have_a_property_of_that_name() -> None:
    class Own(Worker):
        @property
        def state(self) -> dict[str, Any]:  # type: ignore[override]  # what a class written before `state` may do
            return {"own": True}

    assert Own._create("t", epoch=1, state={"n": 1}).state == {"own": True}
    assert Worker._create("t", epoch=1, state={"n": 1}).state == {"n": 1}
