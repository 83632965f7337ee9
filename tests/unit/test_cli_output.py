"""What is shown of rows, histories and replays: all that matters, no secret, nothing that a terminal would obey."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from io import StringIO
from typing import Any

import orjson
import pytest
from rich.console import Console, RenderableType

from skalds_streams.cli import describe, ps, replay
from skalds_streams.cli.kafka import Cluster, Table
from skalds_streams.cli.output import duration, harmless, one_line, value_words, when
from skalds_streams.cli.rows import applied_words, parameters_words, status_suffix, tries_words
from skalds_streams.core.partition import partition_of
from skalds_streams.core.row import Row, Status, Wanted
from skalds_streams.model.event import TaskEvent
from skalds_streams.settings import Settings
from tests.unit.test_replay_timeline import TOPICS, World, change_history, lived

WORDS = frozenset({"password"})
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}(?:Z|[+-]\d\d:\d\d)"


def shown(item: RenderableType) -> str:
    console = Console(file=StringIO(), width=400, highlight=False)
    console.print(item)
    file: Any = console.file
    return str(file.getvalue())


def cluster(key: str = "key") -> Cluster:
    settings = Settings.load(digest_key=key, secret_names="password", _env_file=None)
    return Cluster(settings, TOPICS, {})


def camera() -> World:
    world = World()
    world.assign("cam-1", {"fps": 30, "password": "hunter2", "url": "rtsp://u:pass1@c/1"}, reason="first")
    world.report("cam-1", "Running", version=1)
    return world


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (0, "0s"),
        (-5, "0s"),
        (12_300, "12s"),
        (60_000, "1m"),
        (3_725_000, "1h 2m"),
        (90_000_000, "1d 1h"),
        (86_460_000, "1d"),
    ],
)
def test_durations(milliseconds: int, words: str) -> None:
    assert duration(milliseconds) == words


def test_texts_from_elsewhere_are_harmless() -> None:
    assert harmless("a\x1b[2Jb\u202ec\x07") == "a\\x1b[2Jb\\u202ec\\x07"
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"
    assert value_words(None) == "–"
    assert value_words({"a": [1]}) == '{"a":[1]}'
    assert when(0) == "–"
    assert re.fullmatch(rf"{TIME}", when(1_795_528_037_269))


@pytest.mark.parametrize(
    ("zone", "words"),
    [
        ("UTC0", "2026-11-24 13:47:17.269Z"),
        ("XXX-5:30", "2026-11-24 19:17:17.269+05:30"),
        ("XXX+3", "2026-11-24 10:47:17.269-03:00"),
    ],
)
def test_a_moment_tells_its_zone(zone: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        told = when(1_795_528_037_269)
    time.tzset()
    assert told == words


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"attachments_version": 1, "applied_version": 1}, "v1"),
        ({"attachments_version": 2}, "v2 kept"),
        ({"attachments_version": 2, "wanted": Wanted.RUN, "status": Status.ASSIGNING}, "v2 pending"),
        ({"attachments_version": 2, "applied_version": 1, "refused": {"version": 2}}, "v2 refused"),
    ],
)
def test_applied_state(fields: dict[str, Any], words: str) -> None:
    assert applied_words(Row("t", **fields)) == words


def test_a_held_row_says_what_runs_and_what_is_asked() -> None:
    world = camera()
    world.command(TOPICS.update, "cam-1", attachments={"fps": 1}, merge=True)
    world.command(TOPICS.cancel, "cam-1")
    row = world.state.rows["cam-1"]
    assert applied_words(row) == "v2 pending, v1 runs"
    assert status_suffix(row) == " (cancelling)"
    assert status_suffix(row, row.cancel_at_ms + 3_200) == " (cancelling, 3s)"
    assert status_suffix(replace(row, controls={}), row.cancel_at_ms + 3_200) == " (cancelling)"
    world.report("cam-1", "Stopped")
    assert status_suffix(world.state.rows["cam-1"], row.cancel_at_ms + 3_200) == ""


@pytest.mark.parametrize(
    ("action", "words"), [("pause", " (pausing, 4s)"), ("restart", " (restarting, 4s)"), ("resume", ""), (None, "")]
)
def test_what_is_asked_of_a_holder(action: str | None, words: str) -> None:
    world = camera()
    world.command(TOPICS.assign, "cam-1", action=action)
    row = world.state.rows["cam-1"]
    assert status_suffix(row, row.assign_at_ms + 4_000) == words


def test_crashes_in_words() -> None:
    world = camera()
    for _ in range(4):
        world.report("cam-1", "Failed", error={"type": "E", "message": "m"})
        row = world.state.rows["cam-1"]
        world.report("cam-1", "Retry", epoch=row.epoch, attempt=row.attempt)
    world.report("cam-1", "Failed", error={"type": "E", "message": "m"})
    row = world.state.rows["cam-1"]
    assert tries_words(row, row.retry_at_ms - 3_000) == "crash looping (5), next try in 3s"
    assert tries_words(Row("t"), 0) == ""
    assert tries_words(Row("t", attempt=1), 0) == "1 crash"


def test_parameters_are_masked_and_cut() -> None:
    row = Row("t", attachments={"fps": 30, "password": "hunter2", "url": "rtsp://u:p@c", "none": None, "box": {"a": 1}})
    assert parameters_words(row, WORDS) == 'fps=30 password=*** url=rtsp://***@c none=null box={"a":1}'
    assert len(parameters_words(Row("t", attachments={"x": "y" * 500}), WORDS)) == 60


# -- ps ----------------------------------------------------------------------------------------------------------------


def test_ps_shows_each_task_on_one_line() -> None:
    world = camera()
    world.assign("cam-2", {"fps": 5}, recipient="nowhere")
    rows = ps.pick(world.state.rows.values(), ps.Filter())
    text = shown(ps.picture(rows, world.members, WORDS, world.now_ms + 65_000))
    lines = text.splitlines()
    assert lines[0].split() == list(ps.COLUMNS)
    assert lines[1].split() == [
        "cam-1",
        "Cam",
        "Running",
        "a",
        "1",
        "fps=30",
        "password=***",
        "url=rtsp://***@c/1",
        "v1",
        "1m",
        "5s",
    ]
    assert lines[2].split()[:5] == ["cam-2", "Cam", "Assigning", "–", "0"]
    assert lines[3] == "cam-2 waits: No skald can take it: nowhere: recipient is not here"
    assert lines[4] == "2 tasks, 1 running; skalds: a up 0/8"
    assert "hunter2" not in text
    assert "pass1" not in text


def test_ps_cuts_why_a_task_waits_to_the_terminal_and_masks_it() -> None:
    world = camera()
    world.report("cam-1", "Failed", error={"type": "E", "message": "no hunter2 " + "x" * 200})
    rows = list(world.state.rows.values())
    now = rows[0].retry_at_ms - 3_000
    console = Console(file=StringIO(), width=60, highlight=False)
    console.print(ps.picture(rows, world.members, WORDS, now))
    file: Any = console.file
    (line,) = [line for line in file.getvalue().splitlines() if " waits: " in line]
    assert line.startswith("cam-1 waits: E: no *** xxx")
    assert (len(line), line[-1]) == (60, "…")
    assert " Next try in 3s" in shown(ps.picture(rows, world.members, WORDS, now))


def test_ps_says_of_so_many_tasks_why_they_wait() -> None:
    rows = [Row(f"t{n}", status=Status.ASSIGNING, wanted=Wanted.RUN) for n in range(25)]
    lines = shown(ps.picture(rows, World().members, WORDS, 0)).splitlines()
    assert sum(" waits: " in line for line in lines) == 20
    assert lines[-2].startswith("5 more wait;")


def test_ps_marks_a_holder_that_is_gone() -> None:
    world = camera()
    world.beat("a", "a2", replaces="a1")
    rows = list(world.state.rows.values())
    assert " a (dead) " in shown(ps.picture(rows, world.members, WORDS, world.now_ms))
    assert ps.as_doc(rows, world.members, WORDS, world.now_ms)["tasks"][0]["holder_state"] == "dead"


@pytest.mark.parametrize(
    ("chosen", "ids"),
    [
        (ps.Filter(), ["a", "b", "c"]),
        (ps.Filter(statuses=frozenset({"Failed", "Created"})), ["a", "b"]),
        (ps.Filter(classes=frozenset({"Cam"})), ["b", "c"]),
        (ps.Filter(statuses=frozenset({"Paused"}), classes=frozenset({"Cam"})), ["c"]),
        (ps.Filter(skalds=frozenset({"s1"})), []),
    ],
)
def test_ps_filters(chosen: ps.Filter, ids: list[str]) -> None:
    rows = [
        Row("c", class_name="Cam", status=Status.PAUSED),
        Row("a"),
        Row("b", class_name="Cam", status=Status.FAILED),
    ]
    assert [row.task_id for row in ps.pick(rows, chosen)] == ids


def test_ps_json_is_masked() -> None:
    world = camera()
    doc = ps.as_doc(list(world.state.rows.values()), world.members, WORDS, world.now_ms)
    text = orjson.dumps(doc).decode()
    assert "hunter2" not in text
    assert "pass1" not in text
    assert doc["tasks"][0]["attachments_masked"]["password"] == "***"
    assert doc["tasks"][0]["holder_state"] == "up"
    assert [item["skald_id"] for item in doc["skalds"]] == ["a"]


def test_hostile_texts_stay_texts() -> None:
    row = Row("[red]\x1b[2J", class_name="[/]", attachments={"x": "[bold]\n\x1b"})
    text = shown(ps.picture([row], World().members, WORDS, 0))
    assert "[red]\\x1b[2J" in text
    assert "\x1b" not in text
    assert len(text.splitlines()) == 3


# -- describe ----------------------------------------------------------------------------------------------------------


def described(world: World) -> str:
    table = Table(world.state.rows, world.members)
    history = [entry for entry in world.recording().history if entry.task_id == "cam-1"]
    console = Console(file=StringIO(), width=400, highlight=False)
    describe._print(console, cluster(), "cam-1", table, history)
    file: Any = console.file
    return str(file.getvalue())


def test_describe_tells_everything() -> None:
    world = camera()
    world.command(TOPICS.update, "cam-1", attachments={"fps": -1}, merge=True, reason="louder")
    world.report("cam-1", "Refused", version=2, error={"type": "ValueError", "message": "fps of hunter2"})
    error = {
        "type": "RuntimeError",
        "message": "no hunter2 here",
        "traceback": ["Traceback:", '  File "x"\n    boom'],
        "reason": "signal",
    }
    world.report("cam-1", "Failed", error=error)
    text = described(world)
    for part in (
        "cam-1 Assigning for ",
        "class         Cam",
        "It should run",
        "RuntimeError: no *** here (1 crash). Next try",
        "last held by  a, epoch 1",
        "parameters, v2 refused",
        "password: ***",
        "url: rtsp://***@c/1",
        "version 2 was refused at ",
        "ValueError: fps of ***",
        "last error, ended by: a signal\n  RuntimeError: no *** here",
        '    Traceback:\n      File "x"\n        boom',
        "last changes, 5 of them",
        "Assign task.assign/",
        ": first",
        ": louder",
    ):
        assert part in text, part
    assert "hunter2" not in text


def test_describe_tells_what_became_of_each_command() -> None:
    world = camera()
    world.command(TOPICS.assign, "cam-1", action="pause")
    asked = world.logs[TOPICS.assign, partition_of("cam-1", TOPICS.partitions)][-1]
    place = f"{asked.topic}/{asked.partition}@{asked.offset}"
    text = described(world)
    assert re.search(rf"\n  pause +asked {TIME} by {place}, not applied yet\n", text), text
    world.report("cam-1", "Stopped", steps=["SIGTERM after 5 s", "SIGKILL after 2 s"])
    world.command(TOPICS.assign, "cam-1", action="restart")
    world.command(TOPICS.cancel, "cam-1")
    text = described(world)
    ended = "epoch 1 with version 1 of the parameters has ended"
    assert re.search(rf"\n  pause +asked {TIME} by {place}, applied {TIME}, after 0.020 s: {ended}\n", text), text
    assert re.search(rf"\n  restart +asked {TIME} by task.assign/\S+, superseded by Cancel task.cancel/\S+\n", text), (
        text
    )
    assert re.search(rf"\n  cancel +asked {TIME} by task.cancel/\S+, not applied yet\n", text), text
    assert "SIGTERM after 5 s, SIGKILL after 2 s\n" in text, "the budgets that it used up"


def test_the_history_names_actions_and_what_was_refused() -> None:
    world = camera()
    world.command(TOPICS.update, "cam-1", attachments={"fps": -1}, merge=True)
    refusal = {"type": "ValueError", "message": "-1 for hunter2", "field": "fps"}
    world.report("cam-1", "Refused", version=2, error=refusal)
    for action in ("pause", "resume", "restart"):
        world.command(TOPICS.assign, "cam-1", action=action)
        world.report("cam-1", "Stopped", steps=["SIGTERM after 5 s"] if action == "restart" else [])
    lines = described(world).partition("last changes")[2].splitlines()
    for part in (
        r"Refused skald\.report/\S+ +version 2: ValueError: -1 for \*\*\* \(field fps\)$",
        r"Pause task\.assign/\S+$",
        r"Resume task\.assign/\S+$",
        r"Restart task\.assign/\S+$",
        r"Stopped skald\.report/\S+ +SIGTERM after 5 s$",
    ):
        assert [line for line in lines if re.search(part, line.rstrip())], (part, lines)


def test_a_reason_that_is_the_note_is_told_once() -> None:
    held_up = "task cam-2 beside it held up the event loop of its host"
    for reason, steps in ((held_up, [held_up]), (held_up + " for 3 s", [held_up]), (held_up, [held_up, "SIGKILL"])):
        world = camera()
        world.report("cam-1", "Stopped", reason=reason, steps=steps)
        text = described(world)
        history = text.partition("last changes")[2]
        assert history.count(held_up) == 1, history
        assert text.count(held_up) == 2, "and once in the present state"
    world.report("cam-1", "Stopped", reason="drained")
    assert ": drained\n" in re.sub(" +\n", "\n", described(world))


def test_describe_tells_to_what_a_command_has_lost() -> None:
    world = World()
    world.command(TOPICS.cancel, "cam-1")
    world.now_ms -= 1_000
    world.assign("cam-1", {"fps": 30}, action="restart")
    text = described(world)
    assert re.search(rf"\n  cancel +asked {TIME} by \S+, applied {TIME}, after 0.010 s: nothing had run\n", text), text
    assert re.search(rf"\n  restart +asked {TIME} by \S+, superseded by an earlier Cancel at {TIME}\n", text), text


def test_describe_of_a_row_of_an_older_version_still_tells_of_its_cancel() -> None:
    world = camera()
    world.command(TOPICS.cancel, "cam-1")
    world.report("cam-1", "Stopped")
    world.state.rows["cam-1"] = replace(world.state.rows["cam-1"], controls={})
    text = described(world)
    assert re.search(rf"\n  cancelled +{TIME}\n  ended +{TIME}\n", text), text


def test_describe_lists_the_reason_of_each_skald() -> None:
    world = World()
    world.beat("b", "b1", classes={})
    world.beat("a", "a1", capacity=0)
    world.assign("cam-1", {"fps": 1})
    text = described(world)
    assert "waits for     a: full 0/0" in text
    assert "waits for     b: no class Cam" in text


def test_describe_of_a_task_that_left_the_table() -> None:
    world = camera()
    world.state.rows.clear()
    assert described(world).startswith("cam-1 is not in the table any more")


def test_describe_json_is_masked() -> None:
    world = camera()
    doc = describe.as_doc("cam-1", Table(world.state.rows, world.members), world.recording().history, WORDS, 0)
    assert [entry["revision"] for entry in doc["history"]] == [1, 2]
    text = orjson.dumps(doc).decode()
    assert "hunter2" not in text
    assert doc["task"]["task_id"] == "cam-1"


# -- replay ------------------------------------------------------------------------------------------------------------


def test_a_step_shows_only_what_changed() -> None:
    steps, total, verdict = replay.play(cluster(), lived().recording(), None)
    assert (len(steps), verdict.is_verified) == (total, True)
    text = "\n".join(line.plain for step in steps for line in replay.step_lines(step, WORDS))
    assert "status: Assigning → Running" in text
    assert "holder: – → a (epoch 1)" in text
    assert "  cam-1  Cancel  task.cancel/" in text
    assert "attachments.fps: 30 → 10" in text
    assert "attachments.password: *** → " not in text
    assert "status: Running → Assigning" in text
    assert "“night”" in text
    assert "revision" not in text
    assert "hunter2" not in text


def test_only_the_last_steps_are_kept_but_all_are_verified() -> None:
    steps, total, verdict = replay.play(cluster(), lived().recording(), 3)
    assert len(steps) == 3
    assert verdict.decisions == total > 3


def test_what_differs_is_shown_in_words_and_as_json() -> None:
    recording = change_history(lived().recording(), "cam-1", 2, status=Status.PAUSED, error={"m": "hunter2"})
    steps, _, verdict = replay.play(cluster(), recording, None)
    lines = [line.plain for finding in verdict.findings for line in replay.finding_lines(finding, WORDS)]
    assert lines[0].startswith("cam-1, revision 2 (taskworker.update/")
    assert "    differs: status: rebuilt Running, recorded Paused" in lines
    doc = orjson.loads(orjson.dumps(replay.as_doc(steps, verdict, WORDS)))
    assert (doc["verified"], doc["differing"]) == (False, 1)
    assert {item["field"] for item in doc["findings"][0]["differences"]} == {"status", "error"}
    assert "hunter2" not in str(doc)


def test_another_digest_key_is_named_as_the_likely_cause() -> None:
    steps, total, verdict = replay.play(cluster("other"), lived().recording(), None)
    assert not verdict.is_verified
    console = Console(file=StringIO(), width=400)
    replay._print(console, steps, total, verdict, WORDS, quiet=True)
    file: Any = console.file
    assert replay.DIGEST_HINT in file.getvalue()


def test_what_limits_the_verdict_is_said() -> None:
    recording = lived().recording()
    recording = replace(
        recording, foreign=3, inputs_read=len(recording.inputs) + 2, rows={**recording.rows, "x": Row("x")}
    )
    _, _, verdict = replay.play(cluster(), recording, 0)
    text = "\n".join(replay.notes(verdict))
    assert "1 tasks in the table have no history" in text
    assert "3 records on the history topic are not ours" in text
    assert "2 of " in text


def test_events_are_upstreams_but_for_our_fields() -> None:
    doc = orjson.loads(TaskEvent(taskIds=["t"]).model_dump_json(by_alias=True))
    assert "tasks" not in doc
