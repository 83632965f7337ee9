"""An admin client that asks the next broker when one is dead.

aiokafka's asks one broker at random, once. Of three brokers one that has just died stands in the metadata of the others
until its session ends (9 s by default), so a node that starts meanwhile would fail every third time.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    KafkaConnectionError,
    NodeNotReadyError,
    NotControllerError,
    RequestTimedOutError,
    StaleMetadata,
)

DEAD = (NodeNotReadyError, KafkaConnectionError, RequestTimedOutError, StaleMetadata)
"""What a request to a broker that is gone, or hangs, ends with."""


class Admin(AIOKafkaAdminClient):  # type: ignore[misc]  # the library has no types
    """As its base, but a request that any broker can answer is put to all of them before it fails.

    Raises the last broker's error, one of `DEAD`.
    """

    async def _send_request(self, request: Any, node_id: int | None = None) -> Any:
        """With a node_id the request is for that broker and for no other."""
        if node_id is not None:
            return await self._client.send(node_id, request)
        ids = [broker.nodeId for broker in self._client.cluster.brokers()]
        failed: Exception = NodeNotReadyError("no broker is known")
        for chosen in random.sample(ids, len(ids)):
            try:
                return await self._client.send(chosen, request)
            except DEAD as error:
                failed = error
        raise failed

    async def _send_to_controller(self, request: Any) -> Any:
        """The base waits for a dead controller until the request times out, without asking who it is now.

        Raises TimeoutError when nobody answered as the controller for as long as a request may take.
        """
        async with asyncio.timeout(self._request_timeout_ms / 1000):
            while True:
                controller = self._client.cluster.controller
                try:
                    if controller is not None:
                        return await self._client.send(controller.nodeId, request)
                except (*DEAD, NotControllerError):
                    await asyncio.sleep(self._client._retry_backoff)
                await self._client.force_metadata_update()
