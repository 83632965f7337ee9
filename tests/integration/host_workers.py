"""Workers that test_hosts.py runs in real hosts: well-behaved, crashing, deaf, and with children."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, Field

from skalds_streams.worker import (
    BaseTaskWorker,
    release_handler,
    run_main_handler,
    update_event_handler,
)


class Params(BaseModel):
    speed: int = Field(1, ge=1, le=9)
    file: str = ""
    """Where the worker leaves a sign for the test."""
    password: str = ""
    trouble: str = ""
    """What `Shared` does."""


class Base(BaseTaskWorker[Params]):
    def initialize(self, data: Params) -> None:
        self.params = data

    def sign(self, text: str) -> None:
        """Append a line to the test's file."""
        with Path(self.params.file).open("a") as file:
            file.write(text + "\n")


class Loop(Base):
    """Runs until it is stopped; takes updates."""

    @run_main_handler
    def loop(self) -> None:
        print("speed", self.params.speed)
        while True:
            time.sleep(60)

    @update_event_handler
    def change(self, data: Params) -> None:
        print("speed", data.speed)
        self.params = data

    @release_handler
    def release(self) -> None:
        if self.params.file:
            self.sign("released")


class Keeper(Loop):
    """Runs on without a lease."""

    on_disconnect = "keep"


class HoldsTheGil(Base):
    """C code that never lets another thread of this process run."""

    @run_main_handler
    def hold(self) -> None:
        ctypes.PyDLL(None).sleep(60)


class AsyncLoop(Base):
    """The same, async."""

    @run_main_handler
    async def loop(self) -> None:
        print("speed", self.params.speed)
        await asyncio.Event().wait()

    @update_event_handler
    async def change(self, data: Params) -> None:
        print("speed", data.speed)
        self.params = data

    @release_handler
    async def release(self, *_: object) -> None:
        if self.params.file:
            self.sign("released")


class Once(Base):
    """Ends by itself, leaving a thread behind that would keep an ordinary process."""

    @run_main_handler
    def once(self) -> None:
        threading.Thread(target=time.sleep, args=(600,)).start()


class SlowStart(Base):
    """Is still in initialize when it is stopped."""

    def initialize(self, data: Params) -> None:
        super().initialize(data)
        self.sign("initializing")
        time.sleep(600)

    @run_main_handler
    def main(self) -> None:
        self.sign("main")

    @release_handler
    def release(self) -> None:
        self.sign("released")


class Crash(Base):
    @run_main_handler
    def crash(self) -> None:
        raise ValueError("the lens {fell} off")


class Hungry(Base):
    """Takes all the memory that it can get, in small pieces."""

    memory_max = "300M"

    @run_main_handler
    def eat(self) -> None:
        eaten = []
        while True:
            eaten.append(bytes(4096))


class ExitCode(Base):
    @run_main_handler
    def leave(self) -> None:
        os._exit(3)


class Segfault(Base):
    @run_main_handler
    def fault(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class Talker(Base):
    """Says something in every way there is."""

    @run_main_handler
    def talk(self) -> None:
        print("print")
        sys.stderr.write("stderr\n")
        logging.getLogger().info("logging")
        self.logger.info("logger")
        os.system(f"echo a child says {self.params.password}")
        ctypes.CDLL(None).printf(b"from C\n")
        self.sign("talked")
        time.sleep(600)


class Teller(Base):
    """Tells its secret, the next one too, and fails over it."""

    def initialize(self, data: Params) -> None:
        super().initialize(data)
        self.next: queue.Queue[Params] = queue.Queue()

    @run_main_handler
    def tell(self) -> None:
        print("told", self.params.password)
        password = self.next.get().password
        print("told", password)
        raise ValueError(f"no login with {password}")

    @update_event_handler
    def change(self, data: Params) -> None:
        self.next.put(data)


class Chatter(Base):
    """Prints as fast as it can, and signs after every 10 MB."""

    @run_main_handler
    def chat(self) -> None:
        while True:
            for _ in range(10_000):
                sys.stdout.write(("x" * 99 + "\n") * 10)
            self.sign("10 MB")


class SaysBefore(Base):
    """Prints a line."""

    @run_main_handler
    def main(self) -> None:
        print("before")
        self.sign("printed")
        time.sleep(600)


class Progressing(Base):
    """Says so, again and again."""

    stall_s = 2.0

    @run_main_handler
    def main(self) -> None:
        until = time.monotonic() + 1.2 * self.stall_s
        while time.monotonic() < until:
            self.progress()
            time.sleep(0.01)


class Stuck(Base):
    """Waits for what never comes."""

    stall_s = 0.3

    @run_main_handler
    def main(self) -> None:
        self.progress()
        self.wait_for_a_frame()

    def wait_for_a_frame(self) -> None:
        threading.Event().wait()

    @release_handler
    def release(self) -> None:
        self.sign("released")


class AsyncStuck(Stuck):
    @run_main_handler
    async def main(self) -> None:
        await self.wait_for_a_page()

    async def wait_for_a_page(self) -> None:
        await asyncio.Event().wait()


class DeafAndStuck(Stuck):
    """Can't be stopped either."""

    release_s = 0.2
    terminate_s = 0.1

    def wait_for_a_frame(self) -> None:
        while True:
            with suppress(BaseException):
                threading.Event().wait()


class StuckWithTheGil(Stuck):
    def wait_for_a_frame(self) -> None:
        sum(range(10**15))


class WithChild(Base):
    """Has started another program."""

    @run_main_handler
    def main(self) -> None:
        self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.sign(str(self.child.pid))
        time.sleep(600)


class Deaf(WithChild):
    """Does not want to stop, and neither does the program that it started."""

    release_s = 0.3
    terminate_s = 0.2

    @run_main_handler
    def main(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.sign(str(self.child.pid))
        while True:
            try:
                while True:
                    time.sleep(60)
            except BaseException:
                continue


class DeafToTheFirst(Base):
    """Swallows the first interruption, and obeys the second."""

    release_s = 0.3

    @run_main_handler
    def main(self) -> None:
        try:
            self.sign("main")
            time.sleep(600)
        except SystemExit:
            time.sleep(600)


class ForkAndStay(Base):
    """Forks a child that forks a child, and stays."""

    @run_main_handler
    def main(self) -> None:
        if os.fork() == 0:
            grandchild = os.fork()
            if grandchild:
                self.sign(f"{os.getpid()}\n{grandchild}")
            time.sleep(600)
        time.sleep(600)


class Fork(Base):
    """Its child outlives it: a fork without exec, holding whatever descriptors the host has."""

    @run_main_handler
    def main(self) -> None:
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
        self.sign(str(pid))


SLEEPER = "import time; time.sleep(600)"
DAEMON = """
import os, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
time.sleep(600)
"""
COMET = """
import os
while True:
    if os.fork(): os._exit(0)
    os.setsid()
"""
"""Never the same process for longer than a fork takes, each in a session of its own."""


class Runaways(Base):
    """Starts what no process group holds. All of them have the lock on `<file>.lock`, until they end."""

    @run_main_handler
    def main(self) -> None:
        lock = Path(self.params.file + ".lock").open("w")  # noqa: SIM115  # held to the end
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)
        self.session = subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True, close_fds=False)
        for script in (DAEMON, COMET):
            subprocess.run([sys.executable, "-c", script], close_fds=False, check=True)
        self.sign("ready")
        time.sleep(600)


class Littering(Base):
    """Starts programs that lose their parent, and end soon after."""

    @run_main_handler
    def main(self) -> None:
        for _ in range(5):
            subprocess.run(["/bin/sh", "-c", "true & true &"], check=True)
        self.sign("ready")
        time.sleep(600)


# In hosts that they share


class SharedLoop(AsyncLoop):
    isolation = "shared"


class SharedKeeper(SharedLoop):
    """Says what it knows of itself."""

    on_disconnect = "keep"

    @run_main_handler
    async def loop(self) -> None:
        number = (self.state or {}).get("number", 0) + 1
        await self.save({"number": number})
        self.metric("number", number)
        await asyncio.Event().wait()

    @update_event_handler
    async def change(self, data: Params) -> None:
        print("epoch", self.epoch)


class SharedOnce(Once):
    isolation = "shared"

    @run_main_handler
    async def once(self) -> None:  # type: ignore[override]
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


class SharedCrash(Crash):
    isolation = "shared"

    @run_main_handler
    async def crash(self) -> None:  # type: ignore[override]
        raise ValueError("the lens {fell} off")


class SharedTeller(Teller):
    isolation = "shared"

    @run_main_handler
    async def tell(self) -> None:  # type: ignore[override]
        print("told", self.params.password)
        password = (await asyncio.to_thread(self.next.get)).password
        print("told", password)
        raise ValueError(f"no login with {password}")


class SharedStuck(AsyncStuck):
    isolation = "shared"


class SharedSlowStart(SlowStart):
    isolation = "shared"

    async def initialize(self, data: Params) -> None:  # type: ignore[override]
        self.params = data
        self.sign("initializing")
        await asyncio.sleep(600)

    @run_main_handler
    async def main(self) -> None:  # type: ignore[override]
        self.sign("main")


class SharedTalker(Base):
    """Says something in every way there is."""

    isolation = "shared"

    @run_main_handler
    async def talk(self) -> None:
        print("print")
        sys.stderr.write("stderr\n")
        logging.getLogger().info("logging")
        await asyncio.create_task(self.talk_on())
        await asyncio.to_thread(print, "a thread says", self.params.password)
        self.spawn(["echo", "a child says", self.params.password]).wait()
        thread = threading.Thread(target=self.talk_in_a_thread)
        thread.start()
        await asyncio.to_thread(thread.join)
        ctypes.CDLL(None).puts(f"from C {self.params.password}".encode())
        self.sign("talked")
        await asyncio.Event().wait()

    async def talk_on(self) -> None:
        print("a task")

    def talk_in_a_thread(self) -> None:
        self.logger.info("logger")
        print("nobody's", self.params.password)


class Shared(Base):
    """Does what its parameters say once it has signed, for the others in its host to suffer."""

    isolation = "shared"
    release_s = 0.5
    terminate_s = 0.5

    @run_main_handler
    async def main(self) -> None:
        self.sign("main")
        await getattr(self, self.params.trouble)()

    async def exit(self) -> None:
        os._exit(3)

    async def leave(self) -> None:
        self.task = asyncio.create_task(self.leave_in_a_task())
        await asyncio.sleep(600)

    async def leave_in_a_task(self) -> None:
        sys.exit(7)

    async def fault(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    async def block(self) -> None:
        self.stay_here()

    def stay_here(self) -> None:
        time.sleep(600)

    async def hold_the_gil(self) -> None:
        sum(range(10**15))

    async def be_deaf(self) -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(600)

    async def be_deaf_once(self) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(600)
        await asyncio.sleep(600)

    async def stay_in_a_thread(self) -> None:
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)

    async def spawn_family(self) -> None:
        """A program that has left another in its process group."""
        self.spawn(["/bin/sh", "-c", f"sleep 600 & echo $! >>{self.params.file}"]).wait()
        self.child = self.spawn(["sleep", "600"])
        self.sign(str(self.child.pid))
        await asyncio.Event().wait()

    @release_handler
    async def release(self) -> None:
        self.sign("released")


class SharedWatched(SharedLoop):
    """Says that it makes progress, as long as it can."""

    stall_s = 2.0

    @run_main_handler
    async def loop(self) -> None:
        while True:
            self.progress()
            await asyncio.sleep(0.05)
