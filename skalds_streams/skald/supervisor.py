"""Makes what runs here what the rows say: one supervisor, one actor a task.

Rules: compared on every change and every RECONCILE_S as a net; only a row that names this incarnation at that moment
counts; an epoch that ended here never starts again; a crash of one worker touches no other; so many start at once, and
one that is stuck in its start holds up the others for START_MOST_S only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from typing import Any

import structlog

from skalds_streams.core.reconcile import Action, Adopt, Push, SayStopped, Start, Stop, reconcile_task
from skalds_streams.skald.actor import LAPSED, LEAVING, Actor
from skalds_streams.skald.hosts import HostPool
from skalds_streams.skald.lease import Lease
from skalds_streams.skald.reporter import Reporter
from skalds_streams.skald.states import TaskStates
from skalds_streams.view.cluster import ClusterView
from skalds_streams.worker.outcome import simple

RECONCILE_S = 5.0
STARTS_AT_ONCE = 8
START_MOST_S = 30.0
"""A start that takes longer, as `initialize` blocks or waits for something, goes on, but counts no more."""

log = structlog.get_logger(__name__)


class Supervisor:
    """See the module."""

    def __init__(
        self,
        view: ClusterView,
        pool: HostPool,
        reporter: Reporter,
        states: TaskStates,
        lease: Lease,
        *,
        skald_id: str,
        incarnation: str,
        starts_at_once: int = STARTS_AT_ONCE,
    ) -> None:
        self._starts_at_once = starts_at_once
        self._lease = lease
        self._view, self._pool, self._reporter, self._states = view, pool, reporter, states
        self._skald_id, self._incarnation = skald_id, incarnation
        self._actors: dict[str, Actor] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._done: dict[str, int] = {}
        self._starting: dict[str, asyncio.TimerHandle] = {}
        """Starts that count → when they no longer will."""
        self._queue: list[tuple[int, str]] = []
        """Starts that wait for others to be over: (-priority, task id), a heap."""
        self._queued: set[str] = set()
        self._nudge: Callable[[], object] = lambda: None
        self._closing = False

    @property
    def load(self) -> int:
        """Units of this skald's capacity that are taken: the weights of what runs here."""
        return sum(actor.weight for actor in self._actors.values())

    @property
    def kept(self) -> list[str]:
        """Ids of the tasks that run on here although their rows do not say so, and may."""
        return sorted(
            task_id for task_id, actor in self._actors.items() if actor.is_kept and not self._is_to_stop(task_id, actor)
        )

    def _is_to_stop(self, task_id: str, actor: Actor) -> bool:
        run = actor.as_run
        action = reconcile_task(task_id, self._view.rows.get(task_id), run, 0, self._incarnation)
        return run.stopping or isinstance(action, Stop)

    @property
    def stop_most_s(self) -> float:
        """How long stopping what runs here may take by the budgets of its classes, in seconds."""
        return max((actor.stop_most_s for actor in self._actors.values()), default=0.0)

    @property
    def held(self) -> Iterable[str]:
        """Ids of the tasks that run here."""
        return tuple(self._actors)

    def metrics(self, task_id: str) -> dict[str, Any] | None:
        """The last numbers of a worker that runs here: {"values", "at_ms"}."""
        actor = self._actors.get(task_id)
        return actor.metrics if actor is not None else None

    async def run(self) -> None:
        """Follow the view until cancelled."""
        now = asyncio.get_running_loop().time
        next_whole_at = now() + RECONCILE_S
        with self._view.subscribe() as changes:
            self._nudge = changes.note_members
            while True:
                tasks: Iterable[str] = ()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(next_whole_at):
                        tasks, _ = await changes.wait()
                if now() >= next_whole_at:  # also when something changes all the time: every heartbeat is a change
                    tasks = {*tasks, *self._everything()}
                    next_whole_at = now() + RECONCILE_S
                for task_id in sorted(tasks):
                    await self.look_at(task_id)
                while self._queue and len(self._starting) < self._starts_at_once:
                    task_id = heappop(self._queue)[1]
                    self._queued.discard(task_id)
                    await self.look_at(task_id)

    def _everything(self) -> set[str]:
        rows = self._view.rows.items()
        held = {i for i, row in rows if row.holder is not None and row.holder.incarnation == self._incarnation}
        return held | self._actors.keys()

    async def look_at(self, task_id: str) -> None:
        """Do the one thing that is to be done for one task now."""
        actor = self._actors.get(task_id)
        action = reconcile_task(
            task_id,
            self._view.rows.get(task_id),
            actor.as_run if actor is not None else None,
            self._done.get(task_id, 0),
            self._incarnation,
        )
        if action is None or self._closing or (isinstance(action, Start) and not self._lease.is_valid):
            return
        await self._do(action)

    async def _do(self, action: Action) -> None:
        if isinstance(action, Start):
            self._start(action)
        elif isinstance(action, Adopt):
            self._actors[action.row.task_id].adopt(action.row)
        elif isinstance(action, Push):
            await self._actors[action.row.task_id].push(action.row)
        elif isinstance(action, Stop):
            self._actors[action.task_id].stop(action.reason)
        elif isinstance(action, SayStopped):
            self._done[action.task_id] = action.epoch
            self._reporter.say("Stopped", action.task_id, action.epoch, reason=action.reason)

    def _start(self, action: Start) -> None:
        row = action.row
        if len(self._starting) >= self._starts_at_once:
            if row.task_id not in self._queued:
                self._queued.add(row.task_id)
                heappush(self._queue, (-row.priority, row.task_id))
            return
        actor = Actor(
            row,
            self._pool,
            self._reporter,
            self._states,
            budgets=self._budgets,
            has_lapsed=lambda: self._lease.is_over,
            on_begun=lambda: self._begun(row.task_id),
        )
        timer = asyncio.get_running_loop().call_later(START_MOST_S, self._count_no_more, actor)
        self._starting[row.task_id] = timer
        self._actors[row.task_id] = actor
        self._tasks[row.task_id] = asyncio.create_task(self._live(actor), name=f"actor-{row.task_id}")

    def _begun(self, task_id: str) -> None:
        """A start is over, well or badly: the next one may begin."""
        timer = self._starting.pop(task_id, None)
        if timer is not None:
            timer.cancel()
        if self._queue:
            self._nudge()

    def _count_no_more(self, actor: Actor) -> None:
        log.warning("start.slow", task=actor.task_id, epoch=actor.epoch, after_s=START_MOST_S, waiting=len(self._queue))
        self._begun(actor.task_id)

    async def _live(self, actor: Actor) -> None:
        try:
            await actor.run()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the edge of one worker: a defect of ours there must not end its siblings
            log.exception("actor.failed", task=actor.task_id, epoch=actor.epoch)
            fault = simple(type(error).__name__, str(error))
            self._reporter.say("Failed", actor.task_id, actor.epoch, error=fault, retryable=True)
        self._begun(actor.task_id)
        self._done[actor.task_id] = actor.epoch
        self._actors.pop(actor.task_id, None)
        self._tasks.pop(actor.task_id, None)
        if not self._closing:
            await self.look_at(actor.task_id)

    def _budgets(self, class_name: str) -> tuple[float, float]:
        described = self._pool.catalogue.classes.get(class_name, {})
        return float(described.get("release_s", 5.0)), float(described.get("terminate_s", 2.0))

    async def close(self) -> None:
        """Stop every worker, all at once, and wait for their hosts to be reaped. Starts nothing from now on."""
        self._closing = True
        await self._stop_all(LEAVING, list(self._actors.values()))

    async def lapse(self) -> None:
        """The lease is over: stop the workers, and wait for their hosts to be reaped. Nothing starts without a lease.
        Workers of classes that keep running do.
        """
        for actor in self._actors.values():
            if actor.keeps:
                actor.keep(self._skald_id)
        await self._stop_all(LAPSED, [actor for actor in self._actors.values() if not actor.keeps])

    def begin_anew(self, incarnation: str) -> None:
        """Compare with what the rows give to this incarnation from now on."""
        self._incarnation = incarnation

    async def _stop_all(self, reason: str, actors: Sequence[Actor]) -> None:
        tasks = [self._tasks[actor.task_id] for actor in actors]
        for actor in actors:
            actor.stop(reason)
        if tasks:
            await asyncio.wait(tasks)
