"""What becomes of a record that is to be sent: Outgoing, Receipt, Delivery, and the backlog of open receipts.

Rules: every receipt is settled, once: with a Delivery or with a ProduceError. The backlog is bounded in number and
bytes. A failure that nobody has looked at is kept for the next flush. Used from any thread; no loop, no client here.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from skalds_streams.errors import ProduceError

OPEN_RECORDS_MAX = 10_000
OPEN_BYTES_MAX = 32 * 1024 * 1024
FAILURES_KEPT = 100

log = logging.getLogger("skalds_streams.proxy.kafka")


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where a record is in the log. `offset` is -1 if the broker has it from an earlier try and no longer knows where.

    `timestamp_ms`: the record's time: the client's, or the broker's for a topic with LogAppendTime.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


class Receipt(Future[Delivery]):
    """A future (`concurrent.futures`) of a record's Delivery. It can't be cancelled; `asyncio.wrap_future` awaits it.

    `result(timeout)`, in seconds, raises ProduceError if the record was not accepted, TimeoutError if that is open yet.
    """

    def __init__(self, topic: str, key: str) -> None:
        super().__init__()
        self.topic, self.key = topic, key
        self.seen = False
        """Whether somebody has been told of the outcome."""
        self.set_running_or_notify_cancel()

    def result(self, timeout: float | None = None) -> Delivery:
        """Wait for the Delivery, at most `timeout` seconds."""
        try:
            return super().result(timeout)
        finally:
            self.seen = self.seen or self.done()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the outcome, at most `timeout` seconds: None, or the ProduceError."""
        try:
            return super().exception(timeout)
        finally:
            self.seen = self.seen or self.done()

    def fail(self, reason: str, cause: BaseException | None = None) -> None:
        """Settle it with a ProduceError, unless it is settled."""
        if self.done():
            return
        error = ProduceError(f"record {self.key!r} for topic {self.topic}: {reason}")
        error.__cause__ = cause
        self.set_exception(error)

    def deliver(self, delivery: Delivery) -> None:
        """Settle it, unless it is settled."""
        if not self.done():
            self.set_result(delivery)


@dataclass(eq=False, slots=True)
class Outgoing:
    """A record to be sent. `number`: its place among all; `tries`: how often it was handed to a producer in vain."""

    topic: str
    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]]
    timestamp_ms: int
    receipt: Receipt
    number: int = 0
    tries: int = 0

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        return len(self.key) + len(self.value) + sum(len(name) + len(value) for name, value in self.headers)


class Backlog:
    """Receipts that are open. `admit` waits while there are too many."""

    def __init__(self) -> None:
        self._room = threading.Condition()
        self._open: dict[Receipt, int] = {}
        self._bytes = 0
        self._failed: deque[Receipt] = deque(maxlen=FAILURES_KEPT)

    def admit(self, record: Outgoing, timeout: float) -> None:
        """Count a record until its receipt is settled. Raises ProduceError if there is no room in `timeout` seconds."""
        size = record.size
        with self._room:
            if not self._room.wait_for(lambda: self._has_room(size), timeout):
                raise ProduceError(
                    f"{len(self._open)} records ({self._bytes} bytes) wait for the broker, no more are taken"
                    f" (waited {timeout:g} s)"
                )
            self._open[record.receipt] = size
            self._bytes += size
        record.receipt.add_done_callback(lambda _: self._settled(record.receipt))

    def receipts(self) -> list[Receipt]:
        """Those open now, oldest first."""
        with self._room:
            return list(self._open)

    def take_failures(self) -> list[Receipt]:
        """The last FAILURES_KEPT that failed since the last call, but for those that somebody looked at; in order."""
        with self._room:
            failed = [receipt for receipt in self._failed if not receipt.seen]
            self._failed.clear()
        return failed

    def _has_room(self, size: int) -> bool:
        return not self._open or (len(self._open) < OPEN_RECORDS_MAX and self._bytes + size <= OPEN_BYTES_MAX)

    def _settled(self, receipt: Receipt) -> None:
        error = Future.exception(receipt)
        with self._room:
            self._bytes -= self._open.pop(receipt)
            if error is not None:
                self._failed.append(receipt)
            self._room.notify_all()
        if error is not None:
            log.warning("not delivered: %s", error)
