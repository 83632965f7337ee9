"""The wall clock of one node, which can be moved: a library of ours before libc (`clock.c`, compiled for the run), and
a small file with the distance, mapped into each of the node's processes.

What is moved: CLOCK_REALTIME (and its coarse form) as every Python or C program of the node reads it by clock_gettime,
gettimeofday, time or timespec_get: `time.time`, `datetime.now`, logging, the timestamps that aiokafka's C code puts on
records. In all processes at once, and in those that are started or forked later.

What is not: CLOCK_MONOTONIC and CLOCK_BOOTTIME; what the kernel itself does by the wall clock, so times of files, and
waits until a time of the wall clock (a wait until a moment that was read from the moved clock ends at the wrong time;
neither CPython nor uvloop has any); programs that are linked statically; those that get an environment of their own.

Why not libfaketime: it takes the absolute times that are given to timer_settime for times of the wall clock, whatever
clock the timer has. With a jump of an hour forward the kernel timer of a lease fires at once, backward it never does.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
VARIABLE = "SKALDS_CHAOS_CLOCK"
JUMP_S = 3600
PREPARE_S = 60.0


class Clock:
    """One node's. Goes right until it is moved."""

    def __init__(self, path: Path, library: Path | None) -> None:
        """path: of the file with the distance, made here. library: from `prepare`; None: this clock can't be moved."""
        self._path, self._library = path, library
        self.move(0)

    @property
    def environment(self) -> Mapping[str, str]:
        """What the node's processes need for it."""
        if self._library is None:
            return {}
        preload = " ".join(filter(None, (str(self._library), os.environ.get("LD_PRELOAD"))))
        return {"LD_PRELOAD": preload, VARIABLE: str(self._path)}

    def move(self, seconds: int) -> None:
        """So far from the right time, at once; 0 is right again."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, struct.pack("=q", seconds * 1_000_000_000), 0)
        finally:
            os.close(descriptor)


def prepare(directory: Path) -> Path | None:
    """Compile the library into the directory, and try it; its path. None where it moves no clock: no C compiler, a
    directory from which nothing may be loaded, a Python that is linked statically.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = directory / "libclock.so"
    command = [compiler, "-O2", "-Wall", "-Werror", "-fPIC", "-shared", "-o", str(library), str(SOURCE), "-ldl"]
    if subprocess.run(command, capture_output=True, check=False, timeout=PREPARE_S).returncode != 0:  # noqa: S603
        return None
    clock = Clock(directory / "tried.clock", library)
    clock.move(JUMP_S)
    looking = [sys.executable, "-c", "import time; print(time.time())"]
    environment = {**os.environ, **clock.environment}
    seen = subprocess.run(looking, env=environment, capture_output=True, check=True, timeout=PREPARE_S)  # noqa: S603
    return library if float(seen.stdout) > time.time() + JUMP_S / 2 else None
