"""The live stream: what a client is told, how often, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import orjson
import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestServer

from skalds_streams.web import stream
from tests.unit.test_web_world import Client, World, running, waiting

pytestmark = pytest.mark.anyio

Event = tuple[str, Any]


async def events_of(response: ClientResponse, comments: list[str] | None = None) -> AsyncIterator[Event]:
    """Each event as (name, document). Ends with the stream; waits at most 5 s for each line."""
    name = ""
    while True:
        line = (await asyncio.wait_for(response.content.readuntil(b"\n"), 5)).decode()
        if not line:
            return
        if line.startswith("event: "):
            name = line[7:].strip()
        elif line.startswith("data: "):
            yield name, orjson.loads(line[6:])
        elif line.startswith(":") and comments is not None:
            comments.append(line)


async def until(events: AsyncIterator[Event], wanted: str) -> Any:
    async for name, doc in events:
        if name == wanted:
            return doc
    raise AssertionError(f"the stream ended without {wanted}")


async def test_snapshot_then_changes() -> None:
    world = World()
    world.put(running("a"), waiting("b"))
    world.beat("s1", "i1", state="up")
    world.banners.append("mind the gap")
    async with world.client() as client, client.get("/api/events") as response:
        assert response.content_type == "text/event-stream"
        events = events_of(response)
        name, snapshot = await anext(events)
        assert (name, snapshot["skald_id"], snapshot["banners"]) == ("snapshot", "s1", ["mind the gap"])
        assert [task["task_id"] for task in snapshot["tasks"]] == ["a", "b"]
        assert [skald["skald_id"] for skald in snapshot["skalds"]] == ["s1"]

        world.put(running("a", revision=4, attachments={"fps": 31}))
        task = await until(events, "task")
        assert (task["task_id"], task["revision"], task["attachments_masked"]) == ("a", 4, {"fps": 31})

        world.drop("b")
        assert await until(events, "gone") == {"task_id": "b"}

        world.beat("s2", "i2", state="up")
        skalds = await until(events, "skalds")
        assert ([skald["skald_id"] for skald in skalds["items"]], skalds["total"]) == (["s1", "s2"], 2)

        world.banners.clear()
        world.put(running("c"))
        assert await until(events, "banners") == {"items": []}


async def test_the_load_changes_with_the_rows_and_waits_for_no_heartbeat() -> None:
    world = World()
    world.beat("s1", "i1", state="up")
    async with world.client() as client, client.get("/api/events") as response:
        events = events_of(response)
        _, snapshot = await anext(events)
        assert [skald["load"] for skald in snapshot["skalds"]] == [0]
        world.put(running("a"), running("b"))
        assert [skald["load"] for skald in (await until(events, "skalds"))["items"]] == [2]


async def test_a_burst_is_told_as_its_last_state() -> None:
    world = World()
    async with world.client() as client, client.get("/api/events") as response:
        events = events_of(response)
        await anext(events)
        for revision in range(500):
            world.put(running("a", revision=revision))
            if revision % 50 == 0:
                await asyncio.sleep(0.01)
        told: list[int] = []
        while not told or told[-1] != 499:
            told.append((await until(events, "task"))["revision"])
        assert len(told) <= 3


async def test_one_task_and_brief_documents() -> None:
    world = World()
    world.put(running("a"), running("b"))
    async with world.client() as client, client.get("/api/events?detail=brief&task=a") as response:
        events = events_of(response)
        _, snapshot = await anext(events)
        assert [(task["task_id"], task["parameters"]) for task in snapshot["tasks"]] == [("a", '{"fps":30}')]
        world.put(running("b", revision=4))
        await asyncio.sleep(0)
        world.put(running("a", revision=4))
        assert (await until(events, "task"))["task_id"] == "a"


async def test_snapshot_of_many_tasks_is_whole() -> None:
    world = World()
    world.put(*(waiting(f"t{number}") for number in range(3 * stream.CHUNK_ROWS + 1)))
    async with world.client() as client, client.get("/api/events?detail=brief") as response:
        _, snapshot = await anext(events_of_long(response))
    assert len(snapshot["tasks"]) == 3 * stream.CHUNK_ROWS + 1


async def events_of_long(response: ClientResponse) -> AsyncIterator[Event]:
    """As `events_of`, for lines of any length."""
    buffer = b""
    async for chunk in response.content.iter_any():
        buffer += chunk
        while b"\n\n" in buffer:
            block, _, buffer = buffer.partition(b"\n\n")
            if b"data: " in block:
                head, _, data = block.partition(b"\ndata: ")
                yield head.decode().removeprefix("event: "), orjson.loads(data)


async def test_quiet_streams_are_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "QUIET_S", 0.05)
    async with World().client() as client, client.get("/api/events") as response:
        comments: list[str] = []
        assert set(await until(events_of(response, comments), "still")) == {"now_ms"}
        assert comments == [": still here\n"]


async def test_too_many_clients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CLIENTS_MOST", 2)
    async with World().client() as client:
        first, second = await client.get("/api/events"), await client.get("/api/events")
        third = await client.get("/api/events")
        assert [first.status, second.status, third.status] == [200, 200, 503]
        assert set(await third.json()) == {"error"}
        assert third.headers["Retry-After"]
        first.close()
        second.close()


async def subscribers_gone(world: World) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            while world.view._subscribers:
                world.put(running("wake"))
                await asyncio.sleep(0.02)
    return not world.view._subscribers


async def test_a_client_that_leaves_is_forgotten() -> None:
    world = World()
    async with world.client() as client:
        response = await client.get("/api/events")
        await anext(events_of(response))
        assert len(world.view._subscribers) == 1
        response.close()
        assert await subscribers_gone(world)


async def test_a_client_that_takes_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WRITE_S", 0.2)
    world = World()
    world.put(*(waiting(f"t{number}", attachments={"x": "y" * 20_000}, attachments_version=1) for number in range(600)))
    server = TestServer(world.app())
    await server.start_server()
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(lazy, (str(server.host), int(server.port or 0)))
        await loop.sock_sendall(lazy, b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(10):
            while len(world.view._subscribers) != 1:  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.001)
        assert await subscribers_gone(world)
        tail = b""
        with suppress(ConnectionResetError):
            async with asyncio.timeout(3):
                while data := await loop.sock_recv(lazy, 65536):
                    tail = (tail + data)[-10:]
        assert not tail.endswith(b"0\r\n\r\n"), "a stream that was cut must not look as if it had ended"
        await server.close()


async def test_streams_end_at_shutdown() -> None:
    world = World()
    server = TestServer(world.app())
    client: Client
    from aiohttp.test_utils import TestClient

    async with TestClient(server) as client, client.get("/api/events") as response:
        events = events_of(response)
        await anext(events)
        async with asyncio.timeout(3):
            await server.close()
            assert [name async for name, _ in events] == []
