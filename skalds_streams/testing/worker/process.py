"""A real host for a worker of a test: forked from the test's process, so that any class will do, also one that is
defined in the test itself.

Rules: the child is what a node's child is, with a reaper as its parent (`worker.reaper`), the host's own code
(`worker.host`) and real signals; nothing that the worker starts outlives it. It has what the test had at the fork,
monkeypatches included; nothing that it changes comes back, but what it says. A fork takes one thread along: a lock that
another thread of the test holds at that moment stays locked in the worker.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, cast

import structlog

from skalds_streams.errors import HostError
from skalds_streams.skald.host import Host, Hosted, RunSpec
from skalds_streams.skald.logs import RunOutput
from skalds_streams.skald.shared import SharedHost
from skalds_streams.worker import kernel, reaper
from skalds_streams.worker.channel import Channel
from skalds_streams.worker.frames import Frame, send_frame
from skalds_streams.worker.host import host_main
from skalds_streams.worker.process import flush_output
from skalds_streams.worker.registry import Registry, WorkerClass
from skalds_streams.worker.secrets import SecretPolicy
from skalds_streams.worker.stall import read_dump
from skalds_streams.worker.zygote import lead_group, reseed

START_S = 30.0
READ_BYTES = 1 << 16


class Output:
    """What a worker and all that it starts print: lines, as they come. To a host it is a `skald.logs.RunOutput`."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""
        self._lines: list[str] = []
        self._loop = asyncio.get_running_loop()
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        self._loop.add_reader(self.reader, self.read)

    def hide(self, _parameters: Any) -> None:
        """A test may see everything."""

    def take_epoch(self, _epoch: int) -> None:
        """Lines carry no epoch."""

    def handed_over(self) -> None:
        """The worker has the writing end."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def finish(self, _how: str, _error: object = ()) -> None:
        """The run is over: take what is left."""
        self.close()

    async def last_lines(self) -> list[str]:
        """All of it."""
        return self._lines

    def read(self) -> None:
        """Take what has come."""
        with suppress(BlockingIOError):
            while data := os.read(self.reader, READ_BYTES):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._take(line)
            self._loop.remove_reader(self.reader)  # nobody has the writing end any more

    def close(self) -> None:
        """Let go of the pipe."""
        self.handed_over()
        if self.reader < 0:
            return
        self.read()
        if self._rest:
            self._take(self._rest)
        self._loop.remove_reader(self.reader)
        os.close(self.reader)
        self.reader = -1

    def _take(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        self._lines.append(text)
        self._on_line(text)


class Nursery:
    """Starts one host and hears of its end, as a node does from its zygote."""

    def __init__(self, described: WorkerClass, policy: SecretPolicy) -> None:
        self._registry = Registry({described.worker_type.__name__: described})
        self._policy, self._is_shared = policy, described.isolation == "shared"
        self._loop = asyncio.get_running_loop()
        self._host: Host | None = None
        self._made: asyncio.Future[Host] = self._loop.create_future()
        ours, self._their_control = socket.socketpair()
        self._sock, self._their_sock = socket.socketpair()
        self._ours = (ours, self._sock)
        self._channel = Channel(ours, self._on_frame, self._on_close)
        self._reaper = self._fork()
        self._their_control.close()
        self._their_sock.close()

    async def start(self, spec: RunSpec, on_event: Callable[[Frame], None], output: Output) -> Hosted:
        """A run in it, alone also in a host that it would share. Raises HostError when it can't be made."""
        try:
            async with asyncio.timeout(START_S):
                self._host = host = await asyncio.shield(self._made)
        except BaseException as error:
            self.abandon()
            if isinstance(error, TimeoutError):
                raise HostError(f"no process for the worker in {START_S:g} s") from None
            raise
        begun: Hosted | None
        taken = cast("RunOutput", output)  # it has what is asked of one
        if self._is_shared:
            begun = SharedHost(host, structlog.get_logger("skalds.hosts"), None, None).begin(spec, on_event, taken)
        else:
            begun = host if host.begin(spec, on_event, None, taken) else None
        if begun is None:
            raise HostError("the worker's process ended before it ran anything")
        return begun

    async def gone(self) -> None:
        """Until the process has ended, if there is one. A shared host does so when its run is over."""
        if self._host is not None:
            await self._host.wait_ended()

    def abandon(self) -> None:
        """End it here and now, without a loop, and wait for its reaper."""
        if self._host is not None and self._host.ended:
            return
        if self._host is not None:
            self._host.kill()
        else:
            self._sock.close()  # the end of the stream ends a host that has not begun
            with suppress(RuntimeError):  # its loop is closed
                self._channel.close()
        with suppress(ChildProcessError):
            os.waitpid(self._reaper, 0)

    def _on_frame(self, frame: Frame) -> None:
        if frame["op"] == "spawned":
            pidfd, reaper_fd = self._channel.take_fd(), self._channel.take_fd()
            log = structlog.get_logger("skalds.testing")
            self._made.set_result(
                Host(
                    name="worker",
                    pid=frame["pid"],
                    pidfd=pidfd,
                    reaper_fd=reaper_fd,
                    sock=self._sock,
                    log=log,
                    on_ended=lambda _host: self._channel.close(),
                )
            )
        elif frame["op"] == "exited" and self._made.done():
            self._made.result().exited(frame["status"], frame["peak_bytes"], frame["dump"])

    def _on_close(self, reason: str) -> None:
        if not self._made.done():
            self._made.set_exception(HostError(f"the worker's process could not be made {reason}"))
        elif not self._made.exception():
            self._made.result().exited(None)  # nothing when its word was heard

    def _fork(self) -> int:
        flush_output()
        test = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a process with threads: see the module
            pid = os.fork()
        if pid == 0:
            self._become_reaper(test)
        return pid

    def _become_reaper(self, test: int) -> NoReturn:
        """In the child. Nothing of the test's code runs on here."""
        try:
            gc.freeze()  # the test's garbage is the test's
            for sock in self._ours:
                os.close(sock.fileno())
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_IGN)
            if not reaper.prepare(test):
                os._exit(0)
            me, dump_fd = os.getpid(), os.memfd_create("skald-stacks")
            pid = os.fork()
            if pid == 0:
                self._become_host(dump_fd, me)
            lead_group(pid)
            os.close(self._their_sock.fileno())
            pidfds = [os.pidfd_open(pid), os.pidfd_open(me)]
            self._tell({"op": "spawned", "pid": pid}, pidfds)
            for fd in pidfds:
                os.close(fd)
            ended = reaper.until_nothing_is_left(pid, test)
            known = {"status": ended.status, "peak_bytes": ended.peak_bytes, "dump": read_dump(dump_fd)}
            self._tell({"op": "exited", **known})
            os._exit(0)
        except BaseException:  # noqa: BLE001  # the fork must not run on as a second test
            traceback.print_exc()
        finally:
            os._exit(70)

    def _tell(self, frame: Frame, fds: list[int] | None = None) -> None:
        with suppress(OSError):  # then nobody needs it any more
            send_frame(self._their_control, frame, fds or [])

    def _become_host(self, dump_fd: int, parent: int) -> NoReturn:
        try:
            lead_group(0)
            kernel.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            for signum in (*reaper.SIGNALS, signal.SIGTERM, signal.SIGALRM):
                signal.signal(signum, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.close(self._their_control.fileno())
            forget_the_test()
            reseed()
            host_main(socket.socket(fileno=os.dup(self._their_sock.fileno())), self._registry, self._policy, dump_fd)
        except BaseException:  # noqa: BLE001  # as above
            traceback.print_exc()
        finally:
            os._exit(70)


def forget_the_test() -> None:
    """What a test runner has set up in its process is not the worker's: the running loop, captured streams, handlers of
    log records.
    """
    asyncio._set_running_loop(None)
    asyncio.set_event_loop(None)
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
        setattr(sys, name, stream)
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    logging.disable(logging.NOTSET)
