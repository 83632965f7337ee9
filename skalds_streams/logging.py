"""How this project logs: structlog events through the standard library's handlers, so that Faust's and ours land in
one stream.

Faust's worker sets the root logger to DEBUG for its spinner; without a level of their own, every debug() of the client
libraries would build a record that nobody prints.
"""

from __future__ import annotations

import logging

import structlog

QUIET = ("aiokafka", "faust", "mode", "asyncio", "aiohttp.access", "redis")


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
    """Give the libraries a level of their own."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
