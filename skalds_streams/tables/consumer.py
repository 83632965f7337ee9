"""Faust's consumer, reading from the journals' positions: what counts is what is applied, not what is committed.

The two differ when a process dies between its last transaction and Faust's next commit, or when somebody resets the
group's offsets. Reading from the position spares the records in between; a group offset that is ahead can't skip any.
"""

from __future__ import annotations

from typing import Any

from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP


class PositionedConsumer(Consumer):  # type: ignore[misc]  # faust has no types that mypy can follow
    """`app.start_offset(tp)` says where a partition begins; None leaves it at the group's offset."""

    async def perform_seek(self) -> None:
        await super().perform_seek()
        app: Any = self.app
        for tp in self.assignment():
            offset = app.start_offset(TP(tp.topic, tp.partition))
            if offset is not None:
                await self.seek(tp, offset)
                # What is acknowledged next follows on this, as far as Faust's search for gaps is concerned.
                self._committed_offset[TP(tp.topic, tp.partition)] = offset or None
