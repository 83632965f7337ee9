"""A worker's handle for tests that are no coroutines: the same methods, and each returns when it is done.

    def test_it_finishes() -> None:
        with worker_env(Import, {"lines": 3}) as env:
            assert isinstance(env.ended(), Finished)

Between two calls nothing is taken in from the worker; one in a process of its own goes on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from skalds_streams.testing.worker.reports import Applied, Failed, Finished, Refused, Report, Running, Stopped
from skalds_streams.worker.baseclass import BaseTaskWorker

if TYPE_CHECKING:
    from skalds_streams.testing.worker.env import WorkerEnv

WorkerT = TypeVar("WorkerT", bound=BaseTaskWorker[Any])
FoundT = TypeVar("FoundT")


class BlockingEnv(Generic[WorkerT]):
    """Made by `with worker_env(…) as env`. What each method and property is, says WorkerEnv."""

    def __init__(self, env: WorkerEnv[WorkerT]) -> None:
        self._env = env
        self._runner = asyncio.Runner()

    @property
    def epoch(self) -> int:
        return self._env.epoch

    @property
    def reports(self) -> list[Report]:
        return self._env.reports

    @property
    def is_over(self) -> bool:
        return self._env.is_over

    @property
    def time(self) -> float:
        return self._env.time

    @property
    def worker(self) -> WorkerT:
        return self._env.worker

    @property
    def metrics(self) -> dict[str, float | None]:
        return self._env.metrics

    @property
    def saved(self) -> dict[str, Any] | None:
        return self._env.saved

    @property
    def log(self) -> list[str]:
        return self._env.log

    def start(self) -> None:
        self._runner.run(self._env.start())

    def running(self, within_s: float | None = None) -> Running:
        return self._runner.run(self._env.running(within_s))

    def ended(self, within_s: float | None = None) -> Finished | Failed | Stopped:
        return self._runner.run(self._env.ended(within_s))

    def run_until(self, condition: Callable[[], FoundT | None], within_s: float | None = None) -> FoundT:
        return self._runner.run(self._env.run_until(condition, within_s))

    def sleep(self, seconds: float) -> None:
        self._runner.run(self._env.sleep(seconds))

    def update(self, params: Mapping[str, Any], *, merge: bool = True) -> Applied | Refused:
        return self._runner.run(self._env.update(params, merge=merge))

    def cancel(self) -> Finished | Failed | Stopped:
        return self._runner.run(self._env.cancel())

    def pause(self) -> Finished | Failed | Stopped:
        return self._runner.run(self._env.pause())

    def lose_lease(self) -> Finished | Failed | Stopped:
        return self._runner.run(self._env.lose_lease())

    def crash(self) -> Failed:
        return self._runner.run(self._env.crash())

    def restart(self) -> None:
        self._runner.run(self._env.restart())

    def close(self) -> None:
        """Stop what runs, and let go of everything."""
        try:
            self._runner.run(self._env.close())
        finally:
            self._runner.close()
