"""Faust's consumer, reading from the journals' positions: what counts is what is applied, not what is committed.

The two differ when a process dies between its last transaction and Faust's next commit, or when somebody resets the
group's offsets. Reading from the position spares the records in between; a group offset that is ahead can't skip any.
"""

from __future__ import annotations

from typing import Any

from faust.transport.drivers.aiokafka import Consumer


class PositionedConsumer(Consumer):  # type: ignore[misc]  # faust has no types that mypy can follow
    """`app.start_offset(tp)` says where a partition begins; None leaves it at the group's offset."""

    async def perform_seek(self) -> None:
        await super().perform_seek()
        app: Any = self.app
        offsets = {tp: app.start_offset(tp) for tp in self.assignment()}
        begins = {tp: offset for tp, offset in offsets.items() if offset is not None}
        # Only where it differs, as a fetch that is under way from elsewhere holds up the next one for 1.5 s. And in the
        # consumer's own thread, as a plain `seek` from here would not wake its loop.
        await self.seek_wait({tp: offset for tp, offset in begins.items() if await self.position(tp) != offset})
        for tp, offset in begins.items():
            self._read_offset[tp] = offset or None
            # What is acknowledged next follows on this, as far as Faust's search for gaps is concerned.
            self._committed_offset[tp] = offset or None
