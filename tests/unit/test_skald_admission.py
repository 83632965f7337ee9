"""A process at the door: what it waits for, when it ends, and what the page says of others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from skalds_streams.core.admission import TWIN_BEATS
from skalds_streams.core.membership import DEATH_BEATS
from skalds_streams.errors import DisagreementError, TwinError
from skalds_streams.model.record import Record
from skalds_streams.proxy.waiting import Waiting
from skalds_streams.settings import Settings
from skalds_streams.skald.admission import Admission, banners
from skalds_streams.skald.identity import Identity
from skalds_streams.topics import Topics
from skalds_streams.view.cluster import ClusterView

pytestmark = pytest.mark.anyio


class World:
    """A view that is told heartbeats, and the admission of the process a2 with the skald id a."""

    def __init__(self, tmp_path: Path, **settings: Any) -> None:
        self.settings = Settings(data_dir=tmp_path, **settings)
        self.view = ClusterView(Topics.named(app="x"), {}, agreed=self.settings.agreed)
        self.identity = Identity("a", "a2", -1, ())
        self.fatal: list[BaseException] = []
        self.waiting = Waiting()
        self.admission = Admission(self.settings, self.view, lambda: self.identity, self.fatal.append, self.waiting)
        self._n: dict[str, int] = {}
        self._end = 0

    def beat(self, incarnation: str, skald_id: str = "a", times: int = 1, **more: Any) -> None:
        for _ in range(times):
            n = self._n[incarnation] = self._n.get(incarnation, 0) + 1
            doc = {"skald_id": skald_id, "incarnation": incarnation, "n": n, **more}
            self.view._take_beats([Record("skald.heartbeat", 0, self._end, None, orjson.dumps(doc), 0, ())])
            self._end += 1


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_nobody_in_the_way_is_no_wait(world: World) -> None:
    await world.admission.wait()


async def test_it_waits_until_the_other_is_dead(world: World) -> None:
    world.beat("a1", state="up")
    waiting = asyncio.create_task(world.admission.wait())
    for _ in range(DEATH_BEATS):
        await settled()
        assert not waiting.done()
        assert world.waiting.reason is not None
        assert world.waiting.reason.startswith("another process runs as skald 'a'")
        world.beat("a2", state="waiting")
    await waiting
    assert world.waiting.reason is None


async def test_it_gives_up_when_the_other_lives_on_and_says_who_that_is(world: World) -> None:
    world.beat("a1", state="up", web="http://one:6066", host="cam-7")
    waiting = asyncio.create_task(world.admission.wait())
    for _ in range(TWIN_BEATS):
        await settled()
        world.beat("a2", state="waiting")
        world.beat("a1")
    with pytest.raises(TwinError, match=r"'a': incarnation a1, http://one:6066, on machine cam-7.*SKALDS_TAKE_OVER"):
        await waiting


async def test_other_settings_are_named(world: World) -> None:
    world.beat("b1", "b", state="up", agreed={**world.settings.agreed, "lease_ms": 4_000, "cluster": "north"})
    waiting = asyncio.create_task(world.admission.wait())
    await settled()
    world.beat("a2", state="waiting")
    world.beat("b1", "b")
    said = "'b'.*SKALDS_CLUSTER is default here and north there, SKALDS_LEASE_MS is 20000 here and 4000 there"
    with pytest.raises(DisagreementError, match=said):
        await waiting


async def test_one_that_takes_part_ends_once_when_another_has_its_place(world: World) -> None:
    world.beat("a2", state="up")
    world.admission.begin()
    world.beat("a1", state="waiting", times=DEATH_BEATS)
    assert not world.fatal
    assert world.view.members.is_dead("a2")
    world.beat("a1", state="up")
    world.beat("b1", "b", state="up")
    assert [type(error) for error in world.fatal] == [TwinError]
    assert world.admission.is_over


async def test_it_ends_when_one_that_waits_asks_for_its_place(world: World) -> None:
    world.beat("a2", state="up")
    world.admission.begin()
    world.beat("a9", state="waiting", web="http://nine:1", take_over=True)
    assert "taken over by another process: incarnation a9, http://nine:1" in str(world.fatal)


@pytest.mark.parametrize("taken", [False, True])
async def test_before_it_joins_the_group_again_it_reads_all_heartbeats(
    world: World, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.beat("a2", state="up")
    world.admission.begin()

    async def read() -> None:
        if taken:
            world.beat("a1", state="waiting", times=DEATH_BEATS)
            world.beat("a1", state="up")

    monkeypatch.setattr(world.view, "read_members", read)
    assert await world.admission.may_rejoin() is not taken


def test_the_page_says_who_is_there_and_takes_no_part(world: World) -> None:
    world.beat("a2", state="up", role="both")
    assert banners(world.view, world.settings) == []
    world.beat("a9", state="waiting", web="http://nine:1")
    world.beat("b1", "b", state="waiting", agreed={**world.settings.agreed, "hold_ms": 1})
    assert banners(world.view, world.settings) == [
        "A second process runs as skald a and takes no part: incarnation a9, http://nine:1.",
        "Skald b has other settings and takes no part: SKALDS_HOLD_MS is 15000 here and 1 there (incarnation b1).",
    ]


def test_the_page_says_when_nobody_decides(world: World) -> None:
    world.view._heartbeats.caught_up.set()
    world.beat("a2", state="up", role="skald")
    assert any("No coordinator is here" in banner for banner in banners(world.view, world.settings))
    world.beat("c1", "c", state="up", role="coordinator")
    assert banners(world.view, world.settings) == []
