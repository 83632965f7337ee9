"""Worker classes for runs with a witness: each acts every ACT_S, by a datagram to the witness (`witness.Sayer`), and
each that is not called steady misbehaves in one way. For SKALDS_WORKERS:

    Steady, SteadyAsync          behave
    SteadyShared                 behaves, in a host that it shares with the next ones, all async as well
    SharedCrasher                crashes after a while
    SharedFaulter                ends its host by a SIGSEGV after a while
    SharedBlocker                holds up its host's loop for longer than its budgets, now and then
    SharedDeaf                   swallows each cancellation: its host has to go when it is stopped
    SharedPrinter                prints 10 MB a second
    GilHolder                    holds the GIL for longer than its lease, now and then
    Deaf                         ignores SIGTERM and swallows the stop
    Forker                       has children and grandchildren that act, too
    Leaker                       leaks threads, memory and descriptors until it has none left
    Printer                      prints 10 MB a second
    Crasher                      crashes after a while
    Keeper                       runs on without a lease, so two of it overlap: the control that the witness sees it
    BlocksInInitialize, BlocksInBefore, BlocksInMain, BlocksInUpdate, BlocksInAfter, BlocksInRelease
                                 never return from that method

Importing does nothing; the variable SKALDS_WITNESS names the socket.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import threading
import time
from contextlib import suppress
from typing import NoReturn

from pydantic import BaseModel, Field

from skalds_streams.testing.witness import Sayer
from skalds_streams.worker import (
    BaseTaskWorker,
    release_handler,
    run_after_handler,
    run_before_handler,
    run_main_handler,
    update_event_handler,
)

ACT_S = 0.05
FOR_EVER_S = 1e6
LEAKED_FDS_MOST = 200
LEAKED_BYTES = 100_000
PRINTED_BYTES = int(10_000_000 * ACT_S)
CHILDREN = 2


class Params(BaseModel):
    """Parameters of all of them. `hold_s`: how long the GIL is held, `quiet_s`: how long it behaves before."""

    model_config = {"extra": "allow"}

    fps: int = Field(30, ge=1)
    hold_s: float = 30.0
    quiet_s: float = 8.0


class Steady(BaseTaskWorker[Params]):
    """Acts until it is stopped, also while it initializes, in its update and in its release."""

    release_s = 2.0
    terminate_s = 1.0

    def initialize(self, data: Params) -> None:
        self.data = data
        self.sayer = Sayer()
        self.act()

    def act(self) -> bool:
        """One act of the main thread."""
        return self.sayer.act(self.task_id, self.epoch)

    @run_main_handler
    def main(self) -> None:
        while True:
            self.act()
            self.misbehave()
            time.sleep(ACT_S)

    def misbehave(self) -> None:
        """What a subclass does after each act."""

    @update_event_handler
    def update(self, data: Params) -> None:
        self.data = data
        sayer = Sayer(sayer="update")
        sayer.act(self.task_id, self.epoch)
        sayer.close()

    @release_handler
    def release(self) -> None:
        self.act()


class SteadyAsync(BaseTaskWorker[Params]):
    """The same in a coroutine."""

    async def initialize(self, data: Params) -> None:
        self.sayer = Sayer(shared=self.isolation == "shared")
        self.data, self.until = data, time.monotonic() + data.quiet_s

    @run_main_handler
    async def main(self) -> None:
        while True:
            self.act()
            await self.misbehave()
            await asyncio.sleep(ACT_S)

    def act(self) -> None:
        """One act of the loop's thread."""
        self.sayer.act(self.task_id, self.epoch)

    async def misbehave(self) -> None:
        """What a subclass does after each act."""

    @update_event_handler
    async def update(self, data: Params) -> None:
        # main's may be in use: before main runs, an update has a loop of its own
        sayer = Sayer(sayer="update", shared=self.isolation == "shared")
        sayer.act(self.task_id, self.epoch)
        sayer.close()

    @release_handler
    async def release(self) -> None:
        self.act()


class SteadyShared(SteadyAsync):
    """In a host with others."""

    isolation = "shared"
    release_s = 2.0
    terminate_s = 1.0


class SharedCrasher(SteadyShared):
    """After `quiet_s`."""

    async def misbehave(self) -> None:
        if time.monotonic() > self.until:
            raise RuntimeError("it crashes now and then")


class SharedFaulter(SteadyShared):
    """After `quiet_s`."""

    async def misbehave(self) -> None:
        if time.monotonic() > self.until:
            os.kill(os.getpid(), signal.SIGSEGV)


class SharedBlocker(SteadyShared):
    """For `release_s` and `terminate_s`."""

    async def misbehave(self) -> None:
        if time.monotonic() > self.until:
            time.sleep(self.release_s + self.terminate_s)  # noqa: ASYNC251  # that is its misbehaviour
            self.until = time.monotonic() + self.data.quiet_s


class SharedDeaf(SteadyShared):
    """Only the end of its host ends it."""

    @run_main_handler
    async def main(self) -> None:
        while True:
            with suppress(asyncio.CancelledError):
                self.act()
                await asyncio.sleep(ACT_S)

    @release_handler
    async def release(self) -> None:
        raise RuntimeError("never reached")


class SharedPrinter(SteadyShared):
    """To its log file."""

    async def misbehave(self) -> None:
        print_much()


class Keeper(Steady):
    """Not for runs that are to pass: it says that it may run twice."""

    on_disconnect = "keep"


class GilHolder(Steady):
    """Sleeps in C without letting the GIL go: no thread of its process runs meanwhile."""

    def initialize(self, data: Params) -> None:
        super().initialize(data)
        self.until = time.monotonic() + data.quiet_s

    def misbehave(self) -> None:
        if time.monotonic() > self.until:
            ctypes.PyDLL(None).usleep(min(int(self.data.hold_s * 1e6), 2**32 - 1))
            self.until = time.monotonic() + self.data.quiet_s


class Deaf(Steady):
    """Only SIGKILL ends it."""

    @run_main_handler
    def main(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            try:
                self.act()
                time.sleep(ACT_S)
            except BaseException:  # noqa: BLE001, S112  # that is its misbehaviour
                continue

    @release_handler
    def release(self) -> None:
        raise RuntimeError("never reached")


class Forker(Steady):
    """Its children fork as well, ignore SIGTERM and act until they are killed."""

    @run_main_handler
    def main(self) -> None:
        host = os.getpid()
        for _ in range(CHILDREN):
            if os.fork() == 0:
                self._be_a_child(host)
        super().main()

    def _be_a_child(self, host: int) -> NoReturn:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.fork()
            sayer = Sayer(sayer="child")
            while True:
                sayer.act(self.task_id, self.epoch, pid=host)
                time.sleep(ACT_S)
        finally:
            os._exit(1)


class Leaker(Steady):
    """Until it has no descriptor left and crashes. Its own limit is low, so that nobody else suffers."""

    def initialize(self, data: Params) -> None:
        super().initialize(data)
        self.leaked: list[object] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (LEAKED_FDS_MOST, LEAKED_FDS_MOST))

    def misbehave(self) -> None:
        self.leaked += [os.open("/dev/null", os.O_RDONLY), bytearray(LEAKED_BYTES)]
        threading.Thread(target=time.sleep, args=(FOR_EVER_S,), daemon=True).start()


class Printer(Steady):
    """To its log file."""

    def misbehave(self) -> None:
        print_much()


def print_much() -> None:
    """The share of one act."""
    line = "x" * 199 + "\n"
    print(line * (PRINTED_BYTES // 200), end="")  # noqa: T201  # what it is for


class Crasher(Steady):
    """After `quiet_s`."""

    def initialize(self, data: Params) -> None:
        super().initialize(data)
        self.until = time.monotonic() + data.quiet_s

    def misbehave(self) -> None:
        if time.monotonic() > self.until:
            raise RuntimeError("it crashes now and then")


def block() -> None:
    """Never return."""
    while True:
        time.sleep(FOR_EVER_S)


class BlocksInInitialize(Steady):
    """Never runs."""

    def initialize(self, data: Params) -> None:
        super().initialize(data)
        block()


class BlocksInBefore(Steady):
    """Never runs."""

    @run_before_handler
    def before(self) -> None:
        self.act()
        block()


class BlocksInMain(Steady):
    """Acts once."""

    @run_main_handler
    def main(self) -> None:
        self.act()
        block()


class BlocksInUpdate(Steady):
    """Goes on acting, but its update never returns."""

    @update_event_handler
    def update(self, data: Params) -> None:
        block()


class BlocksInAfter(Steady):
    """Its main ends, its end does not."""

    @run_main_handler
    def main(self) -> None:
        self.act()

    @run_after_handler
    def after(self) -> None:
        self.act()
        block()


class BlocksInRelease(Steady):
    """Does not leave when it is stopped, and goes on acting."""

    @release_handler
    def release(self) -> None:
        while True:
            self.act()
            time.sleep(ACT_S)


NAUGHTY = (
    GilHolder,
    Deaf,
    Forker,
    Leaker,
    Printer,
    Crasher,
    BlocksInInitialize,
    BlocksInBefore,
    BlocksInMain,
    BlocksInUpdate,
    BlocksInAfter,
    BlocksInRelease,
    SharedCrasher,
    SharedFaulter,
    SharedBlocker,
    SharedDeaf,
    SharedPrinter,
)
RUNNING = (
    *("Steady", "SteadyAsync", "SteadyShared", "Keeper", "Deaf", "Forker", "Printer"),
    *("BlocksInUpdate", "BlocksInRelease", "SharedDeaf", "SharedPrinter"),
)
"""Classes whose tasks act all the time once nothing disturbs them."""
