"""The pages as they are sent: content, filters, escaping, masking, and nothing that the content security policy would
stop.
"""

from __future__ import annotations

import re

import pytest
from yarl import URL

from skalds_streams.core.row import Cause, Control, Holder, Row, Status, Wanted
from skalds_streams.web.documents import task_href
from skalds_streams.web.pages import FIRST_ROWS
from skalds_streams.web.words import relative
from tests.unit.test_web_stream import events_of
from tests.unit.test_web_world import NOW_MS, Client, World, running, waiting

pytestmark = pytest.mark.anyio

EVIL = "<script>alert(1)</script>"


async def page_of(client: Client, path: str, status: int = 200) -> str:
    answer = await client.get(URL(path, encoded=True))
    assert (answer.status, answer.content_type) == (status, "text/html")
    return await answer.text()


def shown_ids(page: str) -> list[str]:
    return re.findall(r'<tr data-id="([^"]*)"', page)


async def test_status_page_shows_tasks_skalds_and_banners() -> None:
    world = World(cluster="north")
    world.put(running("cam"), waiting("job"))
    world.beat(
        "s1", "i1", state="up", classes={"Cam": "h"}, labels={"zone": "a"}, capacity=8, running=1, web="http://s1:6066"
    )
    world.beat("s2", "i2", state="up", web="javascript:alert(1)", not_loadable=["broken.module"])
    world.banners.append("Redis does not answer")
    world.readiness["view_caught_up"] = False
    async with world.client() as client:
        page = await page_of(client, "/")
    assert shown_ids(page) == ["cam", "job"]
    for text in (
        "north",
        "Redis does not answer",
        "still reading the changelog",
        "No skald can take it",
        "zone=a",
        "not loadable: broken.module",
    ):
        assert text in page
    assert 'href="http://s1:6066"' in page
    assert "javascript:" not in page
    assert '<meter min="0" max="8" value="1"' in page


async def test_status_page_is_filtered_without_a_script() -> None:
    world = World()
    world.put(running("cam-1"), running("cam-2"), waiting("job-1"))
    async with world.client() as client:
        assert shown_ids(await page_of(client, "/?q=1")) == ["cam-1", "job-1"]
        assert shown_ids(await page_of(client, "/?q=1&status=Running")) == ["cam-1"]
        assert shown_ids(await page_of(client, "/?status=nonsense")) == ["cam-1", "cam-2", "job-1"]


async def test_status_page_of_many_tasks_is_cut() -> None:
    world = World()
    world.put(*(waiting(f"t{number:04}") for number in range(FIRST_ROWS + 5)))
    async with world.client() as client:
        page = await page_of(client, "/")
    assert len(shown_ids(page)) == FIRST_ROWS
    assert f"Shown are {FIRST_ROWS} of {FIRST_ROWS + 5}" in page


async def test_empty_cluster_has_a_page() -> None:
    async with World().client() as client:
        page = await page_of(client, "/")
    assert "No tasks yet" in page
    assert "No skald has sent a heartbeat yet" in page


async def test_task_page_tells_everything() -> None:
    world = World()
    trace = ["Traceback (most recent call last):", '  File "w.py", line 3', "OSError: gone"]
    error = {"type": "OSError", "message": "gone", "traceback": trace, "reason": "memory"}
    world.put(
        running("cam", requires={"zone": "a"}, recipient="s1"),
        waiting("job", attempt=4, retry_at_ms=NOW_MS + 5_000, waiting=None, error=error),
        running(
            "upd",
            attachments_version=2,
            refused={"version": 2, "at_ms": 1, "error": {"type": "V", "message": "too fast", "field": "fps"}},
        ),
    )
    async with world.client() as client:
        cam, job, upd = [await page_of(client, f"/tasks/{task_id}") for task_id in ("cam", "job", "upd")]
    for text in (
        "It should run",
        "zone=a",
        "assign from task.assign, partition 2, offset 17: by hand",
        "applied",
        "&#34;fps&#34;: 30",
    ):
        assert text in cam
    for text in (
        "4 crashes: crash looping",
        "OSError: gone",
        "out of memory",
        "Traceback (most recent call last):",
        "in 5 s",
        "nobody",
    ):
        assert text in job
    assert "refused" in upd
    assert "V: too fast (field fps)" in upd


async def test_the_page_of_a_task_tells_what_became_of_each_command() -> None:
    world = World()
    controls = {
        "restart": Control("task.assign", 2, 21, NOW_MS - 3_000),
        "cancel": Control("task.cancel", 2, 4, NOW_MS - 90_000, applied_at_ms=NOW_MS - 89_588, epoch=2, version=3),
        "pause": Control("task.assign", 2, 20, NOW_MS - 60_000, superseded_by=Cause("Cancel", "task.cancel", 2, 5, 1)),
        "resume": Control("task.assign", 2, 9, 1_000, superseded_by=Cause("Cancel", "", -1, -1, NOW_MS - 7_000)),
    }
    world.put(running("cam", controls=controls), running("old", cancel_at_ms=NOW_MS - 9_000))
    async with world.client() as client:
        page, old = await page_of(client, "/tasks/cam"), await page_of(client, "/tasks/old")
        task = await (await client.get("/api/tasks/cam")).json()
    told = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    for text in (
        "Resume superseded by an earlier Cancel, 7 s ago",
        "Cancel asked 1 min ago , by task.cancel/2@4",
        "Cancel applied 1 min ago , after 0.412 s: epoch 2 with version 3 of the parameters has ended",
        "Pause asked 1 min ago , by task.assign/2@20 Pause superseded by Cancel task.cancel/2@5",
        "Restart asked 3 s ago , by task.assign/2@21 Restart applied not yet",
    ):
        assert text in told, text
    assert task["controls"]["cancel"]["applied_at_ms"] == NOW_MS - 89_588
    assert task["controls"]["restart"]["applied_at_ms"] == 0
    assert "Cancel asked" in old, "a row of a version without controls"


async def test_the_page_of_a_task_says_why_it_is_so() -> None:
    world = World()
    refused = {"version": 2, "at_ms": 1, "error": {"type": "V", "message": "too fast", "field": "fps"}}
    held_up = "a task beside it held up its host"
    paused = {"pause": Control("task.assign", 2, 20, NOW_MS - 3_000)}
    world.put(
        running("cam", controls=paused, why=Cause("Assign", "task.assign", 2, 20, NOW_MS - 3_000, "lunch")),
        running("upd", attachments_version=2, refused=refused, why=Cause("Refused", "skald.report", 5, 2, NOW_MS)),
        running("shared", why=Cause("Stopped", "skald.report", 5, 3, NOW_MS, held_up + " for 3 s"), note=held_up),
    )
    async with world.client() as client:
        cam, upd, shared = [await page_of(client, f"/tasks/{task_id}") for task_id in ("cam", "upd", "shared")]
    assert "Pause from task.assign, partition 2, offset 20: lunch" in cam
    assert "Cancel asked" not in cam, "nobody asked for one"
    assert '<dt>Note</dt><dd class="break">version 2: V: too fast (field fps)</dd>' in upd
    assert "Stopped from skald.report, partition 5, offset 3</dd>" in shared
    assert f'<dt>Note</dt><dd class="break">{held_up} for 3 s</dd>' in shared


async def test_parameters_may_break_between_each_other_only() -> None:
    world = World()
    world.put(running("cam", attachments={"fps": 30, "recording_enabled": True, "name": 'a,"b'}))
    async with world.client() as client:
        page = await page_of(client, "/")
    code = re.findall("<code>(.*?)</code>", page)[0].replace("&#34;", '"')
    assert code == '{"fps":30,<wbr>"recording_enabled":true,<wbr>"name":"a,\\"b"}'


async def test_the_page_of_a_task_says_what_its_class_decides() -> None:
    world = World()
    world.beat("s1", "i1", state="up", classes={"Cam": "h"}, options={"Cam": {"requires": {"gpu": "yes"}, "weight": 2}})
    waits = waiting("job", waiting={"s1": "lacks label gpu=yes, by its class"})
    world.put(waits, running("cam", weight=3, of_class={"max_restarts": 4}))
    async with world.client() as client:
        job, cam = [await page_of(client, f"/tasks/{task_id}") for task_id in ("job", "cam")]
    for text in ("<dd>gpu=yes, by its class</dd>", "<dd>2, by its class</dd>", "s1: lacks label gpu=yes, by its class"):
        assert text in job
    assert "<dd>3</dd>" in cam
    assert "<dd>at most 4, by its class</dd>" in cam


async def test_the_page_of_a_task_has_the_metrics_of_its_worker_or_says_where_they_are() -> None:
    world = World()
    world.put(running("cam"), running("far", holder=Holder("s2", "i2", 1)))
    world.beat("s2", "i2", state="up", web="http://s2:6066/")
    world.metrics = {"cam": {"values": {"fps": 29.51, "queue": None}, "at_ms": NOW_MS - 1_000}}
    async with world.client() as client:
        here, far = await page_of(client, "/tasks/cam"), await page_of(client, "/tasks/far")
    assert '<dt>fps</dt><dd class="mono">29.51</dd>' in here
    assert '<dt>queue</dt><dd class="mono">no number</dd>' in here
    assert 'id="metrics">' in here
    assert 'href="http://s2:6066/tasks/far"' in far
    assert 'id="metrics"' not in far


async def test_unknown_task_has_a_page() -> None:
    async with World().client() as client:
        assert "No such task" in await page_of(client, "/tasks/nobody", status=404)


@pytest.mark.parametrize("status", list(Status))
async def test_every_status_has_a_page(status: Status) -> None:
    world = World()
    world.put(running("t") if status is Status.RUNNING else Row("t", status=status, wanted=Wanted.CANCEL))
    async with world.client() as client:
        assert status.value in await page_of(client, "/")
        assert status.value in await page_of(client, "/tasks/t")


async def test_nothing_of_a_task_becomes_markup() -> None:
    world = World()
    error = {"type": EVIL, "message": EVIL, "field": EVIL, "traceback": [EVIL]}
    row = waiting(
        EVIL,
        class_name=EVIL,
        waiting={EVIL: EVIL},
        note=EVIL,
        attachments={EVIL: EVIL},
        attachments_version=1,
        requires={EVIL: EVIL},
    )
    world.put(
        row,
        running(
            "a", attempt=1, error=error, refused={"version": 2, "error": error}, attachments_version=2, recipient=EVIL
        ),
        waiting("b", waiting=None, retry_at_ms=NOW_MS, error=error),
    )
    world.beat(EVIL, EVIL, state=EVIL, classes={EVIL: EVIL}, labels={EVIL: EVIL}, not_loadable=[EVIL], version=EVIL)
    world.banners.append(EVIL)
    world.not_loadable[EVIL] = EVIL
    async with world.client() as client:
        for path in ("/", task_href(EVIL), "/tasks/a", "/tasks/b", f"/?q={EVIL}&status={EVIL}"):
            page = await page_of(client, path)
            assert "<script>" not in page
            assert "alert(1)" in page
        assert "<script>" not in await page_of(client, task_href(EVIL + "no"), status=404)


async def test_pages_have_nothing_inline() -> None:
    world = World()
    world.put(running("t"))
    world.beat("s1", "i1", state="up")
    world.not_loadable["m"] = "Traceback"
    async with world.client() as client:
        for path in ("/", "/tasks/t"):
            page = await page_of(client, path)
            assert not re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
            for asset in re.findall(r'(?:src|href)="(/static/[^"]+)"', page):
                answer = await client.get(asset)
                assert (answer.status, len(await answer.read()) > 0) == (200, True)


async def test_secrets_are_masked_at_every_exit() -> None:
    world = World()
    canaries = ("canary-one", "canary-two", "canary-three")
    error = {
        "type": "E",
        "message": "bad login canary-one",
        "traceback": ["url = 'rtsp://me:canary-two@cam'", "key = canary-three"],
    }
    secret = {
        "password": "canary-one",
        "url": "rtsp://me:canary-two@cam/1",
        "deep": {"list": [{"apiKey": "canary-three"}]},
    }
    world.put(
        running(
            "a",
            attachments=secret,
            attempt=1,
            error=error,
            refused={"version": 2, "error": error},
            attachments_version=2,
        ),
        waiting("b", attachments=secret, waiting=None, retry_at_ms=1, error=error, note="canary-one"),
        Row("c", status=Status.FAILED, attachments=secret, error=error, note="canary-two"),
    )
    world.not_loadable["m"] = "Traceback: rtsp://me:canary-two@cam"
    async with world.client() as client:
        for path in (
            "/",
            "/tasks/a",
            "/tasks/b",
            "/tasks/c",
            "/api/tasks",
            "/api/tasks/a",
            "/api/tasks/b",
            "/api/tasks/c",
        ):
            text = await (await client.get(path)).text()
            assert "***" in text
            assert not [canary for canary in canaries if canary in text]
        for detail in ("full", "brief"):
            async with client.get(f"/api/events?detail={detail}") as stream:
                _, snapshot = await anext(events_of(stream))
                assert "***" in str(snapshot)
                assert not [canary for canary in canaries if canary in str(snapshot)]


def test_relative_times() -> None:
    cases = {
        0: "now",
        999: "now",
        12_000: "12 s ago",
        120_000: "2 min ago",
        7_300_000: "2 h ago",
        200_000_000: "2 d ago",
        -5_000: "in 5 s",
    }
    assert {ago: relative(NOW_MS - ago, NOW_MS) for ago in cases} == cases
