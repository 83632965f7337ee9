"""Live change as server-sent events: a snapshot, then what changed, at most five times a second.

Events: `snapshot` {now_ms, skald_id, tasks, skalds, banners}, `task` a document, `gone` {task_id}, `skalds` {items,
total, now_ms}, `banners` {items}; after 15 s without any, a comment and `still` {now_ms}, as scripts don't see
comments. `?detail=brief` sends the documents of the status page's table, `?task=ID` only that task. A slow client
holds up nobody: what changes meanwhile is a set of ids; one that takes nothing for WRITE_S is dropped.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog
from aiohttp import web

from skalds_streams.core.row import Row
from skalds_streams.view.cluster import Changes
from skalds_streams.web.context import WebContext
from skalds_streams.web.documents import brief_doc, member_docs, task_doc
from skalds_streams.web.sse import event_stream, too_many

CLIENTS_MOST = 100
COALESCE_S = 0.2
SKALDS_EVERY_S = 2.0
"""Between two `skalds` events that only tell of later heartbeats."""
QUIET_S = 15.0
WRITE_S = 10.0
CHUNK_ROWS = 100
"""Rows written at once in a snapshot: about 5 ms of the event loop."""
CACHE_MOST = 20_000
"""Documents kept while there are clients, 1 KB each: when all of them come back at once, each document is made once."""
RETRY_MS = 2_000

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Client:
    """One connection: what it wants and what it was told."""

    response: web.StreamResponse
    changes: Changes
    brief: bool
    only: str | None
    skalds_key: Any = None
    skalds_at: float = 0.0
    owes_skalds: bool = False
    written_at: float = 0.0
    banners: list[str] = field(default_factory=list)

    def wants(self, task_id: str) -> bool:
        return self.only is None or task_id == self.only

    async def write(self, data: bytes) -> None:
        async with asyncio.timeout(WRITE_S):
            await self.response.write(data)
        self.written_at = asyncio.get_running_loop().time()


class Stream:
    """The handler of /api/events and its clients. `close` ends them all."""

    def __init__(self, context: WebContext, banners: Callable[[], Collection[str]]) -> None:
        self._context, self._banners = context, banners
        self._words = context.settings.secret_words
        self._clients: list[_Client] = []
        self._closing = False
        self._cache: OrderedDict[tuple[str, bool], tuple[Row, tuple[str, ...], bytes]] = OrderedDict()

    async def close(self, _: web.Application) -> None:
        """Let every client's handler end within COALESCE_S."""
        self._closing = True
        for client in self._clients:
            client.changes.note_members()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One client, until it leaves or the application shuts down."""
        if self._closing or len(self._clients) >= CLIENTS_MOST:
            return too_many("streams", CLIENTS_MOST)
        response = event_stream()
        with self._context.view.subscribe() as changes:
            client = _Client(response, changes, request.query.get("detail") == "brief", request.query.get("task"))
            self._clients.append(client)
            try:
                await response.prepare(request)
                await self._serve(client)
            except ConnectionResetError:
                log.debug("stream.client_gone")
            except TimeoutError:
                log.info("stream.client_takes_nothing", seconds=WRITE_S)
                if request.transport is not None:
                    request.transport.abort()
            finally:
                self._clients.remove(client)
                if not self._clients:
                    self._cache.clear()
        return response

    async def _serve(self, client: _Client) -> None:
        await client.write(f"retry: {RETRY_MS}\n\n".encode())
        await self._snapshot(client)
        while not self._closing:
            tasks, members = await self._next(client)
            if self._closing:
                return
            events = [self._task_event(task_id, client.brief) for task_id in sorted(tasks) if client.wants(task_id)]
            client.owes_skalds |= members or (bool(tasks) and self._skalds_key() != client.skalds_key)
            events += self._skalds_events(client) + self._banner_events(client)
            for start in range(0, len(events), CHUNK_ROWS):
                await client.write(b"".join(events[start : start + CHUNK_ROWS]))
            if asyncio.get_running_loop().time() - client.written_at >= QUIET_S:
                await client.write(
                    b": still here\n" + _event("still", orjson.dumps({"now_ms": self._context.now_ms()}))
                )
            await asyncio.sleep(COALESCE_S)

    async def _next(self, client: _Client) -> tuple[frozenset[str], bool]:
        """Wait for a change; nothing when it was quiet."""
        quiet_s = asyncio.get_running_loop().time() - client.written_at
        wait_s = SKALDS_EVERY_S if client.owes_skalds else max(QUIET_S - quiet_s, 0.01)
        try:
            async with asyncio.timeout(wait_s):
                return await client.changes.wait()
        except TimeoutError:
            return frozenset(), False

    # -- events --------------------------------------------------------------------------------------------------------

    async def _snapshot(self, client: _Client) -> None:
        """In pieces, so that neither the loop nor the memory carries the whole cluster at once."""
        context = self._context
        client.banners = list(self._banners())
        client.skalds_key, client.skalds_at = self._skalds_key(), asyncio.get_running_loop().time()
        head = {
            "now_ms": context.now_ms(),
            "skald_id": context.skald_id(),
            "skalds": member_docs(context.view, context.settings, context.incarnation()),
            "banners": client.banners,
        }
        await client.write(b"event: snapshot\ndata: " + orjson.dumps(head)[:-1] + b',"tasks":[')
        ids = [task_id for task_id in context.view.rows if client.wants(task_id)]
        between = b""
        for start in range(0, len(ids), CHUNK_ROWS):
            rows = [context.view.rows.get(task_id) for task_id in ids[start : start + CHUNK_ROWS]]
            docs = [self._task_bytes(row, client.brief) for row in rows if row is not None]
            if docs:
                await client.write(between + b",".join(docs))
                between = b","
            await asyncio.sleep(0)
        await client.write(b"]}\n\n")

    def _task_event(self, task_id: str, brief: bool) -> bytes:
        row = self._context.view.rows.get(task_id)
        if row is None:
            return _event("gone", orjson.dumps({"task_id": task_id}))
        return _event("task", self._task_bytes(row, brief))

    def _task_bytes(self, row: Row, brief: bool) -> bytes:
        """The document of a row; made once for all clients."""
        key = (row.task_id, brief)
        paths = self._context.secret_paths(row)
        known = self._cache.get(key)
        if known is not None and known[0] is row and known[1] == paths:
            return known[2]
        doc = (brief_doc if brief else task_doc)(row, self._words, self._context.now_ms(), paths)
        data = orjson.dumps(doc, option=orjson.OPT_NON_STR_KEYS)
        if not doc["crash_looping"]:  # which depends on the time, too
            self._cache[key] = (row, paths, data)
            if len(self._cache) > CACHE_MOST:
                self._cache.popitem(last=False)
        return data

    def _skalds_key(self) -> Any:
        """What of the members is worth telling at once."""
        view = self._context.view
        members = view.members
        return [
            (
                item.incarnation,
                item.state,
                members.is_silent(item),
                view.load(item.incarnation),
                item.capacity,
                item.classes,
                item.not_loadable,
                item.labels,
            )
            for item in members
        ]

    def _skalds_events(self, client: _Client) -> list[bytes]:
        if not client.owes_skalds:
            return []
        context, now = self._context, asyncio.get_running_loop().time()
        key = self._skalds_key()
        if key == client.skalds_key and now - client.skalds_at < SKALDS_EVERY_S:
            return []
        client.skalds_key, client.skalds_at, client.owes_skalds = key, now, False
        items = member_docs(context.view, context.settings, context.incarnation())
        return [_event("skalds", orjson.dumps({"items": items, "total": len(items), "now_ms": context.now_ms()}))]

    def _banner_events(self, client: _Client) -> list[bytes]:
        banners = list(self._banners())
        if banners == client.banners:
            return []
        client.banners = banners
        return [_event("banners", orjson.dumps({"items": banners}))]


def _event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
