"""The child process that runs many workers: its first frame says "share", then each run has frames of its own, which
name the task that they are for.

The main thread has one event loop, on which all runs live (`shared_run`); an I/O thread reads and writes the socket,
also while a run holds up the loop. Rules:

- What holds for a host of one worker (`host`) holds: end of the stream, lease, spare, death of the process.
- A run has its own output, secrets, state, numbers, stop and end. What belongs to no run, as what C code prints, goes
  where the host's output goes, without the secrets of any run.
- Who is in a step is in the marker (`steps`). A run that is watched (`stall_s`) and makes no progress is stuck, unless
  another one has held up the loop for all that time: then it is that one.
- SIGTERM stops all runs. No further ones are taken then, and the process ends with the last.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial

from skalds_streams.worker import kernel, outcome
from skalds_streams.worker.frames import Frame, recv_frame, send_frame
from skalds_streams.worker.process import Forks, configure_logging, die, leave_signals_to_main, redirect_output
from skalds_streams.worker.registry import Registry
from skalds_streams.worker.saving import SAVE_EVERY_S
from skalds_streams.worker.secrets import SecretPolicy, Secrets
from skalds_streams.worker.shared_output import RunLogs, share_output
from skalds_streams.worker.shared_run import SharedRun
from skalds_streams.worker.stall import LOOK_S, KernelWatch
from skalds_streams.worker.steps import Marker, SharedLoop
from skalds_streams.worker.text_pipe import TextPipe

GATHER_S = 0.02
"""What is set together travels together."""
HELD_UP_S = 0.1
"""A step that lasts longer holds up the others."""
LOOK_AGAIN_S = 0.05
TURN_S = 0.25
"""What a run gets to make progress after another has held up the loop."""

log = logging.getLogger(__name__)


class SharedHost:
    """This process's side of the conversation with the skald."""

    def __init__(self, sock: socket.socket, registry: Registry, policy: SecretPolicy, dump_fd: int) -> None:
        self._sock, self._registry, self._policy = sock, registry, policy
        self._kernel_watch = KernelWatch(dump_fd)
        self._timer: kernel.KillTimer | None = None
        self._runs: dict[str, SharedRun] = {}
        self._ending = False
        self._outbox: deque[Frame] = deque()
        self._sending = threading.Lock()
        self._rung: deque[SharedRun] = deque()
        self._due: dict[SharedRun, float] = {}
        """What is to be posted, and when."""
        self._posted_at: dict[SharedRun, float] = {}
        self._held_up_at = 0.0
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def serve(self, frame: Frame, fds: Sequence[int]) -> None:
        """Take runs until there is no need. fds: the marker's memory, then the output's, if there is one."""
        marker_fd, *output = fds
        self._renew(frame.get("lease_until_ms"))
        self._marker = Marker(marker_fd)
        os.close(marker_fd)
        if output:
            redirect_output(output[0])
        kernel.set_name("skald:shared")
        configure_logging(RunLogs(self._runs))
        share_output(self._runs)
        self._loop = loop = SharedLoop(self._marker)
        asyncio.set_event_loop(loop)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_sigterm)
        Forks(self._sock, _settle_signals)
        threading.Thread(target=self._serve_socket, name="skald-io", daemon=True).start()
        while not (self._ending and not self._runs):
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt):  # of a callback: of a task it would be that run's
                log.exception("a callback wanted the host to end, ignored")
        self._send_all()

    def _renew(self, until_ms: int | None) -> None:
        """Live until then, in ms of CLOCK_BOOTTIME; None: without a lease."""
        if until_ms is None:
            return
        self._timer = self._timer or kernel.KillTimer()
        self._timer.arm(until_ms)

    # -- on the loop

    def _take(self, frame: Frame, fds: Sequence[int]) -> None:
        """A frame of a run."""
        if frame["op"] == "run":
            self._begin(frame, fds)
            return
        run = self._runs.get(frame["task"])
        if run is None:
            return  # it has just ended
        if frame["op"] == "update":
            run.context.run(run.update, frame)
        elif frame["op"] == "stop":
            run.stop()
        elif frame["op"] == "epoch":
            run.take_epoch(frame["epoch"])

    def _begin(self, frame: Frame, fds: Sequence[int]) -> None:
        task_id = frame["task_id"] = frame["task"]  # one object of the two
        worker_class = self._registry.classes.get(frame["class"])
        if worker_class is None:
            error = outcome.simple("UnknownClass", f"class {frame['class']} is not loaded on this node")
            self._send(task_id, {"op": "failed", "error": error, "retryable": True})
            for fd in fds:
                os.close(fd)
            return
        if task_id in self._runs:  # the skald starts a task again only when its last run is over
            die()
        run = SharedRun(
            worker_class,
            frame,
            send=partial(self._send, task_id),
            secrets=Secrets(self._policy, worker_class.secret),
            ring=self._ring,
            output=TextPipe(fds[0]) if fds else None,
        )
        self._runs[task_id] = run
        if self._ending:
            run.stop()
        run.begin(self._on_end)

    def _on_end(self, run: SharedRun, last: Frame) -> None:
        """Nothing of it is left."""
        del self._runs[run.task_id]
        self._send(run.task_id, last)
        if run.output is not None:
            run.output.close()
        if self._ending and not self._runs:
            self._loop.stop()

    def _on_sigterm(self) -> None:
        self._end()
        for run in list(self._runs.values()):
            run.stop()

    def _end(self) -> None:
        """Take no more runs."""
        self._ending = True
        self._outbox.append({"op": "ending"})
        os.eventfd_write(self._wake_fd, 1)
        if not self._runs:
            self._loop.stop()

    # -- from any thread

    def _send(self, task_id: str, frame: Frame) -> None:
        self._outbox.append({**frame, "task": task_id})
        os.eventfd_write(self._wake_fd, 1)

    def _ring(self, run: SharedRun) -> None:
        """It has numbers or a state to be sent. One system call, no lock."""
        self._rung.append(run)
        os.eventfd_write(self._wake_fd, 1)

    def _send_all(self) -> None:
        with self._sending:
            while self._outbox:
                try:
                    send_frame(self._sock, self._outbox.popleft())
                except OSError:
                    die()

    # -- the I/O thread

    def _serve_socket(self) -> None:
        leave_signals_to_main()
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        try:
            while True:
                pauses = [seconds for seconds in (self._post(), self._look_at_stalls()) if seconds is not None]
                self._send_all()
                ready = {fd for fd, _ in poll.poll(1000 * min(pauses) if pauses else None)}
                if self._wake_fd in ready:
                    os.eventfd_read(self._wake_fd)
                if self._sock.fileno() in ready:
                    received = recv_frame(self._sock)
                    if received is None:
                        return
                    self._hear(*received)
        finally:
            die()

    def _hear(self, frame: Frame, fds: Sequence[int]) -> None:
        op = frame["op"]
        if op == "lease":
            self._renew(frame["until_ms"])
            self._outbox.append({"op": "leased", "until_ms": frame["until_ms"]})
        elif op == "end":
            self._loop.call_soon_threadsafe(self._end)
        else:
            run = self._runs.get(frame["task"]) if op == "stop" else None
            if run is not None:
                run.post()  # it may not end in time
            self._loop.call_soon_threadsafe(self._take, frame, fds)

    def _post(self) -> float | None:
        """Have sent what runs have set, each at most once in SAVE_EVERY_S. Seconds until the next."""
        now = time.monotonic()
        while self._rung:
            run = self._rung.popleft()
            self._due.setdefault(run, max(now + GATHER_S, self._posted_at.get(run, 0.0) + SAVE_EVERY_S))
        for run, at in list(self._due.items()):
            if at <= now:
                del self._due[run]
                self._posted_at[run] = now
                run.post()
        for run in [run for run, at in self._posted_at.items() if at + SAVE_EVERY_S <= now]:
            del self._posted_at[run]
        nexts = [*self._due.values(), *(at + SAVE_EVERY_S for at in self._posted_at.values())]
        return max(min(nexts) - now, 0.0) if nexts else None

    def _look_at_stalls(self) -> float | None:
        """Tell the skald who is stuck: it stops that run. Seconds until the next look."""
        watched = [run for run in list(self._runs.values()) if run.watch is not None]
        dues = {run: due for run in watched if run.watch is not None and (due := run.watch.due_in_s()) is not None}
        if not dues:
            self._kernel_watch.disarm()
            return LOOK_S if watched else None
        now = time.monotonic()
        if self._kernel_watch.has_fired():
            self._kernel_watch.forget()
        self._kernel_watch.arm(now + max(LOOK_S, min(run.watch.stall_s for run in dues if run.watch is not None)))
        number, since_s = self._marker.read()
        if since_s > HELD_UP_S:
            self._held_up_at = now
        stuck = [run for run, due in dues.items() if due == 0.0]
        for run in stuck:
            self._judge(run, number if since_s > HELD_UP_S else 0, since_s, now)
        left = min(due for due in dues.values())
        return min(left or LOOK_AGAIN_S, LOOK_S)

    def _judge(self, run: SharedRun, holder: int, held_s: float, now: float) -> None:
        """This run makes no progress; `holder` has held up the loop for so long."""
        assert run.watch is not None
        if holder == run.number:
            run.say({"op": "stalled", "error": run.stalled(self._take_stacks())})
        elif not holder:
            if now >= self._held_up_at + TURN_S:
                run.say({"op": "stalled", "error": run.stalled("")})
        elif held_s >= run.watch.stall_s:
            run.watch.feed()
            for other in list(self._runs.values()):
                if other.number == holder and other.stall_error is None:
                    other.stall_error = outcome.held_up(held_s, run.task_id, self._take_stacks())
                    other.say({"op": "stalled", "error": other.stall_error})

    def _take_stacks(self) -> str:
        """The host goes on: what is found at its end would be taken for the reason."""
        stacks = self._kernel_watch.take_down()
        self._kernel_watch.forget()
        return stacks


def _settle_signals() -> None:
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)
