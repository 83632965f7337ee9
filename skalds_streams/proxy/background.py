"""An event loop in a thread of its own, through which plain (blocking) code uses asynchronous clients.

Rules: one loop serves one proxy or admin; no call waits without end; closing cancels what runs and joins the thread. It
keeps working while the interpreter exits, when the last records are sent: no thread and no executor is needed then.
It does not survive a fork: a child gets a clear error instead of a call that never returns.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from skalds_streams.errors import KafkaError

log = logging.getLogger("skalds_streams.proxy.kafka")
Result = TypeVar("Result")
Address = tuple[Any, Any, int, str, Any]


class BackgroundLoop:
    """Started by its constructor. `close` ends it; closing twice is fine."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._closed = False
        started: Future[tuple[BlockingPortal, asyncio.AbstractEventLoop]] = Future()
        self._thread = threading.Thread(target=_serve, args=(started,), name="skalds-kafka", daemon=True)
        self._thread.start()
        self._portal, self._loop = started.result()

    @property
    def foreign(self) -> bool:
        """Whether this process is a fork of the one that made it."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raises KafkaError when it is closed, or used after a fork."""
        if self.foreign:
            raise KafkaError(f"made by process {self._pid} before a fork: make a new one in process {os.getpid()}")
        if self._closed:
            raise KafkaError("closed")

    def start(self, func: Callable[..., Awaitable[None]]) -> None:
        """Run `func(task_status=…)` until `close`; returns once it has called `task_status.started()`."""
        self.check()
        future, _ = self._portal.start_task(func)
        future.add_done_callback(_report)

    def run(self, func: Callable[..., Awaitable[Result]], *args: object, timeout: float | None = None) -> Result:
        """Await `func(*args)` there. Raises its errors, TimeoutError after `timeout` seconds, KafkaError if closed."""
        self.check()
        future: Future[Result] = self._portal.start_task_soon(func, *args)
        try:
            return future.result(timeout)
        except CancelledError:
            raise KafkaError("closed meanwhile") from None
        finally:
            future.cancel()  # nothing when it is done

    def call_soon(self, func: Callable[..., object], *args: object) -> None:
        """Call `func(*args)` there, soon and in order; from any thread, the loop's own too. Raises KafkaError."""
        self.check()
        try:
            self._loop.call_soon_threadsafe(func, *args)
        except RuntimeError:  # closed at this moment by another thread
            raise KafkaError("closed") from None

    def close(self) -> None:
        """Cancel what runs there, wait for its end, join the thread."""
        if self._closed or self.foreign:
            return
        self._closed = True
        with suppress(RuntimeError):  # the loop has ended by itself
            self._portal.call(self._portal.stop, True)
        self._thread.join()


def _serve(started: Future[tuple[BlockingPortal, asyncio.AbstractEventLoop]]) -> None:
    """The thread. Not anyio's start_blocking_portal: what it leaves in a forked child waits for the loop for ever."""

    async def main() -> None:
        async with BlockingPortal() as portal:
            started.set_result((portal, asyncio.get_running_loop()))
            await portal.sleep_until_stopped()

    try:
        anyio.run(main, backend="asyncio", backend_options={"loop_factory": _ResolvingLoop})
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)


def _report(future: Future[None]) -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None:
        log.error("the background loop lost a part of it", exc_info=error)


class _ResolvingLoop(asyncio.SelectorEventLoop):
    """Resolves names without the default executor, which takes no work any more while the interpreter exits."""

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002  # asyncio's name
        proto: int = 0,
        flags: int = 0,
    ) -> list[Address]:
        answer: asyncio.Future[list[Address]] = self.create_future()

        def look_up() -> None:
            try:
                found = socket.getaddrinfo(host, port, family, type, proto, flags)
            except OSError as error:
                outcome: list[Address] | OSError = error
            else:
                outcome = list(found)
            with suppress(RuntimeError):  # the loop was closed meanwhile
                self.call_soon_threadsafe(_settle, answer, outcome)

        try:
            threading.Thread(target=look_up, name="resolver", daemon=True).start()
        except RuntimeError:  # from Python 3.12 on an exiting interpreter starts no threads
            look_up()
        return await answer


def _settle(answer: asyncio.Future[list[Address]], outcome: list[Address] | OSError) -> None:
    if answer.done():
        return
    if isinstance(outcome, OSError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
