"""Hosts that many runs share, as the skald sees them: which run goes where, the frames of each, and what becomes of the
others when one of them ends its host.

Rules: a host has at most RUNS_MOST runs, all with a lease or all without one; it ends with its last. A run has ended
when the host has said so, after nothing of it was left, or when the host is gone, whichever comes first; so an epoch
never begins beside another. One that does not end in its time takes the host down, after what the others get for their
release handlers. A host that is gone was ended by the run which was in a step then (`worker.steps`), as far as that is
known; for its neighbours it is no crash, and their `ExitInfo.beside` says why.

What does not live here: the process (`host`), the other end of the conversation (`worker.shared`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from skalds_streams.errors import HostError
from skalds_streams.skald.exits import ExitInfo
from skalds_streams.skald.host import LAST_FRAMES, Host, OnEvent, RunSpec, told_end
from skalds_streams.skald.logs import RunOutput, TaskLogs
from skalds_streams.skald.output import tail_of
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.outcome import Reason
from skalds_streams.worker.process import FAULTS
from skalds_streams.worker.stall import DUMP_SIGNAL
from skalds_streams.worker.steps import MARKER_BYTES, Marker

RUNS_MOST = 200
"""Of one host."""
NEIGHBOURS_S = 5.0
"""What the runs beside one that takes the host down get for their release handlers."""
HELD_UP_S = 1.0
"""A step that lasts longer has the loop for itself."""
DUMP_S = 0.1
"""For the stacks of a host that is taken down."""


class HostedRun:
    """One run in a shared host. To its actor it is what a `Host` is."""

    def __init__(
        self, host: SharedHost, number: int, spec: RunSpec, on_event: OnEvent, output: RunOutput | None
    ) -> None:
        self.number, self.task_id = number, spec.task_id
        self.output = output
        self.steps: list[str] = []
        """What had to be done to make it end, in order."""
        self.is_asked = False
        """Its node wants it to end."""
        self._host, self._on_event = host, on_event
        self._last_frame: Frame = {}
        self._late_frame: Frame | None = None
        """What it would have said last, had it come to an end."""
        self._with_host = False
        """It ended with its host, which may have printed why."""
        self._ended: asyncio.Future[ExitInfo] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int:
        """Its host's."""
        return self._host.pid

    @property
    def ended(self) -> bool:
        """Nothing of it is left."""
        return self._ended.done()

    def take_epoch(self, epoch: int) -> None:
        """The run goes on under another epoch."""
        if self.output is not None:
            self.output.take_epoch(epoch)
        with suppress(HostError):
            self._send({"op": "epoch", "epoch": epoch})

    async def update(self, version: int, attachments: dict[str, Any] | None) -> None:
        """As `Host.update`."""
        if self.output is not None:
            self.output.hide(attachments)
            self._host.hide_secrets()
        self._send({"op": "update", "version": version, "attachments": attachments})

    async def stop(self, reason: str, *, release_s: float, terminate_s: float) -> ExitInfo:
        """Have it cancelled, once more after release_s, and its host ended after terminate_s more."""
        self._ask(reason)
        if not await self._ends_within(release_s):
            self.steps.append(f"cancelled again after {release_s:g} s")
            self._ask(reason)
            if not await self._ends_within(terminate_s):
                self.steps.append(f"SIGKILL of its host after {terminate_s:g} s")
                self._host.take_down(self, f"it did not stop in {release_s + terminate_s:g} s")
        return await self.wait_ended()

    async def wait_ended(self) -> ExitInfo:
        """Until nothing of it is left."""
        return await asyncio.shield(self._ended)

    async def last_lines(self) -> list[str]:
        """What it has printed last; and what its host has, if it ended with that."""
        lines = await self.output.last_lines() if self.output is not None else []
        return tail_of([*lines, *await self._host.last_lines()]) if self._with_host else lines

    def kill(self) -> None:
        """SIGKILL to the host: all its runs end."""
        self._host.kill(self)

    def take(self, frame: Frame) -> None:
        """A frame of it."""
        if frame["op"] == "lingers":
            self._late_frame = frame["last"]
            self.steps.append(f"SIGKILL of its host: {frame['what']}")
            self._host.take_down(self, f"it was over, but {frame['what']}")
            return
        is_last = frame["op"] in LAST_FRAMES
        if is_last:
            self._last_frame = frame
        try:
            self._on_event(frame)
        finally:
            if is_last:
                self.end(self._host.end_of(self, frame))

    def end(self, info: ExitInfo, *, with_host: bool = False) -> None:
        """It is over. with_host: the host is."""
        if self._ended.done():
            return
        if self._late_frame is not None and not self._last_frame:
            self._last_frame = self._late_frame
            with suppress(Exception):  # the edge to the supervisor: the others in this host have to end, too
                self._on_event(self._late_frame)
        self._with_host = with_host and not info.beside
        if self.output is not None:
            self.output.finish(*told_end(self._last_frame, replace(info, reason=info.beside or info.reason)))
        self._ended.set_result(info)
        self._host.forget(self)

    def _ask(self, reason: str) -> None:
        self.is_asked = True
        with suppress(HostError):  # it takes nothing in: it will be made to
            self._send({"op": "stop", "reason": reason})

    def _send(self, frame: Frame) -> None:
        if not self.ended:
            self._host.send({**frame, "task": self.task_id})

    async def _ends_within(self, seconds: float) -> bool:
        done, _ = await asyncio.wait({self._ended}, timeout=seconds)
        return bool(done)


class SharedHost:
    """A host process and its runs."""

    def __init__(self, host: Host, log: Any, output: RunOutput | None, lease_until_ms: int | None) -> None:
        """Makes `host` one of many runs; `is_open` is False when it has died before."""
        self._host, self._output = host, output
        self._log = log.bind(host_pid=host.pid)
        self._runs: dict[str, HostedRun] = {}
        self._numbers = itertools.count(1)
        self._culprit: HostedRun | None = None
        """The run that is known to have ended this host, or to end it."""
        self._why = ""
        self._held_up = False
        """That run holds up the loop."""
        self._going: asyncio.Task[None] | None = None
        fd = os.memfd_create("skald-marker")
        try:
            os.ftruncate(fd, MARKER_BYTES)
            self._marker = Marker(fd)
            fds = [fd, *([output.writer] if output is not None else [])]
            self.is_open = host.share(self._on_frame, lease_until_ms, fds)
            """Whether it takes runs."""
        finally:
            os.close(fd)
        if output is not None:
            output.handed_over()
        host.when_ended(self._on_ended)

    @property
    def pid(self) -> int:
        return self._host.pid

    @property
    def is_leased(self) -> bool:
        return self._host.is_leased

    @property
    def has_room(self) -> bool:
        return self.is_open and len(self._runs) < RUNS_MOST

    def begin(self, spec: RunSpec, on_event: OnEvent, output: RunOutput | None) -> HostedRun | None:
        """Begin a run. None when the host is gone. Raises HostError for a frame too large."""
        assert spec.task_id not in self._runs, "a task has one run at a time"
        run = HostedRun(self, next(self._numbers), spec, on_event, output)
        begun = False
        try:
            fds = [output.writer] if output is not None else []
            begun = self.send({**spec.frame(), "task": spec.task_id, "number": run.number}, fds)
        finally:
            if begun:
                self._runs[spec.task_id] = run
            self._end_if_empty()
        if not begun:
            self.is_open = False
            return None
        if output is not None:
            output.handed_over()
            self.hide_secrets()
        return run

    def send(self, frame: Frame, fds: list[int] | None = None) -> bool:
        """See `Host.send`."""
        return self._host.send(frame, fds or ())

    def hide_secrets(self) -> None:
        """What belongs to no run may still quote their secrets."""
        if self._output is not None:
            self._output.hide_those_of(run.output for run in self._runs.values() if run.output is not None)

    async def last_lines(self) -> list[str]:
        """What the host has printed last."""
        return await self._output.last_lines() if self._output is not None else []

    def forget(self, run: HostedRun) -> None:
        """It has ended."""
        self._runs.pop(run.task_id, None)
        self._end_if_empty()

    def end_of(self, run: HostedRun, last: Frame) -> ExitInfo:
        """How a run has ended whose host has said so."""
        info = ExitInfo(0, "exit 0", Reason.EXIT_CODE)
        if last["op"] == "stopped" and not run.is_asked and self._culprit not in (None, run):
            return replace(info, beside=self._beside())
        return info

    def take_down(self, run: HostedRun, why: str) -> None:
        """End the host, as this run does not end; unless another one keeps all of them from it."""
        if self._culprit is not None or self._host.ended:
            return
        number, held_s = self._marker.read()
        holder = self._by_number(number) if held_s > HELD_UP_S else None
        self._culprit, self._why = run, why
        if holder not in (None, run):
            self._culprit, self._held_up = holder, True
            self._why = (
                f"it held up the event loop for {held_s:.1f} s, task {run.task_id} beside it could not be stopped"
            )
        self.is_open = False
        self._log.warning("shared host is taken down", task=self._culprit.task_id, why=self._why, runs=len(self._runs))
        self._going = asyncio.get_running_loop().create_task(self._take_down(is_held_up=holder is not None))

    def kill(self, run: HostedRun) -> None:
        """SIGKILL, for the sake of this run."""
        self.is_open = False
        self._culprit, self._why = self._culprit or run, self._why or "it was killed"
        if not self._host.ended:
            self._host.escalate(signal.SIGKILL, "SIGKILL")

    async def _take_down(self, *, is_held_up: bool) -> None:
        if is_held_up:
            self._host.send_signal(DUMP_SIGNAL)
            await asyncio.sleep(DUMP_S)
        else:
            self._host.escalate(signal.SIGTERM, "SIGTERM")
            await self._others_ended()
        if not self._host.ended:
            self._host.escalate(signal.SIGKILL, "SIGKILL")

    async def _others_ended(self) -> None:
        waiting = [asyncio.ensure_future(run.wait_ended()) for run in self._runs.values() if run is not self._culprit]
        if waiting:
            await asyncio.wait(waiting, timeout=NEIGHBOURS_S)

    def _end_if_empty(self) -> None:
        if self.is_open and not self._runs:
            self.is_open = False
            self._host.end()

    def _by_number(self, number: int) -> HostedRun | None:
        return next((run for run in self._runs.values() if run.number == number), None)

    def _on_frame(self, frame: Frame) -> None:
        if frame.get("op") == "ending":
            self.is_open = False
        elif (run := self._runs.get(frame.get("task", ""))) is not None:
            del frame["task"]
            run.take(frame)

    def _on_ended(self, info: ExitInfo) -> None:
        self.is_open = False
        if self._going is not None:
            self._going.cancel()
        if self._output is not None:
            self._output.finish(info.reason)
        if self._culprit is None:
            self._culprit, self._why = self._found(info), info.reason
        elif self._held_up:
            info = replace(info, reason=self._why, kind=Reason.STALL)
        self._marker.close()
        for run in list(self._runs.values()):
            others = self._culprit not in (None, run)
            run.end(replace(info, beside=self._beside(), dump="") if others else info, with_host=True)

    def _found(self, info: ExitInfo) -> HostedRun | None:
        """Who was in a step when the host ended in a way that only its own code can bring about."""
        by_itself = info.kind in (Reason.EXIT_CODE, Reason.LEASE, Reason.STALL)
        is_fault = info.kind is Reason.SIGNAL and info.status is not None and os.WTERMSIG(info.status) in FAULTS
        return self._by_number(self._marker.read()[0]) if by_itself or is_fault else None

    def _beside(self) -> str:
        assert self._culprit is not None
        return f"its host ended because of task {self._culprit.task_id} beside it: {self._why}"


class SharedHosts:
    """Those of one node."""

    def __init__(self, spare: Callable[[], Awaitable[Host]], logs: TaskLogs | None, log: Any) -> None:
        """spare: gives a host that idles, as `HostPool` does. logs: take what they print."""
        self._spare, self._logs, self._log = spare, logs, log
        self._hosts: list[SharedHost] = []
        self._names = itertools.count(1)
        self._making = asyncio.Lock()

    async def take(self, lease_until_ms: Callable[[], int | None]) -> SharedHost | None:
        """One that has room for a run, to begin it before anything else is waited for; None when a spare had died.
        lease_until_ms: of the run, None for none. Raises what `spare` raises.
        """
        async with self._making:  # so that a burst fills one host
            self._hosts = [host for host in self._hosts if host.is_open]
            is_leased = lease_until_ms() is not None
            for host in self._hosts:
                if host.has_room and host.is_leased == is_leased:
                    return host
            spare = await self._spare()
            output = self._logs.open_host(next(self._names)) if self._logs is not None else None
            host = SharedHost(spare, self._log, output, lease_until_ms())
            if not host.is_open:
                return None
            self._hosts.append(host)
            return host
