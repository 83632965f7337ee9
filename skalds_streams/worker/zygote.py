"""The process that hosts are forked from: `python -m skalds_streams.worker.zygote --fd N --modules a,b --parent PID`.

It has imported the user's modules once, so that a host starts in milliseconds and shares their memory. Rules:

- Single-threaded: fork is safe, and the death signals follow the one thread that forks.
- It forks a reaper for each host, which forks the host, tells the skald of both and of the end, and leaves nothing
  of the host behind (`reaper`). The zygote does it for a reaper that somebody killed: every child of the zygote that
  is no reaper is what such a one has left, for those of living hosts are beneath their reapers.
- The end of the skald's socket, or the skald's death, ends the zygote, and with it the hosts. SIGINT and SIGTERM do
  not: they are sent to whole terminals and control groups, and the hosts need their time to release.

What does not live here: which hosts there are and what they run; the skald decides.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import random
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from skalds_streams.worker import kernel, reaper
from skalds_streams.worker.frames import Frame, recv_frame, send_frame
from skalds_streams.worker.host import host_main
from skalds_streams.worker.installed import offers
from skalds_streams.worker.process import flush_output
from skalds_streams.worker.reaper import PARENT_DIED
from skalds_streams.worker.registry import Registry, load
from skalds_streams.worker.secrets import SecretPolicy
from skalds_streams.worker.stall import read_dump

QUIET_LOOKS = 2
"""Looks in a row that find no stranger before there is none: one may miss a child."""


class Zygote:
    """Forks on request."""

    def __init__(self, control: socket.socket, registry: Registry, policy: SecretPolicy, *, parent: int) -> None:
        self._control, self._policy = control, policy
        self._registry = registry
        self._parent = parent
        self._reapers: dict[int, str] = {}
        """Process id → name of the host."""
        self._helpers = set(kernel.children())
        """What modules started at import."""
        self._unreported: list[str] = []
        """Hosts whose reaper was killed, and of which something may be left."""
        self._quiet = 0
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._wakeup_end = socket.socketpair()

    def serve(self) -> None:
        """Until the skald is gone."""
        self._watch_signals()
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        try:
            send_frame(self._control, self._ready())
            while os.getppid() == self._parent:
                pause_s = reaper.POLL_S if self._unreported else None
                ready = {key.fileobj for key, _ in self._selector.select(pause_s)}
                if self._wakeup in ready:
                    self._wakeup.recv(4096)
                    self._reap()
                if self._unreported:
                    self._end_strangers()
                if self._control in ready and not self._answer():
                    return
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            for pid in self._strangers():
                kernel.kill_with_group(pid)

    def _ready(self) -> Frame:
        return {
            "op": "ready",
            "pid": os.getpid(),
            "classes": {name: entry.describe() for name, entry in self._registry.classes.items()},
            "not_loadable": self._registry.not_loadable,
        }

    def _watch_signals(self) -> None:
        """SIGCHLD and the parent's death wake the selector up."""
        self._wakeup.setblocking(False)
        self._wakeup_end.setblocking(False)
        for signum in (signal.SIGCHLD, PARENT_DIED):
            signal.signal(signum, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_end.fileno(), warn_on_full_buffer=False)

    def _answer(self) -> bool:
        """Handle one request; False at the end of the stream."""
        received = recv_frame(self._control)
        if received is None:
            return False
        frame, fds = received
        if frame["op"] == "spawn" and fds:
            try:
                self._spawn(frame["host"], fds)
            except OSError as error:
                send_frame(self._control, {"op": "spawn_failed", "host": frame["host"], "error": str(error)})
        for fd in fds:
            os.close(fd)
        return True

    def _spawn(self, name: str, fds: Sequence[int]) -> None:
        """Fork the reaper of a host that owns `fds`: its socket, and the node's lock if there is one."""
        flush_output()
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_reaper(name, fds[0], zygote)
        self._reapers[pid] = name

    def _become_reaper(self, name: str, sock_fd: int, zygote: int) -> NoReturn:
        """In the child: fork the host, and stay until nothing of it is left. Ends with 0 when all is said."""
        try:
            if not reaper.prepare(zygote):
                os._exit(0)
            self._selector.close()
            for sock in (self._wakeup, self._wakeup_end):
                sock.close()
            me, dump_fd = os.getpid(), os.memfd_create("skald-stacks")
            try:
                pid = os.fork()
            except OSError as error:
                self._tell({"op": "spawn_failed", "host": name, "error": str(error)})
                os._exit(0)
            if pid == 0:
                self._become_host(sock_fd, dump_fd, me)
            lead_group(pid)
            os.close(sock_fd)
            pidfds = [os.pidfd_open(pid), os.pidfd_open(me)]
            self._tell({"op": "spawned", "host": name, "pid": pid}, pidfds)
            for fd in pidfds:
                os.close(fd)
            ended = reaper.until_nothing_is_left(pid, zygote)
            if os.getppid() == zygote:  # else that is why the host has ended, and the skald knows it
                known = {"status": ended.status, "peak_bytes": ended.peak_bytes, "dump": read_dump(dump_fd)}
                self._tell({"op": "exited", "host": name, **known})
            os._exit(0)
        except BaseException:  # noqa: BLE001  # the fork must not run on as a second zygote
            traceback.print_exc()
        finally:
            os._exit(70)

    def _tell(self, frame: Frame, fds: Sequence[int] = ()) -> None:
        """A reaper's word to the skald: small enough for one write, which those of others do not mix with."""
        with suppress(BrokenPipeError, ConnectionResetError):  # then nobody needs it any more
            send_frame(self._control, frame, fds)

    def _become_host(self, sock_fd: int, dump_fd: int, parent: int) -> NoReturn:
        """In the reaper's child: shed what is the reaper's and the zygote's, then live as a host."""
        try:
            lead_group(0)
            kernel.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            for signum in (*reaper.SIGNALS, signal.SIGTERM):
                signal.signal(signum, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            self._control.close()
            kernel.set_name("skald-host")
            gc.enable()
            reseed()
            host_main(socket.socket(fileno=sock_fd), self._registry, self._policy, dump_fd)
        except BaseException:  # noqa: BLE001  # the fork must not run on as a second reaper
            traceback.print_exc()
        finally:
            os._exit(70)

    def _reap(self) -> None:
        """Collect the dead: reapers that have said all, those that were killed, and what these left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._helpers.discard(pid)
            name = self._reapers.pop(pid, None)
            if name is not None and status != 0:
                self._unreported.append(name)
                self._quiet = 0

    def _end_strangers(self) -> None:
        """Kill what killed reapers have left; when there is nothing any more, tell the skald."""
        strangers = self._strangers()
        for pid in strangers:
            kernel.kill_with_group(pid)
        self._quiet = 0 if strangers else self._quiet + 1
        if self._quiet >= QUIET_LOOKS:
            for name in self._unreported:
                send_frame(self._control, {"op": "exited", "host": name, "status": None, "peak_bytes": 0, "dump": ""})
            self._unreported.clear()

    def _strangers(self) -> list[int]:
        """Children that are neither reapers nor the modules' own."""
        return [pid for pid in kernel.children() if pid not in self._reapers and pid not in self._helpers]


def lead_group(pid: int) -> None:
    """Make a process the leader of its own group. Parent and child both do it: whoever comes second changes nothing."""
    with suppress(ProcessLookupError, PermissionError):
        os.setpgid(pid, pid)


def reseed() -> None:
    """No two hosts draw the same numbers. Python reseeds `random` at a fork by itself, NumPy does not."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def prepare(parent: int) -> None:
    """Settle this process before any user code is imported."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    kernel.set_parent_death_signal(PARENT_DIED)
    if os.getppid() != parent:
        sys.exit(1)
    kernel.set_child_subreaper()
    kernel.set_name("skald-zygote")
    faulthandler.enable()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="skalds_streams.worker.zygote")
    parser.add_argument("--fd", type=int, required=True, help="the skald's socket")
    parser.add_argument("--modules", default="", help="comma-separated modules with worker classes")
    parser.add_argument("--secrets", default="", help="what references in parameters may read (SecretPolicy)")
    parser.add_argument("--parent", type=int, required=True, help="process id of the skald")
    options = parser.parse_args(arguments)
    os.set_inheritable(options.fd, False)
    prepare(options.parent)
    registry = load([name for name in options.modules.split(",") if name], offers())
    if threading.active_count() > 1:
        sys.stderr.write("worker modules started threads at import; they do not exist in workers\n")
    gc.collect()
    gc.disable()
    gc.freeze()
    policy = SecretPolicy.from_text(options.secrets)
    Zygote(socket.socket(fileno=options.fd), registry, policy, parent=options.parent).serve()


if __name__ == "__main__":
    main()
