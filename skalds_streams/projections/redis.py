"""Upstream's Redis keys with upstream's values, for dashboards and monitors that read them. A projection: nothing
here is ever read for a decision.

Rules: what a key holds is computed from the view when it is written, so a beat or an end that Redis missed is made up
for when it is back; Redis that is gone or hangs costs one warning and its own timeouts, never anybody else's time;
only the node that held a task last writes that task's end.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import orjson
import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from skalds_streams.core.membership import Member
from skalds_streams.core.redact import redact_text
from skalds_streams.core.row import Row, Status
from skalds_streams.projections.masking import text_cleaner
from skalds_streams.proxy import redis_keys as keys
from skalds_streams.settings import Settings
from skalds_streams.view.cluster import ClusterView

END_VALUES = {
    Status.FINISHED: keys.TASK_SUCCEEDED,
    Status.FAILED: keys.TASK_FAILED,
    Status.CANCELLED: keys.TASK_CANCELLED,
}
SOCKET_TIMEOUT_S = 2.0
TURN_S = 10.0
CLOSE_S = 2.0
GATHER_S = 0.1
"""Ends that come within this time go out together."""
PENDING_MOST = 10_000
"""Tasks whose keys wait to be written; beyond, the oldest are left out."""
CHUNK = 500

log = structlog.get_logger(__name__)


def _beat_value() -> int:
    """A number that changes: that is all a reader looks for."""
    return random.randrange(keys.HEARTBEAT_VALUES)  # noqa: S311  # no secret


def wall_ms() -> int:
    """The wall clock, in ms since the epoch."""
    return time.time_ns() // 1_000_000


class RedisProjection:
    """`run` writes until cancelled. `up`: whether Redis took the last write."""

    def __init__(
        self,
        settings: Settings,
        view: ClusterView,
        skald_id: str,
        held: Callable[[], Iterable[str]],
        *,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        """held: ids of the tasks that run on this node."""
        self.enabled = settings.redis_enabled
        self.up = False
        self._settings, self._view, self._skald_id, self._held, self._now_ms = settings, view, skald_id, held, now_ms
        self._pending: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._said_gone = False
        self._has_hexpire = True
        if self.enabled:
            view.on_row(self._note)

    async def run(self) -> None:
        """Returns at once when Redis is not enabled."""
        if not self.enabled:
            return
        redis = self._client()
        try:
            next_beat = 0.0
            while True:
                now = time.monotonic()
                is_beat = now >= next_beat
                if is_beat:
                    next_beat = now + keys.SYNC_PERIOD_S
                await self._turn(redis, is_beat)
                await self._wait(next_beat - time.monotonic())
        finally:
            with suppress(Exception):  # the edge of stopping: a connection that can't be closed is the server's to drop
                async with asyncio.timeout(CLOSE_S):
                    await redis.aclose()

    def _client(self) -> Redis:
        settings = self._settings
        return Redis(
            host=settings.redis_host,
            port=settings.redis_port,
            password=settings.redis_password.get_secret_value() or None,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )

    async def _turn(self, redis: Redis, is_beat: bool) -> None:
        try:
            async with asyncio.timeout(TURN_S):
                if is_beat:
                    await self._beat(redis)
                await self._write_pending(redis)
        except Exception as error:  # noqa: BLE001  # the edge: whatever the client raises, the process goes on without Redis
            await self._lose(redis, error)
        else:
            self._find()

    async def _wait(self, seconds: float) -> None:
        """Until the next beat, or shortly after a task's keys are due. While Redis is gone only beats try it."""
        if not self.up:
            await asyncio.sleep(max(seconds, 0))
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await self._wake.wait()
                await asyncio.sleep(GATHER_S)

    async def _lose(self, redis: Redis, error: Exception) -> None:
        self.up = False
        if not self._said_gone:
            self._said_gone = True
            where = f"{self._settings.redis_host}:{self._settings.redis_port}"
            log.warning("redis.gone", where=where, error=redact_text(f"{type(error).__name__}: {error}"))
        with suppress(Exception):  # a connection in an unknown state must not be used again; it may be broken already
            async with asyncio.timeout(CLOSE_S):
                await redis.connection_pool.disconnect()

    def _find(self) -> None:
        self.up = True
        if self._said_gone:
            self._said_gone, self._has_hexpire = False, True
            log.info("redis.back", where=f"{self._settings.redis_host}:{self._settings.redis_port}")

    # -- beats ---------------------------------------------------------------------------------------------------------

    async def _beat(self, redis: Redis) -> None:
        if self._settings.role == "coordinator":
            pipe: Any = redis.pipeline(transaction=False)
            await pipe.ping().execute()
            return
        running = [task_id for task_id in self._held() if not self._has_ended(task_id)]
        await self._say_self(redis, running)
        for start in range(0, len(running), CHUNK):
            pipe = redis.pipeline(transaction=False)
            for task_id in running[start : start + CHUNK]:
                pipe.set(keys.task_heartbeat(task_id), _beat_value(), ex=keys.HEARTBEAT_TTL_S)
            await pipe.execute()

    def _has_ended(self, task_id: str) -> bool:
        """A run whose end is in the view already beats no more, or it would overwrite its end value."""
        row = self._view.rows.get(task_id)
        return row is not None and row.is_terminal

    async def _say_self(self, redis: Redis, running: Sequence[str]) -> None:
        me = self._skald_id
        pipe = redis.pipeline(transaction=True)
        pipe.hset(keys.SKALDS, me, str(self._now_ms()))
        pipe.hset(keys.SKALD_MODES, me, "node")
        pipe.set(keys.skald_heartbeat(me), _beat_value(), ex=keys.HEARTBEAT_TTL_S)
        pipe.delete(keys.skald_classes(me))
        classes = self._classes()
        if classes:
            pipe.rpush(keys.skald_classes(me), *classes)
            pipe.expire(keys.skald_classes(me), keys.KEY_TTL_S)
        pipe.set(keys.skald_tasks(me), orjson.dumps(self._all_task(running)), ex=keys.KEY_TTL_S)
        await pipe.execute()
        await self._expire_fields(redis)

    async def _expire_fields(self, redis: Redis) -> None:
        """Let the hash fields expire, where the server can (Redis 7.4, Valkey 9)."""
        if not self._has_hexpire:
            return
        try:
            for name in (keys.SKALDS, keys.SKALD_MODES):
                pipe: Any = redis.pipeline(transaction=False)
                await pipe.execute_command("HEXPIRE", name, keys.KEY_TTL_S, "FIELDS", 1, self._skald_id).execute()
        except ResponseError:
            self._has_hexpire = False
            log.debug("redis.no_hexpire")

    def _classes(self) -> list[str]:
        mine: Member | None = None
        for member in self._view.members:
            if member.skald_id == self._skald_id and (mine is None or member.last_offset > mine.last_offset):
                mine = member
        return sorted(mine.classes) if mine is not None else []

    def _all_task(self, running: Sequence[str]) -> dict[str, Any]:
        rows = self._view.rows
        tasks = [
            {"id": task_id, "class_name": row.class_name if (row := rows.get(task_id)) else None} for task_id in running
        ]
        return {"tasks": tasks, "existed_task_ids": list(running), "timestamp": self._now_ms()}

    # -- what became of tasks ------------------------------------------------------------------------------------------

    def _note(self, task_id: str) -> None:
        """A row changed: remember it if its keys are ours to write."""
        row = self._view.rows.get(task_id)
        if row is None or row.last_skald != self._skald_id:
            return
        self._pending.pop(task_id, None)
        self._pending[task_id] = None
        if len(self._pending) > PENDING_MOST:
            del self._pending[next(iter(self._pending))]
        self._wake.set()

    async def _write_pending(self, redis: Redis) -> None:
        self._wake.clear()
        while self._pending:
            batch = list(self._pending)[:CHUNK]
            pipe = redis.pipeline(transaction=False)
            seen: dict[str, Row | None] = {}
            for task_id in batch:
                seen[task_id] = row = self._view.rows.get(task_id)
                if row is not None and row.last_skald == self._skald_id:
                    self._put_task(pipe, row)
            await pipe.execute()
            for task_id, row in seen.items():
                if self._view.rows.get(task_id) is row:  # else it has changed meanwhile and is written again
                    self._pending.pop(task_id, None)

    def _put_task(self, pipe: Any, row: Row) -> None:
        value = END_VALUES.get(row.status)
        left_s = keys.KEY_TTL_S - max(self._now_ms() - row.updated_at_ms, 0) // 1000
        if value is not None and left_s > 0:
            pipe.set(keys.task_heartbeat(row.task_id), value, ex=left_s)
        kept_s = self._settings.terminal_retention_ms // 1000 if row.is_terminal else None
        if row.status in (Status.RUNNING, Status.FINISHED):
            pipe.set(keys.task_exception(row.task_id), "", ex=kept_s)
        elif row.error:
            paths = self._view.members.secret_paths(row.class_name)
            clean = text_cleaner(row, self._settings.secret_words, paths)
            message = str(clean(row.error.get("message") or row.error.get("type") or ""))
            pipe.set(keys.task_exception(row.task_id), message, ex=kept_s)
