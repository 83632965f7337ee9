"""`skalds-streams state`: what a task's runs have saved: look at it, set it, reset it.

Rules: a state is shown in full, as a person asked for it by name; it is changed only while the task does not run, as a
run would save over it; nothing is reset without a yes. A reset is first written down as one, and then what was saved is
deleted: a run that is long over and still writes something brings nothing back.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import click
import orjson

from skalds_streams.cli.commanding import checked_id
from skalds_streams.cli.documents import read_file
from skalds_streams.cli.kafka import Cluster, connect, read_table
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import GOOD, QUIET, err, harmless, one_line, out, print_json, text, when
from skalds_streams.core.partition import partition_of
from skalds_streams.core.row import Row
from skalds_streams.errors import SkaldsError, StateError
from skalds_streams.model.record import Record
from skalds_streams.model.saved import RESET, Saved, Spot, StateIndex, StateKey, StateRecord, read_saved
from skalds_streams.proxy.states import StateSender
from skalds_streams.replay.reader import LogReader, open_reader, translated_errors
from skalds_streams.worker.saving import encode_state


@dataclass(frozen=True, slots=True)
class Found:
    """A task and what its runs have saved. `saved`: what counts, or `problem`: why it can't be read; `spot`: where that
    lies; `keys`: all that is there.
    """

    task_id: str
    row: Row | None
    saved: Saved | None = None
    problem: str | None = None
    spot: Spot | None = None
    keys: Sequence[StateKey] = ()


@click.group()
def state() -> None:
    """What a task's runs have saved with `self.save(…)`, and its next run finds in `self.state`.

    \b
    Examples:
      skalds-streams state show cam-1
      skalds-streams state reset cam-1
    """


@state.command()
@click.argument("task_id", metavar="ID")
@command_options
def show(options: Options, /, task_id: str) -> None:
    """The state that was saved last, in full: whatever secrets the worker put into it are shown.

    \b
    Examples:
      skalds-streams state show cam-1
      skalds-streams state show cam-1 -o json | jq .state > state.json
    """
    found = run(_look(options, task_id))
    if found.row is None:
        raise _no_task(options, task_id)
    if found.problem is not None:
        raise SkaldsError(f"{found.problem}; `skalds-streams state reset` deletes it")
    if options.json:
        print_json(as_doc(found))
        return
    if found.saved is None or found.saved.text is None:
        out().print(text(f"{one_line(task_id)}: nothing is saved", QUIET))
        return
    who = f"set by hand after the run of epoch {found.saved.key.epoch}"
    if not found.saved.key.by_hand:
        who = f"saved by its run of epoch {found.saved.key.epoch} on {found.saved.skald_id}"
    size = len(found.saved.text.encode())
    told = f"{one_line(task_id)}: {who} at {when(found.saved.at_ms)}, {size} bytes"
    err().print(text(told + (f"; {_begins_anew(found.row)}" if found.row.is_over else ""), QUIET))
    click.echo(harmless(orjson.dumps(orjson.loads(found.saved.text), option=orjson.OPT_INDENT_2).decode()))


@state.command("set")
@click.argument("task_id", metavar="ID")
@click.argument("document", metavar="[JSON]", required=False)
@click.option("-f", "--file", type=click.File("rb"), help="A JSON or YAML file with the state, - is stdin.")
@command_options
def set_(options: Options, /, task_id: str, document: str | None, file: BinaryIO | None) -> None:
    """Give the next run another state than the last one left. Only while the task does not run: pause it before.

    \b
    Examples:
      skalds-streams assign cam-1 --action pause
      skalds-streams state set cam-1 '{"frame": 1200}'
      skalds-streams assign cam-1 --action resume
    """
    value = _document(document, file)
    run(_change(options, checked_id(task_id), value))


@state.command()
@click.argument("task_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Don't ask.")
@command_options
def reset(options: Options, /, task_id: str, yes: bool) -> None:
    """Delete what was saved, so that the next run begins without a state. Only while the task does not run.

    \b
    Examples:
      skalds-streams assign cam-1 --action pause
      skalds-streams state reset cam-1 --yes
      skalds-streams assign cam-1 --action resume
    """
    checked_id(task_id)
    if not yes and (options.json or not sys.stdin.isatty()):
        raise click.UsageError("nobody can be asked here: give --yes")
    if not yes and not click.confirm(f"Delete what {harmless(task_id)} has saved?", err=True):
        raise click.exceptions.Exit(1)
    run(_change(options, task_id, None))


def as_doc(found: Found) -> dict[str, Any]:
    """The JSON object. `state` is null when nothing is saved, or was reset."""
    saved = found.saved
    if saved is None or saved.text is None:
        return {"task_id": found.task_id, "state": None}
    return {
        "task_id": found.task_id,
        "state": orjson.loads(saved.text),
        "epoch": saved.key.epoch,
        "by_hand": saved.key.by_hand,
        "skald_id": saved.skald_id or None,
        "saved_at_ms": saved.at_ms,
        "bytes": len(saved.text.encode()),
        "next_run_finds_it": found.row is not None and not found.row.is_over,
    }


def _document(document: str | None, file: BinaryIO | None) -> bytes:
    """The state as it is written. Raises UsageError for what is none."""
    if (document is None) == (file is None):
        raise click.UsageError("give the state as JSON, or a file with -f")
    if file is not None:
        name, loaded = read_file(file)
    else:
        name = "the state"
        try:
            loaded = orjson.loads(document or "")
        except orjson.JSONDecodeError as error:
            raise click.UsageError(f"the state is not JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise click.UsageError(f"{name} must hold an object, e.g. '{{\"frame\": 1200}}'; `state reset` deletes a state")
    try:
        return encode_state(loaded).encode()
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None


# -- reading and writing -----------------------------------------------------------------------------------------------


async def _look(options: Options, task_id: str) -> Found:
    cluster = await _connect(options)
    async with open_reader(cluster.client) as reader:
        return await look(cluster, reader, task_id)


async def _connect(options: Options) -> Cluster:
    return await connect(options.settings, "changelog", "state", "heartbeat")


async def look(cluster: Cluster, reader: LogReader, task_id: str) -> Found:
    """Read the states of the task, then its row."""
    partition = partition_of(task_id, cluster.topics.partitions)
    index, records = StateIndex(), dict[int, Record]()
    async for batch in reader.read(await reader.whole(cluster.topics.state, [partition])):
        for record in batch:
            key = StateKey.parse(record.key)
            if key is not None and key.task_id == task_id:
                index.apply(record)
                records[record.offset] = record
    row = (await read_table(cluster, reader, task_id)).rows.get(task_id)
    spot = index.newest(task_id, row.first_epoch if row is not None else 0)
    found = Found(task_id, row, spot=spot, keys=index.keys(task_id))
    if spot is None:
        return found
    try:
        return replace(found, saved=_read(records[spot.offset]))
    except StateError as error:
        return replace(found, problem=str(error))


def _read(record: Record) -> Saved:
    saved = read_saved(record)
    try:
        orjson.loads(saved.text or "{}")
    except orjson.JSONDecodeError as error:
        raise StateError(f"{record.where} is not JSON: {error}") from None
    return saved


async def _change(options: Options, task_id: str, value: bytes | None) -> None:
    """value None: reset."""
    cluster = await _connect(options)
    async with open_reader(cluster.client) as reader:
        found = await look(cluster, reader, task_id)
        records = _reset(options, found) if value is None else [_set(options, found, value)]
        await _send(cluster, records)
        _check_meanwhile(found, await look(cluster, reader, task_id))
    done = "nothing was saved" if not records else "reset" if value is None else "set"
    if options.json:
        print_json({"task_id": task_id, "ok": True, "result": done})
    else:
        then = "the next run begins without it" if value is None else "the next run finds it"
        out().print(text(f"{one_line(task_id)}: {done}" + (f", {then}" if records else ""), GOOD if records else QUIET))


async def _send(cluster: Cluster, records: Sequence[StateRecord]) -> None:
    sender = StateSender(cluster.topics, cluster.client)
    with translated_errors(cluster.client):
        try:
            for record in records:  # in order: what is deleted is deleted when the reset is there
                for error in await sender.send([record]):
                    if error is not None:
                        raise error
        finally:
            await sender.stop()


def _set(options: Options, found: Found, value: bytes) -> StateRecord:
    row = _stopped(options, found)
    if row.is_over:
        raise SkaldsError(f"{harmless(found.task_id)} is {row.status.value}: {_begins_anew(row)}")
    if row.epoch < row.first_epoch:
        raise SkaldsError(
            f"{harmless(found.task_id)} has not run since it was assigned: its first run begins without a state. Tell"
            " it by its parameters where to begin."
        )
    return _by_hand(found, row, value)


def _reset(options: Options, found: Found) -> list[StateRecord]:
    if found.row is None and not found.keys:
        raise _no_task(options, found.task_id)
    row = _stopped(options, found) if found.row is not None else None
    deleted = [StateRecord(key, None) for key in found.keys]
    if row is None or row.is_over or not deleted:
        return deleted
    mark = _by_hand(found, row, RESET)
    return [mark, *(item for item in deleted if item.key != mark.key)]


def _by_hand(found: Found, row: Row, value: bytes) -> StateRecord:
    key = StateKey(found.task_id, row.epoch, by_hand=True)
    seq = found.spot.seq + 1 if found.spot is not None and found.spot.key == key else 1
    return StateRecord.of(key, value, seq=seq, skald_id="")


def _stopped(options: Options, found: Found) -> Row:
    if found.row is None:
        raise _no_task(options, found.task_id)
    if found.row.holder is not None:
        name = harmless(found.task_id)
        raise SkaldsError(
            f"{name} runs on {found.row.holder.skald_id}, and would save over it. Pause it first:"
            f" skalds-streams assign {name} --action pause (and --action resume afterwards)"
        )
    return found.row


def _check_meanwhile(before: Found, after: Found) -> None:
    if before.row is not None and after.row is not None and after.row.epoch != before.row.epoch:
        raise SkaldsError(
            f"{harmless(before.task_id)} was started while this was written (epoch {after.row.epoch}): that run may"
            " have begun with what was there before, and what it saves counts. Pause it and try again."
        )


def _begins_anew(row: Row) -> str:
    return f"assigned again after {row.status.value} it begins anew, without what was saved"


def _no_task(options: Options, task_id: str) -> SkaldsError:
    return SkaldsError(f"there is no task {harmless(task_id)!r} at {options.settings.bootstrap}")
