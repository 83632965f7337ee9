"""What a library says again and again is counted, and nothing else is held back."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from skalds_streams.logging import REPEATED_S, Collapsing, quiet_libraries


class Told(logging.Handler):
    """The root logger's."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def told() -> Iterator[Told]:
    handler = Told()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def now() -> list[float]:
    """The clock of `library`."""
    return [100.0]


@pytest.fixture
def library(now: list[float]) -> Iterator[logging.Logger]:
    """A logger beneath one that collapses."""
    above = logging.getLogger("storm")
    handler = Collapsing(lambda: now[0])
    above.addHandler(handler)
    above.propagate = False
    yield logging.getLogger("storm.client")
    above.removeHandler(handler)
    above.propagate = True


def test_a_storm_is_one_line_and_a_count(told: Told, library: logging.Logger, now: list[float]) -> None:
    for port in range(200):
        library.error("can't connect to %s", port)
    assert told.lines == ["can't connect to 0"]
    now[0] += REPEATED_S
    library.error("can't connect to %s", 7)
    library.error("can't connect to %s", 8)
    assert told.lines[1:] == [f"can't connect to 7 (and 199 more like this in {REPEATED_S:.0f} s)"]


def test_what_differs_is_said(told: Told, library: logging.Logger, now: list[float]) -> None:
    library.error("gone")
    library.warning("gone")
    library.error("no leader")
    logging.getLogger("storm.conn").error("gone")
    now[0] += REPEATED_S
    library.error("gone")
    assert told.lines == ["gone", "gone", "no leader", "gone", "gone"]


def test_the_library_of_the_clients_is_collapsed_once(told: Told) -> None:
    quiet_libraries()
    quiet_libraries()
    for _ in range(3):
        logging.getLogger("aiokafka.client").error("in test_logging")
        logging.getLogger("aiokafka.client").info("not said at all")
    assert told.lines == ["in test_logging"]
