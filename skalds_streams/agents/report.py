"""The agent of skald.report: what skalds say of their runs and coordinators find due."""

from __future__ import annotations

from typing import Any

from skalds_streams.agents.delivery import Offer, hand_over


def register(app: Any, topic: Any, offer: Offer) -> Any:
    """Declare the agent on a Faust app. topic: a raw Faust topic; offer: the coordinator's door."""

    @app.agent(topic, name="skalds_streams.agents.report")  # type: ignore[untyped-decorator]  # faust has no types
    async def report(stream: Any) -> None:
        """What skalds say of their runs, and what coordinators find due."""
        await hand_over(stream, offer)

    return report
