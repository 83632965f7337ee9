"""The public Kafka interface: KafkaTopic, KafkaConfig, KafkaProxy, KafkaAdmin, with upstream's names and parameters.

    proxy = KafkaProxy(KafkaConfig(host="localhost", port=9092))
    receipt = proxy.produce(KafkaTopic.TASK_ASSIGN, key="task_123", value=event)
    receipt.result(timeout=10)  # where it is in the log, or why it is not

Rules: for plain (blocking) code, from any thread. Importing connects to nothing and reads no setting; every wait has an
end; what goes wrong is raised: by the constructor, by `produce`, or by the receipt. A script may end without `close`:
the last records are sent while the interpreter exits (not after a signal that kills it). A forked process makes a proxy
of its own. The work is done in `background` (the loop), `outbox` (sending) and `inbox` (reading).
"""

from __future__ import annotations

import atexit
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from types import TracebackType

from pydantic import BaseModel

from skalds_streams import topics
from skalds_streams.errors import KafkaError, ProduceError, UnreachableError
from skalds_streams.proxy.background import BackgroundLoop
from skalds_streams.proxy.connection import KafkaConfig
from skalds_streams.proxy.delivery import Backlog, Delivery, Outgoing, Receipt
from skalds_streams.proxy.inbox import ConsumedRecord, Inbox
from skalds_streams.proxy.kafka_admin import KafkaAdmin, TopicDescription
from skalds_streams.proxy.outbox import DELIVERY_S, Outbox

__all__ = [
    "ConsumedRecord",
    "Delivery",
    "KafkaAdmin",
    "KafkaConfig",
    "KafkaProxy",
    "KafkaTopic",
    "Receipt",
    "TopicDescription",
]

CONNECT_S = 10.0
CLOSE_S = 10.0
ROOM_S = 10.0
"""`produce` waits this long for room when too many records are open."""
SLICE_S = 1.0
"""Reading without end is done in slices of this, so that Ctrl-C and `close` get through."""
GRACE_S = 10.0
"""What a call into the loop may take beyond its own wait."""

log = logging.getLogger(__name__)


class KafkaTopic:
    """Names of the topics."""

    TASK_ASSIGN = topics.TASK_ASSIGN
    TASK_CANCEL = topics.TASK_CANCEL
    TASK_UPDATE_ATTACHMENT = topics.TASK_UPDATE_ATTACHMENT
    TASK_WORKER_UPDATE = topics.TASK_WORKER_UPDATE
    TESTING_PRODUCER = "testing"

    @staticmethod
    def task_notify_process_update(task_id: str) -> str:
        """Upstream's name of a topic per task. Nothing reads it: a topic per task does not scale."""
        return f"task.{task_id}.update"


class KafkaProxy:
    """Sends records, and reads those of `consume_topic_list` if there are any.

    is_block: wait for the broker in the constructor, at most `connect_timeout_s` seconds, then raise UnreachableError
    (upstream: for ever). False: connect in the background, for ever; records wait up to 30 s for it, counted from
    `produce`. `host` and `port` are where it connects to.
    """

    def __init__(
        self,
        kafka_config: KafkaConfig | None = None,
        is_block: bool = True,
        *,
        connect_timeout_s: float = CONNECT_S,
        delivery_timeout_s: float = DELIVERY_S,
    ) -> None:
        self._config = kafka_config if kafka_config is not None else KafkaConfig()
        self.host, self.port = self._config.host, self._config.port
        self._backlog = Backlog()
        self._fetched: deque[ConsumedRecord] = deque()
        self._outbox = Outbox(self._config, delivery_timeout_s)
        self._inbox = Inbox(self._config) if self._config.consume_topic_list else None
        self._background = BackgroundLoop()
        try:
            self._background.start(self._outbox.run)
            if self._inbox is not None:
                self._background.start(self._inbox.run)
            if is_block:
                self._wait_connected(connect_timeout_s)
        except BaseException:
            self._background.close()
            raise
        atexit.register(self._at_exit)

    # -- sending ---------------------------------------------------------------------------------------------------

    def produce(
        self,
        topic_name: str,
        key: str | bytes,
        value: str | bytes | BaseModel,
        headers: Sequence[tuple[str, bytes]] | None = None,
    ) -> Receipt:
        """Send a record; return at once with the Receipt of its delivery. Records of one key keep their order.

        key: the task id. None raises TypeError: upstream's readers drop a record without a key. value: text, bytes, or
        a pydantic model, sent as JSON by alias. The partition is Kafka's default one (murmur2 of the key).

        Raises TypeError; ProduceError when 10,000 records or 32 MiB are open and stay so for 10 s; KafkaError when it
        is closed or used after a fork. Whatever comes later is raised by the receipt, which is settled after 30 s at
        the latest (`delivery_timeout_s`), and by `flush` and `close` if nobody has looked at the receipt.
        """
        self._background.check()
        raw_key = _key_bytes(key)
        record = Outgoing(
            topic=_checked_topic(topic_name),
            key=raw_key,
            value=_value_bytes(value),
            headers=_checked_headers(headers),
            timestamp_ms=time.time_ns() // 1_000_000,
            receipt=Receipt(topic_name, raw_key.decode(errors="replace")),
        )
        self._backlog.admit(record, ROOM_S)
        try:
            self._background.call_soon(self._outbox.accept, record)
        except KafkaError as error:
            record.receipt.fail(str(error))
            raise
        return record.receipt

    def flush(self, timeout: float = DELIVERY_S) -> None:
        """Wait until every record produced so far is delivered, at most `timeout` seconds.

        Raises ProduceError if one was not, unless its receipt was looked at; the first failure is the cause.
        """
        receipts = self._backlog.receipts()
        still_open = wait(receipts, timeout).not_done
        if still_open:
            raise ProduceError(
                f"{len(still_open)} of {len(receipts)} records have no answer from {self._config.address}"
                f" after {timeout:g} s{self._obstacle()}"
            )
        self._raise_failures()

    @property
    def producer(self) -> KafkaProxy | None:
        """None until it is connected, then this proxy: upstream's callers write `proxy.producer.flush()`."""
        return self if self._outbox.connected else None

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def consumer(self) -> Iterator[ConsumedRecord] | None:
        """The records of `consume_topic_list` without end, or None if that is empty."""
        return self.consume(None) if self._inbox is not None else None

    def consume(self, timeout_s: float | None = SLICE_S) -> Iterator[ConsumedRecord]:
        """The records of `consume_topic_list` as they come, until none came for `timeout_s` seconds (None: for ever).

        For one thread at a time. Raises KafkaError when there is no topic to read, it is closed, or the broker refuses.
        """
        if self._inbox is None:
            raise KafkaError("nothing to consume: KafkaConfig.consume_topic_list is empty")
        return self._records(self._inbox, timeout_s)

    def _records(self, inbox: Inbox, timeout_s: float | None) -> Iterator[ConsumedRecord]:
        quiet_since = time.monotonic()
        while True:
            while self._fetched:
                yield self._fetched.popleft()
                quiet_since = time.monotonic()
            left_s = SLICE_S if timeout_s is None else max(0.0, quiet_since + timeout_s - time.monotonic())
            slice_s = min(left_s, SLICE_S)
            self._fetched.extend(self._background.run(inbox.take, slice_s, timeout=slice_s + GRACE_S))
            if timeout_s is not None and left_s <= SLICE_S and not self._fetched:
                return

    # -- end -------------------------------------------------------------------------------------------------------

    def close(self, timeout: float = CLOSE_S) -> None:
        """Deliver what is open, at most `timeout` seconds, and disconnect. A second call does nothing.

        Raises ProduceError if a record was not delivered, unless its receipt was looked at; it is closed all the same.
        """
        self._shut(timeout)
        self._raise_failures()

    def __enter__(self) -> KafkaProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._shut(CLOSE_S)

    def _shut(self, timeout: float) -> None:
        if self._background.foreign:
            return
        atexit.unregister(self._at_exit)
        wait(self._backlog.receipts(), timeout)
        obstacle = self._obstacle()
        self._background.close()
        for receipt in self._backlog.receipts():
            receipt.fail(f"closed before an answer came from {self._config.address}{obstacle}")

    def _at_exit(self) -> None:
        try:
            self.close()
        except ProduceError as error:
            log.error("at exit: %s", error)  # there is nobody left to raise it to

    # -- inside ----------------------------------------------------------------------------------------------------

    def _wait_connected(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        for part in (self._outbox, self._inbox):
            if part is None:
                continue
            try:
                self._background.run(part.wait_connected, timeout=max(0.0, end - time.monotonic()))
            except TimeoutError:
                raise UnreachableError(
                    f"no Kafka broker answers at {self._config.address} within {timeout_s:g} s:"
                    f" {part.obstacle or 'no answer'}"
                ) from None

    def _obstacle(self) -> str:
        return f": {self._outbox.obstacle}" if self._outbox.obstacle else ""

    def _raise_failures(self) -> None:
        failed = self._backlog.take_failures()
        if failed:
            first = failed[0].exception()
            raise ProduceError(f"{len(failed)} records were not delivered; the first: {first}") from first


def _checked_topic(topic_name: object) -> str:
    if isinstance(topic_name, str) and topic_name:
        return topic_name
    raise TypeError(f"topic_name must be a topic's name, not {topic_name!r}")


def _key_bytes(key: object) -> bytes:
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, bytes):
        return key
    raise TypeError(
        f"key must be a task id (str or bytes), not {type(key).__name__}: readers drop a record without one"
    )


def _value_bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    if isinstance(value, BaseModel):
        return value.model_dump_json(by_alias=True).encode()
    raise TypeError(f"value must be str, bytes or a pydantic model, not {type(value).__name__}")


def _checked_headers(headers: Sequence[tuple[object, object]] | None) -> Sequence[tuple[str, bytes]]:
    checked: list[tuple[str, bytes]] = []
    for name, value in headers or ():
        if not isinstance(name, str) or not isinstance(value, bytes):
            raise TypeError(f"headers must be (str, bytes) pairs, not ({type(name).__name__}, {type(value).__name__})")
        checked.append((name, value))
    return checked
