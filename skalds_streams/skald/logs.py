"""Takes what the workers of a node print, and all that they start, from pipes to the log files of their tasks.

    logs = TaskLogs(LogFiles(directory, max_bytes=5_000_000, most=1_000), words=settings.secret_words)
    logs.start()
    output = logs.open("cam-1", 3, attachments, paths=("login.pin",))
    ...                           # output.writer is the worker's stdout and stderr
    output.hide(newer)            # before the worker has them
    output.finish("exit 0")
    last_lines = await output.last_lines()

Rules: one thread does it all, so that neither a slow disk nor a worker that prints without end holds the event loop up;
it looks at most once in PACE_S, and a worker that prints faster than that waits. What the thread can't write is lost
and costs the worker nothing. A run's output ends with the run: what comes later from anywhere goes nowhere.

What does not live here: lines (`output`), files (`ring`).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, ParamSpec

import structlog

from skalds_streams.core.redact import secret_values
from skalds_streams.skald.output import Secrets, Shaper
from skalds_streams.skald.ring import LogFiles, Ring

PACE_S = 0.005
SETTLE_S = 0.1
"""Between two looks while a line is waited for, or what was left out."""
PIPE_BYTES = 256 * 1024
"""Room for what is printed between two looks."""
SWEEP_S = 300.0
LAST_LINES_WAIT_S = 2.0
"""A disk that hangs must not keep the end of a run from being reported."""
STOP_S = 3.0
F_SETPIPE_SZ = getattr(fcntl, "F_SETPIPE_SZ", 1031)

HOSTS = "shared-host"
"""In place of a task in the lines of hosts that many runs share."""

log = structlog.get_logger(__name__)
P = ParamSpec("P")


class RunOutput:
    """The output of one run. All methods belong to the loop."""

    def __init__(
        self, logs: TaskLogs, task_id: str, epoch: int, ring: Ring, words: Collection[str], paths: Collection[str]
    ) -> None:
        self.task_id = task_id
        self.shaper = Shaper(task_id, epoch, Secrets(logs.own_secrets))
        self.ring = ring
        self._logs, self._words, self._paths = logs, words, paths
        self._loop = asyncio.get_running_loop()
        self._last_lines: asyncio.Future[list[str]] = self._loop.create_future()
        self._finished = False
        self.not_written = False
        """The disk did not take the last lines."""
        self.is_broken = False
        """A defect of ours: what comes is taken and not looked at, or the worker would wait for ever."""
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        with suppress(OSError):  # a user may have so much of pipes and no more
            fcntl.fcntl(self.writer, F_SETPIPE_SZ, PIPE_BYTES)

    def hide(self, parameters: Any) -> None:
        """Mask the secrets in these parameters from now on, beside those that were hidden before."""
        values = self.shaper.secrets.values | secret_values(parameters, self._words, self._paths)
        if values != self.shaper.secrets.values:
            self.shaper.secrets = Secrets(values)

    def hide_those_of(self, others: Iterable[RunOutput]) -> None:
        """Mask what is masked in these outputs, and nothing else."""
        values = self._logs.own_secrets.union(*(other.shaper.secrets.values for other in others))
        if values != self.shaper.secrets.values:
            self.shaper.secrets = Secrets(values)

    def take_epoch(self, epoch: int) -> None:
        """The run goes on under another epoch."""
        self.shaper.take_epoch(epoch)

    def handed_over(self) -> None:
        """The worker has the writing end."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def finish(self, how: str, error: Sequence[str] = ()) -> None:
        """The run is over. error: what the worker said of its failure, for the log."""
        self.handed_over()
        if not self._finished:
            self._finished = True
            self._logs.end(self, how, error)

    async def last_lines(self) -> list[str]:
        """The last lines that were printed, without time and label; none when the disk hangs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_LINES_WAIT_S):
                return await asyncio.shield(self._last_lines)
        return []

    def tell(self, lines: list[str]) -> None:
        """From the thread: that is all of it."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._take, lines)

    def _take(self, lines: list[str]) -> None:
        if not self._last_lines.done():
            self._last_lines.set_result(lines)


class TaskLogs:
    """See the module. `start` and `stop` once each, in turns."""

    def __init__(
        self,
        files: LogFiles,
        *,
        words: Collection[str] = (),
        own_secrets: Collection[str] = (),
        is_wanted: Callable[[str], bool] = lambda _task_id: True,
        wanted_ids: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """words: words in names of secret parameters; own_secrets: of this node; is_wanted, wanted_ids: whose logs are
        kept, asked from the thread.
        """
        self.files = files
        self.own_secrets = frozenset(own_secrets)
        self._words, self._is_wanted, self._wanted_ids = words, is_wanted, wanted_ids
        self._thread: threading.Thread | None = None
        self._asked: deque[Callable[[], None]] = deque()
        self._runs: dict[int, RunOutput] = {}
        self._open: dict[int, RunOutput] = {}
        """Runs by their pipes; after the end of a pipe a run is still open until it is finished."""
        self._wakeup = -1
        self._swept_at_s = -SWEEP_S
        self._stopping = False

    def start(self) -> None:
        """Begin to write. Nothing when it has begun already."""
        if self._thread is not None:
            return
        self._stopping = False
        self._poll = select.epoll()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._wakeup, select.EPOLLIN)
        self._thread = threading.Thread(target=self._serve, name="task-logs", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread once all that was finished is written; a disk that hangs is given up after STOP_S."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._ask(self._stop)
        await asyncio.to_thread(thread.join, STOP_S)
        wakeup, self._wakeup = self._wakeup, -1
        if not thread.is_alive():
            self._poll.close()
            os.close(wakeup)

    def open(self, task_id: str, epoch: int, parameters: Any = None, paths: Collection[str] = ()) -> RunOutput | None:
        """The output of a run that begins. paths: which of its parameters are secret. None when this process has no
        descriptor left: a worker runs all the same.
        """
        output = self._opened(task_id, epoch, self.files.ring(task_id), paths)
        if output is not None:
            output.hide(parameters)
            self._ask(lambda: self._begin(output))
        return output

    def open_host(self, number: int) -> RunOutput | None:
        """The output of a host that many runs share: what is none of these runs'. As `open`."""
        output = self._opened(HOSTS, number, self.files.ring_of_hosts(), ())
        if output is not None:
            self._ask(lambda: self._begin(output, "host"))
        return output

    def _opened(self, name: str, number: int, ring: Ring, paths: Collection[str]) -> RunOutput | None:
        try:
            return RunOutput(self, name, number, ring, self._words, paths)
        except OSError as error:
            log.error("logs.no_pipe", task=name, error=str(error))
            return None

    def end(self, output: RunOutput, how: str, error: Sequence[str]) -> None:
        """See `RunOutput.finish`."""
        self._ask(lambda: self._end(output, how, error))

    def _ask(self, what: Callable[[], None]) -> None:
        self._asked.append(what)
        if self._wakeup >= 0:
            os.eventfd_write(self._wakeup, 1)

    # -- the thread

    def _serve(self) -> None:
        while not self._stopping:
            ready = self._poll.poll(self._pause_s())
            while self._asked:
                self._asked.popleft()()
            for fd, _ in ready:
                if fd == self._wakeup:
                    with suppress(BlockingIOError):
                        os.eventfd_read(fd)
                elif (output := self._runs.get(fd)) is not None:
                    self._read(output)
            now_s, at_ms = _now()
            for output in self._open.values():
                self._write(output, output.shaper.settle, now_s, at_ms)
            self._sweep(now_s)
            if ready:
                time.sleep(PACE_S)

    def _pause_s(self) -> float:
        until_sweep_s = max(self._swept_at_s + SWEEP_S - time.monotonic(), 0.0)
        return SETTLE_S if any(output.shaper.waits for output in self._open.values()) else until_sweep_s

    def _stop(self) -> None:
        for output in list(self._open.values()):
            self._end(output, "the node has stopped", ())
        self._stopping = True

    def _begin(self, output: RunOutput, what: str = "run") -> None:
        self._runs[output.reader] = self._open[output.reader] = output
        self._poll.register(output.reader, select.EPOLLIN)
        self._write(output, output.shaper.note, f"== the {what} begins", _now()[1])

    def _read(self, output: RunOutput) -> bool:
        """Take what there is, at most a pipe full; False when there is nothing, or never will be."""
        try:
            data = os.read(output.reader, PIPE_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._poll.unregister(output.reader)
            del self._runs[output.reader]
            return False
        self._write(output, output.shaper.feed, data, *_now())
        return True

    def _end(self, output: RunOutput, how: str, error: Sequence[str]) -> None:
        if self._open.pop(output.reader, None) is None:
            return
        if output.reader in self._runs:
            for _ in range(2):  # a pipe full, and what came meanwhile; somebody else may print for ever
                if not self._read(output):
                    break
        if self._runs.pop(output.reader, None) is not None:
            self._poll.unregister(output.reader)
        os.close(output.reader)
        now_s, at_ms = _now()
        self._write(output, output.shaper.close, now_s, at_ms)
        output.tell(output.shaper.tail)
        self._write(output, output.shaper.note, "\n".join([*error, f"== the run has ended: {how}"]), at_ms)

    def _write(self, output: RunOutput, shape: Callable[P, bytes], *args: P.args, **kwargs: P.kwargs) -> None:
        if output.is_broken:
            return
        try:
            lines = shape(*args, **kwargs)
            if lines:
                output.ring.append(lines)
                output.not_written = False
        except OSError as error:  # a full disk must not stop a camera
            if not output.not_written:
                log.warning("logs.not_written", task=output.task_id, error=str(error))
            output.not_written = True
        except Exception:  # the edge of one run: the others' output, and the worker itself, go on
            log.exception("logs.failed", task=output.task_id)
            output.is_broken = True

    def _sweep(self, now_s: float) -> None:
        if now_s - self._swept_at_s < SWEEP_S:
            return
        self._swept_at_s = now_s
        try:
            gone = self.files.sweep(self._is_wanted, self._wanted_ids, {item.task_id for item in self._open.values()})
        except OSError as error:
            log.warning("logs.not_swept", error=str(error))
            return
        if gone:
            log.info("logs.swept", tasks=gone)


def _now() -> tuple[float, int]:
    """(monotonic seconds, wall clock in ms)."""
    return time.monotonic(), time.time_ns() // 1_000_000
