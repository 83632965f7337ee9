"""How this project logs: structlog events through the standard library's handlers, so that Faust's and ours land in
one stream.

Faust's worker sets the root logger to DEBUG for its spinner; without a level of their own, every debug() of the client
libraries would build a record that nobody prints.

aiokafka logs each of its tries, and its dozen clients of a node make 200 a second while the broker is away: what
repeats itself there is counted instead (`Collapsing`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import structlog

REPEATED = "aiokafka"
REPEATED_S = 10.0
"""The same message comes once in so many seconds."""
MESSAGES_MOST = 1_000
"""How many different ones are told apart."""
QUIET = ("aiokafka", "faust", "mode", "asyncio", "aiohttp.access", "redis")


class Collapsing(logging.Handler):
    """Passes records on to the root logger, but of those that have logger, level and text before formatting in common
    only one in REPEATED_S. The next one says how many were left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._passed: dict[tuple[str, int, str], tuple[float, int]] = {}
        """Message → when one was passed on, and how many were left out since."""

    def emit(self, record: logging.LogRecord) -> None:
        now, key = self._clock(), (record.name, record.levelno, str(record.msg))
        passed_at, left_out = self._passed.get(key, (float("-inf"), 0))
        if now - passed_at < REPEATED_S:
            self._passed[key] = passed_at, left_out + 1
            return
        if len(self._passed) >= MESSAGES_MOST:
            self._passed.clear()
        self._passed[key] = now, 0
        if left_out:
            text = f"{record.getMessage()} (and {left_out} more like this in {now - passed_at:.0f} s)"
            record.msg, record.args = text, ()
        logging.getLogger().handle(record)


def configure_logging(level: str = "INFO") -> None:
    """Set up structlog and the levels. level: DEBUG, INFO, WARNING or ERROR for our own events."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("event"),
            structlog.processors.KeyValueRenderer(key_order=["event"], drop_missing=True),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    logging.getLogger("skalds_streams").setLevel(level)
    quiet_libraries()


def quiet_libraries() -> None:
    """Give the libraries a level of their own, and let aiokafka repeat nothing."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    repeated = logging.getLogger(REPEATED)
    if not any(isinstance(handler, Collapsing) for handler in repeated.handlers):
        repeated.addHandler(Collapsing())
        repeated.propagate = False
