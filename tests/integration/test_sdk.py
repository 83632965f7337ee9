"""What worker classes may count on in a real host: packages that offer them, metrics, programs that end with them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.test_hosts import (
    Events,
    begin,
    child_of,
    ended,
    lines,
    nothing_is_left,
    runs,
    started,
    stop,
    until,
)
from tests.unit.test_worker_registry import install

__all__ = ["nothing_is_left"]

MODULE = "tests.integration.sdk_workers"
pytestmark = [pytest.mark.integration, pytest.mark.anyio]


async def test_a_node_runs_a_class_that_an_installed_package_offers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "acme", "[skalds_streams.workers]\nonce = tests.integration.host_workers:Once\nbad = no_such\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with started("tests.unit") as pool:
        assert list(pool.catalogue.classes) == ["Once"]
        assert "No module named 'no_such'" in pool.catalogue.not_loadable["no_such (package acme)"]
        host, events = await begin(pool, "Once", tmp_path)
        assert await events.wait("finished") == {"op": "finished"}
        await ended(host)


async def test_metrics_of_a_worker_arrive(tmp_path: Path) -> None:
    async with started(MODULE) as pool:
        host, events = await begin(pool, "Measuring", tmp_path)
        await until(lambda: events.ops.count("metrics") and last(events) == {"started": 1.0, "value": 999.0}, "metrics")
        assert events.ops.count("metrics") < 100
        await stop(host)


async def test_a_spawned_program_runs_until_the_release_handler_is_over(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    async with started(MODULE) as pool:
        host, _ = await begin(pool, "Spawning", tmp_path, file=str(sign))
        pid = await child_of(sign)
        assert runs(pid), "the thread that started it is over"
        info = await stop(host)
        assert info.reason == "exit 0"
        assert lines(sign)[1:] == ["program runs"]
        assert not runs(pid)


async def test_a_spawned_program_dies_with_its_killed_worker(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    async with started(MODULE) as pool:
        host, _ = await begin(pool, "Spawning", tmp_path, file=str(sign))
        pid = await child_of(sign)
        assert os.getpgid(pid) == pid, "no kill of the worker's process group would reach it"
        os.kill(host.pid, signal.SIGKILL)
        await ended(host)
        await until(lambda: not runs(pid), "the program's end")


def last(events: Events) -> dict[str, float | None]:
    values: dict[str, float | None] = [frame for frame in events.seen if frame["op"] == "metrics"][-1]["values"]
    return values
