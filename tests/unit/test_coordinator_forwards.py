"""Commands for tasks of other partitions are written in their order, whatever fails in between."""

from __future__ import annotations

from typing import Any

from skalds_streams.coordinator.batch import in_waves


def forward(task_id: str, offset: int) -> tuple[str, dict[str, Any]]:
    return task_id, {"cause": {"offset": offset}}


def test_no_task_is_twice_in_a_wave_and_order_is_kept() -> None:
    forwards = [forward("a", 1), forward("b", 1), forward("a", 2), forward("c", 3), forward("a", 4)]
    assert in_waves(forwards) == [
        [forward("a", 1), forward("b", 1), forward("c", 3)],
        [forward("a", 2)],
        [forward("a", 4)],
    ]


def test_nothing_to_forward_is_no_wave() -> None:
    assert in_waves([]) == []
