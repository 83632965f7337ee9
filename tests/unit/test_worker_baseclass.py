"""The decorators and the base class: what a user can write, and what is refused at once."""

from __future__ import annotations

from typing import Generic, TypeVar

import pytest
from pydantic import BaseModel

from skalds_streams.worker import (
    BaseTaskWorker,
    release_handler,
    run_after_handler,
    run_before_handler,
    run_main_handler,
    update_event_handler,
)


class Params(BaseModel):
    fps: int = 1


class Base(BaseTaskWorker[Params]):
    def initialize(self, data: Params) -> None:
        self.data = data

    @run_main_handler
    def run(self) -> str:
        return "base"


def main_of(worker: BaseTaskWorker[Params]) -> object:
    handler = worker._handler("run_main_handler")
    return handler() if handler else None


def test_every_decorator_names_its_method() -> None:
    class Full(Base):
        @run_before_handler
        def a(self) -> None: ...

        @run_after_handler
        def b(self) -> None: ...

        @release_handler
        def c(self) -> None: ...

        @update_event_handler
        def d(self, data: Params) -> None: ...

    assert Full._handlers == {
        "run_main_handler": "run",
        "run_before_handler": "a",
        "run_after_handler": "b",
        "release_handler": "c",
        "update_event_handler": "d",
    }


def test_two_methods_with_one_decorator_are_refused_at_the_class() -> None:
    with pytest.raises(TypeError, match=r"Twice has more than one @run_main_handler: first, second"):

        class Twice(Base):
            @run_main_handler
            def second(self) -> None: ...

            @run_main_handler
            def first(self) -> None: ...


def test_two_bases_that_disagree_are_refused_unless_the_class_decides() -> None:
    class Other(BaseTaskWorker[Params]):
        @run_main_handler
        def other(self) -> str:
            return "other"

    with pytest.raises(TypeError, match="more than one @run_main_handler"):

        class Mixed(Base, Other): ...

    class Decided(Base, Other):
        @run_main_handler
        def mine(self) -> str:
            return "mine"

    assert main_of(Decided()) == "mine"


def test_a_subclass_overrides_with_and_without_the_decorator() -> None:
    class Renamed(Base):
        @run_main_handler
        def other_name(self) -> str:
            return "renamed"

    class Plain(Base):
        def run(self) -> str:
            return "plain"

    assert [main_of(Base()), main_of(Renamed()), main_of(Plain())] == ["base", "renamed", "plain"]


def test_a_decorator_on_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match=r"@run_main_handler goes on a method, directly above its `def`"):
        run_main_handler(property(lambda self: None))  # type: ignore[type-var]


def test_the_model_is_found_through_generic_bases() -> None:
    T = TypeVar("T", bound=BaseModel)

    class Shared(BaseTaskWorker[T], Generic[T]):
        def initialize(self, data: T) -> None: ...

    class Concrete(Shared[Params]): ...

    assert Base.get_data_model() is Params
    assert Concrete.get_data_model() is Params


def test_a_class_without_a_model_says_what_to_write() -> None:
    class Bare(BaseTaskWorker):  # type: ignore[type-arg]
        def initialize(self, data: BaseModel) -> None: ...

    with pytest.raises(TypeError, match=r"class Bare\(BaseTaskWorker\[YourPydanticModel\]\)"):
        Bare.get_data_model()


def test_a_worker_knows_its_task_inside_its_own_init_even_without_super() -> None:
    class Own(Base):
        def __init__(self) -> None:
            self.seen = (self.task_id, self.epoch, self.task_type, self.is_done)

    assert Own._create("t1", epoch=7).seen == ("t1", 7, "Own", False)
    assert Own().task_id.startswith("MOCK_TASK_")
    assert Own._create("t1", epoch=7).logger.extra == {"task_id": "t1", "epoch": 7}
