"""What a node says of itself in its heartbeats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from skalds_streams.model.record import Record
from skalds_streams.proxy.waiting import Waiting
from skalds_streams.settings import Settings
from skalds_streams.skald.hosts import Catalogue
from skalds_streams.skald.identity import Identity
from skalds_streams.skald.node import SkaldNode, described
from skalds_streams.topics import Topics
from skalds_streams.view.cluster import ClusterView

pytestmark = pytest.mark.anyio


def nothing(*_: object) -> Any:
    return None


class World:
    """A view that is told heartbeats, and the node a, which takes part as the incarnation a1 after a0."""

    def __init__(self, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path)
        topics = Topics.named(app="x")
        self.view = ClusterView(topics, {}, agreed=settings.agreed)
        identity = Identity("a", "a1", -1, ("a0",))
        sender = states = cast("Any", None)
        self.node = SkaldNode(
            settings,
            topics,
            {},
            self.view,
            sender,
            states,
            identity,
            spawn=nothing,
            now_ms=lambda: 0,
            on_fatal=nothing,
            waiting=Waiting(),
        )
        self.node._takes_part = True
        self._end = 0

    def tell(self, **doc: Any) -> None:
        value = orjson.dumps({"skald_id": "a", **doc})
        self.view._take_beats([Record("skald.heartbeat", 0, self._end, None, value, 0, ())])
        self._end += 1

    def beat(self, n: int) -> dict[str, Any]:
        """The node's beat is read."""
        described = self.node._describe()
        self.tell(incarnation=self.node.identity.incarnation, n=n, **described)
        return described

    def lapse(self, incarnation: str) -> None:
        former = self.node.identity
        replaces = (*former.replaces, former.incarnation)
        self.node.identity = replace(former, incarnation=incarnation, replaces=replaces, lapses=former.lapses + 1)


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_node_whose_lease_has_lapsed_says_from_its_first_beat_that_it_is_drained(world: World) -> None:
    """Who reads only from there on (heartbeats are kept for an hour) does not know what a person asked."""
    assert world.beat(1)["state"] == "up"
    world.tell(kind="drain")
    assert world.beat(2)["state"] == "draining"
    world.lapse("a2")
    assert (world.beat(1)["state"], world.node.is_drained) == ("draining", True)
    world.lapse("a3")
    world.lapse("a4")
    assert (world.beat(1)["state"], world.node.is_drained) == ("draining", True)
    world.tell(kind="undrain")
    assert (world.beat(2)["state"], world.node.is_drained) == ("up", False)


async def test_a_node_that_is_started_again_is_not_drained(world: World) -> None:
    world.tell(incarnation="a0", n=1, state="up")
    world.tell(kind="drain")
    assert (world.node.is_drained, world.beat(1)["state"]) == (False, "up")
    assert not world.view.members.is_drained("a")


def test_heartbeats_say_what_classes_ask_of_placement_where_it_is_not_the_default() -> None:
    cam = {"schema": {}, "options": {"weight": 2}}
    doc = described(Settings(), Catalogue({"Cam": cam, "Door": {"schema": {}, "options": {}}}, {}))
    assert doc["options"] == {"Cam": {"weight": 2}}
