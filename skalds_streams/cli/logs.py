"""`skalds-streams logs`: what the worker of a task printed, from the node that has it; live with -f."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
import orjson

from skalds_streams.cli.kafka import connect, read_table
from skalds_streams.cli.options import Options, command_options, run
from skalds_streams.cli.output import BAD, QUIET, err, harmless, one_line, print_json, text
from skalds_streams.errors import SkaldsError
from skalds_streams.replay.reader import open_reader
from skalds_streams.skald.machine import host_name
from skalds_streams.web.documents import web_link
from skalds_streams.web.log_place import log_place

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

LINES_DEFAULT = 100
LINES_MOST = 100_000
REDIRECTS_MOST = 3
CONNECT_S = 10.0
SILENCE_S = 40.0
"""A node says something at least every 15 s."""
AGAIN_S = 2.0


@click.command()
@click.argument("task_id", metavar="TASK")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is printed from now on, until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    "most",
    type=click.IntRange(min=0, max=LINES_MOST),
    default=LINES_DEFAULT,
    show_default=True,
    metavar="LINES",
    help="How many of the last lines.",
)
@click.option("--node", metavar="URL", help="Ask the page of this node, whichever has the log, and not Kafka.")
@command_options
def logs(options: Options, /, task_id: str, follow: bool, most: int, node: str | None) -> None:
    """What a task printed, its children included: time, task@epoch, text. Known secrets are masked.

    It comes from the node that runs the task, or ran it last. Nodes with a token: SKALDS_WEB_TOKEN.

    \b
    Example:
      skalds-streams logs -f cam-1
      skalds-streams logs -n 1000 cam-1 --node http://node-1:6066
    """
    if follow and options.json:
        raise click.UsageError("-f writes lines: it can't be combined with -o json")
    if node is not None and web_link(node) is None:
        raise click.BadParameter(f"{node!r} is not a web address like http://node-1:6066", param_hint="'--node'")
    run(_logs(options, task_id, most, follow, node))


async def _logs(options: Options, task_id: str, most: int, follow: bool, node: str | None) -> None:
    import aiohttp

    token = options.settings.web_token.get_secret_value()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        source = Source(session, options, task_id, node)
        if follow:
            await _follow(source, most)
            return
        async with source.ask({"lines": str(most)}) as answer:
            try:
                doc = orjson.loads(await answer.read())
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise SkaldsError(f"{answer.url.origin()} gave no whole answer: {error}") from None
    if options.json:
        print_json(doc)
    else:
        show(doc["lines"])


def show(lines: Sequence[str]) -> None:
    """To stdout, harmless for a terminal."""
    if lines:
        click.echo("\n".join(harmless(line) for line in lines))


class Source:
    """Where the lines come from."""

    def __init__(self, session: ClientSession, options: Options, task_id: str, node: str | None) -> None:
        self._session, self._options, self._task_id, self._node = session, options, task_id, node

    @asynccontextmanager
    async def ask(self, query: dict[str, str], **headers: str) -> AsyncIterator[ClientResponse]:
        """The answer of the node that has the log, its body not read yet. Raises SkaldsError."""
        import aiohttp

        url = await self._place()
        params: dict[str, str] | None = query
        for _ in range(REDIRECTS_MOST):
            try:
                answer = await self._session.get(url, params=params, headers=headers, allow_redirects=False)
            except (aiohttp.ClientError, OSError) as error:
                raise SkaldsError(f"the page at {harmless(url)} can't be reached: {error}") from None
            async with answer:
                location = answer.headers.get("Location", "")
                if answer.status != 307 or web_link(location) is None:
                    if answer.status != 200:
                        raise SkaldsError(await _refusal(answer))
                    yield answer
                    return
                url, params = location, None
        raise SkaldsError(f"{self._task_id} is on its way from node to node: try again")

    async def _place(self) -> str:
        path = f"/api/tasks/{quote(self._task_id, safe='')}/logs"
        if self._node is not None:
            return self._node.rstrip("/") + path
        cluster = await connect(self._options.settings, "changelog", "heartbeat")
        async with open_reader(cluster.client) as reader:
            table = await read_table(cluster, reader, self._task_id)
        name, row = harmless(self._task_id), table.rows.get(self._task_id)
        if row is None:
            raise SkaldsError(f"there is no task {name!r} at {self._options.settings.bootstrap}")
        place = log_place(row, table.members)
        if place is None:
            raise SkaldsError(f"{name} has not run yet: it is {row.status.value}")
        problem = place.problem(host_name())
        if problem is not None:
            raise SkaldsError(f"the log of {name} can't be had: {harmless(problem)}")
        return f"{place.url}{path}"


async def _refusal(answer: ClientResponse) -> str:
    """Why a node does not answer, in words."""
    page = f"{answer.url.origin()}"
    if answer.status == 401:
        return f"the page at {page} needs a token: set SKALDS_WEB_TOKEN to the one of the nodes"
    try:
        said = orjson.loads(await answer.read())["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        said = f"HTTP {answer.status} {answer.reason}"
    return f"{page}: {one_line(said)}"


# -- live


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event."""

    name: str
    id: str
    doc: Any


class EventReader:
    """Cuts a stream into server-sent events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[ServerEvent]:
        """The events that are complete now."""
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(": ", 1) for line in block.decode(errors="replace").split("\n") if ": " in line)
            if fields.get("event") and "data" in fields:
                yield ServerEvent(fields["event"], fields.get("id", ""), orjson.loads(fields["data"]))


async def _follow(source: Source, most: int) -> None:
    """For ever, from node to node, until the task is gone. Only the first time nothing may be wrong."""
    follower = _Follower(source, most)
    said = ""
    while True:
        try:
            if await follower.stream():
                return
            problem = ""
        except SkaldsError as error:
            if not follower.has_begun:
                raise
            problem = str(error)
        if problem != said:
            said = problem
            if problem:
                err().print(text(f"{problem}; trying again", BAD))
        await asyncio.sleep(AGAIN_S)


class _Follower:
    def __init__(self, source: Source, most: int) -> None:
        self._source, self._most = source, most
        self._node = self._last = ""
        self.has_begun = False

    async def stream(self) -> bool:
        """Show what comes until the connection ends; whether that is all there will ever be."""
        import aiohttp

        # Lines of another node have other places; and an id that it does not know makes it begin with its last lines.
        headers = {"Last-Event-ID": self._last} if self._last else {}
        async with self._source.ask({"lines": str(self._most), "follow": "1"}, **headers) as answer:
            self.has_begun = True
            node, reader = str(answer.url.origin()), EventReader()
            try:
                while True:
                    data = await answer.content.readany()
                    if not data:
                        return False
                    for event in reader.feed(data):
                        if self._take(event, node):
                            return event.name == "gone"
            except (aiohttp.ClientError, OSError) as error:
                raise SkaldsError(f"the connection to {node} is lost: {error}") from None

    def _take(self, event: ServerEvent, node: str) -> bool:
        """Show one event; whether it is the last one."""
        if event.name == "lines":
            show(event.doc["lines"])
            self._last = event.id or self._last
        elif event.name == "missed":
            err().print(text("lines were overwritten before they could be shown", BAD))
        elif event.name == "moved":
            err().print(text(f"the task is on {harmless(str(event.doc.get('skald_id')))} now", QUIET))
            self._last = ""
        elif event.name == "gone":
            err().print(text("the task is gone", QUIET))
        return event.name in ("moved", "gone")
