"""The agent of task.update.attachment: changes parameters while a task runs."""

from __future__ import annotations

from typing import Any

from skalds_streams.agents.delivery import Offer, hand_over


def register(app: Any, topic: Any, offer: Offer) -> Any:
    """Declare the agent on a Faust app. topic: a raw Faust topic; offer: the coordinator's door."""

    @app.agent(topic, name="skalds_streams.agents.update_attachment")  # type: ignore[untyped-decorator]  # faust has no types
    async def update_attachment(stream: Any) -> None:
        """Change parameters while a task runs."""
        await hand_over(stream, offer)

    return update_attachment
