"""Who may ask: token, cookie, Host header; and the headers that every answer carries."""

from __future__ import annotations

import logging

import pytest
from aiohttp import web

from skalds_streams.web.guard import COOKIE, SECURITY_HEADERS
from skalds_streams.web.routes import setup
from tests.unit.test_web_world import Client, World, running

pytestmark = pytest.mark.anyio

TOKEN = "s3cret-tökén"
PATHS = [
    "/",
    "/tasks/t",
    "/api/tasks",
    "/api/tasks/t",
    "/api/tasks/t/logs",
    "/api/skalds",
    "/api/events",
    "/api/openapi.json",
    "/readyz",
    "/metrics",
    "/static/app.css",
    "/no",
]


def guarded() -> World:
    world = World(web_token=TOKEN)
    world.put(running("t"))
    return world


async def status_of(client: Client, path: str, **headers: str) -> int:
    answer = await client.get(
        path, headers={name.replace("_", "-"): value for name, value in headers.items()}, allow_redirects=False
    )
    status = answer.status
    answer.close()
    return status


async def test_without_a_token_set_nobody_is_asked() -> None:
    async with World().client() as client:
        assert await status_of(client, "/api/tasks") == 200


async def test_all_but_healthz_needs_the_token() -> None:
    async with guarded().client() as client:
        assert [await status_of(client, path) for path in PATHS] == [401] * len(PATHS)
        assert await status_of(client, "/healthz") == 200
        assert await status_of(client, "/api/tasks", Authorization="Bearer wrong") == 401
        assert await status_of(client, "/api/tasks", Authorization=f"Basic {TOKEN}") == 401
        assert await status_of(client, "/api/tasks", Cookie=f"{COOKIE}={TOKEN}") == 401
        assert await status_of(client, f"/api/tasks?token={TOKEN}") == 401
        assert await status_of(client, "/?token=wrong") == 401


async def test_bearer_opens_everything() -> None:
    async with guarded().client() as client:
        opened = [await status_of(client, path, Authorization=f"Bearer {TOKEN}") for path in PATHS[:-1]]
        assert opened == [200] * len(opened)


async def test_a_visit_with_the_token_sets_a_cookie_and_hides_it() -> None:
    async with guarded().client() as client:
        answer = await client.get("/", params={"q": "x", "token": TOKEN}, allow_redirects=False)
        cookie = answer.cookies[COOKIE]
        assert (answer.status, answer.headers["Location"]) == (303, "/?q=x")
        assert cookie["httponly"]
        assert cookie["samesite"] == "Strict"
        assert cookie["path"] == "/"
        assert TOKEN not in cookie.value
        assert await status_of(client, "/api/tasks") == 200  # the client keeps the cookie


async def test_people_get_a_form_and_programs_json() -> None:
    async with guarded().client() as client:
        page = await client.get("/", headers={"Accept": "text/html"})
        assert (page.status, page.content_type) == (401, "text/html")
        assert "form" in await page.text()
        assert "script" not in page.headers["Content-Security-Policy"]
        answer = await client.get("/api/tasks")
        assert set(await answer.json()) == {"error"}
        assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_the_token_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with guarded().client() as client:
            await status_of(client, f"/?token={TOKEN}")
            await status_of(client, "/?token=wr0ng-token")
            await status_of(client, "/api/tasks", Authorization=f"Bearer {TOKEN}")
    ours = [
        record.getMessage() for record in caplog.records if not record.name.startswith(("asyncio", "aiohttp.access"))
    ]
    assert not [line for line in ours if "s3cret" in line or "wr0ng" in line]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:6066", "127.0.0.1:1", "[::1]:6066", "[::1]", "skalds.example:8443"]
)
async def test_loopback_names_are_served(host: str) -> None:
    async with World(web_url="https://skalds.example").client() as client:
        assert await status_of(client, "/api/tasks", Host=host) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:6066", "x@localhost", "[", "", "10.0.0.1"]
)
async def test_foreign_names_are_refused_on_loopback(host: str) -> None:
    async with World().client() as client:
        assert await status_of(client, "/", Host=host) == 403
        assert await status_of(client, "/api/events", Host=host) == 403


async def test_names_are_not_checked_when_bound_elsewhere() -> None:
    async with World(web_bind="0.0.0.0", web_token="x").client() as client:
        assert await status_of(client, "/api/tasks", Host="node.lan", Authorization="Bearer x") == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/tasks/none", "/api/tasks", "/api/events", "/static/app.css", "/static/none", "/nothing/here", "/healthz"],
)
async def test_every_answer_carries_the_security_headers(path: str) -> None:
    async with World().client() as client:
        answer = await client.get(path)
        assert {name: answer.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
        answer.close()


async def test_setup_adds_the_guard_when_nobody_did() -> None:
    world = guarded()
    app = web.Application()
    setup(app, world.context())
    async with world.client(app) as client:
        assert await status_of(client, "/api/tasks") == 401


async def test_a_front_page_of_somebody_else_is_answered_by_ours() -> None:
    async def other(_: web.Request) -> web.Response:
        return web.Response(text="somebody else's")

    world = guarded()
    app = web.Application()
    app.router.add_get("/", other)
    setup(app, world.context())
    async with world.client(app) as client:
        assert await status_of(client, "/") == 401
        page = await client.get("/", headers={"Authorization": f"Bearer {TOKEN}"})
        assert '<h1 id="tasks-title">Tasks</h1>' in await page.text()


async def test_setup_refuses_an_application_that_runs() -> None:
    world = World()
    async with world.client() as client:
        assert client.app is not None
        with pytest.raises(RuntimeError, match="started already"):
            setup(client.app, world.context())
