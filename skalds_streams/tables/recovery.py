"""Tells Faust that there is never anything to recover: each journal reads its partition itself when it opens.

Without this Faust waits for the last offset of the changelog. That is a transaction's marker, which no consumer is
ever given, so a partition that was kept through a rebalance would hold up every other for ever.
"""

from __future__ import annotations

from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery


class JournalRecovery(Recovery):  # type: ignore[misc]  # faust has no types that mypy can follow
    """Faust's recovery service, with nothing to do."""

    def need_recovery(self) -> bool:
        return False

    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        """Stop the flow while the inputs are sought. Faust has let it go by now, and of the records that it reads
        meanwhile, from wherever it stood, it would drop some.
        """
        self.app.consumer.stop_flow()
        self.app.flow_control.suspend()
        await super().on_recovery_completed(generation_id)


class JournalTableManager(TableManager):  # type: ignore[misc]  # faust has no types that mypy can follow
    """Faust's table manager with our recovery, and without its second of waiting for further tables: there are none."""

    _recovery: JournalRecovery | None = None

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()

    @property
    def recovery(self) -> JournalRecovery:
        if self._recovery is None:
            self._recovery = JournalRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery
