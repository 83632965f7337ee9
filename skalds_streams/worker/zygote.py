"""The process that hosts are forked from: `python -m skalds_streams.worker.zygote --fd N --modules a,b --parent PID`.

It has imported the user's modules once, so that a host starts in milliseconds and shares their memory. Rules:

- Single-threaded: fork is safe, and the hosts' death signal follows the one thread that forks.
- Every host is the leader of its own process group. What is left of the group is killed before the host is reaped:
  until then the kernel can't give its number to another process.
- The end of the skald's socket, or the skald's death, ends the zygote and kills every group. SIGINT and SIGTERM do
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

from skalds_streams.worker import kernel
from skalds_streams.worker.frames import Frame, recv_frame, send_frame
from skalds_streams.worker.host import flush_output, host_main
from skalds_streams.worker.installed import offers
from skalds_streams.worker.registry import Registry, load
from skalds_streams.worker.secrets import SecretPolicy

PARENT_DIED = signal.SIGUSR1


class Zygote:
    """Forks on request, reports ends."""

    def __init__(self, control: socket.socket, registry: Registry, policy: SecretPolicy, *, parent: int) -> None:
        self._control, self._policy = control, policy
        self._registry = registry
        self._parent = parent
        self._hosts: dict[int, str] = {}
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
                ready = {key.fileobj for key, _ in self._selector.select()}
                if self._wakeup in ready:
                    self._wakeup.recv(4096)
                    self._reap()
                if self._control in ready and not self._answer():
                    return
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            for pid in self._hosts:
                kernel.kill_group(pid)

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
        """Fork a host that owns `fds`: its socket, and the node's lock if there is one."""
        flush_output()
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_host(fds[0], zygote)
        lead_group(pid)
        self._hosts[pid] = name
        pidfd = os.pidfd_open(pid)
        try:
            send_frame(self._control, {"op": "spawned", "host": name, "pid": pid}, [pidfd])
        finally:
            os.close(pidfd)

    def _become_host(self, sock_fd: int, zygote: int) -> NoReturn:
        """In the child: shed what is the zygote's, then live as a host."""
        try:
            lead_group(0)
            kernel.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() != zygote:
                os._exit(1)
            signal.set_wakeup_fd(-1)
            for signum in (signal.SIGCHLD, signal.SIGTERM, PARENT_DIED):
                signal.signal(signum, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._selector.close()
            for sock in (self._control, self._wakeup, self._wakeup_end):
                sock.close()
            kernel.set_name("skald-host")
            gc.enable()
            reseed()
            host_main(socket.socket(fileno=sock_fd), self._registry, self._policy)
        except BaseException:  # noqa: BLE001  # the fork must not run on as a second zygote
            traceback.print_exc()
        finally:
            os._exit(70)

    def _reap(self) -> None:
        """Collect the dead: our hosts, and orphans of theirs that came to us as the subreaper."""
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            name = self._hosts.pop(dead.si_pid, None)
            if name is not None:
                kernel.kill_group(dead.si_pid)
            _, status = os.waitpid(dead.si_pid, 0)
            if name is not None:
                send_frame(self._control, {"op": "exited", "host": name, "pid": dead.si_pid, "status": status})


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
