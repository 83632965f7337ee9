"""Kafka's jars on this machine: found in the Maven cache that jgo uses (`~/.m2/repository` by default), or fetched
into it.

Rules: a file appears in the cache only whole and checked, by one rename, so an interrupted download leaves nothing
that a later start would trust. One process downloads at a time (a file lock in the cache); the others wait and then
find the jars there. When all jars are there, neither the network nor jgo's resolver is touched. jgo's settings
(`~/.config/jgo.conf`, `M2_REPO`) and mirrors count.
"""

from __future__ import annotations

import fcntl
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skalds_streams.devcluster.extra import extra_module
from skalds_streams.devcluster.jars import KAFKA_VERSION, Jar, kafka_jars
from skalds_streams.errors import DevClusterError

PHASE = f"Kafka {KAFKA_VERSION} jars"
CONNECTIONS = 4
TRIES_MAX = 3
RETRY_S = 1.0
REQUEST_TIMEOUT_S = 30
LOCK_WAIT_S = 600.0
"""A first download by another process: 50 MB over a slow line."""
REPORT_S = 0.1
STAGING_NAME = ".skalds-streams"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase is. `done` and `total` are bytes for a download, steps otherwise; `total` 0 means unknown."""

    phase: str
    done: int
    total: int


OnProgress = Callable[[Progress], None]


class _StoppedError(OSError):
    """The download was given up; raised inside a transfer so that it ends at the next chunk."""


class _Meter:
    """Bytes received, a jar's own count at a time. Shared by the transfers; also tells them to stop."""

    def __init__(self) -> None:
        self._received: dict[str, int] = {}
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make every transfer end at its next chunk."""
        self._stopped.set()

    def put(self, filename: str, count: int) -> None:
        """Set the bytes received of one jar."""
        if self._stopped.is_set():
            raise _StoppedError("stopped")
        self._received[filename] = count

    def total(self) -> int:
        """Bytes received of all jars."""
        return sum(list(self._received.values()))

    @contextmanager
    def transfer(self, filename: str, _size: int) -> Iterator[Callable[[int], None]]:
        """jgo's progress callback: yields what it calls with the length of each chunk."""
        count = 0

        def add(length: int) -> None:
            nonlocal count
            count += length
            self.put(filename, count)

        yield add


def class_path(on_progress: OnProgress | None = None) -> list[Path]:
    """Paths of all of Kafka's jars, downloading what is missing. `on_progress` is called in the calling thread.

    Raises `DevClusterError` when a jar can't be had, is not the expected one, or jgo is absent.
    """
    settings = extra_module("jgo.config").GlobalSettings.load()
    cache = Path(settings.repo_cache)
    jars = kafka_jars()
    if _missing(jars, cache):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with _only_one(cache):
                _download(_missing(jars, cache), cache, settings.repositories, on_progress)
        except OSError as error:
            raise DevClusterError(
                f"{PHASE}: the cache {cache} can't be written ({error}); M2_REPO chooses another"
            ) from error
    return [cache / jar.relative_path for jar in jars]


def _missing(jars: Sequence[Jar], cache: Path) -> list[Jar]:
    """Jars that are not there in full. The bytes were checked when they came; here the size is enough."""
    return [jar for jar in jars if _size(cache / jar.relative_path) != jar.size]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


@contextmanager
def _only_one(cache: Path) -> Iterator[None]:
    """Hold the download lock. Raises `DevClusterError` after `LOCK_WAIT_S` seconds."""
    deadline = time.monotonic() + LOCK_WAIT_S
    with (cache / f"{STAGING_NAME}.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DevClusterError(
                        f"{PHASE}: another process has been downloading for {LOCK_WAIT_S:g} s"
                    ) from None
                time.sleep(REPORT_S)
        yield


def _download(jars: Sequence[Jar], cache: Path, mirrors: dict[str, str], on_progress: OnProgress | None) -> None:
    """Fetch `jars` side by side into the cache. The caller holds the lock, so the staging folder is ours."""
    staging = cache / STAGING_NAME
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed download
    meter = _Meter()
    context = _maven_context(staging, mirrors, meter)
    pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="jar")
    try:
        futures = [pool.submit(_fetch, jar, context, cache, meter) for jar in jars]
        _follow(futures, meter, sum(jar.size for jar in jars), on_progress)
    finally:
        meter.stop()
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(staging, ignore_errors=True)


def _maven_context(staging: Path, mirrors: dict[str, str], meter: _Meter) -> Any:
    maven = extra_module("jgo.maven")
    central = extra_module("jgo.constants").MAVEN_CENTRAL_URL
    return maven.MavenContext(
        resolver=maven.PythonResolver(progress_callback=meter.transfer),
        repo_cache=staging,
        remote_repos={"central": central, **mirrors},
        timeout=REQUEST_TIMEOUT_S,
    )


def _follow(futures: Sequence[Future[None]], meter: _Meter, total: int, on_progress: OnProgress | None) -> None:
    """Report until all transfers are done; raise the first failure."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=REPORT_S)
        if on_progress is not None:
            on_progress(Progress(PHASE, min(meter.total(), total), total))
        for future in done:
            future.result()


def _fetch(jar: Jar, context: Any, cache: Path, meter: _Meter) -> None:
    """Fetch one jar, check it, and move it into the cache. Raises `DevClusterError` after `TRIES_MAX` tries."""
    problem: Exception | str = ""
    for attempt in range(TRIES_MAX):
        if attempt:
            time.sleep(RETRY_S * attempt)
        staged = context.repo_cache / jar.relative_path
        staged.unlink(missing_ok=True)
        try:
            context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
        except _StoppedError:
            raise
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors; jgo's "not found" is a RuntimeError
            problem = error
            continue
        if jar.is_whole(staged):
            target = cache / jar.relative_path
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(target)
            meter.put(jar.filename, jar.size)
            return
        problem = "its checksum is not the expected one"
    raise DevClusterError(f"{PHASE}: {jar.filename} can't be had in {TRIES_MAX} tries: {problem}")
