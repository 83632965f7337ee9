"""What runs here follows the rows: starting, pushing, stopping, and what is said of it. Hosts are fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from skalds_streams.core.row import Holder, Row, Status, Wanted
from skalds_streams.errors import HostError, NoHostError, StateError
from skalds_streams.model.saved import Saved, StateKey
from skalds_streams.skald import actor
from skalds_streams.skald import lease as lease_module
from skalds_streams.skald import supervisor as supervisor_module
from skalds_streams.skald.actor import LAPSED
from skalds_streams.skald.exits import RAN_OUT, ZYGOTE_LOST
from skalds_streams.skald.hosts import ExitInfo, RunSpec
from skalds_streams.skald.lease import Lease, boottime_ms
from skalds_streams.skald.supervisor import START_MOST_S, Supervisor
from skalds_streams.testing.simulator.loop import VirtualLoop
from skalds_streams.topics import Topics
from skalds_streams.view.cluster import ClusterView

pytestmark = pytest.mark.anyio


async def until(condition: Callable[[], Any], what: str = "it happens") -> None:
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError(f"never: {what}")


def row(task_id: str = "t", epoch: int = 1, *, held_by: str = "me", **more: Any) -> Row:
    values: dict[str, Any] = {"class_name": "Cam", "wanted": Wanted.RUN, "status": Status.ASSIGNING, **more}
    values.setdefault("first_epoch", 1)
    return Row(task_id, holder=Holder("a", held_by, epoch), epoch=epoch, **values)


class FakeHost:
    def __init__(self, spec: RunSpec, on_event: Callable[[dict[str, Any]], None]) -> None:
        self.spec, self.say = spec, on_event
        self.pid = 1
        self.steps: list[str] = []
        self.updates: list[int] = []
        self.epochs: list[int] = []
        self.stops: list[str] = []
        self.killed = False
        self.update_error: HostError | None = None
        self.stop_error: Exception | None = None
        self.ended: asyncio.Future[ExitInfo] = asyncio.get_running_loop().create_future()

    async def update(self, version: int, attachments: Any) -> None:
        if self.update_error is not None:
            raise self.update_error
        self.updates.append(version)

    def take_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    async def stop(self, reason: str, *, release_s: float, terminate_s: float) -> ExitInfo:
        self.stops.append(reason)
        if self.stop_error is not None:
            raise self.stop_error
        self.say({"op": "stopped"})
        self.end()
        return await self.ended

    async def last_lines(self) -> list[str]:
        return ["its last words"]

    async def wait_ended(self) -> ExitInfo:
        return await asyncio.shield(self.ended)

    def kill(self) -> None:
        self.killed = True
        self.end("signal 9 (SIGKILL)")

    def end(self, reason: str = "exit 0") -> None:
        if not self.ended.done():
            self.ended.set_result(ExitInfo(0, reason))


class FakeStates:
    """What was saved, and what is looked for."""

    def __init__(self) -> None:
        self.found: dict[str, Saved] = {}
        self.asked: list[tuple[str, int]] = []
        self.saved: list[tuple[str, int, str]] = []
        self.may_find = asyncio.Event()
        self.may_find.set()
        self.find_error: StateError | None = None
        self.written = asyncio.Event()
        self.written.set()

    async def find(self, task_id: str, first_epoch: int) -> Saved | None:
        self.asked.append((task_id, first_epoch))
        await self.may_find.wait()
        if self.find_error is not None:
            raise self.find_error
        return self.found.get(task_id)

    def save(self, task_id: str, epoch: int, text: str) -> None:
        self.saved.append((task_id, epoch, text))

    async def flush(self, task_id: str, timeout_s: float) -> bool:
        await self.written.wait()
        return True

    def forget(self, task_id: str) -> None:
        """There is nothing to forget."""


class World:
    """A supervisor, a view without readers, a pool whose hosts do what the test says."""

    def __init__(self, tmp_path: Path) -> None:
        self.view = ClusterView(Topics.named(app="x"), {})
        self.hosts: list[FakeHost] = []
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.start_error: HostError | None = None
        self.said: list[tuple[str, str, int]] = []
        self.details: list[dict[str, Any]] = []
        self.catalogue = SimpleNamespace(classes={"Cam": {"release_s": 20.0, "terminate_s": 3.0}})
        self.lease = Lease(600_000, 60_000)
        self.lease.renew(boottime_ms())
        self.states = FakeStates()
        self.supervisor = Supervisor(
            self.view,
            cast("Any", self),
            cast("Any", self._reporter()),
            cast("Any", self.states),
            self.lease,
            skald_id="a",
            incarnation="me",
        )

    def keeps(self, class_name: str) -> bool:
        """As HostPool.keeps."""
        return class_name == "Keeper"

    async def run(self, spec: RunSpec, on_event: Callable[[dict[str, Any]], None]) -> FakeHost:
        """As HostPool.run."""
        await self.may_start.wait()
        if self.start_error is not None:
            raise self.start_error
        self.hosts.append(FakeHost(spec, on_event))
        return self.hosts[-1]

    def _reporter(self) -> Any:
        def say(kind: str, task_id: str, epoch: int, **more: Any) -> None:
            self.said.append((kind, task_id, epoch))
            self.details.append(more)

        return SimpleNamespace(say=say)

    def show(self, *rows: Row) -> None:
        """The changelog brings these rows."""
        for item in rows:
            self.view._state.rows[item.task_id] = item
            for changes in self.view._subscribers:
                changes.note_task(item.task_id)

    async def one_host(self) -> FakeHost:
        await until(lambda: self.hosts, "a host is started")
        return self.hosts[-1]


@asynccontextmanager
async def supervised(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    task = asyncio.create_task(world.supervisor.run())
    await asyncio.sleep(0)
    try:
        yield world
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_row_of_ours_is_started_once_and_its_end_is_said(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row(), row("foreign", held_by="other"))
        host = await world.one_host()
        world.show(row(status=Status.RUNNING, revision=5))
        host.say({"op": "running", "version": 0})
        host.say({"op": "finished"})
        host.end()
        await until(lambda: ("Finished", "t", 1) in world.said)
        assert (world.said, len(world.hosts)) == ([("Running", "t", 1), ("Finished", "t", 1)], 1)
        world.show(row())
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(world.hosts) == 1, "an epoch that ended here never starts again"
        world.show(row(epoch=2))
        await until(lambda: len(world.hosts) == 2)


@pytest.mark.parametrize("error", [None, {"type": "E", "message": "m", "traceback": ["at line 3"]}])
async def test_a_crash_is_said_with_what_it_printed_last(error: dict[str, Any] | None, tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row())
        host = await world.one_host()
        if error:
            host.say({"op": "failed", "error": error, "retryable": True})
        host.end("signal 9 (SIGKILL)")
        await until(lambda: world.said)
        assert world.said == [("Failed", "t", 1)]
        assert world.details[0]["error"]["output"] == ["its last words"]
        assert world.details[0]["error"]["traceback"] == (["at line 3"] if error else [])


@pytest.mark.parametrize("stop_reason", [None, "pause"])
@pytest.mark.parametrize("op", ["finished", "failed", "stalled", "stopped"])
async def test_how_hard_its_end_was_is_said_whatever_the_end(
    op: str, stop_reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor, "SAME_SIGTERM_S", 0)
    async with supervised(tmp_path) as world:
        world.show(row())
        host = await world.one_host()
        host.steps.append("SIGTERM after 5 s")
        if op != "stopped":
            host.say({"op": op, "error": {"type": "E", "message": "m"}})
        if stop_reason is None:
            host.end()
        else:
            world.show(row(wanted=Wanted.PAUSE))
            await world.supervisor.look_at("t")
        await until(lambda: world.said, "the end is said")
        detail = world.details[-1]
        assert "SIGTERM after 5 s" in detail["steps"]


async def test_a_worker_that_is_stuck_is_stopped_and_where_it_was_is_its_error(tmp_path: Path) -> None:
    stalled = {"type": "Stalled", "message": "no progress", "traceback": ["in main"], "reason": "stall"}
    async with supervised(tmp_path) as world:
        world.show(row())
        host = await world.one_host()
        host.say({"op": "running", "version": 0})
        host.say({"op": "stalled", "error": stalled})
        await until(lambda: ("Failed", "t", 1) in world.said, "the end is said")
        assert host.stops == ["stalled"]
        assert world.details[-1] == {"error": {**stalled, "output": ["its last words"]}, "retryable": True}


async def test_a_worker_that_is_stuck_when_its_task_is_cancelled_is_stopped(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row())
        host = await world.one_host()
        host.say({"op": "stalled", "error": {"type": "Stalled"}})
        world.show(row(wanted=Wanted.CANCEL))
        await world.supervisor.look_at("t")
        await until(lambda: ("Stopped", "t", 1) in world.said, "the end is said")


async def test_a_worker_that_somebody_else_stopped_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "SAME_SIGTERM_S", 0)
    async with supervised(tmp_path) as world:
        world.show(row())
        host = await world.one_host()
        host.say({"op": "stopped"})
        host.end()
        await until(lambda: ("Failed", "t", 1) in world.said, "the end is said")
        assert (world.details[-1]["error"]["reason"], world.details[-1]["retryable"]) == ("signal", True)
        assert "SIGTERM" in world.details[-1]["error"]["message"]


async def test_a_worker_that_was_stopped_with_its_node_has_not_crashed(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row())
        host = await world.one_host()
        host.say({"op": "stopped"})
        host.end()
        await world.supervisor.close()
        assert world.said == []


async def test_a_stop_that_comes_before_there_is_a_host_runs_nothing(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.may_start.clear()
        world.show(row())
        await until(lambda: world.supervisor.held)
        for _ in range(5):
            await asyncio.sleep(0)
        world.show(row(wanted=Wanted.CANCEL))
        await until(lambda: world.said)
        world.may_start.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert (world.said, world.hosts) == ([("Stopped", "t", 1)], [])


async def test_parameters_that_come_while_it_starts_are_pushed_after_it(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.may_start.clear()
        world.show(row(attachments={"fps": 1}, attachments_version=1))
        await until(lambda: world.supervisor.held)
        for _ in range(5):
            await asyncio.sleep(0)
        world.show(row(attachments={"fps": 2}, attachments_version=2))
        for _ in range(5):
            await asyncio.sleep(0)
        world.may_start.set()
        host = await world.one_host()
        await until(lambda: host.updates)
        assert (host.spec.version, host.updates) == (1, [2])


async def test_parameters_that_a_host_does_not_take_are_refused_and_end_nothing(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row(), row("sibling"))
        await until(lambda: len(world.hosts) == 2)
        host = next(item for item in world.hosts if item.spec.task_id == "t")
        host.update_error = HostError("a peer has not taken 4194304 bytes")
        world.show(row(attachments={"fps": 2}, attachments_version=1))
        await until(lambda: world.said)
        assert (world.said, world.details[0]["version"]) == ([("Refused", "t", 1)], 1)
        assert set(world.supervisor.held) == {"t", "sibling"}


@pytest.mark.parametrize("error", [HostError("frame 'stop' is not sent"), RuntimeError("a defect")])
async def test_no_end_is_said_while_the_host_lives(error: Exception, tmp_path: Path) -> None:
    """Else the task would be given to another skald, and run twice."""
    async with supervised(tmp_path) as world:
        world.show(row())
        host = await world.one_host()
        host.stop_error = error
        host.kill = lambda: setattr(host, "killed", True)  # type: ignore[method-assign]  # it takes a while to die
        world.show(row(wanted=Wanted.CANCEL))
        await until(lambda: host.killed)
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.said == []
        host.end("signal 9 (SIGKILL)")
        await until(lambda: world.said)
        assert world.said == [("Failed", "t", 1)]


async def test_a_host_that_does_not_come_is_a_failure_unless_a_stop_was_asked(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.start_error = HostError("no worker host in 30 s")
        world.show(row())
        await until(lambda: world.said)
        assert (world.said, world.details[0]["retryable"]) == ([("Failed", "t", 1)], True)


async def test_a_node_that_has_no_host_gives_the_task_back_and_that_is_no_crash(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.start_error = NoHostError("no worker host in 30 s")
        world.show(row())
        await until(lambda: world.said)
        assert world.said == [("Stopped", "t", 1)]
        assert world.details[0]["elsewhere"] is True


@pytest.mark.parametrize("word", [None, "stopped"])
async def test_a_worker_whose_host_another_one_has_ended_has_not_crashed(tmp_path: Path, word: str | None) -> None:
    async with supervised(tmp_path) as world:
        world.show(row())
        host = await world.one_host()
        if word is not None:
            host.say({"op": word})
        host.ended.set_result(ExitInfo(9, "signal 9 (SIGKILL)", beside="its host ended because of task x beside it"))
        await until(lambda: world.said)
        assert world.said == [("Stopped", "t", 1)]
        assert world.details[0]["steps"] == ["its host ended because of task x beside it"]


async def test_a_lapse_is_told_by_nobody_whoever_held_the_gil(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row())
        host = await world.one_host()
        world.lease._until_ms = 0
        host.ended.set_result(ExitInfo(9, RAN_OUT, beside="its host ended because of task x beside it"))
        await until(lambda: not tuple(world.supervisor.held))
        assert world.said == []


async def test_a_worker_that_ended_with_its_zygote_has_not_crashed(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row())
        (await world.one_host()).end(ZYGOTE_LOST)
        await until(lambda: world.said)
        assert (world.said, world.details[0]["reason"]) == ([("Stopped", "t", 1)], ZYGOTE_LOST)


async def test_what_a_worker_said_before_its_zygote_was_lost_counts(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row())
        host = await world.one_host()
        host.say({"op": "failed", "error": {"type": "ValueError"}, "retryable": False})
        host.end(ZYGOTE_LOST)
        await until(lambda: world.said)
        assert (world.said, world.details[0]["retryable"]) == ([("Failed", "t", 1)], False)


async def test_a_row_given_and_withdrawn_before_it_ran_is_answered(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row(wanted=Wanted.CANCEL))
        await until(lambda: world.said)
        assert (world.said, world.hosts) == ([("Stopped", "t", 1)], [])


async def test_leaving_stops_all_at_once_and_reports_nothing(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row("one"), row("two"))
        await until(lambda: len(world.hosts) == 2)
        await world.supervisor.close()
        assert [host.stops for host in world.hosts] == [["leaving"], ["leaving"]]
        assert (world.said, tuple(world.supervisor.held)) == ([], ())
        world.show(row("three"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(world.hosts) == 2


async def test_the_net_is_cast_although_something_changes_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every heartbeat of the cluster is a change, so five quiet seconds never come."""
    monkeypatch.setattr(supervisor_module, "RECONCILE_S", 0.02)
    async with supervised(tmp_path) as world:
        world.view._state.rows["t"] = row()  # nobody is told

        async def beat() -> None:
            while not world.hosts:
                for changes in world.view._subscribers:
                    changes.note_members()
                await asyncio.sleep(0.001)

        await asyncio.wait_for(beat(), 5)


async def test_load_is_the_sum_of_weights_and_stopping_has_the_longest_budget(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        assert (world.supervisor.load, world.supervisor.stop_most_s) == (0, 0.0)
        world.show(row("one", weight=3), row("two"))
        await until(lambda: len(world.hosts) == 2)
        assert (world.supervisor.load, world.supervisor.stop_most_s) == (4, 23.0)


# -- the lease


async def test_a_lapse_ends_what_runs_without_a_word_and_nothing_starts_before_the_next_lease(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row())
        host = await world.one_host()
        world.lease.begin_anew()
        world.show(row("other"))
        await world.supervisor.lapse()
        assert (host.stops, world.said, len(world.hosts)) == ([LAPSED], [], 1)
        world.supervisor.begin_anew("me2")
        world.show(row(epoch=2, held_by="me2"))
        await asyncio.sleep(0)
        assert len(world.hosts) == 1, "there is no lease yet"
        world.lease.renew(boottime_ms())
        world.show(row(epoch=2, held_by="me2"))
        await until(lambda: len(world.hosts) == 2)
        assert world.hosts[1].spec.epoch == 2


async def test_a_worker_that_the_kernel_ended_with_the_lease_of_its_node_has_not_crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node was frozen: it learns of the worker's end before it comes to stop anything."""
    async with supervised(tmp_path) as world:
        world.show(row())
        host = await world.one_host()
        monkeypatch.setattr(lease_module, "boottime_ms", lambda: boottime_ms() + 700_000)
        host.end(RAN_OUT)
        await until(lambda: not world.supervisor.held)
        assert world.said == [], "the next incarnation frees it"


async def test_a_worker_that_did_not_take_in_its_lease_has_crashed(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row())
        (await world.one_host()).end(RAN_OUT)
        await until(lambda: world.said)
        assert (world.said, world.details[0]["retryable"]) == ([("Failed", "t", 1)], True)


async def test_a_class_that_keeps_running_is_adopted_by_the_next_incarnation(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row(class_name="Keeper"))
        host = await world.one_host()
        await until(lambda: world.supervisor._actors["t"].pid is not None, "it has begun")
        host.say({"op": "running", "version": 0})
        await world.supervisor.lapse()
        world.supervisor.begin_anew("me2")
        await world.supervisor.look_at("t")
        assert host.stops == [], "the row still names the former incarnation"
        world.lease.renew(boottime_ms())
        world.show(row(epoch=2, held_by="me2", class_name="Keeper"))
        await until(lambda: host.epochs == [2])
        assert world.said == [("Running", "t", 1), ("Running", "t", 2)]
        world.show(row(epoch=2, held_by="me2", class_name="Keeper", attachments_version=3))
        await until(lambda: host.updates == [3])
        assert len(world.hosts) == 1


async def test_a_worker_that_kept_running_begins_anew_with_parameters_that_came_meanwhile(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row(class_name="Keeper"))
        host = await world.one_host()
        await until(lambda: world.supervisor._actors["t"].pid is not None, "it has begun")
        host.say({"op": "running", "version": 0})
        await world.supervisor.lapse()
        world.supervisor.begin_anew("me2")
        world.lease.renew(boottime_ms())
        world.show(row(epoch=2, held_by="me2", class_name="Keeper", attachments_version=3))
        await until(lambda: host.stops == ["other parameters"])
        await until(lambda: len(world.hosts) == 2)
        assert (world.hosts[1].spec.epoch, world.hosts[1].spec.version) == (2, 3)


async def test_a_worker_that_has_not_begun_is_not_kept(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.may_start.clear()
        world.show(row(class_name="Keeper"))
        await until(lambda: "t" in world.supervisor.held)
        await world.supervisor.lapse()
        world.may_start.set()
        await asyncio.sleep(0)
        assert (world.hosts, tuple(world.supervisor.held), world.said) == ([], (), [])


async def test_a_worker_that_kept_running_ends_when_another_skald_has_the_task(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.show(row(class_name="Keeper"))
        host = await world.one_host()
        await until(lambda: world.supervisor._actors["t"].pid is not None, "it has begun")
        await world.supervisor.lapse()
        world.supervisor.begin_anew("me2")
        elsewhere = Row(
            "t", class_name="Keeper", wanted=Wanted.RUN, status=Status.RUNNING, holder=Holder("b", "b1", 2), epoch=2
        )
        world.show(elsewhere)
        await until(lambda: host.stops == ["held by b"])


async def test_no_more_start_at_once_than_may_and_the_important_first(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.supervisor._starts_at_once = 2
        world.show(*(row(f"t{number}", priority=number) for number in range(6)))
        await until(lambda: len(world.hosts) == 2)
        assert [host.spec.task_id for host in world.hosts] == ["t0", "t1"], "what came first had begun already"
        world.hosts[0].say({"op": "running", "version": 0})
        await until(lambda: len(world.hosts) == 3)
        world.hosts[1].end("exit code 1")
        await until(lambda: len(world.hosts) == 4)
        assert [host.spec.task_id for host in world.hosts[2:]] == ["t5", "t4"]


def test_a_worker_that_is_stuck_in_its_start_holds_up_the_others_for_a_bounded_time(tmp_path: Path) -> None:
    loop, world = VirtualLoop(), World(tmp_path)
    world.supervisor._starts_at_once = 2
    stuck, healthy = [row("stuck-1"), row("stuck-2")], [row(f"t{number}") for number in range(3)]

    def started() -> list[str]:
        return [host.spec.task_id for host in world.hosts]

    async def begin() -> None:
        loop.create_task(world.supervisor.run())
        await asyncio.sleep(0)
        world.show(*stuck)
        await asyncio.sleep(1)
        world.show(*healthy)

    loop.create_task(begin())
    loop.advance(START_MOST_S - 0.1)
    assert started() == ["stuck-1", "stuck-2"]
    loop.advance(START_MOST_S + 0.1)
    assert started() == ["stuck-1", "stuck-2", "t0", "t1"]
    assert set(world.supervisor.held) == {"stuck-1", "stuck-2", "t0", "t1"}, "they may still come to run"
    world.hosts[2].say({"op": "running", "version": 0})
    loop.advance(START_MOST_S + 0.2)
    assert started()[4:] == ["t2"]
    world.hosts[0].say({"op": "running", "version": 0})
    world.hosts[0].end("exit code 1")
    loop.advance(3 * START_MOST_S)
    assert ("Failed", "stuck-1", 1) in world.said
    assert not world.supervisor._starting, "each counted once"
    loop.dispose()
    assert loop.errors == []


# -- what a run saves, and the next finds


async def test_the_first_run_of_an_assign_looks_for_nothing_and_the_next_finds_what_was_saved(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.states.found["t"] = Saved(StateKey("t", 4), 7, 0, "a", '{"n":1}')
        world.show(row(epoch=4, first_epoch=4))
        host = await world.one_host()
        assert (host.spec.state, world.states.asked) == (None, [])
        host.say({"op": "saved", "state": '{"n":1}'})
        host.end("signal 9 (SIGKILL)")
        await until(lambda: world.said)
        world.show(row(epoch=5, first_epoch=4))
        await until(lambda: len(world.hosts) == 2)
        assert world.hosts[1].spec.state == '{"n":1}'
        assert (world.states.asked, world.states.saved) == ([("t", 4)], [("t", 4, '{"n":1}')])


async def test_the_end_of_a_run_is_said_when_its_last_state_is_written(tmp_path: Path) -> None:
    """Else the next run, on another skald, could begin before it is there."""
    async with supervised(tmp_path) as world:
        world.show(row())
        host = await world.one_host()
        world.states.written.clear()
        host.say({"op": "saved", "state": "{}"})
        host.say({"op": "finished"})
        host.end()
        for _ in range(50):
            await asyncio.sleep(0)
        assert world.said == []
        world.states.written.set()
        await until(lambda: world.said == [("Finished", "t", 1)])


async def test_a_stop_does_not_wait_for_a_state_that_is_still_looked_for(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.states.may_find.clear()
        world.show(row(epoch=2))
        await until(lambda: world.states.asked)
        world.show(row(epoch=2, wanted=Wanted.CANCEL))
        await until(lambda: world.said)
        assert (world.said, world.hosts) == ([("Stopped", "t", 2)], [])


async def test_a_state_that_can_not_be_read_runs_nothing_without_it(tmp_path: Path) -> None:
    async with supervised(tmp_path) as world:
        world.states.find_error = StateError("task.state/0@7 has format 2; this version knows 1 and older")
        world.show(row(epoch=2))
        await until(lambda: world.said)
        assert (world.said, world.hosts) == ([("Failed", "t", 2)], [])
        assert (world.details[0]["error"]["type"], world.details[0]["retryable"]) == ("StateError", True)
