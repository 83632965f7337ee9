"""One worker host, as the skald sees it: a socket, a pidfd, a process group.

Rules: a host has ended only when its pidfd is readable *and* its process group is empty; until then `wait_ended`
waits. What is left of the group is killed. Frames that the host sent are all delivered before it counts as ended. A
host that has said how it ended, and does not exit, is killed after LINGER_S. The raw status comes from the zygote,
the host's parent; without the zygote it is unknown.

What does not live here: starting hosts (`hosts`), restarts, reports.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from skalds_streams.errors import HostError
from skalds_streams.skald.lease import boottime_ms
from skalds_streams.skald.logs import RunOutput
from skalds_streams.worker.channel import Channel
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.kernel import group_is_empty, kill_group

LINGER_S = 5.0
STATUS_WAIT_S = 2.0
"""How long the zygote's word on the exit status is waited for."""
GROUP_POLL_S = 0.002
GROUP_POLL_MAX_S = 0.1
RAN_OUT = "its lease ran out: it held the GIL, or was stopped, for longer than a lease"
ZYGOTE_LOST = "zygote lost"
LAST_FRAMES = frozenset({"finished", "stopped", "failed"})

OnEvent = Callable[[Frame], None]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a host is to run."""

    task_id: str
    class_name: str
    epoch: int
    attachments: dict[str, Any] | None
    version: int
    state: str | None = None
    """What the last run saved, JSON text."""

    def frame(self) -> Frame:
        """The run frame."""
        return {
            "op": "run",
            "task_id": self.task_id,
            "class": self.class_name,
            "epoch": self.epoch,
            "attachments": self.attachments,
            "version": self.version,
            "state": self.state,
        }


@dataclass(frozen=True, slots=True)
class ExitInfo:
    """How a host ended. `status` is the raw wait status, None when nobody could read it."""

    status: int | None
    reason: str

    @classmethod
    def of(cls, status: int | None) -> ExitInfo:
        """In words: "exit 0", "exit code 3", "signal 9 (SIGKILL)", "zygote lost"."""
        if status is None:
            return cls(None, ZYGOTE_LOST)
        if not os.WIFSIGNALED(status):
            code = os.waitstatus_to_exitcode(status)
            return cls(status, f"exit code {code}" if code else "exit 0")
        number = os.WTERMSIG(status)
        try:
            return cls(status, f"signal {number} ({signal.Signals(number).name})")
        except ValueError:  # a real-time signal has no name
            return cls(status, f"signal {number}")


class Host:
    """A host process that has been forked. It idles until `begin`."""

    def __init__(
        self, *, name: str, pid: int, pidfd: int, sock: socket.socket, log: Any, on_ended: Callable[[Host], None]
    ) -> None:
        self.name = name
        self.pid = pid
        self.steps: list[str] = []
        """What had to be done to make it end, in order: "SIGTERM after 5 s" …"""
        self.started = False
        self.is_leased = False
        self.leased_until_ms = 0
        """The lease that the host has taken in, in ms of CLOCK_BOOTTIME."""
        self._pidfd = pidfd
        self._log = log.bind(host_pid=pid)
        self._on_ended = on_ended
        self._on_event: OnEvent | None = None
        self._output: RunOutput | None = None
        self._last_frame: Frame = {}
        """How the worker said that it ended."""
        self._loop = asyncio.get_running_loop()
        self._status: asyncio.Future[int | None] = self._loop.create_future()
        self._ended: asyncio.Future[ExitInfo] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._channel = Channel(sock, self._on_frame, self._on_channel_closed)
        self._loop.add_reader(pidfd, self._on_exit)

    @property
    def ended(self) -> bool:
        """The process and its whole group are gone."""
        return self._ended.done()

    def begin(
        self,
        spec: RunSpec,
        on_event: OnEvent,
        lease_until_ms: int | None = None,
        output: RunOutput | None = None,
    ) -> bool:
        """Send the run. The kernel ends it at `lease_until_ms` of CLOCK_BOOTTIME, or never. output: takes what it
        prints, and is finished with it; None: that goes where the skald's goes.

        False when this spare has died, having run nothing. Raises HostError for a frame too large.
        """
        self._on_event = on_event
        doomed = self._task is not None or self._status.done()
        self.is_leased = lease_until_ms is not None
        self.leased_until_ms = lease_until_ms or 0
        fds = [output.writer] if output is not None else []
        self.started = not doomed and self._channel.send({**spec.frame(), "lease_until_ms": lease_until_ms}, fds)
        if self.started:
            self._output = output
            if output is not None:
                output.handed_over()
            self._log = self._log.bind(task_id=spec.task_id, epoch=spec.epoch)
        return self.started

    def renew(self, until_ms: int) -> None:
        """Let it live until then. A host that takes nothing in ends by its lease."""
        if self.is_leased:
            with suppress(HostError):
                self._channel.send({"op": "lease", "until_ms": until_ms})

    def take_epoch(self, epoch: int) -> None:
        """The run goes on under another epoch."""
        self._log = self._log.bind(epoch=epoch)
        if self._output is not None:
            self._output.take_epoch(epoch)
        with suppress(HostError):
            self._channel.send({"op": "epoch", "epoch": epoch})

    async def update(self, version: int, attachments: dict[str, Any] | None) -> None:
        """Hand new parameters over; "applied" or "refused" follows as an event, or the host's end.

        Raises HostError when they are too large, or when the host takes nothing any more.
        """
        if self._output is not None:
            self._output.hide(attachments)
        self._channel.send({"op": "update", "version": version, "attachments": attachments})

    async def last_lines(self) -> list[str]:
        """What a run that has ended printed last."""
        return await self._output.last_lines() if self._output is not None else []

    async def stop(self, reason: str, *, release_s: float, terminate_s: float) -> ExitInfo:
        """Ask it to stop; SIGTERM to its group after release_s, SIGKILL after terminate_s more. Returns at its end."""
        self._channel.send({"op": "stop", "reason": reason})
        if not await self._ends_within(release_s):
            self._escalate(signal.SIGTERM, f"SIGTERM after {release_s:g} s")
            if not await self._ends_within(terminate_s):
                self._escalate(signal.SIGKILL, f"SIGKILL after {terminate_s:g} s")
        return await self.wait_ended()

    async def wait_ended(self) -> ExitInfo:
        """Until the process and its whole group are gone."""
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """SIGKILL to the whole group, now."""
        if not self.ended:
            kill_group(self.pid)

    def exited(self, status: int | None) -> None:
        """The zygote's word on how the process ended; None when the zygote is lost."""
        if not self._status.done():
            self._status.set_result(status)

    def abandon(self) -> None:
        """Let go of a host that does not end; only for a pool that is shutting down."""
        if self._task is not None:
            self._task.cancel()
        if not self.ended:
            self._close(ExitInfo(None, "did not end"))

    async def _ends_within(self, seconds: float) -> bool:
        done, _ = await asyncio.wait({self._ended}, timeout=seconds)
        return bool(done)

    def _escalate(self, signum: signal.Signals, step: str) -> None:
        self.steps.append(step)
        self._log.warning("worker does not stop", step=step)
        kill_group(self.pid, signum)

    def _on_frame(self, frame: Frame) -> None:
        if frame.get("op") == "leased":
            self.leased_until_ms = frame["until_ms"]
            return
        if frame.get("op") in LAST_FRAMES and self._linger is None:
            self._last_frame = frame
            self._linger = self._loop.call_later(LINGER_S, self._kill_lingering)
        if self._on_event is None:
            return
        try:
            self._on_event(frame)
        except Exception:  # noqa: BLE001  # the edge to the supervisor: its error must not end the reading
            self._log.exception("event handler failed", frame_op=frame.get("op"))

    def _on_channel_closed(self, reason: str) -> None:
        """The end of the stream comes with the process's own; anything else is a host that can't be talked to."""
        if reason and self._task is None:
            self._escalate(signal.SIGKILL, f"SIGKILL: {reason}")

    def _kill_lingering(self) -> None:
        if self._task is None:
            self._escalate(signal.SIGKILL, f"SIGKILL: alive {LINGER_S:g} s after its last frame")

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._channel.drain()
        self._task = self._loop.create_task(self._finish())

    async def _finish(self) -> None:
        await asyncio.wait({self._status}, timeout=STATUS_WAIT_S)
        await self._empty_group()
        self._close(self._exit_info())

    def _exit_info(self) -> ExitInfo:
        if self._status.done():
            info = ExitInfo.of(self._status.result())
        else:
            info = ExitInfo(None, f"exit status unknown: the zygote does not answer in {STATUS_WAIT_S:g} s")
        may_be = info.status == signal.SIGKILL or not self._status.done()
        if may_be and not self.steps and self.is_leased and boottime_ms() >= self.leased_until_ms:
            return ExitInfo(info.status, RAN_OUT)
        return info

    async def _empty_group(self) -> None:
        pause_s = GROUP_POLL_S
        while not group_is_empty(self.pid):
            kill_group(self.pid)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, GROUP_POLL_MAX_S)

    def _close(self, info: ExitInfo) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._channel.close()
        if self._output is not None:
            self._output.finish(*_told(self._last_frame, info))
        self._ended.set_result(info)
        self._on_ended(self)


def _told(last_frame: Frame, info: ExitInfo) -> tuple[str, list[str]]:
    """For the log: how the run has ended, and the lines of its error."""
    how = [str(last_frame["op"])] if last_frame else []
    if info.status != 0 or not how:
        how.append(info.reason)
    error = last_frame.get("error")
    lines = (error.get("traceback") or [f"{error.get('type')}: {error.get('message')}"]) if error else []
    return ", ".join(how), [str(line) for line in lines]
