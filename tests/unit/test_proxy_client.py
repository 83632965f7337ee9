"""How our Kafka clients are made and watched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from skalds_streams.proxy.client import count_commits

pytestmark = pytest.mark.anyio


async def test_each_request_to_end_a_transaction_is_counted() -> None:
    sent: list[bool] = []

    async def ask(commit: bool) -> None:
        sent.append(commit)

    sender: Any = SimpleNamespace(_do_txn_commit=ask)
    await sender._do_txn_commit(False)
    asked = count_commits(cast("Any", SimpleNamespace(_sender=sender)))
    assert asked() == 0
    await sender._do_txn_commit(True)
    await sender._do_txn_commit(True)
    assert (asked(), sent) == (2, [False, True, True])
