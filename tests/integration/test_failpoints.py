"""A node dies at each of its failpoints in the middle of a stream, and is started again: nothing is lost, nothing is
applied twice. Nor when the broker leaves it without an answer at each of them.

Every event of the stream is an update that adds a parameter of its own to one task, or is the only one of three tasks,
most of them in other partitions than the event. So the rows at the end say by themselves what was applied and how
often; the log lint, which runs after every system test, says the same of the topics.
"""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from skalds_streams.failpoints import POINTS, VARIABLE
from skalds_streams.testing.lint import lint
from skalds_streams.testing.verify import settled
from tests.integration.system import Node, System, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

TASKS = [f"task-{number:02}" for number in range(30)]
BURST = 20
AHEAD_MOST = 300
"""Events that may be sent in one life of a node, so that a stream is small however slow the machine is."""
SETTLED_S = 30.0


class Stream:
    """Updates in the background, and what must come of them."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.sent = 0
        self.most = 0
        self.expected: dict[str, set[str]] = defaultdict(set)

    async def run(self) -> None:
        while True:
            if self.sent >= self.most:
                await asyncio.sleep(0.01)
                continue
            await asyncio.gather(*(self._send(number) for number in range(self.sent, self.sent + BURST)))
            self.sent += BURST

    async def _send(self, number: int) -> None:
        named = [f"once-{number}-{at}" for at in range(3)] if number % 5 == 0 else [TASKS[number % len(TASKS)]]
        document = {"taskIds": named, "attachments": {f"n{number}": number}, "merge": True}
        await self._system.send(self._system.topics.update, document, key=named[0])
        for task_id in named:
            self.expected[task_id].add(f"n{number}")

    async def is_applied(self) -> bool:
        rows = await self._system.rows()
        return all(names <= _parameters(rows.get(task_id)) for task_id, names in self.expected.items())

    async def check(self) -> None:
        """Once: what a task was sent is what it has, and each of it made one revision."""
        await until(self.is_applied, "every update is applied", SETTLED_S)
        rows = await self._system.rows()
        assert {task_id: _parameters(row) for task_id, row in rows.items()} == self.expected
        revisions = {task_id: row["revision"] for task_id, row in rows.items()}
        assert revisions == {task_id: len(names) for task_id, names in self.expected.items()}
        assert await self._system.deadletters() == []


def _parameters(row: dict[str, Any] | None) -> set[str]:
    return set((row or {}).get("attachments") or ())


@asynccontextmanager
async def streaming(system: System) -> AsyncIterator[Stream]:
    stream = Stream(system)
    running = asyncio.create_task(stream.run())
    try:
        yield stream
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def die_at(node: Node, stream: Stream, failpoint: str, *, after_s: float = 0) -> None:
    """One life of the node, to its end at this failpoint, when it has been there for so long."""
    slow = f"{failpoint}:sleep:{after_s:g}," if after_s else ""
    node.environment[VARIABLE] = f"{slow}{failpoint}:kill"
    stream.most = stream.sent + AHEAD_MOST
    node.start()
    process = node.process
    assert process is not None
    await until(lambda: process.poll() is not None, f"the node dies at {failpoint}", 40)
    assert process.returncode == -signal.SIGKILL, node.log()[-3000:]
    assert reached(node, failpoint, "kill")


def reached(node: Node, failpoint: str, action: str) -> bool:
    """Whether the node says that it did this there."""
    point, _, number = failpoint.partition("@")
    return f"event='failpoint.reached' point='{point}' time={number} action='{action}'" in node.log()


LIVES = (
    "before_decide@9",
    "while_opening@4",
    "after_decide@9",
    "in_transaction@9",
    "after_ack@9",
    "after_commit@9",
    "in_recovery@3",
)
"""Where the lives of the node end, one after the other; of the last there is a changelog to recover from."""
SLOW = "in_transaction@9"
COMMITTED_S = 2.5
"""Longer than the group waits with committing what was acknowledged. What was acknowledged too early is lost then."""


async def test_a_node_that_dies_at_every_point_loses_nothing_and_repeats_nothing(system: System) -> None:
    assert {failpoint.partition("@")[0] for failpoint in LIVES} == set(POINTS)
    node = system.node()
    async with streaming(system) as stream:
        for failpoint in LIVES:
            await die_at(node, stream, failpoint, after_s=COMMITTED_S if failpoint == SLOW else 0)
            _, found = await settled(system.topics, {"bootstrap_servers": system.bootstrap}, lint)
            assert found == [], f"after the death at {failpoint}"
        del node.environment[VARIABLE]
        node.start()
        await node.ready()
        stream.most = stream.sent + AHEAD_MOST
        await until(lambda: stream.sent >= stream.most, "the stream goes on")
    await stream.check()
    assert await node.stop() == 0


RAISED = (
    "while_opening@2",
    "before_decide@5",
    "after_decide@9",
    "in_transaction@13",
    "after_commit@17",
    "after_ack@21",
)


async def test_a_node_that_is_told_nothing_by_the_broker_looks_again_and_goes_on(system: System) -> None:
    slow = "before_decide@6:sleep:0.5"
    node = system.node("a", **{VARIABLE: ",".join([slow, *(f"{failpoint}:raise" for failpoint in RAISED)])})
    node.start()
    async with streaming(system) as stream:
        stream.most = 2 * AHEAD_MOST
        await node.ready()
        for failpoint in RAISED:
            await until(lambda failpoint=failpoint: reached(node, failpoint, "raise"), f"{failpoint} is reached")
    await stream.check()
    assert reached(node, "before_decide@6", "sleep")
    assert node.log().count("event='journal.open_failed'") == 1
    assert node.log().count("event='journal.outcome_unknown'") == len(RAISED) - 1
    assert await node.stop() == 0
