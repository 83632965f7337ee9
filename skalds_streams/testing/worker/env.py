"""The handle of a worker in a test: begins its runs, asks of it what a node is asked for, and keeps what it says."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from pydantic import BaseModel

from skalds_streams.core.patch import merge_patch
from skalds_streams.core.row import Row
from skalds_streams.skald.actor import LAPSED, Actor
from skalds_streams.skald.host import Hosted, RunSpec
from skalds_streams.skald.hosts import HostPool
from skalds_streams.skald.reporter import Reporter
from skalds_streams.testing.worker.clock import DRIVE_MOST_S, RealClock, VirtualClock
from skalds_streams.testing.worker.memory import MemoryHost
from skalds_streams.testing.worker.node import LogLines, Pool, ReportsTaken, SavedStates, default_policy
from skalds_streams.testing.worker.process import Nursery, Output
from skalds_streams.testing.worker.reports import Applied, Failed, Finished, Refused, Report, Running, Stopped, told
from skalds_streams.worker.baseclass import MAIN, BaseTaskWorker
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.registry import check
from skalds_streams.worker.secrets import SecretPolicy

if TYPE_CHECKING:
    from skalds_streams.testing.worker.blocking import BlockingEnv

TASK_ID = "test-task"

WorkerT = TypeVar("WorkerT", bound=BaseTaskWorker[Any])
FoundT = TypeVar("FoundT")


class WorkerEnded(AssertionError):
    """The test waited for something of a worker that did not come. The text says what became of the worker, with the
    traceback of its own code.
    """


class WorkerEnv(Generic[WorkerT]):
    """One worker of a test: its runs, one after the other, under rising epochs.

    Begin it by `async with` (or `with`, then all methods block), by `start` or by the first `running` or `run_until`.
    Not for several tasks at a time.
    """

    def __init__(
        self,
        worker_type: type[WorkerT],
        params: Mapping[str, Any] | None = None,
        *,
        process: bool | None = None,
        state: Mapping[str, Any] | BaseModel | None = None,
        secrets: SecretPolicy | None = None,
        task_id: str = TASK_ID,
    ) -> None:
        """params: the document, as an assign would have it. process: whether it runs in a process of its own; None:
        only if its main is not `async def`. state: what a former run has saved. secrets: what references in parameters
        may read; None: what a node allows that is not told otherwise.

        Raises `skalds_streams.worker.registry.NotLoadable` for a class that no node could run.
        """
        self._described = check(worker_type)
        main = getattr(worker_type, worker_type._handlers[MAIN])
        is_async = inspect.iscoroutinefunction(main)
        if process is False and not is_async:
            raise ValueError(f"main of {worker_type.__name__} is not async: it needs a process, to be stopped")
        self.in_process = process or not is_async
        """Whether the worker is in a process of its own."""
        self.epoch = 0
        """Of the present run, or the last."""
        self.reports: list[Report] = []
        """What the runs have said, in order."""
        self._states = SavedStates()
        self._log = LogLines(worker_type.__name__, task_id)
        self._policy = secrets or default_policy()
        document, name = dict(params or {}), worker_type.__name__
        self._row = Row(task_id, name, first_epoch=1, attachments=document, attachments_version=1)
        if state is not None:
            self.epoch = 1
            self._states.set(task_id, 1, state)
        self._clock: RealClock | None = None
        self._actor: Actor | None = None
        self._task: asyncio.Task[None] | None = None
        self._host: Hosted | MemoryHost | None = None
        self._nursery: Nursery | None = None
        self._begins_anew = False
        self._blocking: BlockingEnv[WorkerT] | None = None

    # -- what there is to see

    @property
    def is_over(self) -> bool:
        """The present run has ended, and all that it said is in `reports`."""
        return self._task is not None and self._task.done()

    @property
    def time(self) -> float:
        """The worker's time in seconds: virtual when it runs in this process."""
        return self._clock.now if self._clock is not None else 0.0

    @property
    def worker(self) -> WorkerT:
        """The object itself, to look into. Raises RuntimeError when it is in another process, or not made yet."""
        if self.in_process:
            raise RuntimeError("the worker is in a process of its own: only what it says can be seen")
        worker = self._host.run.worker if isinstance(self._host, MemoryHost) else None
        if worker is None:
            raise RuntimeError("the worker is not made yet: wait for `running()`")
        return cast("WorkerT", worker)

    @property
    def metrics(self) -> dict[str, float | None]:
        """What the present run, or the last, has set by `self.metric`. From another process it comes once a second."""
        if isinstance(self._host, MemoryHost):
            return self._host.run.metrics
        told = self._actor.metrics if self._actor is not None else None
        return dict(told["values"]) if told is not None else {}

    @property
    def saved(self) -> dict[str, Any] | None:
        """The last saved state that was sent: what survives a crash now."""
        return self._states.last

    @property
    def log(self) -> list[str]:
        """Lines that the worker has logged; from another process also what it and its children have printed."""
        return self._log.lines

    # -- waiting

    async def start(self) -> Self:
        """Begin the first run, if it is not begun."""
        if self._task is None:
            self._begin()
        return self

    async def running(self, within_s: float | None = None) -> Running:
        """Wait until main has begun. Raises WorkerEnded when it does not come to that."""
        return await self.run_until(lambda: self._last(Running), within_s)

    async def ended(self, within_s: float | None = None) -> Finished | Failed | Stopped:
        """Wait until the run is over by itself; how. Raises WorkerEnded when it goes on."""
        await self.run_until(lambda: self.is_over, within_s)
        return self._end()

    async def run_until(self, condition: Callable[[], FoundT | None], within_s: float | None = None) -> FoundT:
        """Let the worker go on until `condition()` is true; what it gave. It is asked from when main has begun, or the
        run has ended. within_s: of the worker's time; None: a minute of the test's.

        Raises WorkerEnded when the run ends before, or the time is over.
        """
        await self.start()
        found: FoundT | None = None

        def look() -> object:
            nonlocal found
            found = condition() if self._last(Running) or self.is_over else None
            return found or self.is_over

        await self._drive(look, within_s)
        if not found:
            raise WorkerEnded(self._told(within_s))
        return found

    async def sleep(self, seconds: float) -> None:
        """Let the worker go on for so many seconds of its time, or until it has ended."""
        await self.start()
        await self._drive(lambda: self.is_over, seconds)

    # -- what a node is asked for

    async def update(self, params: Mapping[str, Any], *, merge: bool = True) -> Applied | Refused:
        """New parameters, as an update event has them, once main has begun; the worker's answer. merge: only those that
        change (null takes one away); else all of them. Raises WorkerEnded when the worker ends before it answers.
        """
        await self.running()
        actor, before = self._running_actor(), self._row.attachments
        document = merge_patch(before or {}, dict(params)) if merge else dict(params)
        version = self._row.attachments_version + 1
        self._row = replace(self._row, attachments=document, attachments_version=version)
        await actor.push(replace(self._row, epoch=self.epoch))

        def answer() -> Applied | Refused | None:
            given = (item for item in self.reports if isinstance(item, Applied | Refused))
            return next((item for item in given if item.version == version), None)

        await self._drive(lambda: answer() or self.is_over, None, jumps=self._waits_for_time)
        found = answer()
        if not isinstance(found, Applied):
            self._row = replace(self._row, attachments=before)
        if found is None:
            raise WorkerEnded(self._told(None))
        return found

    async def cancel(self) -> Finished | Failed | Stopped:
        """Cancel the task: how the run ended. `restart` begins anew then, without what was saved."""
        self._begins_anew = True
        return await self._stop("cancel")

    async def pause(self) -> Finished | Failed | Stopped:
        """Pause the task, or stop its node, or move it: the run is stopped, `restart` finds what it saved."""
        return await self._stop("pause")

    async def lose_lease(self) -> Finished | Failed | Stopped:
        """Let the lease of its node lapse. In a cluster nobody reports that; here it is a Stopped. A class that says
        `on_disconnect = "keep"` runs on, which raises RuntimeError.
        """
        if self._described.on_disconnect == "keep":
            raise RuntimeError('its class says on_disconnect = "keep": it runs on without a lease')
        await self._stop(LAPSED)
        if self._found_end() is None:
            self.reports.append(Stopped(self.epoch, LAPSED, tuple(self._host.steps if self._host else ())))
        return self._end()

    async def crash(self) -> Failed:
        """End the run as SIGKILL does, now: no handler and no `finally` runs. The next run finds what was sent."""
        self._running_actor()
        await self._drive(lambda: self._host or self.is_over, None)
        if self._host is not None:
            self._host.kill()
        await self._until_over()
        return cast("Failed", self._end())

    async def restart(self) -> Self:
        """Begin another run under the next epoch; one that runs is stopped first. It finds what was saved, unless the
        task was finished or cancelled: then it is assigned anew.
        """
        if self._task is not None and not self.is_over:
            await self._stop("restart")
        self._begin()
        return self

    async def close(self) -> None:
        """Stop what runs, as a cancel does, and let go of everything."""
        if self._task is not None and not self.is_over:
            assert self._actor is not None
            self._actor.stop("cancel")
            await self._until_over()
        self._let_go()

    def abandon(self) -> None:
        """Kill what runs, from outside of its loop, which may be closed."""
        task = self._task
        if task is not None and not task.done():
            loop = task.get_loop()
            if not (loop.is_closed() or loop.is_running()):
                task.cancel()
                loop.run_until_complete(asyncio.wait({task}))
        if isinstance(self._host, MemoryHost):
            self._host.abandon()
        elif self._nursery is not None:
            self._nursery.abandon()
        self._let_go()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __enter__(self) -> BlockingEnv[WorkerT]:
        from skalds_streams.testing.worker.blocking import BlockingEnv  # imports this module

        self._blocking = BlockingEnv(self)
        self._blocking.start()
        return self._blocking

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._blocking is not None
        self._blocking.close()

    # -- a run

    def _begin(self) -> None:
        if self._clock is None:
            self._clock = RealClock() if self.in_process else VirtualClock()
        self._let_go()
        self.epoch += 1
        if self._begins_anew:
            self._row, self._begins_anew = replace(self._row, first_epoch=self.epoch), False
        self._host = self._nursery = None
        if not self.in_process:
            self._log.open()
        budgets = (self._described.release_s, self._described.terminate_s)
        self._actor = Actor(
            replace(self._row, epoch=self.epoch),
            cast("HostPool", Pool(self._make_host)),
            cast("Reporter", ReportsTaken(self._take)),
            self._states,
            budgets=lambda _class: budgets,
        )
        self._task = asyncio.get_running_loop().create_task(self._live(self._actor))
        self._task.add_done_callback(lambda _: self._clock.tell() if self._clock is not None else None)

    async def _live(self, actor: Actor) -> None:
        await actor.run()
        await (self._nursery.gone() if self._nursery is not None else asyncio.sleep(0))

    async def _make_host(self, spec: RunSpec, on_event: Callable[[Frame], None]) -> Hosted | MemoryHost:
        if isinstance(self._clock, VirtualClock):
            self._host = host = MemoryHost(self._described, self._policy, spec, on_event, self._clock)
            host.begin()
            return host
        output = Output(self._log.lines.append)
        try:
            self._nursery = Nursery(self._described, self._policy)
            self._host = await self._nursery.start(spec, partial(self._hear, on_event), output)
        except BaseException:
            output.close()
            raise
        return self._host

    def _hear(self, on_event: Callable[[Frame], None], frame: Frame) -> None:
        on_event(frame)
        assert self._clock is not None
        self._clock.tell()

    def _take(self, report: Report) -> None:
        self.reports.append(report)
        self._begins_anew = self._begins_anew or isinstance(report, Finished)

    def _running_actor(self) -> Actor:
        if self._actor is None:
            raise RuntimeError("the worker is not started: `async with worker_env(…)`, or await `start()`")
        if self.is_over:
            raise WorkerEnded(self._told(None))
        return self._actor

    async def _stop(self, reason: str) -> Finished | Failed | Stopped:
        self._running_actor().stop(reason)
        await self._until_over()
        return self._found_end() or Stopped(self.epoch, reason)

    async def _until_over(self) -> None:
        """The actor drives the clock; it keeps the budgets."""
        assert self._task is not None
        await asyncio.wait({self._task})
        self._task.result()

    async def _drive(
        self, enough: Callable[[], object], within_s: float | None, jumps: Callable[[], bool] = lambda: True
    ) -> None:
        assert self._clock is not None
        await self._clock.drive(enough, within_s, jumps=jumps)
        if self._task is not None and self._task.done():
            self._task.result()  # a defect of ours

    def _waits_for_time(self) -> bool:
        """Whether an answer to an update can't come before time goes on."""
        return not isinstance(self._host, MemoryHost) or self._host.run.is_beside

    def _let_go(self) -> None:
        if isinstance(self._host, MemoryHost):
            self._host.run.bury()
        self._log.close()

    # -- words

    def _last(self, kind: type[FoundT]) -> FoundT | None:
        """The last report of this kind of the present run."""
        found = [report for report in self.reports if isinstance(report, kind) and report.epoch == self.epoch]
        return found[-1] if found else None

    def _end(self) -> Finished | Failed | Stopped:
        end = self._found_end()
        assert end is not None, "a run that is over has said how"
        return end

    def _found_end(self) -> Finished | Failed | Stopped | None:
        return self._last(Finished) or self._last(Failed) or self._last(Stopped)

    def _told(self, within_s: float | None) -> str:
        """What became of the worker, for a test that has failed."""
        waited = f"{DRIVE_MOST_S:g} s" if within_s is None else f"{within_s:g} s of the worker's time"
        awaited = self._host.awaited if isinstance(self._host, MemoryHost) else ()
        return told(self._found_end(), f"{waited}; its time is {self.time:g} s", awaited, self.log)


worker_env = WorkerEnv
"""By this name the pytest fixture makes it, too."""
