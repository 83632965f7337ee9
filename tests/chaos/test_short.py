"""The short form of `make chaos`: a minute of a real system with random faults, and the control that the witness would
see what must not be.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(170)]

LEASE = ("--lease-ms", "4000")


def chaos(tmp_path: Path, *arguments: str) -> tuple[int, str, dict[str, object]]:
    """Exit code, output, and the line in the file of results."""
    results = tmp_path / "chaos.jsonl"
    command = [sys.executable, "-m", "skalds_streams.testing.chaos", "--results", str(results), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=160)
    return done.returncode, done.stdout, orjson.loads(results.read_bytes().splitlines()[-1])


def test_a_minute_of_faults_makes_no_task_run_twice_and_loses_no_command(tmp_path: Path) -> None:
    code, said, result = chaos(tmp_path, "--minutes", "0.7", *LEASE, "--tasks", "12", "--seed", "7")
    assert code == 0, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("faults: "), said
    assert ", overlaps: 0, lost: 0, margin_ms: " in last
    assert result["failures"] == []


def test_workers_that_may_run_twice_are_seen_to_do_so(tmp_path: Path) -> None:
    # A seed whose first fault lasts five leases, and which leaves the other nodes almost alone meanwhile: they count
    # the one that hears nothing dead, and run its tasks beside it.
    arguments = ("--minutes", "0.5", *LEASE, "--tasks", "9", "--seed", "10755", "--class", "Keeper")
    code, said, result = chaos(tmp_path, *arguments, "--only", "half-open link")
    assert code == 1, said
    assert int(str(result["overlaps"])) > 0, said
    (kept,) = (line.removeprefix("logs: ") for line in said.splitlines() if line.startswith("logs: "))
    shutil.rmtree(kept)  # as it failed in the right way
