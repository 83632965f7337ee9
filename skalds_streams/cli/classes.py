"""`skalds-streams classes`: which worker classes there are, who runs them, and what parameters they take.

The heartbeats say who runs what; the parameters are asked from the status page of a node that runs the class.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import aiohttp
import click
import orjson
from rich.console import Console
from rich.table import Table as RichTable

from skalds_streams.cli.kafka import Cluster, connect, read_members
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import BAD, QUIET, err, harmless, one_line, out, print_json, text
from skalds_streams.cli.rows import who_has_what
from skalds_streams.core.membership import Member, Members
from skalds_streams.core.options import ClassOptions
from skalds_streams.errors import SkaldsError
from skalds_streams.replay.reader import open_reader
from skalds_streams.web.documents import class_docs
from skalds_streams.web.words import label_words, pause_words, restart_words
from skalds_streams.worker.schema_words import parameters

ASK_S = 5.0
ANSWER_MAX_BYTES = 1 << 20


@click.command()
@click.argument("name", required=False)
@command_options
def classes(options: Options, /, name: str | None) -> None:
    """List the worker classes of the living skalds, or describe one: its parameters, their types and defaults.

    The description comes from the status page of a node that runs the class; set SKALDS_WEB_TOKEN if it needs one.

    \b
    Examples:
      skalds-streams classes
      skalds-streams classes Camera
      skalds-streams classes Camera -o json
    """
    run(_classes(options, name))


async def _classes(options: Options, name: str | None) -> None:
    cluster = await connect(options.settings, "changelog", "heartbeat")
    async with open_reader(cluster.client) as reader:
        members, problems = await read_members(cluster, reader)
    for problem in problems:
        err().print(text(f"Warning: not understood: {problem}", BAD))
    if name is None:
        doc = list_doc(members)
        if options.json:
            print_json(doc)
        else:
            print_list(out(), doc)
        return
    doc = await _described(cluster, members, name)
    if options.json:
        print_json(doc)
    else:
        print_class(out(), doc)


def list_doc(members: Members) -> dict[str, Any]:
    """The JSON object: {"classes": […], "not_loadable": {skald id: [module or class]}}."""
    broken = {member.skald_id: list(member.not_loadable) for member in members if member.not_loadable}
    return {"classes": class_docs(members), "not_loadable": broken}


def print_list(console: Console, doc: Mapping[str, Any]) -> None:
    """One line a class, then what can't be loaded where."""
    table = RichTable(box=None, pad_edge=False, header_style="bold")
    for column in ("CLASS", "SCHEMA", "SKALDS"):
        table.add_column(column, no_wrap=column != "SKALDS")
    for item in doc["classes"]:
        table.add_row(
            text(one_line(item["name"])),
            text(item["digest"] or "differs", "" if item["digest"] else BAD),
            text(", ".join(one_line(there["skald_id"]) for there in item["run_by"])),
        )
    console.print(table)
    if not doc["classes"]:
        console.print(text("no living skald has a worker class", QUIET))
    for skald_id, names in sorted(doc["not_loadable"].items()):
        told = ", ".join(one_line(name) for name in names)
        console.print(text(f"not loadable on {one_line(skald_id)}: {told}; its status page says why", BAD))


def print_class(console: Console, doc: Mapping[str, Any]) -> None:
    """What the class is and takes."""
    console.print(text(one_line(doc["name"]), "bold"), text(f"of {one_line(doc.get('module'))}", QUIET))
    for line in str(doc.get("doc") or "").splitlines():
        console.print(text(f"  {line}"))
    for name, words in _facts(doc):
        console.print(text(f"  {name:<10}", QUIET) + text(words))
    table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("PARAMETER", "TYPE", "DEFAULT", "ABOUT"):
        table.add_column(column, overflow="fold")
    spelled = {alias: name for name, alias in doc.get("aliases", {}).items()}
    for item in parameters(doc.get("schema", {})):
        also = f" ({spelled[item.key]})" if item.key in spelled else ""
        table.add_row(
            text(one_line(item.key + also)),
            text(one_line(item.kind)),
            text("required" if item.required else one_line(item.default)),
            text(one_line(item.about)),
        )
    console.print(table if table.row_count else text("  it takes no parameters", QUIET))


def _facts(doc: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "run by", ", ".join(one_line(there["skald_id"]) for there in doc["run_by"])
    yield (
        "stop",
        f"release handler {doc.get('release_s')} s, then SIGTERM, then SIGKILL {doc.get('terminate_s')} s later",
    )
    if doc.get("isolation") == "shared":
        yield "runs in", "a host process that it shares with other tasks"
    if doc.get("on_disconnect") == "keep":
        yield "lease", "none: it runs on while its node can't reach Kafka"
    options = ClassOptions.from_doc(doc.get("options") or {})
    if options.requires:
        yield "needs", one_line(label_words(options.requires))
    yield "weight", str(options.weight)
    yield "restarts", f"{restart_words(options.max_restarts)}, after {pause_words(options)}"
    if len({orjson.dumps([there["digest"], there["options"]]) for there in doc["run_by"]}) > 1:
        yield "note", f"the skalds have different versions; this is that of {doc['described_by']}"


async def _described(cluster: Cluster, members: Members, name: str) -> dict[str, Any]:
    """The description by the first node that gives one. Raises SkaldsError."""
    holders = [member for member in members if name in member.classes]
    if not holders:
        raise SkaldsError(harmless(f"no living skald runs a class {name!r}; {who_has_what(members, name)}"))
    run_by = next(doc["run_by"] for doc in class_docs(members) if doc["name"] == name)
    answer, skald_id = await ask(holders, members, name, cluster.settings.web_token.get_secret_value())
    return {**answer, "described_by": skald_id, "run_by": run_by}


async def ask(holders: Sequence[Member], members: Members, name: str, token: str) -> tuple[dict[str, Any], str]:
    """(the description, who gave it). Raises SkaldsError with what each node said."""
    refusals = []
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(headers=headers) as session:
        for member in sorted(holders, key=lambda member: (members.is_silent(member), member.skald_id)):
            try:
                return await _ask_one(session, member, name), member.skald_id
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                refusals.append(f"{member.skald_id} at {member.web}: {str(error) or 'no answer in time'}")
    raise SkaldsError(harmless(f"no node could be asked about class {name}:\n  " + "\n  ".join(refusals)))


async def _ask_one(session: aiohttp.ClientSession, member: Member, name: str) -> dict[str, Any]:
    url = f"{member.web.rstrip('/')}/api/classes/{quote(name, safe='')}"
    async with asyncio.timeout(ASK_S), session.get(url, allow_redirects=False) as answer:
        if answer.status == 401:
            raise ValueError("the token is missing or wrong: set SKALDS_WEB_TOKEN")
        if answer.status != 200:
            raise ValueError(f"it answered {answer.status}")
        body = bytearray()
        async for chunk in answer.content.iter_any():
            body += chunk
            if len(body) > ANSWER_MAX_BYTES:
                raise ValueError(f"its answer has more than {ANSWER_MAX_BYTES} bytes")
        doc = orjson.loads(body)
        ClassOptions.from_doc(doc.get("options") or {})  # raises ValueError
    return dict(doc)
