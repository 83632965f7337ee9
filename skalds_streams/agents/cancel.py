"""The agent of task.cancel: ends tasks."""

from __future__ import annotations

from typing import Any

from skalds_streams.agents.delivery import Offer, hand_over


def register(app: Any, topic: Any, offer: Offer) -> Any:
    """Declare the agent on a Faust app. topic: a raw Faust topic; offer: the coordinator's door."""

    @app.agent(topic, name="skalds_streams.agents.cancel")  # type: ignore[untyped-decorator]  # faust has no types
    async def cancel(stream: Any) -> None:
        """End tasks."""
        await hand_over(stream, offer)

    return cancel
