"""The witness: a process outside of the system, never killed, that is told every act of every worker and says whether
two runs of a task ever overlapped.

    python -m skalds_streams.testing.witness --socket /tmp/w.sock --report /tmp/w.json     # until SIGTERM

A worker's act *is* a datagram to the witness's Unix socket (`Sayer`): task, epoch, the host's pid, who in it, a number,
CLOCK_MONOTONIC before the act. The kernel puts them into one queue, so the order in which they are there is the order
of the acts, and stamps the moment in which each got there: an act lasts from the worker's clock to that stamp. Nothing
is dropped: a sender waits for room, for SAY_S at most, and has not acted when there was none.

Overlaps (`Judge`): an act of an older epoch after one of a newer; two processes under one epoch; an act after a cancel
was reported applied; a newer run that began its first act before the older's last one was over, or while a process of
the older one was still there (known by pidfd), unless that is one which many tasks share. The margin is the smallest
distance between the last act of a run and the first of the next. All clocks are one machine's.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import orjson

VARIABLE = "SKALDS_WITNESS"
"""Environment variable with the path of the socket, for workers."""
SAY_S = 1.0
REPORT_S = 0.5
DATAGRAM_BYTES = 4_096
DETAILS_MOST = 50
HANDOVERS_MOST = 100_000
_SO_TIMESTAMPNS = 35
"""Linux's number; Python has no name for it. Also the type of the control message."""


@dataclass(frozen=True, slots=True)
class Act:
    """One act. Times in ns of CLOCK_MONOTONIC: `said_ns` before it by the worker's clock, `arrived_ns` by the kernel's.

    `pid`: the host's. `actor`: which process did it, another one for a child that the worker forked.
    """

    task: str
    epoch: int
    pid: int
    actor: int
    number: int
    said_ns: int
    arrived_ns: int
    sayer: str = "main"
    skald: str = ""
    shared: bool = False
    """Its process runs other tasks, too, and other runs of this one."""


@dataclass(frozen=True, slots=True)
class Handover:
    """One run of a task followed another: how long after the last act the first one came, and on which skalds."""

    task: str
    epoch: int
    gap_ms: float
    before: str
    after: str
    at_ns: int


@dataclass(slots=True)
class _Runs:
    """What is known of one task."""

    epoch: int
    pid: int
    skald: str
    last_ns: int
    actors: set[int] = field(default_factory=set)
    older: set[int] = field(default_factory=set)
    """Processes of earlier runs."""
    shared: set[int] = field(default_factory=set)
    """Processes that live on when a run in them is over."""


@dataclass(slots=True)
class Report:
    """What the witness saw. `margin_ms`: None when no run followed another; `margin_elsewhere_ms`: on another skald."""

    acts: int = 0
    runs: int = 0
    tasks: int = 0
    deaths: int = 0
    missed: int = 0
    gaps: list[str] = field(default_factory=list)
    """Which acts never came, as far as their numbers tell."""
    overlaps: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)
    margin_ms: float | None = None
    margin_elsewhere_ms: float | None = None
    handovers: list[Handover] = field(default_factory=list)
    running: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Task → (epoch, ns of its last act)."""


class Judge:
    """Pure: acts, deaths and cancels in, in the order in which they happened; `report` out. See the module."""

    def __init__(self) -> None:
        self._tasks: dict[str, _Runs] = {}
        self._cancelled: dict[str, int] = {}
        self._numbers: dict[tuple[int, int, str], int] = {}
        self._alive: set[int] = set()
        self._kinds: Counter[str] = Counter()
        self._details: list[str] = []
        self._gaps: list[str] = []
        self._handovers: list[Handover] = []
        self._acts = self._runs = self._deaths = self._missed = 0

    def begins_run(self, task: str, epoch: int) -> bool:
        """Whether an act of this epoch is the first of a newer run: deaths until now must be known before it."""
        runs = self._tasks.get(task)
        return runs is None or epoch > runs.epoch

    def act(self, act: Act) -> None:
        """Take one act."""
        self._acts += 1
        self._count_number(act)
        if act.epoch <= self._cancelled.get(act.task, -1):
            self._overlap("act after the cancel was applied", act)
        runs = self._tasks.get(act.task)
        if runs is None:
            self._runs += 1
            shared = {act.actor} if act.shared else set()
            self._tasks[act.task] = _Runs(act.epoch, act.pid, act.skald, act.arrived_ns, {act.actor}, shared=shared)
        elif act.epoch < runs.epoch:
            self._overlap(f"older epoch after {runs.epoch}", act, kind="older epoch after a newer")
        elif act.epoch == runs.epoch:
            if act.pid != runs.pid:
                self._overlap(f"two processes under one epoch, the other is {runs.pid}", act, kind="two processes")
            runs.last_ns = max(runs.last_ns, act.arrived_ns)
            runs.actors.add(act.actor)
        else:
            self._follow(runs, act)
        self._alive.add(act.actor)

    def _follow(self, runs: _Runs, act: Act) -> None:
        self._runs += 1
        if act.pid != runs.pid or act.shared:  # else the process goes on under another epoch
            gap_ms = (act.said_ns - runs.last_ns) / 1e6
            if gap_ms < 0:
                self._overlap(f"begun {-gap_ms:.3f} ms before the last act of {runs.epoch} was over", act, kind="begun")
            runs.older |= runs.actors - runs.shared
            runs.actors = set()
            living = sorted(runs.older & self._alive)
            if living:
                self._overlap(f"processes of older runs live: {living}", act, kind="older process lives")
            if len(self._handovers) < HANDOVERS_MOST:
                after = Handover(act.task, act.epoch, gap_ms, runs.skald, act.skald, act.said_ns)
                self._handovers.append(after)
            runs.older &= self._alive
        runs.epoch, runs.pid, runs.skald, runs.last_ns = act.epoch, act.pid, act.skald, act.arrived_ns
        runs.actors.add(act.actor)
        if act.shared:
            runs.shared.add(act.actor)

    def died(self, actor: int) -> None:
        """A process that had acted is gone."""
        self._deaths += actor in self._alive
        self._alive.discard(actor)

    def cancelled(self, task: str, epoch: int) -> None:
        """It was reported that nothing of this epoch or an older one runs any more."""
        self._cancelled[task] = max(epoch, self._cancelled.get(task, -1))

    def _count_number(self, act: Act) -> None:
        key = (act.actor, act.epoch, f"{act.task}/{act.sayer}")
        last = self._numbers.get(key)
        # A stop may end a sayer between the act and its counting: the same number twice is no loss.
        if last is not None and act.number not in (last, last + 1):
            self._missed += 1
            if len(self._gaps) < DETAILS_MOST:
                self._gaps.append(
                    f"{act.task} epoch {act.epoch} pid {act.actor} {act.sayer}: {act.number} after {last}"
                )
        self._numbers[key] = act.number

    def _overlap(self, what: str, act: Act, kind: str = "") -> None:
        self._kinds[kind or what] += 1
        if len(self._details) < DETAILS_MOST:
            self._details.append(
                f"{act.task} epoch {act.epoch} pid {act.actor} of {act.pid} at {act.skald or '?'},"
                f" {act.arrived_ns / 1e9:.4f} s: {what}"
            )

    def report(self, *, with_handovers: bool = True) -> Report:
        """The sum so far."""
        gaps = [item.gap_ms for item in self._handovers]
        elsewhere = [item.gap_ms for item in self._handovers if item.before != item.after]
        return Report(
            acts=self._acts,
            runs=self._runs,
            tasks=len(self._tasks),
            deaths=self._deaths,
            missed=self._missed,
            gaps=list(self._gaps),
            overlaps=sum(self._kinds.values()),
            by_kind=dict(self._kinds),
            details=list(self._details),
            margin_ms=min(gaps, default=None),
            margin_elsewhere_ms=min(elsewhere, default=None),
            handovers=list(self._handovers) if with_handovers else [],
            running={task: (runs.epoch, runs.last_ns) for task, runs in self._tasks.items()},
        )


class Sayer:
    """A worker's, or its child's, or the test run's, line to the witness. Not thread-safe: one a thread."""

    def __init__(self, path: str | None = None, *, sayer: str = "main", shared: bool = False) -> None:
        """path: the socket; default is the environment's. shared: this process runs other tasks, too. Raises OSError
        when nobody listens there.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        seconds, micros = divmod(int(SAY_S * 1_000_000), 1_000_000)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", seconds, micros))
        self._socket.connect(path or os.environ[VARIABLE])
        self._sayer, self._skald = sayer, os.environ.get("SKALD_ID", "")
        self._number, self._shared = 0, shared

    def act(self, task: str, epoch: int, *, pid: int | None = None) -> bool:
        """Act once. False when it could not be said, and so was not done. pid: the host's; default is this process."""
        own = os.getpid()
        document = {
            "task": task,
            "epoch": epoch,
            "pid": pid or own,
            "actor": own,
            "number": self._number + 1,
            "sayer": self._sayer,
            "skald": self._skald,
            "shared": self._shared,
            "said_ns": time.monotonic_ns(),
        }
        if not self._say(document):
            return False
        self._number += 1
        return True

    def cancelled(self, task: str, epoch: int) -> bool:
        """Say that a cancel was reported applied for all up to this epoch."""
        return self._say({"cancelled": task, "epoch": epoch})

    def close(self) -> None:
        self._socket.close()

    def _say(self, document: Mapping[str, Any]) -> bool:
        try:
            self._socket.send(orjson.dumps(document))
        except OSError:  # no room in SAY_S, or nobody listens any more
            return False
        return True


class Witness:
    """The socket, the pidfds and the report's file around a judge."""

    def __init__(self, path: Path, report: Path) -> None:
        self._path, self._report_path = path, report
        self._judge = Judge()
        self._pidfds: dict[int, int] = {}
        self._actors: set[int] = set()
        self._poll = select.poll()
        self._deaths = select.poll()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.bind(str(path))
        self._poll.register(self._socket, select.POLLIN)
        self._asked_to_end = False

    def serve(self) -> None:
        """Until SIGTERM. The report is written twice a second, and at the end with all that was in the queue."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        next_report = 0.0
        while not self._asked_to_end:
            if self._poll.poll(100):
                self._take()
            now = time.monotonic()
            if now >= next_report:
                self._look_for_deaths()
                self._write(self._judge.report(with_handovers=False))
                next_report = now + REPORT_S
        while self._poll.poll(0):
            self._take()
        self._look_for_deaths()
        self._write(self._judge.report())
        self._path.unlink(missing_ok=True)

    def _take(self) -> None:
        data, control, _flags, _address = self._socket.recvmsg(DATAGRAM_BYTES, 256)
        document = orjson.loads(data)
        if "cancelled" in document:
            self._judge.cancelled(document["cancelled"], document["epoch"])
            return
        arrived_ns = max(_stamp(control) or 0, document["said_ns"])
        act = Act(arrived_ns=arrived_ns, **document)
        if self._judge.begins_run(act.task, act.epoch):
            self._look_for_deaths()
        self._judge.act(act)
        if act.actor not in self._actors:
            self._hold(act.actor)

    def _hold(self, actor: int) -> None:
        try:
            pidfd = os.pidfd_open(actor)
        except OSError:
            self._judge.died(actor)
            return
        self._actors.add(actor)
        self._pidfds[pidfd] = actor
        self._deaths.register(pidfd, select.POLLIN)

    def _look_for_deaths(self) -> None:
        for pidfd, _ in self._deaths.poll(0):
            self._deaths.unregister(pidfd)
            os.close(pidfd)
            actor = self._pidfds.pop(pidfd)
            self._actors.discard(actor)
            self._judge.died(actor)

    def _write(self, report: Report) -> None:
        fresh = self._report_path.with_suffix(".new")
        fresh.write_bytes(orjson.dumps(asdict(report)))
        fresh.replace(self._report_path)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._asked_to_end = True


def read_report(path: Path) -> Report:
    """What a witness wrote."""
    document = orjson.loads(path.read_bytes())
    document["handovers"] = [Handover(**item) for item in document["handovers"]]
    document["running"] = {task: tuple(item) for task, item in document["running"].items()}
    return Report(**document)


def _stamp(control: Sequence[tuple[int, int, bytes]]) -> int | None:
    """When the kernel took the datagram into the queue, in ns of CLOCK_MONOTONIC; None where it does not say."""
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanos = struct.unpack("@ll", data[:16])
            return int(seconds) * 1_000_000_000 + int(nanos) - (time.time_ns() - time.monotonic_ns())
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="skalds_streams.testing.witness")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args(arguments)
    with suppress(OSError):  # only root may: nobody should wait for it
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    Witness(options.socket, options.report).serve()


if __name__ == "__main__":
    main()
