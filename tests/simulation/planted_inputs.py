"""Bugs to be planted into how a journal meets its inputs: records that fit nowhere, are left out, or are deleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from skalds_streams.coordinator import batch, journal
from skalds_streams.errors import JournalError
from tests.simulation.planting import planted

# -- records that are too large


@planted
def a_whole_batch_is_condemned() -> Iterator[None]:
    """Not the one record that can't be written, but all that came with it."""

    def suspect(self: Any, batch_size: int, error: Exception) -> None:
        self._tries += 1
        if self._tries >= journal.TRIES_BEFORE_HALVING and isinstance(error, journal.OF_THE_RECORD):
            self._poison = f"can't be written: {error!r}"

    def stage(self: Any, deliveries: Any) -> Any:
        if not self._poison:
            return real(self, deliveries)
        staged = batch.Staged()
        for delivery in deliveries:
            one = self._condemned(delivery.record)
            staged.offsets |= one.offsets
            staged.deadletters += one.deadletters
            staged.records += 1
        return staged

    real = journal.Journal._stage
    with (
        patch.object(journal.Journal, "_suspect", suspect),
        patch.object(journal.Journal, "_stage", stage),
        patch.object(journal.Journal, "_batch", lambda self: list(self._pending)[: self._limit]),
    ):
        yield


@planted
def neighbours_of_the_condemned_are_skipped() -> Iterator[None]:
    """The position goes on behind all that was waiting with it."""

    def condemned(self: Any, record: Any) -> Any:
        staged = real(self, record)
        for delivery in self._pending:
            topic = delivery.record.topic
            staged.offsets[topic] = max(staged.offsets.get(topic, -1), delivery.record.offset)
        return staged

    real = journal.Journal._condemned
    with patch.object(journal.Journal, "_condemned", condemned):
        yield


@planted
def nothing_is_condemned() -> Iterator[None]:
    """What can't be written is tried for ever."""

    def suspect(self: Any, batch_size: int, error: Exception) -> None:
        real(self, batch_size, TimeoutError())

    real = journal.Journal._suspect
    with patch.object(journal.Journal, "_suspect", suspect):
        yield


@planted
def a_condemned_record_is_not_cut() -> Iterator[None]:
    with patch.object(batch, "cut", lambda record: record):
        yield


# -- what Faust leaves out, and what the broker deletes


@planted
def gaps_are_not_filled() -> Iterator[None]:
    """Was in the product: a position that passes what Faust has dropped."""

    async def fill(self: Any) -> bool:
        return False

    with patch.object(journal.Journal, "_fill", fill):
        yield


@planted
def silent_inputs_are_not_looked_at() -> Iterator[None]:
    async def recover(self: Any, topic: str, end: int) -> None:
        return None

    with patch.object(journal.Journal, "recover", recover):
        yield


@planted
def only_the_first_piece_of_a_gap_is_read() -> Iterator[None]:
    """What is longer than one reading counts as filled."""

    async def fill(self: Any) -> bool:
        await real(self)
        return False

    async def fetch(self: Any, topic: str, begin: int, end: int) -> Any:
        return (await real_fetch(self, topic, begin, end))[:1]

    real, real_fetch = journal.Journal._fill, journal.Journal._fetch
    with patch.object(journal.Journal, "_fill", fill), patch.object(journal.Journal, "_fetch", fetch):
        yield


@planted
def deleted_records_are_waited_for() -> Iterator[None]:
    """What the broker has deleted is taken for what can't be read just now."""

    async def fetch(self: Any, topic: str, begin: int, end: int) -> Any:
        found = await real(self, topic, begin, end)
        if not found:
            self._empty_to.pop(topic, None)
            raise JournalError("nothing to read")
        return found

    real = journal.Journal._fetch
    with patch.object(journal.Journal, "_fetch", fetch):
        yield
