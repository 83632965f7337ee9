"""`skalds-streams classes`: the list from the heartbeats, one class as a node describes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any, Literal

import pytest
from aiohttp.test_utils import TestServer
from pydantic import BaseModel, Field, SecretStr
from rich.console import Console

from skalds_streams.cli import classes
from skalds_streams.errors import SkaldsError
from skalds_streams.worker import Backoff, BaseTaskWorker, registry, run_main_handler
from skalds_streams.worker.schema_words import parameters
from tests.unit.test_web_world import World

pytestmark = pytest.mark.anyio


class Place(BaseModel):
    row: int = 0


class Params(BaseModel):
    """A bit of everything."""

    rtsp_url: str = Field(alias="rtspUrl", description="Where the\nframes are.")
    fps: int = Field(10, ge=1, le=120)
    size: Literal["480p", "720p"] = "720p"
    pin: SecretStr = SecretStr("canary")
    places: list[Place] = []
    until: float | None = None


class Cam(BaseTaskWorker[Params]):
    """Looks at things."""

    requires: Mapping[str, str] = {"gpu": "yes"}
    max_restarts = 3
    backoff = Backoff(2, 90)

    def initialize(self, data: Params) -> None: ...

    @run_main_handler
    def run(self) -> None: ...


def shown(draw: Callable[..., None], doc: dict[str, Any]) -> str:
    console = Console(file=StringIO(), width=300, highlight=False)
    draw(console, doc)
    file: Any = console.file
    return str(file.getvalue())


def test_a_schema_in_words() -> None:
    told = [(item.key, item.kind, item.required, item.default) for item in parameters(Params.model_json_schema())]
    assert told == [
        ("rtspUrl", "string", True, ""),
        ("fps", "integer ≥ 1 ≤ 120", False, "10"),
        ("size", "480p | 720p", False, '"720p"'),
        ("pin", "secret", False, '"**********"'),
        ("places", "list of Place", False, "[]"),
        ("until", "number | null", False, "null"),
    ]


def test_the_list_names_skalds_versions_and_what_does_not_load() -> None:
    world = World()
    world.beat("s1", "i1", state="up", classes={"Cam": "old", "Door": "d"}, not_loadable=["bad\x1b"])
    world.beat("s2", "i2", state="up", classes={"Cam": "new"})
    text = shown(classes.print_list, classes.list_doc(world.view.members))
    assert [line.split() for line in text.splitlines()] == [
        ["CLASS", "SCHEMA", "SKALDS"],
        ["Cam", "differs", "s1,", "s2"],
        ["Door", "d", "s1"],
        ["not", "loadable", "on", "s1:", "bad\\x1b;", "its", "status", "page", "says", "why"],
    ]


async def test_one_class_is_described_by_a_node_that_runs_it_and_answers() -> None:
    world = World(web_token="token-1", web_bind="127.0.0.1")
    world.classes["Cam"] = registry.load([__name__]).classes["Cam"].describe()
    async with TestServer(world.app()) as server:
        world.beat("s1", "i1", state="up", classes={"Cam": "h"}, web="http://127.0.0.1:1")
        world.beat("s2", "i2", state="up", classes={"Cam": "h"}, web=str(server.make_url("/")))
        members = world.view.members
        doc, skald_id = await classes.ask(list(members), members, "Cam", "token-1")
        with pytest.raises(SkaldsError) as refused:
            await classes.ask(list(members), members, "Cam", "")
    assert skald_id == "s2"
    assert "s1 at http://127.0.0.1:1: " in str(refused.value)
    assert "set SKALDS_WEB_TOKEN" in str(refused.value)
    text = shown(classes.print_class, {**doc, "run_by": classes.class_docs(members)[0]["run_by"]})
    told = "rtspUrl (rtsp_url)  string", "Where the frames are.", "integer ≥ 1 ≤ 120", "Looks at things.", "s1, s2"
    told += "gpu=yes", "weight    1", "at most 3, after 2 s to 90 s"
    for part in told:
        assert part in text, part
    assert "canary" not in text


def test_options_that_differ_are_no_one_version() -> None:
    world = World()
    world.beat("s1", "i1", state="up", classes={"Cam": "h"}, options={"Cam": {"weight": 2}})
    world.beat("s2", "i2", state="up", classes={"Cam": "h"})
    (doc,) = classes.list_doc(world.view.members)["classes"]
    assert [there["options"] for there in doc["run_by"]] == [{"weight": 2}, {}]
    text = shown(classes.print_class, {**doc, "described_by": "s1", "options": {"weight": 2}})
    assert "the skalds have different versions; this is that of s1" in text
    assert "for ever, after 1 s to 60 s" in text
