"""Faust's consumer, reading from the journals' positions: what counts is what is applied, not what is committed.

The two differ when a process dies between its last transaction and Faust's next commit, or when somebody resets the
group's offsets. Reading from the position spares the records in between; a group offset that is ahead can't skip any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from typing import Any

import structlog
from aiokafka.client import ConnectionGroup
from aiokafka.errors import KafkaError as ClientError
from aiokafka.protocol.group import LeaveGroupRequest
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, ConsumerRebalanceListener

LEAVE_S = 1.0
"""How long a consumer that stops waits for the group."""

log = structlog.get_logger(__name__)


class GuardedListener(ConsumerRebalanceListener):  # type: ignore[misc]  # faust has no types that mypy can follow
    """Asks `app.may_rejoin()` before a member that the group has given up joins it again.

    Where two processes have one instance id, each join gives the other up, and they would take turns for ever.
    """

    _was_member = False

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> Awaitable[None]:
        return self._revoke(super().on_partitions_revoked(revoked))

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._was_member = True
        await super().on_partitions_assigned(assigned)

    async def _revoke(self, revoking: Awaitable[None]) -> None:
        await revoking
        coordinator = self._thread._ensure_consumer()._coordinator
        if self._was_member and not coordinator.member_id:
            app: Any = self._thread.app
            asked = asyncio.run_coroutine_threadsafe(app.may_rejoin(), app.loop)
            if not await asyncio.wrap_future(asked):
                log.warning("group.not_joined_again")
                coordinator._max_poll_interval = -1.0  # one that has not polled for so long does not join


class LeavingThread(AIOKafkaConsumerThread):  # type: ignore[misc]  # faust has no types that mypy can follow
    """Leaves also while the group rebalances. aiokafka waits for the answer to a request to join before it leaves, and
    the broker for members that are frozen, or gone without a word.
    """

    async def on_thread_stop(self) -> None:
        pushing = asyncio.create_task(self._push())
        try:
            await super().on_thread_stop()
        finally:
            pushing.cancel()

    async def _push(self) -> None:
        """Say that we leave by another connection, and close the one that waits."""
        await asyncio.sleep(LEAVE_S)
        coordinator = getattr(self._consumer, "_coordinator", None)
        node = getattr(coordinator, "coordinator_id", None)
        if coordinator is None or node is None:
            return
        log.info("group.left_in_a_rebalance")
        client = coordinator._client
        with suppress(ClientError, TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                if coordinator.member_id:
                    await client.send(node, LeaveGroupRequest(coordinator.group_id, coordinator.member_id))
        waiting = client._conns.get((node, ConnectionGroup.COORDINATION))
        if waiting is not None:
            waiting.close()


class PositionedConsumer(Consumer):  # type: ignore[misc]  # faust has no types that mypy can follow
    """`app.may_rejoin()` says whether to join again; `app.start_offset(tp)` says where a partition begins; None leaves it at the group's offset."""

    RebalanceListener = GuardedListener

    def _new_consumer_thread(self) -> LeavingThread:
        return LeavingThread(self, loop=self.loop, beacon=self.beacon)

    def verify_event_path(self, now: float, tp: Any) -> None:
        """Complain of a partition that is not read on, but not of the changelog: it is the journals that read that."""
        if tp.topic not in self.app.tables.changelog_topics:
            super().verify_event_path(now, tp)

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
