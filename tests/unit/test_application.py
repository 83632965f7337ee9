"""What the Faust application is made of: its group, its name in it, and what a rebalance does not wait for."""

from __future__ import annotations

from pathlib import Path

import pytest

from skalds_streams.application import SkaldsApp, _instance_id
from skalds_streams.settings import Role, Settings


def test_systems_that_share_a_broker_share_no_group(tmp_path: Path) -> None:
    """With one group for two prefixes, Faust's leader would give topics to members that do not read them."""
    names = {
        SkaldsApp(Settings(app="x", topic_prefix=prefix, data_dir=tmp_path, kafka_topic_partitions=6)).conf.id
        for prefix in ("", "one.", "two.")
    }
    assert names == {"x", "one.x", "two.x"}


def test_no_rebalance_waits_for_a_backlog(tmp_path: Path) -> None:
    assert SkaldsApp(Settings(data_dir=tmp_path)).conf.stream_wait_empty is False


@pytest.mark.parametrize("skald_id", ["node-1", "a.b_c", "x" * 200])
def test_a_plain_skald_id_is_the_member_s_name(skald_id: str) -> None:
    assert _instance_id(skald_id) == skald_id


@pytest.mark.parametrize("skald_id", ["cam 1", "cam/1", "kämera", "x" * 300])
def test_kafka_takes_any_skald_id_for_a_member_s_name(skald_id: str) -> None:
    name = _instance_id(skald_id)
    assert len(name) <= 249
    assert all(char.isascii() and (char.isalnum() or char in "._-") for char in name)
    assert _instance_id(skald_id + "x") != name


def test_a_member_s_name_in_the_group_outlives_its_address(tmp_path: Path) -> None:
    """One that comes back with another port is handed its former assignment, with the former name in it."""
    names = set()
    for port in (6066, 6067):
        app = SkaldsApp(Settings(data_dir=tmp_path, web_port=port))
        app.conf.consumer_group_instance_id = "node-1"
        names.add(str(app.assignor._url))
    assert names == {"http://skald/node-1"}


def test_a_skald_has_no_consumer_agents_or_table(tmp_path: Path) -> None:
    app = SkaldsApp(Settings(data_dir=tmp_path, role="skald"))
    assert not app.agents
    assert not app.tables
    services = {type(service).__name__ for service in app.boot_strategy.server()}
    assert "Web" in services
    assert not services & {"PositionedConsumer", "AgentManager", "JournalTableManager", "Conductor"}


def test_only_the_roles_part_of_the_readiness_is_asked(tmp_path: Path) -> None:
    def asked(role: Role) -> set[str]:
        return set(SkaldsApp(Settings(data_dir=tmp_path, role=role)).runtime.readiness())

    assert asked("both") - asked("skald") == {"journals_open", "reading_inputs"}
    assert asked("both") - asked("coordinator") == {"workers_loaded"}
