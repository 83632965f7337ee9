"""Exactly once, counted from the topics by a reader that shares nothing with the coordinator: through kill -9 in
mid-stream, and through an owner that stands still for longer than its session and wakes up under a successor.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from skalds_streams.failpoints import VARIABLE
from tests.integration.exactly_once import (
    check_exactly_once,
    check_writers,
    longest_pauses_s,
    metric,
    some_progress,
    streaming,
    until_progress,
)
from tests.integration.system import PARTITIONS, Node, System, until

if TYPE_CHECKING:
    from skalds_streams.devcluster.cluster import DevCluster

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

EVENTS_LEAST = 4_000
KILLS = 4
AT_REST, AT_REST_S = "after_decide@60", 5.0
"""Where the owner that is stopped has a batch in its hands that it has not begun to write. It does so when it wakes:
the sleep is shorter than a session.
"""
WITHOUT_WRITER_MOST_S = 30.0


async def test_four_kill_9_in_mid_stream_lose_nothing_and_repeat_nothing(cluster: DevCluster, system: System) -> None:
    node = system.node()
    node.start()
    await node.ready()
    skipped = fetched = 0
    async with streaming(system) as (stream, progress):
        for _ in range(KILLS):
            await some_progress(stream, progress)
            skipped += await metric(node, "skalds_journal_skipped_total")
            fetched += await metric(node, "skalds_journal_fetched_total")
            node.kill()
            sent = len(stream.acknowledged)
            await progress.read_to_the_end()
            assert 0 < progress.applied < sent, "nothing was left to do"
            node.start()
        await node.ready()
        await some_progress(stream, progress)
        await until_progress(
            progress, lambda: len(stream.acknowledged) >= EVENTS_LEAST, f"{EVENTS_LEAST} inputs are sent"
        )
    skipped += await metric(node, "skalds_journal_skipped_total")
    fetched += await metric(node, "skalds_journal_fetched_total")
    # On a machine too busy to open its journals in time, Faust reads from the group's offsets. And what a journal has
    # read itself, as Faust was late with it, comes once more.
    if "journals.open_late" not in node.log():
        assert skipped <= fetched, "inputs are read from the positions: nothing that was applied is delivered again"
    await check_exactly_once(system, stream.acknowledged)
    for partition, epochs in check_writers(cluster, system).items():
        assert len(epochs) > KILLS, f"partition {partition} was written in {len(epochs)} lives"
    assert await node.stop() == 0


async def test_an_owner_that_stands_still_is_succeeded_and_fenced_when_it_wakes(
    cluster: DevCluster, system: System
) -> None:
    first, second = system.node("a", **{VARIABLE: f"{AT_REST}:sleep:{AT_REST_S:g}"}), system.node("b")
    first.start()
    await first.ready()
    assert first.process is not None
    async with streaming(system) as (stream, progress):
        await until(lambda: "failpoint.reached" in first.log(), "it is about to write a batch")
        stopped_s = time.time()
        os.kill(first.process.pid, signal.SIGSTOP)
        try:
            second.start()
            await second.ready()
            await some_progress(stream, progress)
        finally:
            os.kill(first.process.pid, signal.SIGCONT)
        # Told by the group's answer, or by a rebalance that is faster: `_share` says that it has given up its part.
        await until(lambda: "journal.fenced" in first.log(), "what it wrote when it woke is refused")
        await until(lambda: _share(first, second), "both own a part of the partitions")
        await first.ready()
        await some_progress(stream, progress)
        ended_s = time.time()
    pauses_s = longest_pauses_s(cluster, system, stopped_s, ended_s)
    print("without a writer, s:", {partition: round(pause_s, 1) for partition, pause_s in pauses_s.items()})
    assert max(pauses_s.values()) <= WITHOUT_WRITER_MOST_S, pauses_s
    await check_exactly_once(system, stream.acknowledged)
    for partition, epochs in check_writers(cluster, system).items():
        assert len(epochs) >= 2, f"partition {partition} had no successor"
    assert await second.stop() == 0
    assert await first.stop() == 0


async def _share(*nodes: Node) -> bool:
    owned = [await metric(node, "skalds_journals_open") for node in nodes]
    return all(owned) and sum(owned) == PARTITIONS
