"""One event that names as many tasks as an event may, and one that names one more."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from itertools import count, islice
from typing import Any

import pytest

from skalds_streams.core.partition import partition_of
from skalds_streams.model.codec import Limits
from tests.integration.exactly_once import Progress, Sent, check_exactly_once
from tests.integration.system import PARTITIONS, System, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.timeout(240)]

MOST = Limits().ids_per_event
PATIENCE_S = 100.0


async def test_an_event_of_10_000_tasks_is_applied_to_each_and_one_more_is_too_many(system: System) -> None:
    assert MOST == 10_000
    scattered = [f"scattered-{number}" for number in range(MOST)]
    together = list(islice((f"t{n}" for n in count() if partition_of(f"t{n}", PARTITIONS) == 0), MOST))
    node = system.node()
    node.start()
    await node.ready()
    progress = Progress(system)
    reading = asyncio.create_task(progress.run())
    try:
        of_all = await _apply(system, progress, system.topics.assign, {"taskIds": scattered})
        update = {"taskIds": together, "attachments": {"fps": 5}}
        of_one = await _apply(system, progress, system.topics.update, update, key="fps")
        tasks = [*scattered, *together]
        await check_exactly_once(system, [of_all, of_one], tasks)
        before = await system.rows()
        assert Counter(row["revision"] for row in before.values()) == {1: 2 * MOST}
        too_many = [*scattered, "one-more"]
        refused = await _apply(system, progress, system.topics.cancel, {"taskIds": too_many})
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
    assert await system.rows() == before
    ((reason, letter),) = await system.deadletters()
    assert f"{MOST + 1}" in reason, reason
    headers = dict(letter.headers)
    assert (headers["source.topic"].decode(), int(headers["source.offset"])) == (refused.place[0], refused.place[2])
    assert await node.stop() == 0


async def _apply(
    system: System, progress: Progress, topic: str, document: dict[str, Any], key: str | None = None
) -> Sent:
    """Send it and wait until it is applied, and what was forwarded of it. Prints how long that takes."""
    begun = time.monotonic()
    named = document["taskIds"]
    answer = await system.send(topic, document, key=named[0])
    await until(
        lambda: progress.positions.get((topic, answer.partition), -1) >= answer.offset, "it is applied", PATIENCE_S
    )
    first_s = time.monotonic() - begun
    await until(progress.is_complete, "its copies are applied", PATIENCE_S)
    print(f"{len(named)} tasks: own partition {first_s:.2f} s, all {time.monotonic() - begun:.2f} s")
    return Sent((topic, answer.partition, answer.offset), tuple(named), key)
