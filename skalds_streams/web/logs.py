"""The log of one task: its last lines as JSON or text, or live as server-sent events.

Any node answers: one that has not the log sends the client to the node that has it (307; a node that was asked by
another sends it no further). Events: `lines` {lines}, with the place as their id, so that a client that comes back
goes on there; `missed` {} when lines were overwritten before they were read; `moved` {skald_id, web} or `gone` {} is
the last. Files are read in threads. A slow client holds up nobody: its place is in the file, nothing waits in memory,
and one that takes nothing for WRITE_S is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote, urlencode

import orjson
import structlog
from aiohttp import hdrs, web

from skalds_streams.core.row import Row
from skalds_streams.skald.ring import LogFiles, Position, Read
from skalds_streams.web.api import answer, whole_number
from skalds_streams.web.context import WebContext
from skalds_streams.web.documents import task_href
from skalds_streams.web.log_place import LogPlace, log_place
from skalds_streams.web.sse import event_stream, too_many

LINES_DEFAULT = 200
LINES_MOST = 100_000
LINES_ON_PAGE = 50
EVENT_LINES = 500
"""More of them are several events."""
FOLLOWERS_MOST = 50
READERS = 2
FOLLOW_S = 0.3
"""Between two looks into the file."""
PLACE_S = 2.0
"""Between two looks at where the task is."""
QUIET_S = 15.0
WRITE_S = 10.0
RETRY_MS = 2_000

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)


class Logs:
    """The handler of /api/tasks/{id}/logs and its followers. `close` ends them all."""

    def __init__(self, context: WebContext) -> None:
        self._context = context
        self._followers = 0
        self._closing = asyncio.Event()
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="log-reader")

    async def close(self, _: web.Application) -> None:
        """Let every follower's handler end."""
        self._closing.set()

    async def clean_up(self, _: web.Application) -> None:
        """When no handler runs any more."""
        self._threads.shutdown(wait=False)

    async def _read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Threads of their own: readers of a slow disk must not keep others of this process from having one."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **kwargs))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The last lines, the stream, or where to ask."""
        task_id, query = request.match_info["id"], request.query
        try:
            most = whole_number(query.get("lines"), "lines", LINES_DEFAULT, most=LINES_MOST)
        except ValueError as error:
            return answer({"error": str(error)}, status=400)
        row = self._context.view.rows.get(task_id)
        if row is None:
            return answer({"error": f"no task {task_id}"}, status=404)
        place = log_place(row, self._context.view.members)
        files = self._context.log_files()
        if not self._is_here(place):
            if "from" not in query:
                return self._elsewhere(request, task_id, place)
            if files is None or not await self._read(files.exists, task_id):
                return answer({"error": f"no log of {task_id} on {self._context.skald_id()}"}, status=404)
        if files is None:
            return answer({"error": f"{self._context.skald_id()} runs no workers"}, status=404)
        if query.get("follow") in ("1", "true"):
            return await self._follow(request, files, task_id, most)
        lines = _texts((await self._read(files.tail, task_id, most)).lines)
        accept = request.headers.get(hdrs.ACCEPT, "")
        if "text/plain" in accept and "application/json" not in accept:
            return web.Response(
                text="".join(line + "\n" for line in lines), headers={hdrs.CACHE_CONTROL: "no-store"}, charset="utf-8"
            )
        return answer({"task_id": task_id, "skald_id": self._context.skald_id(), "lines": lines})

    async def shown(self, row: Row) -> dict[str, Any]:
        """For the task's page: {"here", "lines", "skald_id", "href", "problem"}."""
        place, files = log_place(row, self._context.view.members), self._context.log_files()
        if place is None:
            return {"here": False, "lines": [], "skald_id": "", "href": None, "problem": "It has not run yet."}
        if self._is_here(place) and files is not None:
            read = await self._read(files.tail, row.task_id, LINES_ON_PAGE)
            lines = _texts(read.lines)
            return {"here": True, "lines": lines, "skald_id": place.skald_id, "href": None, "problem": ""}
        problem = place.problem(self._own_host()) or ""
        href = None if problem else f"{place.url}{task_href(row.task_id)}#log"
        problem = problem[:1].upper() + problem[1:] + "." * bool(problem)
        return {"here": False, "lines": [], "skald_id": place.skald_id, "href": href, "problem": problem}

    def _is_here(self, place: LogPlace | None) -> bool:
        return place is not None and place.skald_id == self._context.skald_id()

    def _own_host(self) -> str:
        me = self._context.view.members.get(self._context.incarnation())
        return me.host if me is not None else ""

    def _elsewhere(self, request: web.Request, task_id: str, place: LogPlace | None) -> web.Response:
        if place is None:
            return answer({"error": f"{task_id} has not run yet"}, status=404)
        problem = place.problem(self._own_host())
        if problem is not None:
            status = 410 if place.member is None else 409
            return answer({"error": f"{task_id}: {problem}", "skald_id": place.skald_id}, status=status)
        asked = {name: value for name, value in request.query.items() if name in ("lines", "follow")}
        path = f"/api/tasks/{quote(task_id, safe='')}/logs"
        url = f"{place.url}{path}?{urlencode({**asked, 'from': self._context.skald_id()})}"
        response = answer({"skald_id": place.skald_id, "web": place.url}, status=307)
        response.headers[hdrs.LOCATION] = url
        return response

    # -- live

    async def _follow(self, request: web.Request, files: LogFiles, task_id: str, most: int) -> web.StreamResponse:
        if self._closing.is_set() or self._followers >= FOLLOWERS_MOST:
            return too_many("follow logs", FOLLOWERS_MOST)
        response = event_stream()
        self._followers += 1
        try:
            await response.prepare(request)
            last = Position.parse(request.headers.get("Last-Event-ID", ""))
            await _Follower(response, files, task_id, self._end, self._read).run(last, most, self._closing)
        except ConnectionResetError:
            log.debug("logs.follower_gone")
        except TimeoutError:
            log.info("logs.follower_takes_nothing", seconds=WRITE_S)
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._followers -= 1
        return response

    def _end(self, task_id: str) -> bytes | None:
        """The last event, when there is nothing to follow here any more."""
        row = self._context.view.rows.get(task_id)
        if row is None:
            return _event("gone", {})
        place = log_place(row, self._context.view.members)
        if row.holder is None or place is None or self._is_here(place):
            return None
        return _event("moved", {"skald_id": place.skald_id, "web": place.url})


class _Follower:
    """One client."""

    def __init__(
        self,
        response: web.StreamResponse,
        files: LogFiles,
        task_id: str,
        end: Callable[[str], bytes | None],
        read: Callable[..., Awaitable[Any]],
    ) -> None:
        self._response, self._files, self._task_id, self._end, self._read = response, files, task_id, end, read
        self._written_at = 0.0

    async def run(self, last: Position | None, most: int, closing: asyncio.Event) -> None:
        """Until the task is not here any more, or the application shuts down. last: where the client was before."""
        await self._write(f"retry: {RETRY_MS}\n\n".encode())
        now = asyncio.get_running_loop().time
        read = Read([], last or Position())
        if last is not None:
            read = await self._read(self._files.read_on, self._task_id, last)
            await self._tell(replace(read, lines=[]) if read.missed else read)
        if last is None or read.missed:
            read = await self._read(self._files.tail, self._task_id, most)
            await self._tell(read)
        looked_at = now()
        while not closing.is_set():
            read = await self._read(self._files.read_on, self._task_id, read.position)
            await self._tell(read)
            if read.more:
                continue
            if now() - looked_at >= PLACE_S:
                looked_at = now()
                event = self._end(self._task_id)
                if event is not None:
                    await self._write(event)
                    return
            if now() - self._written_at >= QUIET_S:
                await self._write(b": still here\n\n")
            try:
                async with asyncio.timeout(FOLLOW_S):
                    await closing.wait()
            except TimeoutError:
                continue

    async def _tell(self, read: Read) -> None:
        if read.missed:
            await self._write(_event("missed", {}))
        for start in range(0, len(read.lines), EVENT_LINES):
            lines = read.lines[start : start + EVENT_LINES]
            is_all = start + EVENT_LINES >= len(read.lines)
            await self._write(_event("lines", {"lines": _texts(lines)}, str(read.position) if is_all else ""))

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(WRITE_S):
            await self._response.write(data)
        self._written_at = asyncio.get_running_loop().time()


def _event(name: str, doc: dict[str, Any], place: str = "") -> bytes:
    head = f"id: {place}\n" if place else ""
    return f"{head}event: {name}\ndata: ".encode() + orjson.dumps(doc) + b"\n\n"


def _texts(lines: list[bytes]) -> list[str]:
    return [line.decode(errors="replace") for line in lines]
