"""The broker as its clients meet it: partitions, transactions, its consumer group, being away.

Rules of transactions as Kafka has them: InitProducerId ends what the former holder of the id had open and raises the
epoch, so that whatever of it still arrives is refused; the end of a transaction is decided first and its markers are
written later, one partition at a time; a transaction that stays open is aborted by the broker after its timeout, which
raises the epoch too; a batch with a sequence number that was seen is acknowledged and not written again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aiokafka.errors import InvalidTxnState, MessageSizeTooLargeError, ProducerFenced, RecordListTooLargeError

from skalds_streams.coordinator.batch import Output
from skalds_streams.testing.simulator.group import Group
from skalds_streams.testing.simulator.loop import Handle, VirtualLoop
from skalds_streams.testing.simulator.plan import MESSAGE_BYTES
from skalds_streams.testing.simulator.storage import Entry, Partition, size_of
from skalds_streams.topics import Topics

EPOCH_MS = 1_700_000_000_000
"""The time of day at which every world begins."""
SWEEP_S = 10.0
BROKERS = 3


class AgainError(Exception):
    """CONCURRENT_TRANSACTIONS and its like: the client asks again after its back-off."""


@dataclass(slots=True)
class Transaction:
    """What the broker knows of one transactional id."""

    producer: int
    epoch: int = -1
    state: str = "empty"
    """empty, ongoing, ending, committed, aborted"""
    written: list[tuple[Partition, Entry]] = field(default_factory=list)
    sweep: Handle | None = None
    timeout_s: float = 10.0
    seen: set[tuple[int, str, int, int]] = field(default_factory=set)
    """(epoch, topic, partition, sequence number) of batches that were written."""


OnCommit = Callable[[str, Sequence[tuple[Partition, Entry]]], None]


class Broker:
    """All of a cluster. Called in virtual time by the network, never by a process itself."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, topics: Topics, *, marker_s: float) -> None:
        """marker_s: longest delay between the decision to commit and its marker in a partition."""
        self.loop, self._rng, self._marker_s = loop, rng, marker_s
        self.topics = topics
        self.partitions: dict[tuple[str, int], Partition] = {}
        for spec in topics.specs():
            for number in range(spec.partitions):
                self.partitions[spec.name, number] = Partition(spec.name, number)
        self.group = Group(loop, rng, topics)
        self.message_bytes = self.segment_bytes = MESSAGE_BYTES
        """max.message.bytes and segment.bytes of every topic: no batch may be larger."""
        self.skew_ms = [0] * BROKERS
        self.is_away = False
        self.on_commit: OnCommit = lambda transactional_id, written: None
        self.on_append: Callable[[Partition, Entry], None] = lambda partition, entry: None
        self.complain: Callable[[str, str], None] = lambda rule, text: None
        """A client has broken a rule of conduct."""
        self._transactions: dict[str, Transaction] = {}
        self._numbers = 0

    def number(self) -> int:
        """A number for one that waits, so that those who wait are told in a fixed order."""
        self._numbers += 1
        return self._numbers

    def now_ms(self, partition: Partition) -> int:
        """The clock of a partition's leader."""
        return EPOCH_MS + int(self.loop.now * 1000) + self.skew_ms[partition.leader]

    def check_size(self, outputs: Sequence[Output]) -> None:
        """Raises what the broker refuses a whole batch with."""
        size = sum(map(size_of, outputs))
        if size > self.message_bytes:
            raise MessageSizeTooLargeError
        if size > self.segment_bytes:
            raise RecordListTooLargeError

    # -- plain records

    def append(self, topic: str, number: int, output: Output) -> Entry:
        partition = self.partitions[topic, number]
        entry = partition.append(output, self.now_ms(partition))
        self.on_append(partition, entry)
        return entry

    # -- transactions

    def init_producer(self, transactional_id: str, timeout_s: float) -> tuple[int, int]:
        """InitProducerId: (producer id, epoch)."""
        known = self._transactions.get(transactional_id)
        if known is None:
            known = self._transactions[transactional_id] = Transaction(len(self._transactions))
        if known.state == "ending":
            raise AgainError
        if known.state == "ongoing":
            known.epoch += 1
            self._end(transactional_id, known, commit=False)
            raise AgainError
        known.epoch += 1
        known.state, known.timeout_s = "empty", timeout_s
        return known.producer, known.epoch

    def produce(
        self, transactional_id: str, epoch: int, topic: str, number: int, outputs: Sequence[Output], sequence: int
    ) -> int:
        """AddPartitionsToTxn and Produce of one batch. Returns its first offset."""
        known = self._known(transactional_id, epoch)
        if known.state == "ending":
            raise AgainError
        key = (epoch, topic, number, sequence)
        if key in known.seen:
            return -1
        if known.state != "ongoing":
            known.state, known.written = "ongoing", []
            wait_s = known.timeout_s + self._rng.uniform(0, SWEEP_S)
            known.sweep = self.loop.call_later(wait_s, self._time_out, transactional_id, epoch)
        known.seen.add(key)
        partition = self.partitions[topic, number]
        at_ms = self.now_ms(partition)
        first = len(partition.entries)
        for output in outputs:
            known.written.append((partition, partition.append(output, at_ms, known.producer)))
        return first

    def end_transaction(self, transactional_id: str, epoch: int, *, commit: bool) -> None:
        """EndTxn."""
        known = self._known(transactional_id, epoch)
        if known.state == "ending":
            raise AgainError
        if known.state == ("committed" if commit else "aborted"):
            return
        if known.state != "ongoing":
            raise InvalidTxnState
        self._end(transactional_id, known, commit=commit)

    def _known(self, transactional_id: str, epoch: int) -> Transaction:
        known = self._transactions.get(transactional_id)
        if known is None or known.epoch != epoch:
            raise ProducerFenced
        return known

    def _time_out(self, transactional_id: str, epoch: int) -> None:
        known = self._transactions[transactional_id]
        if known.epoch == epoch and known.state == "ongoing":
            known.epoch += 1
            self._end(transactional_id, known, commit=False)

    def _end(self, transactional_id: str, known: Transaction, *, commit: bool) -> None:
        if known.sweep is not None:
            known.sweep.cancel()
        known.state = "ending"
        touched = list(dict.fromkeys(id(partition) for partition, _ in known.written))
        by_id = {id(partition): partition for partition, _ in known.written}
        if commit:
            self.on_commit(transactional_id, known.written)
        latest = 0.0
        for number in touched:
            delay = self._rng.uniform(0, self._marker_s) if self._marker_s else 0.0
            latest = max(latest, delay)
            if delay:
                self.loop.call_later(delay, self._mark, by_id[number], known.producer, commit)
            else:
                self._mark(by_id[number], known.producer, commit)
        if latest:
            self.loop.call_later(latest, self._ended, known, commit)
        else:
            self._ended(known, commit)

    def _mark(self, partition: Partition, producer: int, commit: bool) -> None:
        partition.end_transaction(producer, self.now_ms(partition), commit=commit)

    def _ended(self, known: Transaction, commit: bool) -> None:
        known.state = "committed" if commit else "aborted"
