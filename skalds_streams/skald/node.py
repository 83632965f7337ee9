"""The skald of this process: pool of hosts, supervisor, reports, heartbeats, and the lease that ties them together.

Rules: workers run only under a lease. When it has lapsed, the workers are stopped and reaped, and this process goes on
as a new incarnation that `replaces` the old one: what it may run it is told anew. It leaves with `holding` (its tasks
wait for it) unless a person has drained it (`leaving`: they are free at once). Before it loads its workers it waits
until it may take part (`skald.admission`). A coordinator only beats.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import structlog

from skalds_streams.core.membership import WAITING, former_of
from skalds_streams.errors import AdmissionError, HostError
from skalds_streams.proxy.reports import ReportSender
from skalds_streams.proxy.waiting import Waiting
from skalds_streams.settings import Settings
from skalds_streams.skald.admission import Admission
from skalds_streams.skald.heartbeat import Heartbeat
from skalds_streams.skald.hosts import Catalogue, HostPool
from skalds_streams.skald.identity import Identity, forget_predecessors, renewed
from skalds_streams.skald.lease import Lease
from skalds_streams.skald.logs import TaskLogs
from skalds_streams.skald.machine import host_name
from skalds_streams.skald.reporter import Reporter
from skalds_streams.skald.ring import LogFiles, file_name
from skalds_streams.skald.states import States
from skalds_streams.skald.supervisor import Supervisor
from skalds_streams.topics import Topics
from skalds_streams.version import __version__
from skalds_streams.view.cluster import ClusterView
from skalds_streams.worker.secrets import SecretPolicy

FLUSH_S = 2.0
STOP_S = 5.0

Spawn = Callable[[str, Coroutine[Any, Any, None]], "asyncio.Task[None]"]

log = structlog.get_logger(__name__)


class SkaldNode:
    """See the module. Made when the identity is known; `start` does the I/O."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        client: Mapping[str, Any],
        view: ClusterView,
        sender: ReportSender,
        states: States,
        identity: Identity,
        *,
        spawn: Spawn,
        now_ms: Callable[[], int],
        on_fatal: Callable[[BaseException], object],
        waiting: Waiting,
    ) -> None:
        """spawn: run a coroutine under the process's supervision, which ends the process when it raises; on_fatal:
        ends the process in order.
        """
        self.identity, self._settings, self._view, self._spawn = identity, settings, view, spawn
        self.log_files = log_files_of(settings, identity)
        self.pool = pool_of(settings, identity, view, self.log_files)
        self.lease = Lease(settings.lease_ms, settings.beat_ms, self.pool.renew)
        self._reporter = Reporter(sender, skald_id=identity.skald_id, incarnation=identity.incarnation, now_ms=now_ms)
        self._states = states
        self.supervisor = Supervisor(
            view,
            self.pool,
            self._reporter,
            states,
            self.lease,
            skald_id=identity.skald_id,
            incarnation=identity.incarnation,
            starts_at_once=settings.starts_at_once,
        )
        self._heartbeat = Heartbeat(
            topics,
            client,
            skald_id=identity.skald_id,
            incarnation=identity.incarnation,
            lease=self.lease,
            beat_ms=settings.beat_ms,
            describe=self._describe,
            running=lambda: self.supervisor.load,
            seen=lambda: view.members.offset,
        )
        self.admission = Admission(settings, view, lambda: self.identity, on_fatal, waiting)
        self._takes_part = False
        self._beating: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the workers and begin to beat. Raises AdmissionError when this process may not take part, HostError when
        no worker host can be had.
        """
        await self._view.wait_members()
        await self._heartbeat.start()
        self._spawn("lease", self._keep_lease())
        if self.admission.obstacle is not None:
            await self._wait()
        if self._settings.runs_workers:
            await load_workers(self.pool, self._settings, self.identity)
        self._takes_part = True
        if self._beating is None:
            self._beat()
        self.admission.begin()
        if self._settings.runs_workers:
            self._spawn("reporter", self._reporter.run())
            self._spawn("states", self._states.run())
            self._spawn("supervisor", self.supervisor.run())

    async def _wait(self) -> None:
        """Beat, so that who is gone grows old, until this process may take part."""
        self._beat()
        try:
            await self.admission.wait()
        except AdmissionError:
            await _ended(self._beating)
            await self._heartbeat.leave("leaving")
            raise

    @property
    def catalogue(self) -> Catalogue | None:
        """What workers there are; None while they have never been loaded."""
        with suppress(HostError):
            return self.pool.catalogue
        return None

    def _beat(self) -> None:
        self._beating = self._spawn("heartbeat", self._heartbeat.run())
        self._settling = self._spawn("identity", self._settle(self.identity))

    async def _settle(self, identity: Identity) -> None:
        await self._heartbeat.first_acknowledged.wait()
        await asyncio.to_thread(forget_predecessors, identity)

    async def _keep_lease(self) -> None:
        while True:
            await self.lease.lapsed()
            log.warning("lease.lapsed", incarnation=self.identity.incarnation, workers=len(tuple(self.supervisor.held)))
            for task in (self._beating, self._settling):
                await _ended(task)
            await self.supervisor.lapse()
            self.identity = await asyncio.to_thread(renewed, self.identity)
            for part in (self.supervisor, self._reporter, self._heartbeat):
                part.begin_anew(self.identity.incarnation)
            self.lease.begin_anew()
            log.info("skald.new_incarnation", incarnation=self.identity.incarnation, replaces=self.identity.replaces)
            self._beat()
            self.admission.check()

    async def leave(self) -> None:
        """Stop the workers, then say that they are gone."""
        await self.supervisor.close()
        await self._reporter.flush(FLUSH_S)
        await _ended(self._beating)
        stays_away = self.is_drained or not self._takes_part or not self._settings.runs_workers
        await self._heartbeat.leave("leaving" if stays_away else "holding")

    async def stop(self) -> None:
        """Let go of the rest. Bounded in time."""
        for part in (self.pool, self._heartbeat):
            with suppress(Exception):  # the edge of stopping: what can't be closed must not keep the rest open
                async with asyncio.timeout(STOP_S):
                    await part.stop()

    @property
    def is_drained(self) -> bool:
        """Whether a person wants nothing to run here. Who drained its predecessor did not mean this process."""
        members, identity = self._view.members, self.identity
        me = members.get(identity.incarnation)
        if me is None:  # not read yet: what this process was before its lease lapsed may have been drained
            return members.drained_as(identity.skald_id) in former_of(identity.replaces, identity.lapses)
        return members.stands(me) and members.is_drained(me.skald_id)

    def _describe(self) -> dict[str, Any]:
        return {
            **described(self._settings, self.catalogue),
            "replaces": list(self.identity.replaces),
            "lapses": self.identity.lapses,
            "kept": self.supervisor.kept,
            "take_over": self._settings.take_over and not self._takes_part,
            "state": self._state,
        }

    @property
    def _state(self) -> str:
        if not self._takes_part:
            return WAITING
        return "draining" if self.is_drained else "up"

    def held(self) -> Sequence[str]:
        """Ids of the tasks that run here."""
        return tuple(self.supervisor.held)


def described(settings: Settings, catalogue: Catalogue | None) -> dict[str, Any]:
    """What a heartbeat says of a process that stays as it is. catalogue: None while no workers are loaded."""
    classes = catalogue.classes if catalogue is not None else {}
    return {
        "classes": {name: _schema_hash(item) for name, item in classes.items()},
        "secret": {name: item["secret"] for name, item in classes.items() if item.get("secret")},
        "options": {name: item["options"] for name, item in classes.items() if item.get("options")},
        "not_loadable": sorted(catalogue.not_loadable) if catalogue is not None else [],
        "labels": dict(settings.labels),
        "capacity": settings.capacity if settings.runs_workers else 0,
        "web": settings.advertised_url,
        "role": settings.role,
        "version": __version__,
        "formats": 1,
        "settings_hash": settings.agreed_hash,
        "agreed": settings.agreed,
        "cluster": settings.cluster,
        "host": host_name(),
    }


def log_files_of(settings: Settings, identity: Identity) -> LogFiles:
    """Where the logs of this node's tasks are."""
    return LogFiles(_log_dir(settings, identity), max_bytes=settings.log_max_bytes, most=settings.log_files_most)


def pool_of(settings: Settings, identity: Identity, view: ClusterView, log_files: LogFiles) -> HostPool:
    """The pool of this node, not started. A log is kept as long as the row of its task."""
    logs = TaskLogs(
        log_files,
        words=settings.secret_words,
        own_secrets=settings.secret_values,
        is_wanted=lambda task_id: not view.is_caught_up or task_id in view.rows,
        wanted_ids=lambda: list(view.rows),
    )
    policy = SecretPolicy(settings.secret_variables, settings.secret_directories, sorted(settings.secret_words))
    return HostPool(modules=settings.worker_modules, lock_fd=identity.lock_fd, logs=logs, secrets=policy)


async def load_workers(pool: HostPool, settings: Settings, identity: Identity) -> None:
    """Start the pool, and say what can't be loaded. Raises HostError."""
    await asyncio.to_thread(_log_dir(settings, identity).mkdir, parents=True, exist_ok=True)
    catalogue = await pool.start()
    for module, trace in catalogue.not_loadable.items():
        log.error("workers.not_loadable", module=module, error=trace.strip().splitlines()[-1])


def _log_dir(settings: Settings, identity: Identity) -> Path:
    return (settings.data_dir / "logs" / file_name(identity.skald_id)).absolute()


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _schema_hash(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(described.get("schema"), option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
