"""What worker classes may count on in a real host: packages that offer them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_hosts import begin, ended, nothing_is_left, started
from tests.unit.test_worker_registry import install

__all__ = ["nothing_is_left"]

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


async def test_a_node_runs_a_class_that_an_installed_package_offers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "acme", "[skalds_streams.workers]\nonce = tests.integration.host_workers:Once\nbad = no_such\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with started("tests.unit") as pool:
        assert list(pool.catalogue.classes) == ["Once"]
        assert "No module named 'no_such'" in pool.catalogue.not_loadable["no_such (package acme)"]
        host, events = await begin(pool, "Once", tmp_path)
        assert await events.wait("finished") == {"op": "finished"}
        await ended(host)
