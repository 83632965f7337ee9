"""Where the real code meets what is modelled: the names that are exchanged while a world runs, and its log.

A module that makes its own client, clock or process pool gets the model's instead; which process it belongs to is told
by the context in which it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Protocol

import structlog

from skalds_streams import runtime
from skalds_streams.coordinator import batch
from skalds_streams.coordinator import log as coordinator_log
from skalds_streams.proxy import client, reports
from skalds_streams.proxy.topic_setup import TopicReport
from skalds_streams.skald import heartbeat, lease, node
from skalds_streams.testing.simulator.readers import Consumer
from skalds_streams.testing.simulator.writers import Producer
from skalds_streams.view import reader

DATA_DIR = Path(gettempdir()) / "skalds-simulator"


class Surroundings(Protocol):
    """What a simulated process is asked for by the code that runs in it."""

    def client_options(self) -> dict[str, Any]: ...

    def wall_ms(self) -> int: ...

    def boottime_ms(self) -> int: ...

    async def claim(self) -> Any: ...

    def renewed(self, identity: Any) -> Any: ...

    def forget(self, identity: Any) -> None: ...

    def new_pool(self) -> Any: ...

    def log(self, level: str, event: str, fields: Mapping[str, Any]) -> None: ...


HERE: ContextVar[Surroundings] = ContextVar("the simulated process whose code runs")


class SimulatedLog:
    """structlog's wrapper: hands every line to the process it comes from."""

    def __init__(self, logger: Any, processors: Any, context: Mapping[str, Any]) -> None:
        self._fields = dict(context)

    def bind(self, **fields: Any) -> SimulatedLog:
        return SimulatedLog(None, None, {**self._fields, **fields})

    new = bind

    def _say(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        here = HERE.get(None)
        if here is not None:
            here.log(level, event, {**self._fields, **fields})

    def debug(self, event: str, **fields: Any) -> None:
        self._say("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._say("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._say("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._say("error", event, fields)

    exception = error


class NoRedis:
    """RedisProjection: it may be absent at any time."""

    up = False

    def __init__(self, *parts: object) -> None:
        """Nothing is kept."""

    async def run(self) -> None:
        """There is nothing to do."""


class NoStates:
    """StateReader: the modelled workers save nothing."""

    def __init__(self, *args: object) -> None:
        """There is nothing to keep."""

    async def run(self) -> None:
        """Nobody asks."""

    async def find(self, task_id: str, first_epoch: int) -> None:
        """Nothing was saved."""


class NoSweeper:
    """StateSweeper: there is nothing to delete."""

    def __init__(self, *args: object, **options: object) -> None:
        """There is nothing to keep."""

    async def run(self) -> None:
        """There is nothing to do."""


class NoWatch:
    """Nobody adds partitions to a modelled topic."""

    def __init__(self, *args: object, **options: object) -> None:
        """There is nothing to keep."""

    async def run(self) -> None:
        """There is nothing to see."""


async def _claim(*args: object, **options: object) -> Any:
    return await HERE.get().claim()


async def _ensure_topics(*args: object, **options: object) -> TopicReport:
    return TopicReport()


def _nothing(*args: object, **options: object) -> None:
    return None


def _exchanged(message_bytes: int) -> list[tuple[Any, str, Any]]:
    return [
        (batch, "CONDEMNED_BYTES", min(batch.CONDEMNED_BYTES, message_bytes // 8)),
        (client, "AIOKafkaConsumer", Consumer),
        (coordinator_log, "AIOKafkaProducer", Producer),
        (coordinator_log, "_discard", lambda producer: producer.stop()),
        (coordinator_log, "count_commits", Producer.count_commits),
        (coordinator_log, "record_of", lambda item: item),
        (reports, "AIOKafkaProducer", Producer),
        (heartbeat, "AIOKafkaProducer", Producer),
        (heartbeat, "boottime_ms", lambda: HERE.get().boottime_ms()),
        (lease, "boottime_ms", lambda: HERE.get().boottime_ms()),
        (reader, "record_of", lambda item: item),
        (runtime, "client_options", lambda settings: HERE.get().client_options()),
        (runtime, "wall_ms", lambda: HERE.get().wall_ms()),
        (runtime, "claim_identity", _claim),
        (node, "host_name", lambda: "simulated"),
        (node, "forget_predecessors", lambda identity: HERE.get().forget(identity)),
        (node, "renewed", lambda identity: HERE.get().renewed(identity)),
        (runtime, "ensure_topics", _ensure_topics),
        (runtime, "PartitionWatch", NoWatch),
        (runtime, "StateReader", NoStates),
        (runtime, "StateSweeper", NoSweeper),
        (runtime, "tune_consumers", _nothing),
        (node, "HostPool", lambda **options: HERE.get().new_pool()),
        (runtime, "RedisProjection", NoRedis),
        (runtime, "Metrics", _nothing),
    ]


@contextmanager
def edges(message_bytes: int) -> Iterator[None]:
    """Exchange the edges, and put them back. message_bytes: the most that the broker takes."""
    kept: list[tuple[Any, str, Any]] = []
    config = structlog.get_config()
    try:
        for module, name, stand_in in _exchanged(message_bytes):
            kept.append((module, name, getattr(module, name)))
            setattr(module, name, stand_in)
        factory: Callable[..., None] = _nothing
        structlog.configure(
            processors=[],
            wrapper_class=SimulatedLog,  # type: ignore[arg-type]  # it says all that our code asks of a logger
            logger_factory=factory,
            cache_logger_on_first_use=False,
        )
        yield
    finally:
        for module, name, real in kept:
            setattr(module, name, real)
        structlog.configure(**config)
