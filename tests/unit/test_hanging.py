"""What a process waits for when it does not end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from skalds_streams.hanging import hanging

pytestmark = pytest.mark.anyio


async def inner(event: asyncio.Event) -> None:
    await event.wait()


async def outer(event: asyncio.Event) -> None:
    await inner(event)


async def test_tasks_and_threads_say_where_they_are() -> None:
    event, ends = asyncio.Event(), threading.Event()
    task = asyncio.create_task(outer(event), name="stuck")
    thread = threading.Thread(target=ends.wait, name="deaf")
    thread.start()
    await asyncio.sleep(0)
    try:
        lines = hanging()
    finally:
        ends.set()
        event.set()
        thread.join()
        await task
    [stuck] = [line for line in lines if line.startswith("task stuck: ")]
    assert [word in stuck for word in ("outer (test_hanging.py:", " > inner (test_hanging.py:", " > Event.wait")] == [
        True
    ] * 3
    [deaf] = [line for line in lines if line.startswith("thread deaf: ")]
    assert deaf.index("Thread.run") < deaf.index("Event.wait")
    assert not any("task stuck" in line for line in hanging()), "one that is done does not hang"
