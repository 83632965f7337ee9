"""For people who write workers: runs one worker in a test, without Kafka, through the real life of a run.

    async def test_it_takes_another_rate() -> None:
        async with worker_env(Cam, {"fps": 5}) as env:
            await env.running()
            assert isinstance(await env.update({"fps": 10}), Applied)

A worker whose main is `async def` runs in the test's process on virtual time (`memory`, `clock`), any other in a
process of its own that is forked from the test's (`process`). What a node does is done by its own code: the run
(`worker.run`), its budgets and reports (`skald.actor`), the host's process (`worker.host`, `worker.reaper`). `env` has
the handle, `blocking` the same for tests without a loop, `reports` what a run says, `node` what an actor asks of its
node. The pytest fixtures are in `skalds_streams.testing.plugin`; docs/testing.md is the manual.
"""

from skalds_streams.testing.worker.blocking import BlockingEnv
from skalds_streams.testing.worker.env import WorkerEnded, WorkerEnv, worker_env
from skalds_streams.testing.worker.reports import Applied, Error, Failed, Finished, Refused, Report, Running, Stopped

__all__ = [
    "Applied",
    "BlockingEnv",
    "Error",
    "Failed",
    "Finished",
    "Refused",
    "Report",
    "Running",
    "Stopped",
    "WorkerEnded",
    "WorkerEnv",
    "worker_env",
]
