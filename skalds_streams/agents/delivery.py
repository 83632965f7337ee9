"""From a Faust event to what the coordinator takes.

An agent never raises: what a record says is judged in the journal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from skalds_streams.coordinator.journal import Delivery
from skalds_streams.model.record import Record

Offer = Callable[[Delivery], Awaitable[None]]


def delivery_of(event: Any) -> Delivery:
    """event: a faust.Event of a raw topic, from a stream without automatic acks."""
    message = event.message
    headers = message.headers.items() if isinstance(message.headers, dict) else message.headers or ()
    record = Record(
        message.topic,
        message.partition,
        message.offset,
        message.key,
        message.value,
        round(message.timestamp * 1000),
        tuple(headers),
    )
    return Delivery(record, event.ack, partial(event.app.consumer.unacked.discard, message))


async def hand_over(stream: Any, offer: Offer) -> None:
    """Give every record of the stream to its journal. Acknowledged there, in order, after the commit."""
    async for event in stream.noack().events():
        await offer(delivery_of(event))
