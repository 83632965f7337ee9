"""One worker host, as the skald sees it: a socket, a process group, and pidfds of the host and of its reaper.

Rules: a host has ended only when both pidfds are readable *and* somebody has said that nothing of it is left: its
reaper, which does so when it has no child any more, or, for a reaper that was killed, the zygote. Until then
`wait_ended` waits. When the zygote is lost, the reaper's own end counts, and an empty process group. Frames that the
host sent are all delivered before it counts as ended. A host that has said how it ended, and does not exit, is killed
after LINGER_S.

What does not live here: starting hosts (`hosts`), runs that share one (`shared`), restarts, reports.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from skalds_streams.errors import HostError
from skalds_streams.skald.exits import OOM_KILLED, RAN_OUT, REAPER_KILLED, STUCK_WITH_GIL, ZYGOTE_LOST, ExitInfo
from skalds_streams.skald.lease import boottime_ms
from skalds_streams.skald.logs import RunOutput
from skalds_streams.worker.channel import Channel
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.kernel import group_is_empty, kill_group
from skalds_streams.worker.outcome import Reason

LINGER_S = 5.0
REAPER_NUDGE_S = 1.0
"""How often a reaper that goes on is sent SIGCONT: somebody may have stopped it."""
GROUP_POLL_S = 0.002
GROUP_POLL_MAX_S = 0.1
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


class Hosted(Protocol):
    """A run in a host, as its actor sees it: of a host of its own (`Host`), or of one that it shares."""

    steps: list[str]

    @property
    def pid(self) -> int:
        """The host's."""

    def take_epoch(self, epoch: int) -> None:
        """The run goes on under another epoch."""

    async def update(self, version: int, attachments: dict[str, Any] | None) -> None:
        """Hand new parameters over. Raises HostError."""

    async def last_lines(self) -> list[str]:
        """What a run that has ended printed last."""

    async def stop(self, reason: str, *, release_s: float, terminate_s: float) -> ExitInfo:
        """Ask it to stop, make it stop. Returns at its end."""

    async def wait_ended(self) -> ExitInfo:
        """Until nothing of it is left."""

    def kill(self) -> None:
        """End it now, whatever that costs."""


class Host:
    """A host process that has been forked. It idles until `begin`, or until `share` makes it one for many runs."""

    def __init__(
        self,
        *,
        name: str,
        pid: int,
        pidfd: int,
        reaper_fd: int,
        sock: socket.socket,
        log: Any,
        on_ended: Callable[[Host], None],
        oom_killed: Callable[[], bool] = lambda: False,
    ) -> None:
        """oom_killed: whether the kernel's OOM killer has just ended something here."""
        self.name = name
        self.pid = pid
        self.steps: list[str] = []
        """What had to be done to make it end, in order: "SIGTERM after 5 s" …"""
        self.started = False
        self.is_leased = False
        self.leased_until_ms = 0
        """The lease that the host has taken in, in ms of CLOCK_BOOTTIME."""
        self._pidfd = pidfd
        self._reaper_fd = reaper_fd
        self._log = log.bind(host_pid=pid)
        self._on_ended = on_ended
        self._oom_killed = oom_killed
        self._on_event: OnEvent | None = None
        self._output: RunOutput | None = None
        self._last_frame: Frame = {}
        """How the worker said that it ended."""
        self._loop = asyncio.get_running_loop()
        self._word: asyncio.Future[ExitInfo] = self._loop.create_future()
        """Somebody's word on its end."""
        self._is_orphan = False
        self._reaper_gone = asyncio.Event()
        self._ended: asyncio.Future[ExitInfo] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._channel = Channel(sock, self._on_frame, self._on_channel_closed)
        self._loop.add_reader(pidfd, self._on_exit)
        self._loop.add_reader(reaper_fd, self._on_reaper_exit)

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
        fds = [output.writer] if output is not None else []
        if self.share(on_event, lease_until_ms, fds, spec.frame()):
            self._output = output
            if output is not None:
                output.handed_over()
            self._log = self._log.bind(task_id=spec.task_id, epoch=spec.epoch)
        return self.started

    def share(
        self, on_event: OnEvent, lease_until_ms: int | None, fds: Sequence[int], frame: Frame | None = None
    ) -> bool:
        """Make it a host of many runs, which `send` begins, unless the frame says otherwise. on_event gets the frames
        of all. fds: see `worker.shared`. As `begin` otherwise.
        """
        self._on_event = on_event
        doomed = self._task is not None or self._word.done()
        self.is_leased, self.leased_until_ms = lease_until_ms is not None, lease_until_ms or 0
        first = {**(frame or {"op": "share"}), "lease_until_ms": lease_until_ms}
        self.started = not doomed and self._channel.send(first, fds)
        return self.started

    def send(self, frame: Frame, fds: Sequence[int] = ()) -> bool:
        """A frame for one of many runs. False: the host is gone. Raises HostError when it is too large, or when too
        much waits.
        """
        return self._channel.send(frame, fds)

    def end(self) -> None:
        """A host of many runs has none left, and gets none any more."""
        with suppress(HostError):
            self._channel.send({"op": "end"})
        self._linger = self._linger or self._loop.call_later(LINGER_S, self._kill_lingering)

    def when_ended(self, callback: Callable[[ExitInfo], None]) -> None:
        """Have it called at the end, soon."""
        self._ended.add_done_callback(lambda ended: callback(ended.result()))

    def send_signal(self, signum: int) -> None:
        """To the process alone."""
        if not self.ended and self._task is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signum)

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
            self.escalate(signal.SIGTERM, f"SIGTERM after {release_s:g} s")
            if not await self._ends_within(terminate_s):
                self.escalate(signal.SIGKILL, f"SIGKILL after {terminate_s:g} s")
        return await self.wait_ended()

    async def wait_ended(self) -> ExitInfo:
        """Until the process and its whole group are gone."""
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """SIGKILL to the whole group, now."""
        if not self.ended:
            kill_group(self.pid)

    def exited(self, status: int | None, peak_bytes: int = 0, dump: str = "") -> None:
        """Its reaper's word: nothing is left, and how the process ended (`ExitInfo`). None: the zygote's word, for a
        reaper that was killed.
        """
        if not self._word.done():
            self._word.set_result(
                ExitInfo(None, REAPER_KILLED) if status is None else ExitInfo.of(status, peak_bytes, dump)
            )

    def orphaned(self) -> None:
        """The zygote is lost, and with it the word of the reaper, which does its work all the same."""
        if not self._word.done():
            self._is_orphan = True
            self._word.set_result(ExitInfo(None, ZYGOTE_LOST))

    def abandon(self) -> None:
        """Let go of a host that does not end; only for a pool that is shutting down."""
        if self._task is not None:
            self._task.cancel()
        if not self.ended:
            self._close(ExitInfo(None, "did not end"))

    async def _ends_within(self, seconds: float) -> bool:
        done, _ = await asyncio.wait({self._ended}, timeout=seconds)
        return bool(done)

    def escalate(self, signum: signal.Signals, step: str) -> None:
        """A signal to its whole group. step: in words."""
        self.steps.append(step)
        self._log.warning("worker does not stop", step=step)
        kill_group(self.pid, signum)

    def _on_frame(self, frame: Frame) -> None:
        if frame.get("op") == "leased":
            self.leased_until_ms = frame["until_ms"]
            return
        if frame.get("op") in LAST_FRAMES and "task" not in frame and self._linger is None:
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
            self.escalate(signal.SIGKILL, f"SIGKILL: {reason}")

    def _kill_lingering(self) -> None:
        if self._task is None:
            self.escalate(signal.SIGKILL, f"SIGKILL: alive {LINGER_S:g} s after its last frame")

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._channel.drain()
        self._task = self._loop.create_task(self._finish())

    def _on_reaper_exit(self) -> None:
        self._loop.remove_reader(self._reaper_fd)
        with suppress(ChildProcessError):  # it became our child if the zygote is lost and we are process 1
            os.waitid(os.P_PIDFD, self._reaper_fd, os.WEXITED | os.WNOHANG)
        self._reaper_gone.set()

    async def _finish(self) -> None:
        while not self._reaper_gone.is_set():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._reaper_fd, signal.SIGCONT)
            with suppress(TimeoutError):
                async with asyncio.timeout(REAPER_NUDGE_S):
                    await self._reaper_gone.wait()
        await asyncio.wait({self._word})
        if self._is_orphan:
            await self._empty_group()
        self._close(self._explained(self._word.result()))

    def _explained(self, info: ExitInfo) -> ExitInfo:
        """Who sent SIGKILL, if it was not this skald."""
        if info.status != signal.SIGKILL or self.steps:
            return info
        if info.dump:
            return replace(info, reason=STUCK_WITH_GIL, kind=Reason.STALL)
        if self.is_leased and boottime_ms() >= self.leased_until_ms:
            return replace(info, reason=RAN_OUT, kind=Reason.LEASE)
        if self._oom_killed():
            return replace(info, reason=OOM_KILLED, kind=Reason.MEMORY)
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
        for fd in (self._pidfd, self._reaper_fd):
            self._loop.remove_reader(fd)
            os.close(fd)
        self._channel.close()
        if self._output is not None:
            self._output.finish(*told_end(self._last_frame, info))
        self._ended.set_result(info)
        self._on_ended(self)


def told_end(last_frame: Frame, info: ExitInfo) -> tuple[str, list[str]]:
    """For the log: how the run has ended, and the lines of its error."""
    how = [str(last_frame["op"])] if last_frame else []
    if info.status != 0 or not how:
        how.append(info.reason)
    error = last_frame.get("error")
    lines = (error.get("traceback") or [f"{error.get('type')}: {error.get('message')}"]) if error else []
    return ", ".join(how), [str(line) for line in lines]
