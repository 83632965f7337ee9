"""The skald of this process: pool of hosts, supervisor, reports, heartbeats, and the lease that ties them together.

Rules: workers run only under a lease. When it has lapsed, the workers are stopped and reaped, and this process goes on
as a new incarnation that `replaces` the old one: what it may run it is told anew. It leaves with `holding` (its tasks
wait for it) unless a person has drained it (`leaving`: they are free at once).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
import structlog

from skalds_streams.errors import HostError
from skalds_streams.proxy.reports import ReportSender
from skalds_streams.settings import Settings
from skalds_streams.skald.heartbeat import Heartbeat
from skalds_streams.skald.hosts import Catalogue, HostPool
from skalds_streams.skald.identity import Identity, forget_predecessors, renewed
from skalds_streams.skald.lease import Lease
from skalds_streams.skald.reporter import Reporter
from skalds_streams.skald.supervisor import Supervisor
from skalds_streams.topics import Topics
from skalds_streams.version import __version__
from skalds_streams.view.cluster import ClusterView

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
        identity: Identity,
        *,
        spawn: Spawn,
        now_ms: Callable[[], int],
    ) -> None:
        """spawn: run a coroutine under the process's supervision, which ends the process when it raises."""
        self.identity, self._settings, self._view, self._spawn = identity, settings, view, spawn
        self.pool = HostPool(modules=settings.worker_modules, lock_fd=identity.lock_fd)
        self.lease = Lease(settings.lease_ms, settings.beat_ms, self.pool.renew)
        self._reporter = Reporter(sender, skald_id=identity.skald_id, incarnation=identity.incarnation, now_ms=now_ms)
        self._log_dir = (settings.data_dir / "logs" / identity.skald_id).absolute()
        self.supervisor = Supervisor(
            view,
            self.pool,
            self._reporter,
            self.lease,
            skald_id=identity.skald_id,
            incarnation=identity.incarnation,
            log_dir=self._log_dir,
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
        self._beating: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the workers and begin to beat. Raises HostError when no worker host can be had."""
        await asyncio.to_thread(self._log_dir.mkdir, parents=True, exist_ok=True)
        catalogue = await self.pool.start()
        for module, trace in catalogue.not_loadable.items():
            log.error("workers.not_loadable", module=module, error=trace.strip().splitlines()[-1])
        await self._heartbeat.start()
        self._beat()
        self._spawn("reporter", self._reporter.run())
        self._spawn("supervisor", self.supervisor.run())
        self._spawn("lease", self._keep_lease())

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

    async def leave(self) -> None:
        """Stop the workers, then say that they are gone."""
        await self.supervisor.close()
        await self._reporter.flush(FLUSH_S)
        await _ended(self._beating)
        await self._heartbeat.leave("leaving" if self.is_drained else "holding")

    async def stop(self) -> None:
        """Let go of the rest. Bounded in time."""
        for part in (self.pool, self._heartbeat):
            with suppress(Exception):  # the edge of stopping: what can't be closed must not keep the rest open
                async with asyncio.timeout(STOP_S):
                    await part.stop()

    @property
    def is_drained(self) -> bool:
        """Whether a person wants nothing to run here."""
        return self._view.members.is_drained(self.identity.skald_id)

    def _describe(self) -> dict[str, Any]:
        settings, catalogue = self._settings, self.catalogue
        return {
            "replaces": list(self.identity.replaces),
            "kept": self.supervisor.kept,
            "classes": {name: _schema_hash(item) for name, item in catalogue.classes.items()} if catalogue else {},
            "secret": {name: item["secret"] for name, item in catalogue.classes.items() if item.get("secret")}
            if catalogue
            else {},
            "not_loadable": sorted(catalogue.not_loadable) if catalogue else [],
            "labels": dict(settings.labels),
            "capacity": settings.capacity,
            "web": settings.advertised_url,
            "role": settings.role,
            "version": __version__,
            "formats": 1,
            "settings_hash": settings.agreed_hash,
            "cluster": settings.cluster,
            "state": "draining" if self.is_drained else "up",
        }

    def held(self) -> Sequence[str]:
        """Ids of the tasks that run here."""
        return tuple(self.supervisor.held)


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _schema_hash(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(described.get("schema"), option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
