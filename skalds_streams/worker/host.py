"""The child process that runs one worker. Forked by its reaper, itself a fork of the zygote, it waits for its first
frame; when that says "run", it runs, and exits 0 after its last frame.

The main thread runs user code; an I/O thread reads the socket; updates have a thread of their own. Rules:

- The end of the stream means that the skald is gone: the process group is killed at once.
- A kernel timer ends the process when the lease is not renewed. The I/O thread arms it anew, so that a worker which
  holds the GIL for a lease ends, too.
- When main makes no progress for longer than its class allows, the I/O thread takes the stacks down, and the skald
  stops the worker; a main that holds the GIL is ended by the kernel (`stall`).
- What the worker saves goes out at once, then at most every SAVE_EVERY_S, the last state only, and before the last
  frame. Whoever saves may be interrupted anywhere by a stop, so it only rings; the I/O thread sends.
- Nothing is sent after the last frame, and no frame is ever cut by a stop.
- The process ends by `os._exit`: threads that user code left behind do not keep it. What they started is killed by
  the reaper; what the main thread forked is killed by the kernel in the same moment.

What does not live here: the order of the hooks (`life`), forking (`zygote`), hosts of many workers (`shared`).
"""

from __future__ import annotations

import atexit
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from skalds_streams.worker import kernel, memory, outcome
from skalds_streams.worker.frames import Frame, recv_frame, send_frame
from skalds_streams.worker.process import Forks, configure_logging, die, leave, leave_signals_to_main, redirect_output
from skalds_streams.worker.registry import Registry
from skalds_streams.worker.run import Run
from skalds_streams.worker.saving import SAVE_EVERY_S
from skalds_streams.worker.secrets import SecretPolicy, Secrets
from skalds_streams.worker.shared import SharedHost
from skalds_streams.worker.stall import LOOK_S, StallWatch
from skalds_streams.worker.stopper import Stopper


class Host:
    """This process's side of the conversation with the skald."""

    def __init__(self, sock: socket.socket, policy: SecretPolicy, dump_fd: int) -> None:
        self._sock, self._policy, self._dump_fd = sock, policy, dump_fd
        self._watch: StallWatch | None = None
        self._stalled: Frame | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._stopper = Stopper()
        self._run: Run | None = None
        self._timer: kernel.KillTimer | None = None
        self._output_fd = -1
        self._saved_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._save_at = 0.0
        self._save_waits = False
        self._save_lock = threading.Lock()
        self._state_sent: str | None = None

    def serve(self, registry: Registry, frame: Frame, fds: Sequence[int]) -> None:
        """Run what this frame says, and say how it ended. fds: the output's."""
        self._output_fd = fds[0] if fds else -1
        self._renew(frame.get("lease_until_ms"))
        self._stopper.install()
        self._wakeup = self._stopper.open_wakeup()
        Forks(self._sock, self._stopper.uninstall)
        if self._output_fd >= 0:
            redirect_output(self._output_fd)
        kernel.set_name(f"skald:{frame['class']}")
        worker_class = registry.classes.get(frame["class"])
        if worker_class is None:
            error = outcome.simple("UnknownClass", f"class {frame['class']} is not loaded on this node")
            self.send({"op": "failed", "error": error, "retryable": True}, last=True)
            return
        if worker_class.memory_max_bytes is not None:
            memory.limit(worker_class.memory_max_bytes)
        configure_logging()
        secrets = Secrets(self._policy, worker_class.secret)
        mask_output(secrets.clean)
        if worker_class.stall_s > 0:
            self._watch = StallWatch(worker_class.stall_s, self._dump_fd)
        self._run = Run(
            worker_class,
            frame,
            send=self.send,
            stopper=self._stopper,
            secrets=secrets,
            watch=self._watch,
            on_saved=self._ring,
        )
        threading.Thread(target=self._read, name="skald-io", daemon=True).start()
        last = self._run.execute()
        if last["op"] == "stopped" and self._stalled is not None:
            last = {"op": "failed", "error": self._stalled, "retryable": True}
        self._send_saved()
        self.send(last, last=True)

    def send(self, frame: Frame, *, last: bool = False) -> None:
        """Send a frame, from any thread. After the last one the others are dropped."""
        with self._lock:
            if self._closed:
                return
            self._closed = last
            try:
                send_frame(self._sock, frame)
            except OSError:
                die()

    def _ring(self) -> None:
        """The worker has saved something. One system call, so that no stop can leave anything half done."""
        os.eventfd_write(self._saved_fd, 1)

    def _look_at_saved(self, *, has_news: bool) -> None:
        """Send what is saved, if it is time."""
        if has_news:
            os.eventfd_read(self._saved_fd)
            self._save_waits = True
        if self._save_waits and time.monotonic() >= self._save_at:
            self._save_waits, self._save_at = False, time.monotonic() + SAVE_EVERY_S
            self._send_saved()

    def _send_saved(self) -> None:
        """Send what the worker saved last, if it is not sent yet. From the I/O thread, or when user code is over."""
        with self._save_lock:
            state = self._run.saved if self._run is not None else None
            if state is not None and state != self._state_sent:
                self._state_sent = state
                self.send({"op": "saved", "state": state})

    def _renew(self, until_ms: int | None) -> None:
        """Live until then, in ms of CLOCK_BOOTTIME; None: without a lease."""
        if until_ms is None:
            return
        self._timer = self._timer or kernel.KillTimer()
        self._timer.arm(until_ms)

    def _read(self) -> None:
        """The I/O thread."""
        leave_signals_to_main()
        assert self._run is not None
        try:
            while received := self._next_frame():
                frame, _ = received
                if frame["op"] == "update":
                    self._run.update(frame)
                elif frame["op"] == "stop":
                    self._stopper.request()
                    self._send_saved()  # it may not end in time
                elif frame["op"] == "lease":
                    self._renew(frame["until_ms"])
                    self.send({"op": "leased", "until_ms": frame["until_ms"]})
                elif frame["op"] == "epoch":
                    self._run.take_epoch(frame["epoch"])
        except MemoryError as error:  # no more than main does it get what it needs
            memory.use_reserve()
            self.send({"op": "failed", "error": outcome.describe(error), "retryable": True}, last=True)
        finally:
            die()

    def _next_frame(self) -> tuple[Frame, list[int]] | None:
        """Wait for it; meanwhile see to it that signals are handled, and that what the worker saves is sent."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        poll.register(self._saved_fd, select.POLLIN)
        ready: set[int] = set()
        while self._sock.fileno() not in ready:
            poll.modify(self._saved_fd, 0 if self._save_waits else select.POLLIN)
            wait_s = max(self._save_at - time.monotonic(), 0) if self._save_waits else None
            waits = [
                seconds for seconds in (self._stopper.nudge(), self._look_at_stall(), wait_s) if seconds is not None
            ]
            ready = {fd for fd, _ in poll.poll(1000 * min(waits) if waits else None)}
            self._look_at_saved(has_news=self._saved_fd in ready)
        return recv_frame(self._sock)

    def _look_at_stall(self) -> float | None:
        """Tell the skald when main is stuck: it stops this worker. Seconds until the next look."""
        if self._watch is None or self._run is None:
            return None
        due_in_s = self._watch.due_in_s()
        if due_in_s == 0.0:
            self._stalled = self._run.stalled()
            self.send({"op": "stalled", "error": self._stalled})
        return min(due_in_s or LOOK_S, LOOK_S)


def host_main(sock: socket.socket, registry: Registry, policy: SecretPolicy, dump_fd: int) -> NoReturn:
    """The whole of a host's life, after the fork. dump_fd: takes the stacks of a worker that is stuck.

    Its first frame says what it is: the host of one worker ("run"), or of many ("share"); anything else, that this
    spare is not needed any more.
    """
    atexit._clear()  # what the zygote's modules registered is the zygote's
    received = recv_frame(sock)
    if received is None:
        die()
    frame, fds = received
    if frame["op"] == "share":
        SharedHost(sock, registry, policy, dump_fd).serve(frame, fds)
    elif frame["op"] == "run":
        Host(sock, policy, dump_fd).serve(registry, frame, fds)
    leave(0)


def mask_output(clean: outcome.Clean) -> None:
    """Leave the run's secrets out of what Python prints, logs included. The skald masks the output, too, but does not
    know what references stand for.
    """
    for stream in (sys.stdout, sys.stderr):
        setattr(stream, "write", partial(_write_clean, stream.write, clean))  # noqa: B010  # mypy: a method


def _write_clean(write: Callable[[str], int], clean: outcome.Clean, text: Any) -> int:
    write(clean(text) if isinstance(text, str) else text)
    return len(text)
