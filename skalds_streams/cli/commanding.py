"""Sends commands and says what becomes of them: what `assign`, `update` and `cancel` have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from skalds_streams.cli.foresight import foresee, warn
from skalds_streams.cli.kafka import Cluster, Follower, Sent, connect, entry_of, following, send
from skalds_streams.cli.options import Options
from skalds_streams.cli.outcome import Outcome, Settle, Tracker
from skalds_streams.cli.output import BAD, GOOD, err, harmless, now_ms, one_line, out, print_json, text
from skalds_streams.core.partition import partition_of
from skalds_streams.core.row import Row
from skalds_streams.errors import WireError
from skalds_streams.model.codec import Limits, parse
from skalds_streams.model.event import TaskEvent
from skalds_streams.model.record import Record
from skalds_streams.projections.masking import text_cleaner

WAIT_S = 10.0
PATIENCE_S = 1.0
"""A worker that has not applied its parameters by then is worth a line."""
INITIATOR = "skalds-streams"


@dataclass(frozen=True, slots=True)
class Command:
    """One event for one task.

    `topic`: field of `Topics`; `parameters`: those in it, to be masked in what is said of it; `class_name`: the one
    that its document names, `is_forced`: whether it may be one that no skald has; `noun`: what people call the event.
    """

    task_id: str
    topic: str
    event: TaskEvent
    settle: Settle
    parameters: Any = field(default=None)
    class_name: str | None = None
    is_forced: bool = False
    noun: str = ""


def wait_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--wait SECONDS` and `--no-wait`, handed over as `wait_s` (0: don't)."""
    seconds = click.option(
        "--wait",
        "wait_s",
        type=click.FloatRange(min=0),
        default=WAIT_S,
        show_default=True,
        metavar="SECONDS",
        help="Wait this long for what becomes of it, and say what happens meanwhile.",
    )
    none = click.option("--no-wait", "wait_s", flag_value=0.0, type=float, help="Only send it.")
    return seconds(none(function))


def new_event(task_id: str, **fields: Any) -> TaskEvent:
    """A TaskEvent of ours for one task."""
    return TaskEvent(id=task_id, initiator=INITIATOR, taskIds=[task_id], **fields)


async def carry_out(options: Options, commands: Sequence[Command], wait_s: float) -> bool:
    """Send all of them, follow them for `wait_s`, print what happens. Returns whether all went well.

    Raises WireError for a command that no coordinator would accept, SkaldsError for one that would stop a run for a
    class that nobody has; then nothing is sent.
    """
    topics = sorted({command.topic for command in commands})
    cluster = await connect(options.settings, *topics, *(("history", "deadletter") if wait_s else ()))
    events = [_checked(cluster, command) for command in commands]
    warnings = await foresee(cluster, [(item.task_id, item.class_name, item.is_forced) for item in commands])
    for warning in warnings.values():
        warn(warning)
    if not wait_s:
        sent = await send(cluster, events)
        _say_sent(options, commands, sent, warnings)
        return True
    numbers = sorted({partition_of(command.task_id, cluster.topics.partitions) for command in commands})
    places = [(topic, number) for topic in (cluster.topics.history, cluster.topics.deadletter) for number in numbers]
    async with following(cluster, places) as follower:
        sent = await send(cluster, events)
        trackers = [
            Tracker(command.task_id, place, command.settle, _cleaner(cluster, command))
            for command, place in zip(commands, sent, strict=True)
        ]
        await _follow(options, cluster, follower, trackers, wait_s)
    for command, tracker in zip(commands, trackers, strict=True):
        if tracker.is_of_unknown and tracker.outcome is not None and tracker.outcome.ok:
            told = f"{one_line(command.task_id)} is not known here; the {command.noun or command.topic}"
            warnings[command.task_id] = warn(f"{told} is kept for when it is assigned")
    return _say_outcomes(options, trackers, warnings)


def _checked(cluster: Cluster, command: Command) -> tuple[str, str, bytes]:
    """(topic, key, value), read once as a coordinator will, so that what it would refuse is refused here."""
    topics, settings = cluster.topics, cluster.settings
    topic = str(getattr(topics, command.topic))
    value = command.event.model_dump_json(by_alias=True).encode()
    number = partition_of(command.task_id, topics.partitions)
    limits = Limits(settings.max_record_bytes, settings.max_ids_per_event, settings.max_attachments_bytes)
    try:
        parse(Record(topic, number, 0, command.task_id.encode(), value, now_ms()), topics, limits)
    except WireError as error:
        raise WireError(f"task {one_line(command.task_id, 80)}: {error}") from None
    return topic, command.task_id, value


def _cleaner(cluster: Cluster, command: Command) -> Callable[[Any], Any]:
    return text_cleaner(Row(command.task_id, attachments=command.parameters), cluster.words)


async def _follow(
    options: Options, cluster: Cluster, follower: Follower, trackers: Sequence[Tracker], wait_s: float
) -> None:
    by_key: dict[bytes, Tracker] = {tracker.task_id.encode(): tracker for tracker in trackers}
    start_s = time.monotonic()

    def say(tracker: Tracker, line: str | None) -> None:
        if line is not None and not options.json:
            out().print(text(f"{tracker.task_id}: {line}"))

    for end_s in (min(PATIENCE_S, wait_s), wait_s):
        async for record in follower.records(start_s + end_s):
            tracker = by_key.get(record.key or b"")
            if tracker is not None and record.topic == cluster.topics.deadletter:
                tracker.see_deadletter(record)
            elif tracker is not None and (entry := entry_of(record, tracker.task_id)) is not None:
                say(tracker, tracker.see(entry))
            if all(tracker.outcome is not None for tracker in trackers):
                return
        for tracker in trackers:
            say(tracker, tracker.lose_patience())
    for tracker in trackers:
        tracker.give_up(wait_s)


def _say_sent(options: Options, commands: Sequence[Command], sent: Sequence[Sent], warnings: Mapping[str, str]) -> None:
    if options.json:
        docs = [
            {
                "task_id": command.task_id,
                "ok": True,
                "result": "sent",
                "reason": "",
                "took_ms": None,
                "warning": warnings.get(command.task_id),
                "sent": place.to_doc(),
                "row": None,
            }
            for command, place in zip(commands, sent, strict=True)
        ]
        print_json({"ok": True, "tasks": docs})
        return
    for command, place in zip(commands, sent, strict=True):
        out().print(text(f"{command.task_id}: sent, {place}"))


def _say_outcomes(options: Options, trackers: Sequence[Tracker], warnings: Mapping[str, str]) -> bool:
    outcomes = [(tracker, tracker.outcome or Outcome(False, "unknown")) for tracker in trackers]
    ok = all(outcome.ok for _, outcome in outcomes)
    if options.json:
        docs = [
            {
                "task_id": tracker.task_id,
                "ok": outcome.ok,
                "result": outcome.word,
                "reason": outcome.reason,
                "took_ms": outcome.took_ms,
                "warning": warnings.get(tracker.task_id),
                "sent": tracker.sent.to_doc(),
                "row": tracker.row_doc(),
            }
            for tracker, outcome in outcomes
        ]
        print_json({"ok": ok, "tasks": docs})
    for tracker, outcome in outcomes:
        if outcome.ok and not options.json:
            took = f", {outcome.took_ms / 1000:.3f} s after it was asked" if outcome.took_ms is not None else ""
            out().print(text(f"{tracker.task_id}: {outcome.reason}{took}", GOOD))
        elif not outcome.ok:
            err().print(text(f"Error: {tracker.task_id}: {one_line(outcome.reason)}", BAD))
    return ok


def checked_id(task_id: str) -> str:
    """A task id as typed.

    Raises UsageError for an empty one, or for what looks like a forgotten id before key=value.
    """
    if not task_id.strip():
        raise click.UsageError("the task id is empty")
    if "=" in task_id:
        raise click.UsageError(
            f"{harmless(task_id)!r} stands where the task id belongs; the id comes first, then key=value"
        )
    return task_id
