"""What became of a command, told from histories that the live code writes."""

from __future__ import annotations

from typing import Any

import pytest

from skalds_streams.cli.kafka import Sent
from skalds_streams.cli.outcome import Outcome, Settle, Tracker, settle_cancel, settle_pause, settle_run, settle_update
from skalds_streams.core.partition import partition_of
from skalds_streams.model.record import Record
from skalds_streams.replay.recording import Entry, read_entry
from tests.unit.test_replay_timeline import TOPICS, World


class Told:
    """A tracker that follows the last command of a world, and what it says."""

    def __init__(self, world: World, topic: str, settle: Settle) -> None:
        self._world, self._seen = world, 0
        number = partition_of("cam-1", TOPICS.partitions)
        last = world.logs[topic, number][-1]
        self.tracker = Tracker("cam-1", Sent(topic, number, last.offset), settle, lambda value: value)
        self.lines: list[str] = []

    def go_on(self) -> Outcome | None:
        history = self._world.logs[TOPICS.history, partition_of("cam-1", TOPICS.partitions)]
        for record in history[self._seen :]:
            entry = read_entry(record)
            assert isinstance(entry, Entry)
            line = self.tracker.see(entry)
            self.lines += [line] if line else []
        self._seen = len(history)
        return self.tracker.outcome


def running() -> World:
    world = World()
    world.assign("cam-1", {"fps": 30})
    world.report("cam-1", "Running", version=1)
    return world


def test_an_assign_is_done_when_the_task_runs() -> None:
    world = World()
    world.assign("cam-1", {"fps": 30})
    told = Told(world, TOPICS.assign, settle_run)
    assert told.go_on() is None
    world.report("cam-1", "Running", version=1)
    assert told.go_on() == Outcome(True, "running", "running on a (epoch 1)")
    assert told.lines == ["Assigning: Starting on a"]


def test_an_assign_that_nobody_can_take_says_why_when_the_time_is_over() -> None:
    world = World()
    world.assign("cam-1", {"fps": 30}, recipient="b")
    told = Told(world, TOPICS.assign, settle_run)
    assert told.go_on() is None
    told.tracker.give_up(10)
    outcome = told.tracker.outcome
    assert outcome is not None
    assert (outcome.ok, outcome.word) == (False, "timeout")
    assert "not done within 10 s: Assigning: No skald can take it:" in outcome.reason
    assert "recipient is b" in outcome.reason or "recipient is not here" in outcome.reason


def test_nobody_answers() -> None:
    world = World()
    world.assign("cam-1", {"fps": 30})
    tracker = Tracker("cam-1", Sent(TOPICS.assign, 0, 77), settle_run, lambda value: value)
    tracker.give_up(0.5)
    assert tracker.outcome is not None
    assert tracker.outcome.reason.startswith("not done within 0.5 s: no coordinator has answered yet")
    assert "task.assign/0@77" in tracker.outcome.reason


def test_an_assign_of_a_running_task_waits_for_its_new_parameters() -> None:
    world = running()
    world.assign("cam-1", {"fps": 10})
    told = Told(world, TOPICS.assign, settle_run)
    assert told.go_on() is None
    world.report("cam-1", "Refused", version=2, error={"type": "ValueError", "message": "too slow"})
    assert told.go_on() == Outcome(False, "refused", "parameters refused: ValueError: too slow; the former ones stay")


def test_a_restart_is_done_when_the_next_run_runs() -> None:
    world = running()
    world.assign("cam-1", {"fps": 30}, action="restart")
    told = Told(world, TOPICS.assign, settle_run)
    assert told.go_on() is None
    world.report("cam-1", "Stopped")
    assert told.go_on() is None
    world.report("cam-1", "Running", version=1)
    assert told.go_on() == Outcome(True, "running", "running on a (epoch 2)", took_ms=30)
    assert told.lines == ["Running: Restarting; a is stopping the present run", "Assigning: Starting on a"]


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        ("Finished", {}, Outcome(True, "finished", "finished already")),
        (
            "Failed",
            {"error": {"type": "KeyError", "message": "x"}, "retryable": False},
            Outcome(False, "failed", "failed: KeyError: x"),
        ),
    ],
)
def test_an_assign_of_what_ends_at_once(kind: str, more: dict[str, Any], expected: Outcome) -> None:
    world = World()
    world.assign("cam-1", {"fps": 30})
    told = Told(world, TOPICS.assign, settle_run)
    world.report("cam-1", kind, **more)
    assert told.go_on() == expected


def test_an_assign_that_is_overtaken_by_a_cancel() -> None:
    world = World()
    world.assign("cam-1", {"fps": 30})
    told = Told(world, TOPICS.assign, settle_run)
    world.command(TOPICS.cancel, "cam-1")
    outcome = told.go_on()
    assert outcome is not None
    assert (outcome.ok, outcome.word) == (False, "cancelled")
    assert "task.cancel/" in outcome.reason


def test_a_command_that_loses_says_so() -> None:
    world = World()
    world.command(TOPICS.cancel, "cam-1")
    world.now_ms -= 1_000
    world.assign("cam-1", {"fps": 30})
    outcome = Told(world, TOPICS.assign, settle_run).go_on()
    assert outcome is not None
    assert (outcome.ok, outcome.word) == (False, "superseded")
    assert outcome.reason.startswith("superseded by cancel")


def test_an_update_is_applied_refused_or_kept() -> None:
    world = running()
    world.command(TOPICS.update, "cam-1", attachments={"fps": 10}, merge=True)
    told = Told(world, TOPICS.update, settle_update)
    assert told.go_on() is None
    world.report("cam-1", "Applied", version=2)
    assert told.go_on() == Outcome(True, "applied", "version 2 applied by a (epoch 1)")
    world.command(TOPICS.update, "cam-1", attachments={"fps": -1}, merge=True)
    told = Told(world, TOPICS.update, settle_update)
    world.report("cam-1", "Refused", version=3, error={"type": "ValueError", "message": "no"})
    outcome = told.go_on()
    assert outcome is not None
    assert (outcome.ok, outcome.word) == (False, "refused")
    world.report("cam-1", "Finished")
    world.command(TOPICS.update, "cam-1", attachments={"fps": 5}, merge=True)
    assert Told(world, TOPICS.update, settle_update).go_on() == Outcome(
        True, "kept", "Finished: kept as version 4 for the next start"
    )


def test_an_update_of_an_unknown_task_is_kept() -> None:
    world = World()
    world.command(TOPICS.update, "cam-1", attachments={"fps": 10})
    told = Told(world, TOPICS.update, settle_update)
    assert told.go_on() == Outcome(True, "kept", "Created: kept as version 1 for the next start")
    assert told.tracker.is_of_unknown


@pytest.mark.parametrize(
    ("topic", "fields", "settle"),
    [(TOPICS.cancel, {}, settle_cancel), (TOPICS.assign, {"action": "pause"}, settle_pause)],
)
def test_a_command_tells_whether_the_task_was_known(topic: str, fields: dict[str, Any], settle: Settle) -> None:
    for world, is_of_unknown in ((World(), True), (running(), False)):
        for _ in range(2):
            world.command(topic, "cam-1", **fields)
            told = Told(world, topic, settle)
            told.go_on()
            assert told.tracker.is_of_unknown is is_of_unknown


def test_that_an_update_is_not_applied_yet_is_said_only_after_a_while() -> None:
    world = running()
    world.command(TOPICS.update, "cam-1", attachments={"fps": 10}, merge=True)
    told = Told(world, TOPICS.update, settle_update)
    assert (told.go_on(), told.lines) == (None, [])
    assert told.tracker.lose_patience() == "Running: a has not applied version 2 yet"
    assert told.tracker.lose_patience() is None
    world.report("cam-1", "Applied", version=2)
    assert told.go_on() == Outcome(True, "applied", "version 2 applied by a (epoch 1)")

    world.command(TOPICS.update, "cam-1", attachments={"fps": 5}, merge=True)
    told = Told(world, TOPICS.update, settle_update)
    assert told.tracker.lose_patience() is None
    assert (told.go_on(), told.lines) == (None, ["Running: a has not applied version 3 yet"])


def test_a_cancel_is_done_when_the_worker_has_ended() -> None:
    world = running()
    world.command(TOPICS.cancel, "cam-1")
    told = Told(world, TOPICS.cancel, settle_cancel)
    assert told.go_on() is None
    world.report("cam-1", "Stopped")
    assert told.go_on() == Outcome(True, "cancelled", "cancelled", took_ms=20)
    assert told.lines == ["Running: Cancel was asked; a is stopping it"]


def test_a_cancel_of_what_had_finished() -> None:
    world = running()
    world.report("cam-1", "Finished")
    world.command(TOPICS.cancel, "cam-1")
    assert Told(world, TOPICS.cancel, settle_cancel).go_on() == Outcome(
        True, "finished", "had finished before", took_ms=10
    )


def test_a_pause_is_done_when_the_task_is_paused() -> None:
    world = running()
    world.command(TOPICS.assign, "cam-1", action="pause")
    told = Told(world, TOPICS.assign, settle_pause)
    assert told.go_on() is None
    world.report("cam-1", "Stopped")
    assert told.go_on() == Outcome(True, "paused", "paused", took_ms=20)


def test_how_long_it_took_is_not_said_of_another_command() -> None:
    """Two restarts at once are answered by one run: the row keeps the times of the later."""
    world = running()
    world.assign("cam-1", {"fps": 30}, action="restart")
    first = Told(world, TOPICS.assign, settle_run)
    world.assign("cam-1", {"fps": 30}, action="restart")
    second = Told(world, TOPICS.assign, settle_run)
    world.report("cam-1", "Stopped")
    world.report("cam-1", "Running", version=1)
    outcomes = [told.go_on() for told in (first, second)]
    assert [outcome and (outcome.ok, outcome.took_ms) for outcome in outcomes] == [(True, None), (True, 30)]


def test_a_dead_letter_settles_only_its_own_event() -> None:
    tracker = Tracker("cam-1", Sent(TOPICS.assign, 1, 5), settle_run, lambda value: value)
    headers = [("reason", b"taskIds is empty"), ("source.topic", b"task.assign"), ("source.partition", b"1")]
    tracker.see_deadletter(Record(TOPICS.deadletter, 1, 0, b"cam-1", b"", 0, [*headers, ("source.offset", b"4")]))
    assert tracker.outcome is None
    tracker.see_deadletter(Record(TOPICS.deadletter, 1, 1, b"cam-1", b"", 0, [*headers, ("source.offset", b"5")]))
    assert tracker.outcome == Outcome(False, "deadletter", "not accepted: taskIds is empty")


def test_records_before_our_own_do_not_count() -> None:
    world = running()
    world.command(TOPICS.cancel, "cam-1")
    told = Told(world, TOPICS.cancel, settle_cancel)
    told.go_on()
    assert [told.tracker.last and told.tracker.last.row.revision] == [3]


def test_texts_are_cleaned() -> None:
    world = World()
    world.assign("cam-1", {"fps": 30})
    told = Told(world, TOPICS.assign, settle_run)
    told.tracker._clean = lambda value: value.replace("hunter2", "***") if isinstance(value, str) else value
    world.report("cam-1", "Failed", error={"type": "E", "message": "no hunter2"}, retryable=False)
    assert told.go_on() == Outcome(False, "failed", "failed: E: no ***")
