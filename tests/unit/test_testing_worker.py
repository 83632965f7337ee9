"""The kit for people who write workers: what it says of a worker is what a node would, and nothing of a test's process
is worse for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import BaseModel, Field, SecretStr

from skalds_streams.testing.worker import (
    Applied,
    Failed,
    Finished,
    Refused,
    Running,
    Stopped,
    WorkerEnded,
    memory,
    worker_env,
)
from skalds_streams.worker import (
    BaseTaskWorker,
    NonRetryableError,
    release_handler,
    run_main_handler,
    update_event_handler,
)
from skalds_streams.worker.registry import NotLoadable

pytestmark = pytest.mark.anyio

WAIT_S = 60.0


class Params(BaseModel):
    fps: int = Field(1, ge=1)
    goal: int | None = None
    token: SecretStr = SecretStr("")
    fail: str = ""


class Cam(BaseTaskWorker[Params]):
    """Counts seconds of the loop's time."""

    def initialize(self, data: Params) -> None:
        if data.fail == "initialize":
            raise NonRetryableError("no such camera")
        self.params = data
        self.frame = (self.state or {}).get("frame", 0)
        self.began = self.frame
        self.calls: list[str] = []

    @run_main_handler
    async def main(self) -> None:
        self.logger.info("begun at %d", self.frame)
        while self.params.goal is None or self.frame < self.params.goal:
            await asyncio.sleep(1 / self.params.fps)
            self.frame += 1
            self.metric("frame", self.frame)
            self.save({"frame": self.frame})
            if self.params.fail == "main":
                raise ValueError(f"frame {self.frame} is broken")

    @update_event_handler
    async def change(self, data: Params) -> None:
        if data.fail == "slowly":
            await asyncio.sleep(5)
            raise ValueError("not now")
        self.params = data

    @release_handler
    def release(self) -> None:
        self.calls.append("release")


class Blocking(BaseTaskWorker[Params]):
    """The same, with a main that is no coroutine."""

    def initialize(self, data: Params) -> None:
        self.params = data
        self.frame = (self.state or {}).get("frame", 0)

    @run_main_handler
    def main(self) -> None:
        print("printed", self.params.fail)
        self.logger.info("begun at %d", self.frame)
        while self.params.goal is None or self.frame < self.params.goal:
            time.sleep(0.005)
            self.frame += 1
            self.metric("frame", self.frame)
            self.save({"frame": self.frame})
            if self.params.fail == "main":
                raise ValueError(f"frame {self.frame} is broken")

    @update_event_handler
    def change(self, data: Params) -> None:
        self.params = data

    @release_handler
    def release(self) -> None:
        self.save({"frame": self.frame, "released": True})


KINDS = [Cam, Blocking]


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio")}


def open_fds() -> set[str]:
    return {f"{entry.name} {entry.readlink()}" for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


@pytest.fixture(autouse=True)
async def nothing_is_left(anyio_backend: str) -> AsyncIterator[None]:
    """Threads and descriptors are the same after each test as before, and no process is left."""
    before, fds = threads(), open_fds()
    yield
    async with asyncio.timeout(WAIT_S):
        while threads() - before:  # noqa: ASYNC110  # threads have no event
            await asyncio.sleep(0.01)
    assert open_fds() == fds
    assert psutil.Process().children() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_whole_life(kind: type[BaseTaskWorker[Params]]) -> None:
    async with worker_env(kind, {"goal": 3}) as env:
        assert env.in_process == (kind is Blocking)
        assert await env.running() == Running(epoch=1, version=1)
        assert await env.ended() == Finished(epoch=1)
        assert env.reports == [Running(1, 1), Finished(1)]
        assert env.metrics == {"frame": 3.0}
        assert (env.saved or {})["frame"] == 3
        assert [line for line in env.log if "begun" in line] == [f"INFO worker.{kind.__name__}: begun at 0"]
        await env.restart()  # a finished task that is assigned again begins anew
        await env.ended()
        assert env.epoch == 2
        assert "begun at 0" in [line for line in env.log if "begun" in line][1]


async def test_time_jumps_and_the_test_sees_every_moment() -> None:
    async with worker_env(Cam) as env:
        await env.running()
        for frame in range(1, 400):
            await env.run_until(lambda frame=frame: env.worker.frame == frame)  # type: ignore[misc]
            assert env.time == pytest.approx(frame)
        await env.sleep(3600)
        assert env.worker.frame == pytest.approx(3999, abs=1)
        await asyncio.sleep(0.05)  # the test's own time moves nothing
        assert env.time == pytest.approx(3999)
    assert env.worker.calls == ["release"]


async def test_parameters_that_do_not_fit() -> None:
    async with worker_env(Cam, {"fps": 0}) as env:
        with pytest.raises(WorkerEnded, match="fps: Input should be greater"):
            await env.running()
        end = await env.ended()
        assert isinstance(end, Failed)
        assert (end.error.field, end.error.reason, end.retryable) == ("fps", "parameters", False)


@pytest.mark.parametrize("kind", KINDS)
async def test_updates(kind: type[BaseTaskWorker[Params]]) -> None:
    async with worker_env(kind) as env:
        await env.running()
        assert await env.update({"fps": 10}) == Applied(1, 2)
        refused = await env.update({"fps": 0})
        assert isinstance(refused, Refused)
        assert (refused.field, refused.version) == ("fps", 3)
        await env.restart()  # with what was accepted
        assert await env.update({"goal": 1}) == Applied(2, 4)
        await env.ended()
    assert isinstance(env.reports[-1], Finished)


async def test_an_update_costs_no_time_unless_its_handler_does() -> None:
    async with worker_env(Cam) as env:
        await env.running()
        await env.sleep(0.5)
        await env.update({"fps": 10})
        assert env.time == 0.5
        refused = await env.update({"fail": "slowly"})
        assert isinstance(refused, Refused)
        assert (refused.error.type, refused.error.message) == ("ValueError", "not now")
        assert env.time == pytest.approx(5.5)
        assert env.worker.params.fps == 10


@pytest.mark.parametrize("kind", KINDS)
async def test_a_crash_keeps_what_was_sent_and_runs_nothing(kind: type[BaseTaskWorker[Params]]) -> None:
    async with worker_env(kind) as env:
        await env.run_until(lambda: env.saved)
        crash = await env.crash()
        assert (crash.error.reason, crash.retryable) == ("signal", True)
        survived = env.saved
        assert survived is not None
        assert "released" not in survived
        await env.restart()
        assert (await env.running()).epoch == 2
        await env.run_until(lambda: len([line for line in env.log if "begun at" in line]) == 2)
        assert f"begun at {survived['frame']}" in env.log[-1]


async def test_what_a_crash_loses_is_at_most_a_second() -> None:
    async with worker_env(Cam, {"fps": 5}) as env:
        await env.run_until(lambda: env.worker.frame == 1)
        assert env.saved == {"frame": 1}  # the first goes out at once
        await env.sleep(0.7)
        assert env.worker.frame == 4
        assert env.saved == {"frame": 1}
        await env.sleep(0.35)
        assert env.saved == {"frame": 5}  # what was there when the second was over
        await env.sleep(0.5)
        worker = env.worker
        await env.crash()
        assert worker.calls == []
        await env.restart()
        await env.running()
        assert env.worker.began == 5


async def test_a_state_of_a_former_run() -> None:
    async with worker_env(Cam, state={"frame": 7}) as env:
        await env.running()
        assert (env.worker.began, env.epoch) == (7, 2)


@pytest.mark.parametrize("kind", KINDS)
async def test_ways_to_stop(kind: type[BaseTaskWorker[Params]]) -> None:
    async with worker_env(kind) as env:
        await env.run_until(lambda: env.saved)
        assert await env.pause() == Stopped(1, "pause")
        frame = (env.saved or {})["frame"]
        await env.restart()
        await env.running()
        assert await env.lose_lease() == Stopped(2, "the lease has lapsed")
        assert (env.saved or {})["frame"] >= frame > 0
        await env.restart()
        await env.running()
        assert await env.cancel() == Stopped(3, "cancel")
        with pytest.raises(WorkerEnded, match="has ended: Stopped"):
            await env.update({"fps": 2})
        seen = len(env.log)
        await env.restart()
        begun = await env.run_until(lambda: [line for line in env.log[seen:] if "begun at" in line])
        assert "begun at 0" in begun[0]


async def test_a_class_that_keeps_running_has_no_lease_to_lose() -> None:
    class Keeping(Cam):
        on_disconnect = "keep"

    async with worker_env(Keeping) as env:
        await env.running()
        with pytest.raises(RuntimeError, match="keep"):
            await env.lose_lease()


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_of_the_worker_is_in_the_test_s(kind: type[BaseTaskWorker[Params]]) -> None:
    async with worker_env(kind, {"fail": "main"}) as env:
        with pytest.raises(WorkerEnded) as caught:
            await env.run_until(lambda: env.metrics.get("frame") == 99)
        text = str(caught.value)
        assert 'raise ValueError(f"frame {self.frame} is broken")' in text
        assert "ValueError: frame 1 is broken" in text
        assert "begun at 0" in text


async def test_what_can_not_be_helped_ends_for_good() -> None:
    async with worker_env(Cam, {"fail": "initialize"}) as env:
        end = await env.ended()
        assert isinstance(end, Failed)
        assert (end.error.type, end.retryable) == ("NonRetryableError", False)


async def test_waiting_for_what_never_comes_ends_and_says_where_main_is() -> None:
    class Stuck(Cam):
        @run_main_handler
        async def wait(self) -> None:
            await asyncio.Event().wait()

    async with worker_env(Stuck) as env:
        with pytest.raises(WorkerEnded, match=r"(?s)goes on.*in wait"):
            await env.run_until(lambda: False, within_s=float("inf"))
    assert env.reports[-1] == Stopped(1, "cancel")


async def test_a_worker_that_hangs_in_its_release_is_ended_within_its_budget() -> None:
    class Hanging(Cam):
        @release_handler
        async def hang(self) -> None:
            self.calls.append("hangs")
            try:
                await asyncio.sleep(3600)
            finally:
                self.calls.append("finally")

    env = worker_env(Hanging)
    await env.running()
    worker, began = env.worker, env.time
    end = await env.cancel()
    assert end == Stopped(1, "cancel", ("SIGTERM after 5 s", "SIGKILL after 2 s"))
    assert env.time == pytest.approx(began + 7)
    assert worker.calls == ["hangs"]
    await env.close()


async def test_one_that_hangs_in_another_process_is_killed() -> None:
    class Hanging(Blocking):
        release_s = terminate_s = 0.2

        @release_handler
        def hang(self) -> None:
            while True:
                time.sleep(WAIT_S)

    async with worker_env(Hanging) as env:
        await env.running()
        assert await env.cancel() == Stopped(1, "cancel", ("SIGTERM after 0.2 s", "SIGKILL after 0.2 s"))


async def test_code_that_is_busy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BUSY_LEAST_S", 0.1)

    class Busy(Cam):
        release_s = terminate_s = 0.1

        @release_handler
        def spin(self) -> None:
            while True:
                pass

    async with worker_env(Busy) as env:
        await env.running()
        assert await env.cancel() == Stopped(1, "cancel", ("SIGTERM after 0.1 s", "SIGKILL after 0.1 s"))


async def test_real_io_takes_real_time() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        await asyncio.sleep(0.1)
        writer.write(b"hello\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]

    class Client(Cam):
        @run_main_handler
        async def ask(self) -> None:
            async with asyncio.timeout(30):  # a jump would end it
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"hi\n")
                self.save({"answer": (await reader.readline()).decode()})
                writer.close()
                await writer.wait_closed()
            self.save({**(self.state or {}), "slow": await asyncio.to_thread(self.compute)})

        def compute(self) -> str:
            time.sleep(0.05)
            return "computed"

    async with server, worker_env(Client) as env:
        await env.run_until(lambda: (env.saved or {}).get("answer") == "hello\n")
        assert await env.ended() == Finished(1)
        assert env.saved == {"slow": "computed"}


async def test_secrets_are_resolved_and_kept_out_of_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret-value")

    class Telling(Cam):
        @run_main_handler
        async def tell(self) -> None:
            raise ValueError(self.params.token.get_secret_value())

    async with worker_env(Telling, {"token": 'secret("env:SECRET_TOKEN")'}) as env:
        end = await env.ended()
        assert isinstance(end, Failed)
        assert (end.error.message, "s3cret" in str(end.error)) == ("***", False)
    async with worker_env(Telling, {"token": 'secret("env:HOME")'}) as env:
        end = await env.ended()
        assert isinstance(end, Failed)
        assert (end.error.type, end.error.field) == ("UnresolvedSecretError", "token")


async def test_a_program_of_the_worker_ends_with_it() -> None:
    class Spawning(Blocking):
        @run_main_handler
        def main(self) -> None:
            child = self.spawn(["sleep", "600"])
            self.save({"pid": child.pid})
            child.wait()

    class SpawningAsync(Spawning):
        @run_main_handler
        async def main(self) -> None:  # type: ignore[override]
            child: subprocess.Popen[Any] = self.spawn(["sleep", "600"])
            self.save({"pid": child.pid})
            await asyncio.Event().wait()

    for kind in (Spawning, SpawningAsync):
        async with worker_env(kind) as env:
            await env.run_until(lambda: env.saved)
            pid = (env.saved or {})["pid"]
            os.kill(pid, 0)
            await env.crash()
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def test_without_a_loop() -> None:
    with worker_env(Cam, {"fps": 5}) as env:
        env.running()
        env.run_until(lambda: env.worker.frame == 3)
        assert env.time == pytest.approx(0.6)
        assert isinstance(env.update({"fps": 1}), Applied)
        env.crash()
        env.restart()
        env.running()
        env.sleep(1)
        assert env.pause() == Stopped(2, "pause")
        assert env.metrics
    with worker_env(Blocking, {"goal": 2}) as other:
        assert other.ended() == Finished(1)


def test_a_class_that_can_not_run_is_told_at_once() -> None:
    class NoMain(BaseTaskWorker[Params]):
        def initialize(self, data: Params) -> None: ...

    with pytest.raises(NotLoadable, match="run_main_handler"):
        worker_env(NoMain)
    with pytest.raises(ValueError, match="not async"):
        worker_env(Blocking, process=False)


async def test_a_worker_that_is_async_in_a_process_of_its_own() -> None:
    async with worker_env(Cam, {"fps": 1000}, process=True) as env:
        await env.run_until(lambda: env.saved)
        assert await env.pause() == Stopped(1, "pause")
        with pytest.raises(RuntimeError, match="process of its own"):
            _ = env.worker


async def test_the_test_s_process_stays_as_it_was() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGRTMIN + 4)}
    logger = logging.getLogger("worker.Cam")
    before = (logger.level, list(logger.handlers), list(logging.root.handlers))
    async with worker_env(Cam) as one, worker_env(Blocking) as other:
        await one.running()
        await other.running()
    assert handlers == {number: signal.getsignal(number) for number in handlers}
    assert before == (logger.level, list(logger.handlers), list(logging.root.handlers))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begun", [True, False])
def test_what_a_test_left_running_is_killed(kind: type[BaseTaskWorker[Params]], begun: bool) -> None:
    env = worker_env(kind)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(env.running() if begun else env.start())
    env.abandon()
    loop.close()
    assert not any(isinstance(report, Finished) for report in env.reports)


def test_a_loop_that_ends_ends_the_worker() -> None:
    for kind in KINDS:
        env = worker_env(kind)
        asyncio.run(env.running())
        env.abandon()


class SharedCam(Cam):
    """In a cluster it would share its host."""

    isolation = "shared"


async def test_a_worker_that_shares_hosts_runs_in_memory_or_alone_in_one() -> None:
    async with worker_env(SharedCam, {"fps": 10}) as env:
        await env.sleep(1)
        assert not env.in_process
        assert env.metrics["frame"] == 9 or env.metrics["frame"] == 10
    async with worker_env(SharedCam, {"fps": 100}, process=True) as env:
        await env.running()
        assert isinstance(await env.update({"fps": 50}), Applied)
        assert isinstance(await env.update({"fps": 0}), Refused)
        await env.run_until(lambda: env.saved)
        assert isinstance(await env.crash(), Failed)
        await env.restart()
        await env.run_until(lambda: "INFO worker.SharedCam: begun at" in " ".join(env.log[-1:]))
        assert isinstance(await env.pause(), Stopped)
        await env.restart()
        assert isinstance(await env.cancel(), Stopped)
