"""Where a stuck worker is, for people. The watch itself: integration/test_hosts."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from skalds_streams.worker import BaseTaskWorker, outcome, run_main_handler
from skalds_streams.worker.stall import awaited
from tests.unit.test_worker_run import Params

OURS = Path(outcome.__file__).parent
LIBRARY = Path(threading.__file__).parent
DUMP = f"""Thread 0x00007f01 (most recent call first):
  File "{LIBRARY}/threading.py", line 327 in wait
  File "{LIBRARY}/queue.py", line 171 in get
  File "{OURS}/run.py", line 227 in _apply_updates
  File "{LIBRARY}/threading.py", line 982 in run

Current thread 0x00007f02 (most recent call first):
  File "{OURS}/stall.py", line 80 in take_down
  File "{LIBRARY}/threading.py", line 982 in run

Thread 0x00007f03 (most recent call first):
  File "{LIBRARY}/site-packages/driver/cam.py", line 5 in pull
  File "{LIBRARY}/threading.py", line 982 in run

Thread 0x00007f04 (most recent call first):
  File "{LIBRARY}/threading.py", line 327 in wait
  File "/srv/cam.py", line 9 in main
  File "{OURS}/run.py", line 100 in _call
  File "<frozen runpy>", line 88 in _run_code
"""


def test_stacks_show_main_first_and_nothing_of_ours() -> None:
    assert outcome.stacks(DUMP) == [
        "Main thread (most recent call first):",
        f'  File "{LIBRARY}/threading.py", line 327 in wait',
        '  File "/srv/cam.py", line 9 in main',
        "Another thread (most recent call first):",
        f'  File "{LIBRARY}/site-packages/driver/cam.py", line 5 in pull',
    ]


@pytest.mark.parametrize(
    "dump", ["", "\n", "garbage\n  more", "Thread 0x1 (most recent call first):\n  <no Python frame>"]
)
def test_a_dump_that_was_cut_is_no_error(dump: str) -> None:
    outcome.stacks(dump)


def test_the_stall_is_an_error_document_of_limited_size() -> None:
    error = outcome.stalled(2.5, DUMP + "  File /x\n" * 1_000, ['  File "/srv/cam.py", line 3 in page'])
    assert (error["reason"], error["message"]) == ("stall", "main has not called self.progress() for 2.5 s (stall_s)")
    assert error["traceback"][:2] == ["Main awaits (most recent call first):", '  File "/srv/cam.py", line 3 in page']
    assert len(error["traceback"]) == outcome.STACK_LINES


@pytest.mark.anyio
async def test_where_a_coroutine_waits() -> None:
    async def inner() -> None:
        await asyncio.Event().wait()

    async def outer() -> None:
        await inner()

    task = asyncio.create_task(outer())
    await asyncio.sleep(0)
    lines = awaited(task.get_coro())  # type: ignore[arg-type]
    task.cancel()
    assert [line.rpartition(" ")[2] for line in lines] == ["wait", "inner", "outer"]
    assert awaited(None) == []


def test_progress_outside_of_a_host_does_nothing() -> None:
    class Cam(BaseTaskWorker[Params]):
        def initialize(self, data: Params) -> None: ...

        @run_main_handler
        def run(self) -> None: ...

    Cam().progress()
