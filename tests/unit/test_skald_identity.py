"""Ids and locks of processes on one machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from skalds_streams.core.membership import former_of
from skalds_streams.errors import ConfigError
from skalds_streams.skald.identity import claim_identity, forget_predecessors, renewed


def test_the_next_process_replaces_the_former_once_its_lock_is_free(tmp_path: Path) -> None:
    first = claim_identity(tmp_path, "node-1")
    assert first.replaces == ()
    with pytest.raises(ConfigError, match="another process on this machine"):
        claim_identity(tmp_path, "node-1", wait_s=0, sleep=lambda seconds: None)
    os.close(first.lock_fd)
    second = claim_identity(tmp_path, "node-1")
    assert (second.replaces, second.incarnation != first.incarnation) == ((first.incarnation,), True)
    os.close(second.lock_fd)


def test_a_lapse_is_counted_and_the_next_process_counts_anew(tmp_path: Path) -> None:
    os.close(claim_identity(tmp_path, "node-1").lock_fd)
    second = claim_identity(tmp_path, "node-1")
    lapsed = renewed(renewed(second))
    assert (len(lapsed.replaces), lapsed.lapses) == (3, 2)
    assert former_of(lapsed.replaces, lapsed.lapses)[0] == second.incarnation
    assert former_of(second.replaces, second.lapses) == ()
    os.close(lapsed.lock_fd)
    third = claim_identity(tmp_path, "node-1")
    assert (third.replaces[-1], third.lapses) == (lapsed.incarnation, 0)
    os.close(third.lock_fd)


def test_a_process_that_ended_before_its_first_heartbeat_takes_no_news_along(tmp_path: Path) -> None:
    lives = []
    for _ in range(3):
        lives.append(claim_identity(tmp_path, "node-1"))
        os.close(lives[-1].lock_fd)
    assert lives[2].replaces == (lives[0].incarnation, lives[1].incarnation)
    third = claim_identity(tmp_path, "node-1")
    forget_predecessors(third)
    os.close(third.lock_fd)
    fourth = claim_identity(tmp_path, "node-1")
    assert fourth.replaces == (third.incarnation,)
    os.close(fourth.lock_fd)


def test_a_descriptor_that_a_host_still_has_keeps_the_lock(tmp_path: Path) -> None:
    first = claim_identity(tmp_path, "node-1")
    in_a_host = os.dup(first.lock_fd)
    os.close(first.lock_fd)
    with pytest.raises(ConfigError):
        claim_identity(tmp_path, "node-1", wait_s=0, sleep=lambda seconds: None)
    os.close(in_a_host)
    os.close(claim_identity(tmp_path, "node-1").lock_fd)


def test_an_unset_id_is_kept_and_a_second_process_draws_its_own(tmp_path: Path) -> None:
    first = claim_identity(tmp_path, None)
    second = claim_identity(tmp_path, None)
    assert first.skald_id != second.skald_id
    os.close(first.lock_fd)
    again = claim_identity(tmp_path, None)
    assert (again.skald_id, again.replaces) == (first.skald_id, (first.incarnation,))
    os.close(second.lock_fd)
    os.close(again.lock_fd)


def test_another_machines_lock_file_proves_nothing(tmp_path: Path) -> None:
    first = claim_identity(tmp_path, "node-1")
    path = tmp_path / "skalds" / "node-1.lock"
    path.write_text(path.read_text().replace('"machine_id":"', '"machine_id":"other-'))
    os.close(first.lock_fd)
    second = claim_identity(tmp_path, "node-1")
    assert second.replaces == ()
    os.close(second.lock_fd)


def test_an_id_is_no_path(tmp_path: Path) -> None:
    identity = claim_identity(tmp_path, "../../x/y")
    assert [path.name for path in (tmp_path / "skalds").iterdir()] == ["..%2f..%2fx%2fy.lock"]
    os.close(identity.lock_fd)


def test_the_lock_of_a_copied_data_directory_proves_nothing(tmp_path: Path) -> None:
    first = claim_identity(tmp_path / "one", "a")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    second = claim_identity(tmp_path / "two", "a")
    assert second.replaces == (), "the first lives"
    for identity in (first, second):
        os.close(identity.lock_fd)
    third = claim_identity(tmp_path / "two", "a")
    assert third.replaces == (second.incarnation,)
    os.close(third.lock_fd)
