"""Fuzzing the wire parser: its seeds, what it has ever found, a short run each time. `make fuzz` is the long one."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.wire import check

TESTS = Path(__file__).parents[1]
SEEDS = sorted((TESTS / "fuzz" / "seeds").glob("*.bin"))
FOUND = sorted((TESTS / "histories").glob("fuzz-*.bin"))
REFUSED_SEEDS = ("assign-gzip", "update-worker-event-no-key")
"""A value packed by its sender, where Kafka's own packing never reaches the parser; and an id that nobody says."""
RUN_S = 15
RUN_MOST_S = 100
"""With a slow start on a busy machine."""
EXECUTIONS_LEAST = 3_000
HAS_WHEEL = (sys.platform, platform.machine(), sys.implementation.name) == ("linux", "x86_64", "cpython")


@pytest.mark.parametrize("path", [*SEEDS, *FOUND], ids=lambda path: path.stem)
def test_seeds_say_what_their_names_say_and_what_was_found_is_mended(path: Path) -> None:
    parsed = check(path.read_bytes())
    if path in FOUND:
        return
    if path.stem in REFUSED_SEEDS:
        assert parsed is None
        return
    assert parsed is not None
    said = [type(event).__name__ for event in parsed.events] + [doc["command"] for _, doc in parsed.forwards]
    first, second, *rest = path.stem.split("-")
    kind = first if first != "report" else rest[0] if second == "forwarded" else second
    assert set(said) == {kind.title()}


def test_a_short_run_finds_nothing(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    if find_spec("atheris") is None:
        assert not (os.environ.get("CI") and HAS_WHEEL), "atheris is a development dependency: requirements/dev.lock"
        pytest.skip("there is no atheris for this platform")
    options = [f"-max_total_time={RUN_S}", "-seed=1", str(tmp_path)]
    command = [sys.executable, "-m", "tests.fuzz", *options]
    run = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=RUN_MOST_S, check=False)
    assert run.returncode == 0, run.stderr[-4_000:]
    found = re.search(r"stat::number_of_executed_units:\s*(\d+)", run.stderr)
    assert found, run.stderr[-4_000:]
    executions = int(found[1])
    record_property("executions", executions)
    assert executions >= EXECUTIONS_LEAST
