"""What all tests share: the asyncio backend, and one embedded cluster a session for those that ask for it."""

from __future__ import annotations

import pytest

from skalds_streams.testing.plugin import devcluster as cluster

__all__ = ["cluster"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
