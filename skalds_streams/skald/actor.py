"""One worker's life here:

start its host, pass on updates, stop it, and say what became of it, once, after the host was reaped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from skalds_streams.core.reconcile import Run
from skalds_streams.core.row import Row
from skalds_streams.errors import HostError, NoHostError, StateError
from skalds_streams.skald.exits import RAN_OUT, error_of
from skalds_streams.skald.hosts import ExitInfo, Hosted, HostPool, RunSpec
from skalds_streams.skald.reporter import Reporter
from skalds_streams.skald.states import FLUSH_S, TaskStates
from skalds_streams.worker.gauges import readings
from skalds_streams.worker.outcome import Reason, simple

LEAVING = "leaving"
LAPSED = "the lease has lapsed"
SILENT = frozenset({LEAVING, LAPSED})
"""Stop reasons of a whole skald: nothing is reported, or the task would come back. Its heartbeat frees it: the last one
of this incarnation, or the first of the next."""
SILENT_FLUSH_S = 2.0
"""How long a skald that leaves or has lapsed waits for the last state of a worker: it may be that no broker answers."""

SAME_SIGTERM_S = 1.0
"""Who stops a service may send SIGTERM to all its processes at once, as systemd does: a worker that ended by one has
this time to be one of a node that leaves. Else it was somebody else's signal, and a crash.
"""

log = structlog.get_logger(__name__)


class Actor:
    """See the module. `run` returns when the host is gone and the last report is queued."""

    def __init__(
        self,
        row: Row,
        pool: HostPool,
        reporter: Reporter,
        states: TaskStates,
        *,
        budgets: Callable[[str], tuple[float, float]],
        has_lapsed: Callable[[], bool] = lambda: False,
        on_begun: Callable[[], object] = lambda: None,
    ) -> None:
        """budgets: class name → (seconds for the release handler, seconds between SIGTERM and SIGKILL). has_lapsed:
        whether this node's own lease is over. on_begun: told when the worker runs.
        """
        self._on_begun, self._has_lapsed = on_begun, has_lapsed
        self.task_id, self.epoch = row.task_id, row.epoch
        self._row, self._pool, self._reporter, self._budgets = row, pool, reporter, budgets
        self._states = states
        self._host: Hosted | None = None
        self._version = row.attachments_version
        self._accepted = -1
        self._stop_reason: str | None = None
        self._stop_asked = asyncio.Event()
        self._ended: dict[str, Any] | None = None
        self._stalled: dict[str, Any] | None = None
        """The error document of a worker that is stuck."""
        self._kept_by: str | None = None
        self.metrics: dict[str, Any] | None = None
        """What the worker said last of itself (`worker.gauges.readings`)."""

    @property
    def as_run(self) -> Run:
        return Run(
            self.epoch,
            self._version,
            self._accepted,
            stopping=self._stop_reason is not None,
            kept_by=self._kept_by,
            class_name=self._row.class_name,
        )

    @property
    def keeps(self) -> bool:
        """Whether it runs on without a lease. One that has not begun does not begin without one."""
        return self._host is not None and self._pool.keeps(self._row.class_name or "")

    @property
    def is_kept(self) -> bool:
        """Whether it runs on, and no row has it."""
        return self._kept_by is not None

    def keep(self, skald_id: str) -> None:
        """Its incarnation has lost its lease; it runs on."""
        self._kept_by = skald_id

    def adopt(self, row: Row) -> None:
        """The run belongs to a row again, under the row's epoch: it runs with the row's parameters, whatever their
        version was called. Only what has a host is kept.
        """
        assert self._host is not None
        self._row, self._kept_by, self.epoch = row, None, row.epoch
        self._version = self._accepted = row.attachments_version
        self._host.take_epoch(row.epoch)
        self._reporter.say("Running", self.task_id, self.epoch, version=self._version)

    @property
    def weight(self) -> int:
        return self._row.units

    @property
    def stop_most_s(self) -> float:
        """Seconds until SIGKILL, once it is asked to stop."""
        return sum(self._budgets(self._row.class_name or ""))

    @property
    def pid(self) -> int | None:
        return self._host.pid if self._host is not None else None

    def stop(self, reason: str) -> None:
        """Ask for the end. Returns at once; `run` does the rest."""
        self._stop_reason = self._stop_reason or reason
        self._stop_asked.set()

    async def push(self, row: Row) -> None:
        """Newer parameters for the running worker; answered by Applied or Refused."""
        self._row, self._version = row, row.attachments_version
        if self._host is not None:
            await self._send(self._host)

    async def _send(self, host: Hosted) -> None:
        version = self._version
        try:
            await host.update(version, _plain(self._row.attachments))
        except HostError as error:
            self._reporter.say(
                "Refused", self.task_id, self.epoch, version=version, error=simple("HostError", str(error))
            )

    async def run(self) -> None:
        """From start to end. Whatever is raised here, no host is left behind."""
        try:
            await self._run()
        except BaseException:
            if self._host is not None:
                self._host.kill()
                await asyncio.shield(self._host.wait_ended())
            raise

    async def _run(self) -> None:
        if self._stop_reason is not None:
            self._say_end(None)
            return
        spec = RunSpec(
            task_id=self.task_id,
            class_name=self._row.class_name or "",
            epoch=self.epoch,
            attachments=_plain(self._row.attachments),
            version=self._row.attachments_version,
        )
        started_with = spec.version
        try:
            self._host = await self._start(spec)
        except (HostError, StateError) as error:
            if self._stop_reason is not None:
                self._say_end(None)
                return
            self._say_not_started(error)
            return
        if self._host is None:
            self._say_end(None)
            return
        if self._version != started_with:
            await self._send(self._host)
        exit_info = await self._until_ended(self._host)
        if (self._ended or {}).get("op") == "stopped" and not exit_info.excuse and self._stop_reason is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(SAME_SIGTERM_S):
                    await self._stop_asked.wait()
        await self._flush()
        self._say_end(exit_info, await self._host.last_lines() if self._has_crashed(exit_info) else ())

    async def _start(self, spec: RunSpec) -> Hosted | None:
        """None when a stop was asked before there was a host: then nothing has run, and nothing will."""
        starting = asyncio.ensure_future(self._begin(spec))
        asked = asyncio.ensure_future(self._stop_asked.wait())
        try:
            await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            starting.cancel()  # nothing when it is done
        await asyncio.wait({starting})
        return None if starting.cancelled() else starting.result()

    async def _begin(self, spec: RunSpec) -> Hosted:
        """The first run since the task was assigned new has nothing to look for, and is not held up."""
        if self._row.epoch > self._row.first_epoch:
            saved = await self._states.find(self.task_id, self._row.first_epoch)
            spec = replace(spec, state=saved.text if saved is not None else None)
        return await self._pool.run(spec, self._on_event)

    async def _flush(self) -> None:
        """Have the last state written before anybody is told that the run is over."""
        if not await self._states.flush(self.task_id, SILENT_FLUSH_S if self._stop_reason in SILENT else FLUSH_S):
            log.error("state.not_written", task=self.task_id, epoch=self.epoch)
        self._states.forget(self.task_id)

    async def _until_ended(self, host: Hosted) -> ExitInfo:
        ended = asyncio.ensure_future(host.wait_ended())
        asked = asyncio.ensure_future(self._stop_asked.wait())
        try:
            await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                release_s, terminate_s = self._budgets(self._row.class_name or "")
                await host.stop(self._stop_reason or "stalled", release_s=release_s, terminate_s=terminate_s)
            return await ended
        finally:
            asked.cancel()

    def _on_event(self, event: dict[str, Any]) -> None:
        kind = event.get("op")
        if kind in ("running", "applied"):
            self._accepted = event["version"]
        if kind == "running":
            self._on_begun()
            self._reporter.say("Running", self.task_id, self.epoch, version=event["version"])
        elif kind == "applied":
            self._reporter.say("Applied", self.task_id, self.epoch, version=event["version"])
        elif kind == "refused":
            self._reporter.say("Refused", self.task_id, self.epoch, version=event["version"], error=event.get("error"))
        elif kind == "metrics":
            self.metrics = readings(event) or self.metrics
        elif kind == "stalled":
            self._stalled = event["error"]
            self._stop_asked.set()
        elif kind == "saved":
            self._states.save(self.task_id, self.epoch, event["state"])
        elif kind in ("finished", "failed", "stopped"):
            self._ended = event

    def _say_not_started(self, error: HostError | StateError) -> None:
        """A node without hosts is no fault of the task: it counts no crash, and another node is asked first."""
        if isinstance(error, NoHostError):
            self._reporter.say("Stopped", self.task_id, self.epoch, reason=str(error), steps=[], elsewhere=True)
            return
        fault = simple(type(error).__name__, str(error))
        self._reporter.say("Failed", self.task_id, self.epoch, error=fault, retryable=True)

    def _has_crashed(self, exit_info: ExitInfo) -> bool:
        """Of a run that is over: whether that was a failure."""
        op = self._ended.get("op") if self._ended is not None else None
        by_itself = self._stop_reason is None and not exit_info.excuse and not self._ended_by_lapse(exit_info.reason)
        return op == "failed" or (op != "finished" and by_itself)

    def _ended_by_lapse(self, reason: str) -> bool:
        """Whether it was the kernel, before its node came to stop it."""
        return reason == RAN_OUT and self._has_lapsed()

    def _say_end(self, exit_info: ExitInfo | None, last_lines: Sequence[str] = ()) -> None:
        """The last word on this epoch. last_lines: what it printed, for the report of a crash.

        What the host said last counts; a host that said nothing was stopped, or ended with its node, or has crashed.
        Only a crash is Failed: the others cost the task none of its restarts.
        """
        event, what = self._ended or {}, exit_info.reason if exit_info is not None else "never started"
        steps = list(self._host.steps) if self._host is not None else []
        hard: dict[str, Any] = {"steps": steps} if steps else {}
        if event.get("op") == "finished":
            self._reporter.say("Finished", self.task_id, self.epoch, **hard)
        elif event.get("op") == "failed":
            error, retryable = event.get("error"), bool(event.get("retryable", True))
            error = {**error, "output": list(last_lines)} if isinstance(error, dict) else error
            self._reporter.say("Failed", self.task_id, self.epoch, error=error, retryable=retryable, **hard)
        elif self._stop_reason in SILENT or self._ended_by_lapse(what):
            log.debug("actor.left", task=self.task_id, epoch=self.epoch)
        elif self._stop_reason is not None:
            self._reporter.say("Stopped", self.task_id, self.epoch, reason=self._stop_reason, steps=steps)
        elif exit_info is not None and exit_info.excuse and self._stalled is None:
            self._reporter.say(
                "Stopped",
                self.task_id,
                self.epoch,
                reason=exit_info.excuse,
                steps=[exit_info.beside] if exit_info.beside else [],
            )
        else:
            error = {**(self._stalled or _unexpected(event, exit_info, steps)), "output": list(last_lines)}
            self._reporter.say("Failed", self.task_id, self.epoch, error=error, retryable=True, **hard)


def _unexpected(event: dict[str, Any], exit_info: ExitInfo | None, steps: Sequence[str]) -> dict[str, Any]:
    """The error of a run that nobody here asked to end, and that gave none itself."""
    if event.get("op") == "stopped":
        return simple("Signal", "the worker was stopped by a SIGTERM that its node did not send", Reason.SIGNAL)
    if exit_info is None:
        return simple("HostError", "it never started")
    return error_of(exit_info, steps)


def _plain(attachments: Any) -> dict[str, Any] | None:
    return None if attachments is None else dict(attachments)
