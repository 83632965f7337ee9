"""A cluster made by hand for the tests of the web: rows and heartbeats go in as records, the pages are served by a
real server. And the JSON documents.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from skalds_streams.core.row import Cause, Holder, Row, Status, Wanted
from skalds_streams.model.record import Record
from skalds_streams.settings import Settings
from skalds_streams.skald.ring import LogFiles
from skalds_streams.topics import Topics
from skalds_streams.view.cluster import ClusterView
from skalds_streams.web.context import WebContext
from skalds_streams.web.documents import brief_doc, member_docs, task_doc, web_link
from skalds_streams.web.guard import guard
from skalds_streams.web.routes import setup

NOW_MS = 1_795_600_000_000
Client = TestClient[web.Request, web.Application]
WORDS = frozenset({"password", "api_key"})


class World:
    """The view of a process, and what the process says of itself."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(_env_file=None, **settings)  # type: ignore[call-arg]  # pydantic-settings has it
        self.view = ClusterView(Topics.named(app="test"), {"bootstrap_servers": "nowhere"})
        self.now_ms = NOW_MS
        self.readiness: dict[str, bool] = {"view_caught_up": True, "journals_open": True}
        self.banners: list[str] = []
        self.classes: dict[str, Mapping[str, Any]] = {}
        self.not_loadable: dict[str, str] = {}
        self.metrics: dict[str, Mapping[str, Any]] = {}
        self.log_files: LogFiles | None = LogFiles(Path("/nonexistent"), max_bytes=1_000, most=1)
        self._offset = 0
        # A skald that has left has described Cam: the parameters of a class that nobody knows are all masked.
        self.beat("s0", "i0", state="up", classes={"Cam": "h"})
        self.beat("s0", "i0", state="leaving")

    def put(self, *rows: Row) -> None:
        for row in rows:
            self._record(row.task_id, orjson.dumps(row.to_doc()))

    def drop(self, task_id: str) -> None:
        self._record(task_id, None)

    def _record(self, task_id: str, value: bytes | None) -> None:
        self._offset += 1
        self.view._take_rows([Record("changelog", 0, self._offset, task_id.encode(), value, self.now_ms)])

    def beat(self, skald_id: str, incarnation: str, **described: Any) -> None:
        self._offset += 1
        doc = {"v": 1, "skald_id": skald_id, "incarnation": incarnation, "n": self._offset, **described}
        self.view._take_beats([Record("heartbeat", 0, self._offset, skald_id.encode(), orjson.dumps(doc), self.now_ms)])

    def context(self) -> WebContext:
        return WebContext(
            settings=self.settings,
            view=self.view,
            skald_id=lambda: "s1",
            incarnation=lambda: "i1",
            readiness=lambda: self.readiness,
            metrics=lambda: b"skalds_tasks 1\n",
            describe_class=self.classes.get,
            not_loadable=lambda: self.not_loadable,
            banners=lambda: self.banners,
            task_metrics=self.metrics.get,
            now_ms=lambda: self.now_ms,
            log_files=lambda: self.log_files,
        )

    def app(self) -> web.Application:
        app = web.Application(middlewares=[guard(self.settings)])
        setup(app, self.context())
        return app

    @asynccontextmanager
    async def client(self, app: web.Application | None = None) -> AsyncIterator[Client]:
        async with TestClient(TestServer(app or self.app())) as client:
            yield client


def running(task_id: str, **changes: Any) -> Row:
    """A row of a task that runs on s1."""
    row = Row(
        task_id,
        "Cam",
        wanted=Wanted.RUN,
        status=Status.RUNNING,
        holder=Holder("s1", "i1", 1),
        epoch=1,
        revision=3,
        attachments={"fps": 30},
        attachments_version=1,
        applied_version=1,
        applied_at_ms=NOW_MS - 60_000,
        running_since_ms=NOW_MS - 120_000,
        last_skald="s1",
        why=Cause("assign", "task.assign", 2, 17, NOW_MS - 120_000, "by hand"),
        updated_at_ms=NOW_MS - 60_000,
    )
    return replace(row, **changes)


def waiting(task_id: str, **changes: Any) -> Row:
    """A row of a task that nobody can take."""
    row = Row(
        task_id,
        "Cam",
        wanted=Wanted.RUN,
        status=Status.ASSIGNING,
        revision=1,
        waiting={"s1": "full 8/8", "s2": "no class Cam"},
        updated_at_ms=NOW_MS - 5_000,
    )
    return replace(row, **changes)


# -- documents --------------------------------------------------------------------------------------------------------


def test_task_doc_masks_and_derives() -> None:
    row = running(
        "t",
        attachments={"url": "rtsp://user:pass-of-url@cam", "password": "canary-1", "nested": [{"Api-Key": "canary-2"}]},
        error={
            "type": "E",
            "message": "no login with canary-1 at rtsp://user:pass-of-url@cam",
            "traceback": ["x = 'canary-2'"],
        },
        refused={"version": 1, "at_ms": 1, "error": {"type": "E", "message": "pass-of-url"}},
        note="canary-1",
    )
    doc = task_doc(row, WORDS, NOW_MS)
    text = orjson.dumps(doc).decode()
    assert "attachments" not in doc
    assert doc["attachments_masked"] == {"url": "rtsp://***@cam", "password": "***", "nested": [{"Api-Key": "***"}]}
    assert not [secret for secret in ("canary-1", "canary-2", "pass-of-url") if secret in text]
    assert (doc["skald"], doc["update_state"], doc["crash_looping"]) == ("s1", "applied", False)


def test_docs_mask_what_the_class_declares_and_everything_of_a_class_that_nobody_knows() -> None:
    row = running("t", attachments={"fps": 3, "login": {"pin": "canary-1"}}, note="canary-1")
    for paths in (("login.pin",), ("*",)):
        full, brief = task_doc(row, WORDS, NOW_MS, paths), brief_doc(row, WORDS, NOW_MS, paths)
        assert b"canary" not in orjson.dumps([full, brief])
    assert task_doc(row, WORDS, NOW_MS, ("login.pin",))["attachments_masked"] == {"fps": 3, "login": {"pin": "***"}}


@pytest.mark.anyio
async def test_the_api_masks_what_a_class_declares() -> None:
    world = World()
    world.beat("s1", "i1", state="up", classes={"Cam": "h"}, secret={"Cam": ["login.pin"]})
    world.put(running("t", attachments={"fps": 3, "login": {"pin": "canary-1"}}, error={"message": "canary-1"}))
    async with world.client() as client:
        for path in ("/api/tasks/t", "/api/tasks", "/tasks/t", "/"):
            text = await (await client.get(path)).text()
            assert "fps" in text
            assert "canary-1" not in text


def test_update_state_follows_versions() -> None:
    refused = {"version": 3, "at_ms": 1, "error": {"type": "E", "message": "too fast"}}

    def state(**changes: Any) -> Any:
        return task_doc(running("t", **changes), WORDS, NOW_MS)["update_state"]

    assert state(attachments_version=0, applied_version=0) is None
    assert state(attachments_version=2, applied_version=2) == "applied"
    assert state(attachments_version=3, applied_version=2) == "pending"
    assert state(attachments_version=3, applied_version=2, refused=refused) == "refused"
    assert state(attachments_version=4, applied_version=2, refused=refused) == "pending"


def test_crash_looping_ends_with_a_stable_run_or_the_end() -> None:
    def looping(row: Row) -> Any:
        return task_doc(row, WORDS, NOW_MS)["crash_looping"]

    assert looping(waiting("t", attempt=3, waiting=None, retry_at_ms=NOW_MS + 1))
    assert looping(running("t", attempt=3, running_since_ms=NOW_MS - 59_999))
    assert not looping(running("t", attempt=3, running_since_ms=NOW_MS - 60_000))
    assert not looping(running("t", attempt=2, running_since_ms=NOW_MS))
    assert not looping(Row("t", status=Status.FAILED, attempt=9))


def test_brief_doc_tells_the_situation() -> None:
    crashed = waiting(
        "t", waiting=None, attempt=2, retry_at_ms=NOW_MS + 2_000, error={"type": "OSError", "message": "gone"}
    )
    told = {
        "waits": brief_doc(waiting("t"), WORDS, NOW_MS),
        "crashed": brief_doc(crashed, WORDS, NOW_MS),
        "stopping": brief_doc(running("t", wanted=Wanted.CANCEL), WORDS, NOW_MS),
        "lost": brief_doc(Row("t", status=Status.CANCELLED, note=f"superseded by cancel at {NOW_MS}"), WORDS, NOW_MS),
        "runs": brief_doc(running("t"), WORDS, NOW_MS),
    }
    assert {name: (doc["situation"], doc["situation_at_ms"], doc["tone"]) for name, doc in told.items()} == {
        "waits": ("No skald can take it: s1: full 8/8; s2: no class Cam", 0, "wait"),
        "crashed": ("OSError: gone (2 crashes). Next try", NOW_MS + 2_000, "bad"),
        "stopping": ("Cancel was asked; s1 is stopping it", 0, "wait"),
        "lost": ("superseded by cancel", NOW_MS, ""),
        "runs": ("", 0, ""),
    }


def test_member_docs_know_silence_and_other_settings() -> None:
    world = World()
    world.beat("s2", "i2", state="up", settings_hash="other", web="http://s2:6066", capacity=8, running=3)
    for _ in range(5):
        world.beat("s1", "i1", state="up", settings_hash=world.settings.agreed_hash)
    first, second = member_docs(world.view, world.settings, "i1")
    assert (first["skald_id"], first["state"], first["is_this"], first["settings_differ"]) == ("s1", "up", True, False)
    assert (second["skald_id"], second["state"], second["is_this"], second["settings_differ"]) == (
        "s2",
        "silent",
        False,
        True,
    )
    assert (second["running"], second["capacity"], second["web"], second["beats_missed"]) == (3, 8, "http://s2:6066", 5)


def test_the_load_of_a_skald_is_counted_from_the_rows() -> None:
    world = World()
    world.beat("s1", "i1", state="up", capacity=8, running=7)
    world.beat("s2", "i2", state="up", capacity=8)

    def loads() -> list[int]:
        return [doc["load"] for doc in member_docs(world.view, world.settings, "i1")]

    world.put(running("a"), running("b", weight=3), waiting("c"))
    assert loads() == [4, 0]
    world.put(running("b", weight=2, holder=Holder("s2", "i2", 2), epoch=2), running("a", wanted=Wanted.CANCEL))
    assert loads() == [1, 2]
    world.put(Row("a", status=Status.CANCELLED))
    world.drop("b")
    assert loads() == [0, 0]


def test_only_plain_web_addresses_become_links() -> None:
    assert web_link("https://node:6066/x") == "https://node:6066/x"
    assert [
        web_link(bad)
        for bad in ("javascript:alert(1)", "http://user:pw@node", "//node", "", "http://[", "data:text/html,x")
    ] == [None] * 6
