"""The pool: keeps the zygote alive and a few forked hosts ready, and hands them out.

    pool = HostPool(modules=["examples.workers"])
    catalogue = await pool.start()
    host = await pool.run(spec, on_event)
    await host.stop("cancelled", release_s=5, terminate_s=2)
    await pool.stop()

Rules: one loop, no threads. A host is held by its pidfd before it is released to run. A lost zygote takes its hosts
down (their reapers kill them, and all that they started) and is started again with backoff; `run` waits for it. At
most one zygote runs. What does not live here: one host's life (`host`, `shared`), what is to run where.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from skalds_streams.errors import HostError, NoHostError
from skalds_streams.skald.exits import ExitInfo
from skalds_streams.skald.host import Host, Hosted, OnEvent, RunSpec
from skalds_streams.skald.logs import RunOutput, TaskLogs
from skalds_streams.skald.oom import OomKills
from skalds_streams.skald.shared import HostedRun, SharedHosts
from skalds_streams.skald.zygote_process import ZygoteProcess
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.secrets import SecretPolicy

__all__ = ["Catalogue", "ExitInfo", "Host", "HostPool", "Hosted", "OnEvent", "RunSpec"]

START_TIMEOUT_S = 30.0
"""For importing all of the user's modules."""
TAKE_TIMEOUT_S = 30.0
"""How long `run` waits for a host, a restart of the zygote included."""
RUN_TRIES = 5
"""Hosts that may turn out to be dead before `run` gives up."""
STOP_HOSTS_S = 5.0
STOP_ZYGOTE_S = 2.0
BACKOFF_S = 0.1
BACKOFF_MAX_S = 10.0
STABLE_S = 60.0
"""A zygote that lived this long resets the backoff."""
RESPAWN_S = 1.0
"""Pause before a spare that died, or could not be forked, is replaced."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What the user's modules hold.

    `classes`: name → {"module", "schema", "aliases", "isolation", "release_s", "terminate_s", "options"} (budgets in
    seconds; options as `core.options` has them).
    `not_loadable`: module or `module.Class` → why it can't run, a traceback or a sentence.
    """

    classes: Mapping[str, Mapping[str, Any]]
    not_loadable: Mapping[str, str]

    @classmethod
    def from_frame(cls, frame: Frame) -> Catalogue:
        """From the zygote's ready frame."""
        return cls(frame["classes"], frame["not_loadable"])


class HostPool:
    """Worker hosts of one node. All methods belong to the loop that called `start`."""

    def __init__(
        self,
        *,
        modules: Sequence[str],
        lock_fd: int | None = None,
        spares: int = 2,
        python: str = sys.executable,
        log: Any = None,
        logs: TaskLogs | None = None,
        secrets: SecretPolicy | None = None,
    ) -> None:
        """logs: take what the workers print; None: that goes where this process's goes. secrets: what references in
        parameters may read; None: nothing.
        """
        self._logs = logs
        self._command = [python, "-m", "skalds_streams.worker.zygote", "--modules", ",".join(modules)]
        self._command += ["--secrets", secrets.to_text()] if secrets is not None else []
        self._lock_fds = [] if lock_fd is None else [lock_fd]
        self._spares = spares
        self._log = log if log is not None else structlog.get_logger("skalds.hosts")
        self._names = (f"h{number}" for number in itertools.count(1))
        self._zygote: ZygoteProcess | None = None
        self._ready: asyncio.Future[Catalogue] | None = None
        self._catalogue: Catalogue | None = None
        self._relaunch: asyncio.Task[None] | None = None
        self._backoff_s = BACKOFF_S
        self._refill_later: asyncio.TimerHandle | None = None
        self._spawning: dict[str, socket.socket] = {}
        self._waiting: deque[asyncio.Future[Host]] = deque()
        self._idle: deque[Host] = deque()
        self._hosts: dict[str, Host] = {}
        self._stopping = False
        self._shared = SharedHosts(self._take, logs, self._log)
        self._lease_until_ms: int | None = None
        self._oom_kills = OomKills()

    @property
    def catalogue(self) -> Catalogue:
        """The classes of the zygote that runs, or ran last. Raises HostError before `start`."""
        if self._catalogue is None:
            raise HostError("the pool has not been started")
        return self._catalogue

    @property
    def zygote_pid(self) -> int | None:
        """None while there is none."""
        return self._zygote.pid if self._zygote else None

    @property
    def idle_pids(self) -> list[int]:
        """The spare hosts."""
        return [host.pid for host in self._idle]

    async def start(self) -> Catalogue:
        """Start the zygote, wait until it has imported the user's modules. Raises HostError if it does not come up."""
        if self._zygote is not None or self._relaunch is not None:
            raise HostError("the pool has been started already")
        self._stopping = False
        if self._logs is not None:
            self._logs.start()
        await self._launch()
        return self.catalogue

    def renew(self, until_ms: int) -> None:
        """Let the hosts live until then, in ms of CLOCK_BOOTTIME. Before the first time, and for classes that keep
        running, there is no lease.
        """
        self._lease_until_ms = until_ms
        self._oom_kills.look()
        for host in self._hosts.values():
            if host.started:
                host.renew(until_ms)

    def keeps(self, class_name: str) -> bool:
        """Whether workers of this class run on when the lease has lapsed."""
        return self.catalogue.classes.get(class_name, {}).get("on_disconnect") == "keep"

    async def run(self, spec: RunSpec, on_event: OnEvent) -> Hosted:
        """Give the task to a host. HostError: the class is unknown; NoHostError: none comes in TAKE_TIMEOUT_S."""
        described = self.catalogue.classes.get(spec.class_name)
        if described is None:
            raise HostError(f"class {spec.class_name} is not loaded here")
        begin = self._begin_shared if described.get("isolation") == "shared" else self._begin
        for _ in range(RUN_TRIES):
            begun = await begin(spec, on_event)
            if begun is not None:
                return begun
        raise HostError(f"{RUN_TRIES} worker hosts died before they could run anything")

    async def _begin(self, spec: RunSpec, on_event: OnEvent) -> Host | None:
        """In a host of its own; None when that has died before."""
        host = await self._take()
        output = self._output_of(spec)
        try:
            begun = host.begin(spec, on_event, self._lease_of(spec), output)
        except HostError:
            self._idle.append(host)
            raise
        finally:
            if output is not None and not host.started:
                output.finish("it has never begun")
        return host if begun else None

    async def _begin_shared(self, spec: RunSpec, on_event: OnEvent) -> HostedRun | None:
        """In one that it shares with those that have a lease, too, or have none."""
        host = await self._shared.take(lambda: self._lease_of(spec))
        if host is None:
            return None
        output = self._output_of(spec)
        begun = None
        try:
            begun = host.begin(spec, on_event, output)
        finally:
            if output is not None and begun is None:
                output.finish("it has never begun")
        return begun

    def _output_of(self, spec: RunSpec) -> RunOutput | None:
        secret = self.catalogue.classes[spec.class_name].get("secret", ())
        return self._logs.open(spec.task_id, spec.epoch, spec.attachments, secret) if self._logs is not None else None

    def _lease_of(self, spec: RunSpec) -> int | None:
        """Until when its host may live now."""
        return None if self.keeps(spec.class_name) else self._lease_until_ms

    async def stop(self) -> None:
        """Kill every host, end the zygote, write what was printed: in STOP_HOSTS_S + STOP_ZYGOTE_S + a moment."""
        self._stopping = True
        if self._relaunch is not None:
            self._relaunch.cancel()
            await asyncio.wait({self._relaunch})
        if self._refill_later is not None:
            self._refill_later.cancel()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(HostError("the pool is stopped"))
        self._drop_spawning()
        await self._end_hosts()
        if self._zygote is not None:
            await self._end_zygote(self._zygote)
        if self._logs is not None:
            await self._logs.stop()

    async def _end_hosts(self) -> None:
        hosts = list(self._hosts.values())
        for host in hosts:
            host.kill()
        if hosts:
            await asyncio.wait([asyncio.ensure_future(host.wait_ended()) for host in hosts], timeout=STOP_HOSTS_S)
        for host in hosts:
            if not host.ended:
                self._log.error("host does not end", host_pid=host.pid)
                host.abandon()

    async def _end_zygote(self, zygote: ZygoteProcess) -> None:
        zygote.channel.close()
        done, _ = await asyncio.wait({zygote.gone}, timeout=STOP_ZYGOTE_S)
        if not done:
            zygote.kill()
            await asyncio.wait({zygote.gone}, timeout=STOP_ZYGOTE_S)

    async def _launch(self) -> None:
        self._ready = ready = asyncio.get_running_loop().create_future()
        self._zygote = zygote = ZygoteProcess(self._command, on_frame=self._on_frame, on_lost=self._on_zygote_lost)
        try:
            either: list[asyncio.Future[Any]] = [ready, zygote.gone]
            await asyncio.wait(either, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                late = f"is not ready in {START_TIMEOUT_S:g} s"
                ended = f"ended with {zygote.gone.result()}" if zygote.gone.done() else late
                raise HostError(f"the zygote {ended}: {' '.join(self._command)}")
            self._catalogue = ready.result()
        except BaseException:
            self._ready = None
            zygote.kill()
            await asyncio.wait({zygote.gone})
            raise
        self._log.info("zygote ready", zygote_pid=zygote.pid, classes=sorted(self._catalogue.classes))
        self._refill()

    async def _launch_again(self) -> None:
        """Until there is a zygote, with backoff."""
        while self._zygote is None:
            await asyncio.sleep(self._backoff_s)
            self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)
            try:
                await self._launch()
            except (HostError, OSError) as error:
                self._log.error("zygote does not start", error=str(error), next_try_s=self._backoff_s)
        self._relaunch = None

    def _on_zygote_lost(self, zygote: ZygoteProcess, reason: str) -> None:
        self._zygote = None
        self._drop_spawning()
        self._idle.clear()
        for host in list(self._hosts.values()):
            host.orphaned()
            host.kill()
        starting = self._ready is None or not self._ready.done()
        self._ready = None
        if self._stopping or starting or self._relaunch is not None:
            return  # the end was meant, or whoever launched it deals with it
        self._log.error("zygote lost", reason=reason, hosts=len(self._hosts))
        if zygote.started_at + STABLE_S < asyncio.get_running_loop().time():
            self._backoff_s = BACKOFF_S
        self._relaunch = asyncio.create_task(self._launch_again())

    def _on_frame(self, frame: Frame) -> None:
        op = frame.get("op")
        if op == "ready" and self._ready is not None and not self._ready.done():
            self._ready.set_result(Catalogue.from_frame(frame))
        elif op == "spawned":
            self._on_spawned(frame)
        elif op == "spawn_failed":
            self._log.error("host could not be forked", error=frame["error"])
            self._spawning.pop(frame["host"]).close()
            self._refill_soon()
        elif op == "exited" and (host := self._hosts.get(frame["host"])):
            host.exited(frame["status"], frame["peak_bytes"], frame["dump"])
        elif op == "exited" and (sock := self._spawning.pop(frame["host"], None)):
            sock.close()  # its reaper was killed before it could fork
            self._refill_soon()

    def _on_spawned(self, frame: Frame) -> None:
        assert self._zygote is not None
        pidfd, reaper_fd = self._zygote.channel.take_fd(), self._zygote.channel.take_fd()
        sock = self._spawning.pop(frame["host"], None)
        if sock is None:
            os.close(pidfd)
            os.close(reaper_fd)
            return
        host = Host(
            name=frame["host"],
            pid=frame["pid"],
            pidfd=pidfd,
            reaper_fd=reaper_fd,
            sock=sock,
            log=self._log,
            on_ended=self._on_host_ended,
            oom_killed=self._oom_kills.recent,
        )
        self._hosts[host.name] = host
        self._offer(host)

    def _offer(self, host: Host) -> None:
        """To who waits first, else to the spares."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(host)
                return
        self._idle.append(host)

    async def _take(self) -> Host:
        """A host that idles."""
        if self._stopping:
            raise HostError("the pool is stopped")
        if self._idle:
            host = self._idle.popleft()
            self._refill()
            return host
        waiter: asyncio.Future[Host] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._refill()
        try:
            done, _ = await asyncio.wait({waiter}, timeout=TAKE_TIMEOUT_S)
        except asyncio.CancelledError:
            if not waiter.cancel() and waiter.exception() is None:
                self._offer(waiter.result())
            raise
        if not done:
            waiter.cancel()
            raise NoHostError(f"no worker host in {TAKE_TIMEOUT_S:g} s")
        return waiter.result()

    def _refill(self) -> None:
        """Ask for as many hosts as are waited for, and the spares."""
        if self._zygote is None or self._stopping or self._ready is None or not self._ready.done():
            return
        wanted = self._spares + sum(not waiter.done() for waiter in self._waiting)
        for _ in range(wanted - len(self._idle) - len(self._spawning)):
            name = next(self._names)
            ours, theirs = socket.socketpair()
            with theirs:
                self._spawning[name] = ours
                self._zygote.channel.send({"op": "spawn", "host": name}, [theirs.fileno(), *self._lock_fds])

    def _refill_soon(self) -> None:
        if self._refill_later is not None:
            self._refill_later.cancel()
        self._refill_later = asyncio.get_running_loop().call_later(RESPAWN_S, self._refill)

    def _drop_spawning(self) -> None:
        """Hosts that were asked for and not confirmed see the end of their socket and die."""
        for sock in self._spawning.values():
            sock.close()
        self._spawning.clear()

    def _on_host_ended(self, host: Host) -> None:
        self._hosts.pop(host.name, None)
        if host in self._idle:
            self._idle.remove(host)
            self._refill_soon()
