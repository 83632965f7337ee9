"""The JSON API: pages of tasks, single tasks, skalds, classes, readiness, metrics, and its description."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from skalds_streams.core.row import Control, Row, Status
from skalds_streams.web.documents import member_docs, task_doc
from tests.unit.test_web_world import NOW_MS, WORDS, Client, World, running, waiting

pytestmark = pytest.mark.anyio


async def get(client: Client, path: str, status: int = 200) -> Any:
    answer = await client.get(path)
    assert answer.status == status
    assert answer.content_type == "application/json"
    return await answer.json()


def ids(answer: Any) -> list[str]:
    return [item["task_id"] for item in answer["items"]]


async def test_tasks_are_filtered_and_counted() -> None:
    world = World()
    world.put(
        running("cam-b"), running("cam-a", class_name="Other"), waiting("job-c"), Row("job-D", status=Status.CANCELLED)
    )
    async with world.client() as client:
        everything = await get(client, "/api/tasks")
        assert (ids(everything), everything["total"]) == (["cam-a", "cam-b", "job-D", "job-c"], 4)
        assert ids(await get(client, "/api/tasks?status=running")) == ["cam-a", "cam-b"]
        assert ids(await get(client, "/api/tasks?class=Other")) == ["cam-a"]
        assert ids(await get(client, "/api/tasks?skald=s1&q=-B")) == ["cam-b"]
        assert ids(await get(client, "/api/tasks?q=JOB-d")) == ["job-D"]
        assert await get(client, "/api/tasks?q=nothing") == {"items": [], "total": 0}


async def test_tasks_come_in_pages() -> None:
    world = World()
    world.put(*(waiting(f"t{number:04}") for number in range(250)))
    async with world.client() as client:
        first = await get(client, "/api/tasks")
        last = await get(client, "/api/tasks?offset=240&limit=20")
        assert (len(first["items"]), first["total"]) == (200, 250)
        assert (ids(last), last["total"]) == ([f"t{number:04}" for number in range(240, 250)], 250)
        assert len((await get(client, "/api/tasks?limit=1000"))["items"]) == 250
        for wrong in (
            "limit=1001",
            "limit=-1",
            "limit=x",
            "offset=x",
            "status=Nope",
            "limit=%C2%B2",
            "offset=99999999999",
        ):
            assert set(await get(client, f"/api/tasks?{wrong}", status=400)) == {"error"}


async def test_what_a_crashed_run_printed_last_is_in_its_document_and_not_in_lists() -> None:
    world = World()
    error = {"type": "E", "message": "m", "field": None, "traceback": ["x"], "output": ["last words, secret canary-1"]}
    world.put(running("t", error=error, attachments={"password": "canary-1"}))
    async with world.client() as client:
        assert (await get(client, "/api/tasks/t"))["error"]["output"] == ["last words, secret ***"]
        listed = (await get(client, "/api/tasks"))["items"][0]["error"]
        assert (listed["traceback"], "output" in listed) == (["x"], False)


@pytest.mark.parametrize("task_id", ["plain", "a/b c", "ü%2F?#", "<script>", "a/../b"])
async def test_one_task_whatever_its_id(task_id: str) -> None:
    from yarl import URL

    from skalds_streams.web.documents import task_href

    world = World()
    world.put(running(task_id))
    async with world.client() as client:
        answer = await client.get(URL("/api" + task_href(task_id), encoded=True))
        assert (answer.status, (await answer.json())["task_id"]) == (200, task_id)


async def test_metrics_of_a_worker_are_told_by_the_node_that_runs_it() -> None:
    world = World()
    world.put(running("cam"), running("other"))
    world.metrics["cam"] = {"values": {"fps": 29.5}, "at_ms": 7}
    async with world.client() as client:
        assert (await get(client, "/api/tasks/cam"))["metrics"] == {"values": {"fps": 29.5}, "at_ms": 7}
        assert (await get(client, "/api/tasks/other"))["metrics"] is None
        assert "29.5" not in str(await get(client, "/api/tasks"))


async def test_unknown_task_is_404() -> None:
    async with World().client() as client:
        assert await get(client, "/api/tasks/nobody", status=404) == {"error": "no task nobody"}


async def test_skalds() -> None:
    world = World()
    world.beat("s2", "i2", state="up", classes={"Cam": "h"}, web="http://s2:1")
    world.beat("s1", "i1", state="up")
    async with world.client() as client:
        answer = await get(client, "/api/skalds")
    assert [item["skald_id"] for item in answer["items"]] == ["s1", "s2"]
    assert (answer["total"], answer["items"][1]["classes"]) == (2, {"Cam": "h"})


async def test_class_is_described_by_those_that_run_it() -> None:
    world = World()
    fields = {"password": {"type": "string", "default": "canary"}, "fps": {"type": "integer", "default": 30}}
    world.classes["Cam"] = {"module": "m", "schema": {"properties": fields, "$defs": {"N": {"properties": fields}}}}
    world.beat("s2", "i2", state="up", classes={"Other": "h"}, web="http://s2:1")
    async with world.client() as client:
        described = await get(client, "/api/classes/Cam")
        assert (described["name"], described["module"], described["schema"]["properties"]["fps"]) == (
            "Cam",
            "m",
            fields["fps"],
        )
        assert "canary" not in str(described)
        elsewhere = await get(client, "/api/classes/Other", status=404)
        assert elsewhere["run_by"] == [{"skald_id": "s2", "web": "http://s2:1", "digest": "h", "options": {}}]
        assert (await get(client, "/api/classes/None", status=404))["run_by"] == []


async def test_classes_are_listed_with_who_runs_them() -> None:
    world = World()
    world.beat("s2", "i2", state="up", classes={"Cam": "new", "Door": "d"}, web="http://s2:1")
    world.beat("s1", "i1", state="up", classes={"Cam": "old"}, web="javascript:x")
    async with world.client() as client:
        answer = await get(client, "/api/classes")
    cam, door = answer["items"]
    assert (answer["total"], cam["name"], cam["digest"]) == (2, "Cam", None), "two versions of one class"
    assert [(there["skald_id"], there["web"]) for there in cam["run_by"]] == [("s1", None), ("s2", "http://s2:1")]
    assert (door["name"], door["digest"]) == ("Door", "d")


async def test_health_and_readiness() -> None:
    world = World()
    async with world.client() as client:
        assert await get(client, "/healthz") == {"ok": True}
        assert await get(client, "/readyz") == {"ready": True, "view_caught_up": True, "journals_open": True}
        world.readiness["journals_open"] = False
        assert await get(client, "/readyz", status=503) == {
            "ready": False,
            "view_caught_up": True,
            "journals_open": False,
        }


async def test_metrics_are_prometheus_text() -> None:
    async with World().client() as client:
        answer = await client.get("/metrics")
        assert (answer.headers["Content-Type"], await answer.read()) == (
            "text/plain; version=0.0.4; charset=utf-8",
            b"skalds_tasks 1\n",
        )


async def test_openapi_names_exactly_the_routes() -> None:
    world = World()
    app = world.app()
    routes = {
        (route.resource.canonical, route.method.lower())
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD" and not route.resource.canonical.startswith("/static")
    }
    async with world.client(app) as client:
        described = await get(client, "/api/openapi.json")
    assert {(path, method) for path, item in described["paths"].items() for method in item} == routes


async def test_openapi_names_exactly_the_fields() -> None:
    world = World()
    world.beat("s1", "i1")
    async with world.client() as client:
        schemas = (await get(client, "/api/openapi.json"))["components"]["schemas"]
    assert set(schemas["Task"]["properties"]) == set(task_doc(running("t"), WORDS, NOW_MS))
    assert set(schemas["Control"]["properties"]) == {item.name for item in fields(Control)}
    assert set(schemas["Skald"]["properties"]) == set(member_docs(world.view, world.settings, "i1")[0])
    assert schemas["Status"]["enum"] == [status.value for status in Status]
