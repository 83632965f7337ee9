"""What all tests share: the asyncio backend, and one embedded cluster a session for those that ask for it."""

from __future__ import annotations

from pathlib import Path

import pytest

import skalds_streams
from skalds_streams.testing.plugin import devcluster as cluster

__all__ = ["cluster"]

ROOT = Path(__file__).parents[1]
if Path(skalds_streams.__file__).parents[1] != ROOT:
    raise pytest.UsageError(
        f"these tests would test another copy, {skalds_streams.__file__}: from {ROOT}, run `python -m pytest`"
    )


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
