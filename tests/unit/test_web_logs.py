"""Logs over the web: lines, where to ask instead, what is followed, and the command's side of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from click.testing import CliRunner

from skalds_streams.cli import logs as cli_module
from skalds_streams.cli import main
from skalds_streams.cli.logs import EventReader, ServerEvent, Source, _follow
from skalds_streams.cli.options import Options
from skalds_streams.core.row import Holder, Status, Wanted
from skalds_streams.errors import SkaldsError
from skalds_streams.skald.ring import LogFiles
from skalds_streams.web import logs as logs_module
from tests.unit.test_web_world import World, running, waiting

pytestmark = pytest.mark.anyio

PREFIX = "2026-11-25T15:40:01.123Z t@1 "
PATIENCE_S = 20.0
FREE = {"holder": None, "last_skald": None, "status": Status.ASSIGNING}


def world_of(tmp_path: Path, max_bytes: int = 100_000, **settings: Any) -> World:
    """Skald s1 with the log of t, which runs there."""
    world = World(**settings)
    world.beat("s1", "i1", state="up", host="here", web="http://127.0.0.1:1")
    world.log_files = LogFiles(tmp_path / "logs", max_bytes=max_bytes, most=10)
    world.put(running("t"))
    return world


def say(world: World, *texts: str, task_id: str = "t") -> None:
    assert world.log_files is not None
    world.log_files.ring(task_id).append("".join(f"{PREFIX}{text}\n" for text in texts).encode())


async def test_the_last_lines_as_json_and_as_text(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    async with world.client() as client:
        answer = await client.get("/api/tasks/t/logs")
        assert await answer.json() == {"task_id": "t", "skald_id": "s1", "lines": []}
        say(world, "one", "two", "drei ü <b>")
        answer = await client.get("/api/tasks/t/logs?lines=2")
        assert (await answer.json())["lines"] == [f"{PREFIX}two", f"{PREFIX}drei ü <b>"]
        answer = await client.get("/api/tasks/t/logs?lines=1", headers={"Accept": "text/plain"})
        assert (answer.content_type, await answer.text()) == ("text/plain", f"{PREFIX}drei ü <b>\n")
        for headers in ({"Accept": "*/*"}, {"Accept": "application/json, text/plain, */*"}):
            answer = await client.get("/api/tasks/t/logs", headers=headers)
            assert answer.content_type == "application/json"
        assert (await client.get("/api/tasks/t/logs?lines=x")).status == 400
        assert (await client.get("/api/tasks/nobody/logs")).status == 404
        assert "drei ü &lt;b&gt;" in await (await client.get("/tasks/t")).text()


async def test_ids_with_slashes_have_logs(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    world.put(running("a/b"), running("a/logs"))
    say(world, "hello", task_id="a/b")
    async with world.client() as client:
        for path in ("/api/tasks/a/b/logs", "/api/tasks/a%2Fb/logs"):
            answer = await client.get(path)
            assert (await answer.json())["lines"] == [f"{PREFIX}hello"]


@pytest.mark.parametrize(
    ("beat", "row", "status", "words"),
    [
        ({"web": "http://s2:6066/"}, {}, 307, ""),
        ({"web": "http://127.0.0.1:6067", "host": "here"}, {}, 307, ""),
        ({"web": "http://127.0.0.1:6067", "host": "there"}, {}, 409, "answers on its own machine only"),
        ({"web": "http://0.0.0.0:6067", "host": "there"}, {}, 409, "answers on its own machine only"),
        ({"web": "javascript:alert(1)"}, {}, 409, "tells no web address"),
        ({"state": "leaving"}, {}, 410, "s2, which is gone"),
        ({"web": "http://s2:6066"}, {"holder": None, "last_skald": "s2", "status": Status.FINISHED}, 307, ""),
        (
            {"web": "http://s2:6066"},
            {"holder": None, "last_skald": None, "moved_from": "s2", "status": Status.ASSIGNING},
            307,
            "",
        ),
        ({}, FREE, 404, "has not run yet"),
    ],
)
async def test_another_node_has_it(
    beat: dict[str, Any], row: dict[str, Any], status: int, words: str, tmp_path: Path
) -> None:
    world = world_of(tmp_path)
    world.beat("s2", "i2", **{"state": "up", **beat})
    world.put(running("a b/c", **{"holder": Holder("s2", "i2", 1), "last_skald": "s2", **row}))
    async with world.client() as client:
        path = "/api/tasks/a%20b%2Fc/logs"
        answer = await client.get(f"{path}?lines=3&follow=0&x=y", allow_redirects=False)
        assert answer.status == status
        if status == 307:
            base = beat["web"].rstrip("/")
            assert answer.headers["Location"] == f"{base}{path}?lines=3&follow=0&from=s1"
        else:
            assert words in (await answer.json())["error"]
        page = await (await client.get("/tasks/a%20b%2Fc")).text()
        assert ("/tasks/a%20b%2Fc#log" in page) == (status == 307)
        assert words.replace("'", "&#39;") in page


async def test_who_was_sent_here_is_sent_no_further(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    world.beat("s2", "i2", state="up", web="http://s2:6066")
    world.put(running("t", holder=Holder("s2", "i2", 1)))
    async with world.client() as client:
        assert (await client.get("/api/tasks/t/logs?from=s2", allow_redirects=False)).status == 404
        say(world, "an older run")
        answer = await client.get("/api/tasks/t/logs?from=s2")
        assert (await answer.json())["lines"] == [f"{PREFIX}an older run"]


async def test_a_node_without_workers_has_no_logs(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    world.log_files = None
    async with world.client() as client:
        assert (await client.get("/api/tasks/t/logs")).status == 404
        assert (await client.get("/tasks/t")).status == 200


# -- live


class Stream:
    """A follower's events."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer, self._reader = answer, EventReader()
        self.events: list[ServerEvent] = []

    @property
    def lines(self) -> list[str]:
        found = [line for event in self.events if event.name == "lines" for line in event.doc["lines"]]
        return [line.removeprefix(PREFIX) for line in found]

    async def until(self, what: str) -> None:
        """Read on until this line, or the event of this name."""
        async with asyncio.timeout(PATIENCE_S):
            while what not in self.lines and what not in [event.name for event in self.events]:
                self.events += self._reader.feed(await self._answer.content.readany())

    async def end(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self._answer.content.read()


@asynccontextmanager
async def followed(client: Any, lines: int = 10, **headers: str) -> AsyncIterator[Stream]:
    path = f"/api/tasks/t/logs?follow=1&lines={lines}"
    async with client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()}) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        yield Stream(answer)


async def test_a_log_is_followed_and_come_back_to(tmp_path: Path) -> None:
    world = world_of(tmp_path, max_bytes=2_000)
    async with world.client() as client:
        async with followed(client, lines=1) as stream:
            say(world, "one", "two")
            await stream.until("two")
            for number in range(100):
                say(world, f"line {number}")
                if number % 10 == 9:
                    await stream.until(f"line {number}")
            assert stream.lines[-101:] == ["two", *(f"line {number}" for number in range(100))]
            place = stream.events[-1].id
        say(world, "meanwhile")
        async with followed(client, Last_Event_ID=place) as stream:
            await stream.until("meanwhile")
            assert stream.lines == ["meanwhile"]
        async with followed(client, lines=2, Last_Event_ID="1/of-another-node/5") as stream:
            await stream.until("meanwhile")
            assert ([event.name for event in stream.events], stream.lines) == (
                ["missed", "lines"],
                ["line 99", "meanwhile"],
            )
        async with followed(client, lines=1, Last_Event_ID="nonsense") as stream:
            await stream.until("meanwhile")
            assert stream.lines == ["meanwhile"]


async def test_a_long_tail_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "EVENT_LINES", 3)
    world = world_of(tmp_path)
    say(world, *map(str, range(8)))
    async with world.client() as client, followed(client) as stream:
        await stream.until("7")
        assert [len(event.doc["lines"]) for event in stream.events] == [3, 3, 2]
        assert [bool(event.id) for event in stream.events] == [False, False, True]


@pytest.mark.parametrize("what", ["moved", "gone"])
async def test_who_follows_is_told_that_the_task_is_elsewhere(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs_module, "PLACE_S", 0.0)
    world = world_of(tmp_path)
    say(world, "one")
    async with world.client() as client, followed(client) as stream:
        await stream.until("one")
        world.put(waiting("t", last_skald="s1", revision=4))
        say(world, "two")
        await stream.until("two")
        world.beat("s2", "i2", state="up", web="http://s2:6066")
        if what == "moved":
            world.put(running("t", holder=Holder("s2", "i2", 2), epoch=2, revision=5))
        else:
            world.drop("t")
        await stream.until(what)
        assert await stream.end() == b""


async def test_followers_are_bounded_and_end_with_the_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs_module, "FOLLOWERS_MOST", 1)
    world = world_of(tmp_path)
    say(world, "one")
    async with TestClient(TestServer(world.app())) as client, followed(client) as stream:
        await stream.until("one")
        refused = await client.get("/api/tasks/t/logs?follow=1")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        ending = asyncio.create_task(client.server.close())
        assert await stream.end() == b""
        await ending


async def test_one_that_takes_nothing_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "WRITE_S", 0.2)
    monkeypatch.setattr(logs_module, "FOLLOWERS_MOST", 1)
    world = world_of(tmp_path, max_bytes=50_000_000)
    async with world.client() as client, client.get("/api/tasks/t/logs?follow=1"):
        say(world, *["x" * 1_000] * 20_000)

        async def is_free() -> bool:
            async with client.get("/api/tasks/t/logs?follow=1&lines=0") as answer:
                return answer.status == 200

        assert not await is_free()
        async with asyncio.timeout(PATIENCE_S):
            while not await is_free():  # noqa: ASYNC110  # the other end of a connection has no event
                await asyncio.sleep(0.05)


# -- the command


def test_events_are_cut_wherever_the_stream_is() -> None:
    data = (
        b'retry: 2000\n\nid: 1/a/2\nevent: lines\ndata: {"lines":["a: b"]}\n\n: still here\n\nevent: gone\ndata: {}\n\n'
    )
    reader = EventReader()
    events = [event for at in range(len(data)) for event in reader.feed(data[at : at + 1])]
    assert events == [ServerEvent("lines", "1/a/2", {"lines": ["a: b"]}), ServerEvent("gone", "", {})]


async def test_the_command_goes_with_its_token_to_the_node_that_has_it(tmp_path: Path) -> None:
    token = "s3cret-token"
    here, there = world_of(tmp_path, web_token=token), world_of(tmp_path, web_token=token)
    say(there, "it is here")
    async with TestServer(there.app()) as far, TestServer(here.app()) as near:
        here.beat("s2", "i2", state="up", host="here", web=str(far.make_url("/")))
        here.put(running("t", holder=Holder("s2", "i2", 1)))
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
            source = Source(session, Options(), "t", str(near.make_url("/")))
            async with source.ask({"lines": "5"}) as answer:
                assert (await answer.json())["lines"] == [f"{PREFIX}it is here"]
        async with aiohttp.ClientSession() as session:
            with pytest.raises(SkaldsError, match="needs a token: set SKALDS_WEB_TOKEN"):
                async with Source(session, Options(), "t", str(near.make_url("/"))).ask({}):
                    pass
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
            here.beat("s2", "i2", state="leaving")
            here.put(running("t", holder=None, last_skald="s2", status=Status.ASSIGNING, wanted=Wanted.RUN))
            with pytest.raises(SkaldsError, match="s2, which is gone"):
                async with Source(session, Options(), "t", str(near.make_url("/"))).ask({}):
                    pass


async def test_the_command_follows_over_a_lost_connection_to_another_node_and_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs_module, "PLACE_S", 0.0)
    monkeypatch.setattr(cli_module, "AGAIN_S", 0.01)
    out = err = ""

    async def until(text: str) -> None:
        nonlocal out, err
        async with asyncio.timeout(PATIENCE_S):
            while text not in out + err:
                await asyncio.sleep(0.02)
                said = capsys.readouterr()
                out, err = out + said.out, err + said.err

    near, far = world_of(tmp_path / "near"), world_of(tmp_path / "far")
    say(near, "zero", "one \x1b[31m")
    async with TestServer(far.app()) as there, aiohttp.ClientSession() as session:
        here = TestServer(near.app())
        await here.start_server()
        port = here.port
        assert port is not None
        source = Source(session, Options(), "t", f"http://127.0.0.1:{port}/")
        following = asyncio.create_task(_follow(source, 1))
        await until("one")
        await here.close()
        await until("can't be reached")
        say(near, "two, while nobody was there")
        async with TestServer(near.app(), port=port):
            await until("two")
            near.beat("s2", "i2", state="up", host="here", web=str(there.make_url("/")))
            near.put(running("t", holder=Holder("s2", "i2", 2), epoch=2, revision=5))
            say(far, "three")
            await until("three")
            far.drop("t")
            async with asyncio.timeout(PATIENCE_S):
                await following
            await until("the task is gone")
    shown = [line.removeprefix(PREFIX) for line in out.splitlines()]
    assert shown == ["one \\x1b[31m", "two, while nobody was there", "three"]
    assert "the task is on s2 now" in err
    assert 1 <= err.count("trying again") <= 3, "not at every try"


@pytest.mark.parametrize(
    ("args", "code", "complaint"),
    [
        (["logs"], 2, "Missing argument 'TASK'"),
        (["logs", "t", "-n", "-1"], 2, "-1"),
        (["logs", "t", "--node", "node-1"], 2, "is not a web address"),
        (["logs", "-f", "t", "-o", "json"], 2, "can't be combined with -o json"),
        (["logs", "t", "--node", "http://127.0.0.1:9"], 1, "can't be reached"),
        (["logs", "-f", "t", "--node", "http://127.0.0.1:9"], 1, "can't be reached"),
    ],
)
def test_wrong_usage_and_nobody_there(args: list[str], code: int, complaint: str) -> None:
    result = CliRunner().invoke(main, args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert complaint in result.stderr
