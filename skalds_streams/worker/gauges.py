"""Numbers that a worker sets about itself (`BaseTaskWorker.metric`): kept here, sent to the skald at most once a
second.

Rules: setting one never blocks and costs a dictionary entry. The last value of each always arrives, at the latest
EVERY_S later. At most GAUGES_MAX names; those beyond are dropped with one warning, as a job must not fail for its
figures. What does not live here: where they are shown.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any, SupportsFloat

from skalds_streams.worker.frames import Frame

EVERY_S = 1.0
GATHER_S = 0.05
"""What is set together travels together."""
GAUGES_MAX = 32
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,63}")

log = logging.getLogger(__name__)


class Gauges:
    """Of one worker. Any thread."""

    def __init__(self, told: tuple[Callable[[Frame], None], Callable[[], object] | None] | None = None) -> None:
        """told: what `attach` takes."""
        self._values: dict[str, float | None] = {}
        self._has_news = False
        self._send: Callable[[Frame], None] | None = None
        self._sender: _Sender | None = None
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._is_full = False
        self._on_news: Callable[[], object] | None = None
        self._pid = os.getpid()
        if told is not None:
            self.attach(*told)

    @property
    def values(self) -> dict[str, float | None]:
        """What was set."""
        return dict(self._values)

    def set(self, name: str, value: SupportsFloat) -> None:
        """Raises ValueError for a name or TypeError for a value that can't be one."""
        known = name in self._values
        if not known and not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a metric: letters, digits and _ . : - , at most 64")
        if isinstance(value, str) or not isinstance(value, SupportsFloat):
            raise TypeError(f"metric {name} must be a number, not {type(value).__name__}")
        if not known and len(self._values) >= GAUGES_MAX:
            self._warn(name)
            return
        self._values[name] = _number(value)
        self._has_news = True
        self._begin()

    def attach(self, send: Callable[[Frame], None], on_news: Callable[[], object] | None = None) -> None:
        """What was set is sent from now on. on_news: told that there is something to `flush`; None: a thread of its own
        does it.
        """
        self._send, self._on_news, self._pid = send, on_news, os.getpid()
        if self._values:
            self._begin()

    def flush(self) -> None:
        """Send what is not sent yet. When it returns all that was set before is sent, by whomever."""
        with self._sending:
            if self._send is not None and self._has_news:
                self._has_news = False
                self._send({"op": "metrics", "values": dict(self._values), "at_ms": time.time_ns() // 1_000_000})

    def end(self) -> None:
        """Send what is not sent yet; nothing is sent after it, and no thread of ours is left for long."""
        self.flush()
        if self._sender is not None:
            self._sender.end()

    def _begin(self) -> None:
        """Let a thread send, or whoever is told, unless nobody is there to send to, or user code has forked us."""
        if self._send is None or self._pid != os.getpid():
            return
        if self._on_news is not None:
            self._on_news()
            return
        with self._lock:
            self._sender = self._sender or _Sender(self.flush)
        self._sender.changed.set()

    def _warn(self, name: str) -> None:
        if not self._is_full:
            self._is_full = True
            log.warning("metric %s is not kept: a worker may have %d", name, GAUGES_MAX)


class _Sender:
    """The thread that sends, for as long as there is one."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self.changed = threading.Event()
        self._over = threading.Event()
        self._flush = flush
        threading.Thread(target=self._run, name="skald-metrics", daemon=True).start()

    def end(self) -> None:
        self._over.set()
        self.changed.set()

    def _run(self) -> None:
        while self.changed.wait() and not self._over.wait(GATHER_S):
            self.changed.clear()
            self._flush()
            if self._over.wait(EVERY_S):
                return


def readings(frame: Frame) -> dict[str, Any] | None:
    """What a metrics frame says: {"values": {name: number or None}, "at_ms"}. None for one that says nothing: it comes
    from a process that runs user code.
    """
    values, at_ms = frame.get("values"), frame.get("at_ms")
    if not (isinstance(values, dict) and isinstance(at_ms, int) and len(values) <= GAUGES_MAX):
        return None
    if not all(NAME.fullmatch(name) and isinstance(value, float | None) for name, value in values.items()):
        return None
    return {"values": dict(sorted(values.items())), "at_ms": at_ms}


def _number(value: SupportsFloat) -> float | None:
    """None for what is no finite number: JSON has no other word for it."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
