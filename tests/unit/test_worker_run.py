"""One run in this process, of either kind: the order of the hooks, errors, stops, updates. Real processes:
integration/test_hosts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from skalds_streams.worker import (
    BaseTaskWorker,
    NonRetryableError,
    release_handler,
    run_after_handler,
    run_before_handler,
    run_main_handler,
    update_event_handler,
)
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.registry import WorkerClass, aliases_of
from skalds_streams.worker.run import Run
from skalds_streams.worker.secrets import SecretPolicy, Secrets
from skalds_streams.worker.shared_run import SharedRun
from skalds_streams.worker.steps import MARKER_BYTES, Marker, SharedLoop
from skalds_streams.worker.stopper import STOP_SIGNAL, Stopper

ANSWER_S = 10.0


class Place(BaseModel):
    row: int = 0


class Params(BaseModel):
    fix_frame: int = Field(30, alias="fixFrame", ge=1)
    place: Place = Field(default_factory=Place)


class Stage:
    """Plays runs and keeps what was called and what was sent. kind: "process" or "shared"."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.calls: list[Any] = []
        self.sent: list[Frame] = []
        self.answered = threading.Event()
        self.stopper = Stopper()
        self.run: Run | SharedRun | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def play(
        self,
        worker_type: type[BaseTaskWorker[Any]],
        attachments: dict[str, Any] | None = None,
        state: str | None = None,
    ) -> Frame:
        model = worker_type.get_data_model()
        described = WorkerClass(
            worker_type=worker_type,
            model=model,
            schema={},
            aliases=aliases_of(model),
            release_s=5.0,
            terminate_s=2.0,
        )
        frame = {"task_id": "t1", "epoch": 3, "attachments": attachments, "version": 1, "state": state}
        if self.kind == "shared":
            return self._play_shared(described, {**frame, "number": 1})
        self.run = run = Run(described, frame, send=self._send, stopper=self.stopper)
        return run.execute()

    def _play_shared(self, described: WorkerClass, frame: Frame) -> Frame:
        fd = os.memfd_create("marker")
        os.ftruncate(fd, MARKER_BYTES)
        marker = Marker(fd)
        os.close(fd)
        secrets = Secrets(SecretPolicy(), described.secret)

        async def play() -> Frame:
            self.loop = asyncio.get_running_loop()
            ended: asyncio.Future[Frame] = self.loop.create_future()
            self.run = run = SharedRun(described, frame, send=self._send, secrets=secrets, ring=id, output=None)
            was_asked, self.stopper = self.stopper.requested, run._stopper
            if was_asked:
                run.stop()
            run.begin(lambda _run, last: ended.set_result(last))
            async with asyncio.timeout(10 * ANSWER_S):
                last = await ended
            assert not run.tasks, "nothing of it is left"
            return last

        loop = SharedLoop(marker)
        try:
            return loop.run_until_complete(play())
        finally:
            assert marker.read() == (0, 0.0)
            loop.close()
            marker.close()

    def update(self, **attachments: Any) -> None:
        """From within main, and beside the loop if it is shared: ask, and wait for the answer."""
        self.answered.clear()
        self.ask(attachments)
        assert self.answered.wait(ANSWER_S)

    def ask(self, attachments: dict[str, Any]) -> None:
        """Ask for an update, from any thread."""
        assert self.run is not None
        frame = {"op": "update", "version": 2, "attachments": attachments}
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.run.update, frame)
        else:
            self.run.update(frame)

    @property
    def ops(self) -> list[str]:
        return [frame["op"] for frame in self.sent]

    def _send(self, frame: Frame) -> None:
        self.sent.append(frame)
        if frame["op"] in ("applied", "refused"):
            self.answered.set()


only_process = pytest.mark.parametrize("stage", ["process"], indirect=True)
"""What has no other like in a shared host: code that is not async, and signals."""


@pytest.fixture(params=["process", "shared"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, STOP_SIGNAL)}
    stage = Stage(request.param)
    stage.stopper.install()
    yield stage
    for signum, handler in before.items():
        signal.signal(signum, handler)


def worker_of(stage: Stage, **methods: Callable[..., Any]) -> type[BaseTaskWorker[Params]]:
    """A worker whose hooks note that they were called, and then do what is asked."""

    def also(name: str, *args: object) -> None:
        if name in methods:
            methods[name](*args)

    class Noting(BaseTaskWorker[Params]):
        def initialize(self, data: Params) -> None:
            stage.calls.append("initialize")
            also("initialize", self, data)

        @run_before_handler
        def before(self) -> None:
            stage.calls.append("before")
            also("before", self)

        @run_main_handler
        def main(self) -> None:
            stage.calls.append("main")
            also("main", self)

        @run_after_handler
        def after(self) -> None:
            stage.calls.append(("after", self.is_done))
            also("after", self)

        @release_handler
        def release(self, *args: object) -> None:
            stage.calls.append(("release", *args))
            also("release", self)

    return Noting


def test_hooks_run_in_order(stage: Stage) -> None:
    assert stage.play(worker_of(stage)) == {"op": "finished"}
    assert stage.calls == ["initialize", "before", "main", ("after", True), ("release",)]
    assert stage.sent == [{"op": "running", "version": 1}]


def test_async_hooks_run_in_order_on_one_loop(stage: Stage) -> None:
    loops = set()

    def note(what: str) -> None:
        stage.calls.append(what)
        loops.add(asyncio.get_running_loop())

    class Async(BaseTaskWorker[Params]):
        async def initialize(self, data: Params) -> None:
            note("initialize")

        @run_before_handler
        async def before(self) -> None:
            note("before")

        @run_main_handler
        async def main(self) -> None:
            await asyncio.sleep(0)
            note("main")

        @run_after_handler
        async def after(self) -> None:
            note("after")

        @release_handler
        async def release(self) -> None:
            note("release")

    assert stage.play(Async) == {"op": "finished"}
    assert stage.calls == ["initialize", "before", "main", "after", "release"]
    assert len(loops) == 1


def test_running_is_sent_when_main_begins(stage: Stage) -> None:
    sent_at: dict[str, list[str]] = {}
    worker = worker_of(
        stage,
        before=lambda _: sent_at.update(before=stage.ops),
        main=lambda _: sent_at.update(main=stage.ops),
    )
    stage.play(worker)
    assert sent_at == {"before": [], "main": ["running"]}


def fail(error: BaseException) -> Callable[..., None]:
    def raise_it(*_: object) -> None:
        raise error

    return raise_it


@pytest.mark.parametrize(
    ("where", "calls", "sent"),
    [
        ("initialize", ["initialize", ("release",)], []),
        ("before", ["initialize", "before", ("release",)], []),
        ("main", ["initialize", "before", "main", ("release",)], ["running"]),
    ],
)
def test_an_error_before_the_end_of_main_fails_the_run(
    stage: Stage, where: str, calls: list[Any], sent: list[str]
) -> None:
    last = stage.play(worker_of(stage, **{where: fail(ValueError("bad {frame}"))}))

    assert (last["op"], last["retryable"]) == ("failed", True)
    assert (last["error"]["type"], last["error"]["message"]) == ("ValueError", "bad {frame}")
    assert last["error"]["traceback"][-1] == "ValueError: bad {frame}"
    assert "skalds_streams/worker" not in "".join(last["error"]["traceback"])
    assert (stage.calls, stage.ops) == (calls, sent)


@pytest.mark.parametrize("where", ["initialize", "before", "main"])
def test_a_non_retryable_error_says_so(stage: Stage, where: str) -> None:
    last = stage.play(worker_of(stage, **{where: fail(NonRetryableError("no such camera"))}))
    assert (last["op"], last["retryable"], last["error"]["type"]) == ("failed", False, "NonRetryableError")


@pytest.mark.parametrize("where", ["after", "release"])
def test_an_error_after_main_is_logged_only(stage: Stage, where: str, caplog: pytest.LogCaptureFixture) -> None:
    assert stage.play(worker_of(stage, **{where: fail(ValueError("late {}"))})) == {"op": "finished"}
    assert "late {}" in caplog.text
    assert stage.calls[-1] == ("release",)


def test_sys_exit_in_main_ends_or_fails_the_run(stage: Stage) -> None:
    assert stage.play(worker_of(stage, main=fail(SystemExit(0)))) == {"op": "finished"}
    last = stage.play(worker_of(stage, main=fail(SystemExit(3))))
    assert (last["op"], last["error"]["type"], last["error"]["message"]) == ("failed", "SystemExit", "3")


@pytest.mark.parametrize("attachments", [{"fixFrame": 7}, {"fix_frame": 7}])
def test_parameters_are_taken_by_name_and_by_alias(stage: Stage, attachments: dict[str, Any]) -> None:
    seen = []
    stage.play(worker_of(stage, initialize=lambda _, data: seen.append(data.fix_frame)), attachments)
    assert seen == [7]


@pytest.mark.parametrize(
    ("attachments", "outcome"),
    [({"fixFrame": 7, "fix_frame": 8}, "failed"), ({"fixFrame": 7, "fix_frame": 7}, "finished")],
)
def test_a_parameter_in_both_spellings_must_have_one_value(
    stage: Stage, attachments: dict[str, Any], outcome: str
) -> None:
    last = stage.play(worker_of(stage), attachments)
    assert last["op"] == outcome
    if outcome == "failed":
        assert (last["error"]["field"], last["retryable"]) == ("fix_frame", False)
        assert "fix_frame and fixFrame are one parameter" in last["error"]["message"]


def test_no_parameters_are_the_defaults(stage: Stage) -> None:
    seen = []
    stage.play(worker_of(stage, initialize=lambda _, data: seen.append(data.fix_frame)), None)
    assert seen == [30]


@pytest.mark.parametrize(
    ("attachments", "field"),
    [({"fixFrame": 0}, "fixFrame"), ({"place": {"row": "s3cret"}}, "place.row"), ({"fixFrame": "s3cret"}, "fixFrame")],
)
def test_parameters_that_do_not_fit_fail_at_once(stage: Stage, attachments: dict[str, Any], field: str) -> None:
    last = stage.play(worker_of(stage), attachments)

    assert (last["op"], last["retryable"], last["error"]["field"]) == ("failed", False, field)
    assert last["error"]["message"].startswith(f"{field}: ")
    assert "s3cret" not in str(last)
    assert stage.calls == []


# Stops


@only_process
@pytest.mark.parametrize(
    ("where", "calls"),
    [
        ("initialize", ["initialize"]),
        ("before", ["initialize", "before"]),
        ("main", ["initialize", "before", "main"]),
    ],
)
def test_a_stop_interrupts_and_releases_once(stage: Stage, where: str, calls: list[str]) -> None:
    def stop_then_go_on(*_: object) -> None:
        stage.stopper.request()
        stage.calls.append("not reached")

    assert stage.play(worker_of(stage, **{where: stop_then_go_on})) == {"op": "stopped"}
    assert stage.calls == [*calls, ("release", signal.SIGTERM, None)]


@only_process
def test_sigterm_from_outside_is_a_stop(stage: Stage) -> None:
    assert stage.play(worker_of(stage, main=lambda _: signal.raise_signal(signal.SIGTERM))) == {"op": "stopped"}


def test_a_stop_before_the_run_starts_no_user_code(stage: Stage) -> None:
    stage.stopper.request()
    assert stage.play(worker_of(stage)) == {"op": "stopped"}
    assert stage.calls == []


def test_an_async_main_is_cancelled(stage: Stage) -> None:
    class Async(BaseTaskWorker[Params]):
        def initialize(self, data: Params) -> None: ...

        @run_main_handler
        async def main(self) -> None:
            stage.stopper.request()
            try:
                await asyncio.sleep(ANSWER_S)
            except asyncio.CancelledError:
                stage.calls.append(("cancelled", self.is_done))
                raise

        @release_handler
        async def release(self, signum: int, frame: object) -> None:
            stage.calls.append(("release", signum))

    assert stage.play(Async) == {"op": "stopped"}
    assert stage.calls == [("cancelled", True), ("release", signal.SIGTERM)]


def test_a_release_without_arguments_is_called_on_a_stop(stage: Stage) -> None:
    class Plain(BaseTaskWorker[Params]):
        def initialize(self, data: Params) -> None: ...

        @run_main_handler
        def main(self) -> None:
            stage.stopper.request()

        @release_handler
        def release(self) -> None:
            stage.calls.append("release")

    assert stage.play(Plain) == {"op": "stopped"}
    assert stage.calls == ["release"]


def test_a_release_that_needs_arguments_gets_them_without_a_stop(stage: Stage) -> None:
    class Upstream(BaseTaskWorker[Params]):
        def initialize(self, data: Params) -> None: ...

        @run_main_handler
        def main(self) -> None: ...

        @release_handler
        def release(self, signum: int, frame: object) -> None:
            stage.calls.append((signum, frame))

    assert stage.play(Upstream) == {"op": "finished"}
    assert stage.calls == [(0, None)]


@only_process
def test_a_main_that_returns_or_fails_on_a_stop_is_stopped(stage: Stage) -> None:
    def swallow(_: object) -> None:
        try:
            stage.stopper.request()
        except SystemExit:
            return

    def fail_on_stop(_: object) -> None:
        try:
            stage.stopper.request()
        finally:
            raise ValueError("while cleaning up")

    for main in (swallow, fail_on_stop):
        stage.calls.clear()
        stage.stopper = Stopper()
        stage.stopper.install()
        assert stage.play(worker_of(stage, main=main)) == {"op": "stopped"}
        assert stage.calls == ["initialize", "before", "main", ("release", signal.SIGTERM, None)]


def test_a_stop_during_release_does_not_interrupt_it(stage: Stage) -> None:
    def release(_: object) -> None:
        stage.stopper.request()
        stage.calls.append("released to the end")

    assert stage.play(worker_of(stage, release=release)) == {"op": "finished"}
    assert stage.calls[-1] == "released to the end"


def test_tasks_left_behind_by_an_async_worker_can_clean_up(stage: Stage) -> None:
    class Leaving(BaseTaskWorker[Params]):
        def initialize(self, data: Params) -> None: ...

        async def background(self) -> None:
            try:
                await asyncio.sleep(ANSWER_S)
            finally:
                stage.calls.append("cleaned up")

        @run_main_handler
        async def main(self) -> None:
            self.task = asyncio.create_task(self.background())
            await asyncio.sleep(0)

    assert stage.play(Leaving) == {"op": "finished"}
    assert stage.calls == ["cleaned up"]


# Updates


def updating(stage: Stage, handler: Callable[[Params], None], **attachments: Any) -> Frame:
    """Update once from main; the answer."""

    class Updated(BaseTaskWorker[Params]):
        def initialize(self, data: Params) -> None: ...

        @run_main_handler
        def main(self) -> None:
            stage.update(**attachments)

        @update_event_handler
        def change(self, data: Params) -> None:
            handler(data)

    class AsyncUpdated(Updated):
        @run_main_handler
        async def main(self) -> None:  # type: ignore[override]
            await asyncio.to_thread(stage.update, **attachments)

    assert stage.play(Updated if stage.kind == "process" else AsyncUpdated) == {"op": "finished"}
    return stage.sent[-1]


@pytest.mark.parametrize("spelling", ["fixFrame", "fix_frame"])
def test_an_update_is_applied(stage: Stage, spelling: str) -> None:
    seen: list[int] = []
    answer = updating(stage, lambda data: seen.append(data.fix_frame), **{spelling: 5})
    assert (answer, seen) == ({"op": "applied", "version": 2}, [5])


@pytest.mark.parametrize("spelling", ["fixFrame", "fix_frame"])
def test_an_update_that_does_not_fit_is_refused_by_field_as_it_was_written(stage: Stage, spelling: str) -> None:
    seen: list[Params] = []
    answer = updating(stage, seen.append, **{spelling: 0})
    assert (answer["op"], answer["version"], answer["error"]["field"]) == ("refused", 2, spelling)
    assert seen == []


def test_an_update_in_both_spellings_is_refused(stage: Stage) -> None:
    """What a merged update in another spelling than the parameters that run becomes."""
    answer = updating(stage, fail(AssertionError("not called")), fixFrame=5, fix_frame=6)
    assert (answer["op"], answer["error"]["type"], answer["error"]["field"]) == (
        "refused",
        "ValidationError",
        "fix_frame",
    )


def test_an_update_that_the_handler_refuses_leaves_main_running(stage: Stage) -> None:
    answer = updating(stage, fail(ValueError("not now")), fixFrame=5)
    assert (answer["op"], answer["error"]["type"], answer["error"]["message"]) == ("refused", "ValueError", "not now")


def test_a_worker_without_an_update_handler_refuses(stage: Stage) -> None:
    class Plain(BaseTaskWorker[Params]):
        def initialize(self, data: Params) -> None: ...

        @run_main_handler
        async def main(self) -> None:
            await asyncio.to_thread(stage.update, fixFrame=5)

    assert stage.play(Plain) == {"op": "finished"}
    assert stage.sent[-1]["error"]["type"] == "NoUpdateHandler"


def test_an_async_update_handler_runs_on_the_loop_of_main(stage: Stage) -> None:
    class Async(BaseTaskWorker[Params]):
        def initialize(self, data: Params) -> None: ...

        @run_main_handler
        async def main(self) -> None:
            self.loop = asyncio.get_running_loop()
            await asyncio.to_thread(stage.update, fixFrame=5)

        @update_event_handler
        async def change(self, data: Params) -> None:
            stage.calls.append(asyncio.get_running_loop() is self.loop)

    assert stage.play(Async) == {"op": "finished"}
    assert (stage.calls, stage.ops) == ([True], ["running", "applied"])


@only_process
def test_an_async_update_handler_works_beside_a_main_that_is_not(stage: Stage) -> None:
    class Mixed(BaseTaskWorker[Params]):
        def initialize(self, data: Params) -> None: ...

        @run_main_handler
        def main(self) -> None:
            stage.update(fixFrame=5)

        @update_event_handler
        async def change(self, data: Params) -> None:
            stage.calls.append(data.fix_frame)

    assert stage.play(Mixed) == {"op": "finished"}
    assert (stage.calls, stage.ops) == ([5], ["running", "applied"])


def test_updates_that_come_before_main_are_kept(stage: Stage) -> None:
    class Early(BaseTaskWorker[Params]):
        def initialize(self, data: Params) -> None:
            stage.ask({"fixFrame": 9})

        @run_main_handler
        async def main(self) -> None:
            assert await asyncio.to_thread(stage.answered.wait, ANSWER_S)

        @update_event_handler
        def change(self, data: Params) -> None:
            stage.calls.append(data.fix_frame)

    assert stage.play(Early) == {"op": "finished"}
    assert (stage.calls, stage.ops) == ([9], ["running", "applied"])


def test_a_signal_that_interrupted_nothing_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread was about to block: the kernel has delivered the signal, Python has not called the handler."""
    monkeypatch.setattr("skalds_streams.worker.stopper.NUDGE_S", 0.0)
    sent: list[int] = []
    monkeypatch.setattr(signal, "pthread_kill", lambda _thread, signum: sent.append(signum))
    stopper = Stopper()
    assert stopper.nudge() is None

    stopper.request()
    assert [stopper.nudge(), stopper.nudge()] == [0.0, 0.0]
    stopper._on_signal(STOP_SIGNAL, None)

    assert stopper.nudge() is None
    assert sent == [STOP_SIGNAL] * 3


# -- what is saved


class Resumes(BaseTaskWorker[Params]):
    found: Any = "never set"

    def initialize(self, data: Params) -> None:
        type(self).found = self.state

    @run_main_handler
    def main(self) -> None:
        self.save({"n": 1})

    @release_handler
    def release(self) -> None:
        self.save({"n": 2})


def test_what_the_last_run_saved_is_there_before_initialize_and_what_release_saves_counts(stage: Stage) -> None:
    assert stage.play(Resumes, state='{"n":7}') == {"op": "finished"}
    assert (Resumes.found, stage.run.saved if stage.run else None) == ({"n": 7}, '{"n":2}')
    stage.play(Resumes)
    assert Resumes.found is None


@pytest.mark.parametrize("text", ["[1]", "{", "null"])
def test_a_state_that_is_none_fails_the_run_with_what_to_do(stage: Stage, text: str) -> None:
    Resumes.found = "never set"
    last = stage.play(Resumes, state=text)
    assert (last["op"], last["retryable"], Resumes.found) == ("failed", False, "never set")
    assert "skalds-streams state" in last["error"]["message"]
