"""What the workers here save, written to task.state, and what their last runs saved, found.

Rules: of each task the last state waits, those before it are replaced, so what waits is bounded by what runs here; a
task has one record under way at a time, so none overtakes another; the end of a run is reported when its last state is
written (`flush`), or nobody could know that the next run finds it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import structlog
from aiokafka.errors import KafkaError as ClientError
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError, TopicAuthorizationFailedError

from skalds_streams.model.saved import Saved, StateKey, StateRecord
from skalds_streams.proxy.states import StateSender
from skalds_streams.view.states import StateReader
from skalds_streams.worker.saving import STATE_MAX_BYTES

AGAIN_S = 0.5
MOST_AT_ONCE = 64
"""4 MiB at most."""
FLUSH_S = 15.0
"""How long the report of a run's end waits for its last state. A killed broker costs 10 s of acknowledgements."""
HOPELESS = (MessageSizeTooLargeError, RecordListTooLargeError, TopicAuthorizationFailedError)
"""What will not be better at the next try."""

log = structlog.get_logger(__name__)


class TaskStates(Protocol):
    """What an actor asks of whoever keeps the states."""

    async def find(self, task_id: str, first_epoch: int) -> Saved | None:
        """What counts for the task's next run. Raises StateError."""

    def save(self, task_id: str, epoch: int, text: str) -> None:
        """Keep this; text: JSON, as `worker.saving` makes it."""

    async def flush(self, task_id: str | None, timeout_s: float) -> bool:
        """Wait until what this task saved is kept, or all tasks; False after `timeout_s`."""

    def forget(self, task_id: str) -> None:
        """Its run is over."""


@dataclass(slots=True)
class StateStatistics:
    """Counts since the process began, for metrics."""

    lost: int = 0
    """States that were given up: the broker takes no such record from us, however often it is sent."""
    not_written: int = 0
    """Runs whose end was told although their last state was not written yet. It is tried on, but the next run may not
    find it."""


class States:
    """`run` writes for ever what `save` is given."""

    def __init__(self, reader: StateReader, sender: StateSender, *, skald_id: str) -> None:
        self._reader, self._sender, self._skald_id = reader, sender, skald_id
        self.statistics = StateStatistics()
        self._waiting: dict[str, StateRecord] = {}
        self._seqs: dict[str, tuple[int, int]] = {}
        """Task id → (epoch, sequence number of its last state)."""
        self._wake = asyncio.Event()
        self._written = asyncio.Event()

    async def find(self, task_id: str, first_epoch: int) -> Saved | None:
        """What counts for the task's next run; waits as long as no broker answers. Raises StateError."""
        return await self._reader.find(task_id, first_epoch)

    def save(self, task_id: str, epoch: int, text: str) -> None:
        """Write this soon. text: JSON, as `worker.saving` makes it."""
        value = text.encode()
        if len(value) > STATE_MAX_BYTES:  # the SDK has refused it already
            log.error("state.too_large", task=task_id, epoch=epoch, bytes=len(value))
            self.statistics.lost += 1
            return
        before, seq = self._seqs.get(task_id, (epoch, 0))
        seq = seq + 1 if before == epoch else 1
        self._seqs[task_id] = epoch, seq
        self._waiting[task_id] = StateRecord.of(StateKey(task_id, epoch), value, seq=seq, skald_id=self._skald_id)
        self._wake.set()

    async def flush(self, task_id: str | None, timeout_s: float) -> bool:
        """Wait until what this task saved is with the broker, or all tasks; False after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._waiting if task_id is None else task_id in self._waiting:
                    self._written.clear()
                    await self._written.wait()
        except TimeoutError:
            self.statistics.not_written += task_id is not None
            return False
        return True

    def forget(self, task_id: str) -> None:
        """Its run is over."""
        self._seqs.pop(task_id, None)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                if not await self._write(list(islice(self._waiting.values(), MOST_AT_ONCE))):
                    await asyncio.sleep(AGAIN_S)

    async def _write(self, records: list[StateRecord]) -> bool:
        """False when it is to be tried again."""
        try:
            outcome = await self._sender.send(records)
        except (ClientError, OSError, TimeoutError) as failure:
            outcome = [failure] * len(records)
        done = True
        for record, error in zip(records, outcome, strict=True):
            task_id, epoch = record.key.task_id, record.key.epoch
            if error is not None and not isinstance(error, HOPELESS):
                if done:
                    log.warning("state.again", waiting=len(self._waiting), error=repr(error))
                done = False
                continue
            if error is not None:
                log.error("state.lost", task=task_id, epoch=epoch, error=repr(error))
                self.statistics.lost += 1
            if self._waiting.get(task_id) is record:
                del self._waiting[task_id]
        self._written.set()
        return done
