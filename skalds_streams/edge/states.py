"""What the workers of a node without Kafka save: kept for their next runs, as long as this process lives."""

from __future__ import annotations

from collections.abc import Callable

from skalds_streams.model.saved import Saved, StateKey


class LocalStates:
    """A `skald.states.TaskStates`."""

    def __init__(self, skald_id: str, now_ms: Callable[[], int]) -> None:
        self._skald_id, self._now_ms = skald_id, now_ms
        self._saved: dict[str, Saved] = {}

    async def find(self, task_id: str, first_epoch: int) -> Saved | None:
        saved = self._saved.get(task_id)
        if saved is None or saved.key.epoch >= first_epoch:
            return saved
        del self._saved[task_id]  # of a former assign: it never counts again
        return None

    def save(self, task_id: str, epoch: int, text: str) -> None:
        before = self._saved.get(task_id)
        key = StateKey(task_id, epoch)
        if before is None or before.key.epoch <= epoch:
            seq = before.seq + 1 if before is not None and before.key == key else 1
            self._saved[task_id] = Saved(key, seq, self._now_ms(), self._skald_id, text)

    async def flush(self, task_id: str | None, timeout_s: float) -> bool:
        return True

    def forget(self, task_id: str) -> None:
        """What it has saved is for its next run."""
