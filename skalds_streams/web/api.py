"""The JSON API: handlers that answer from the view. Paths are in `routes`, their description in openapi.json beside
this file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
from aiohttp import hdrs, web

from skalds_streams.core.row import Row, Status
from skalds_streams.projections.masking import mask_schema
from skalds_streams.web.context import WebContext
from skalds_streams.web.documents import class_docs, member_docs, task_doc

LIMIT_DEFAULT = 200
LIMIT_MOST = 1_000
OPENAPI_FILE = Path(__file__).parent / "openapi.json"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Api:
    """Handlers of everything under /api, and of /healthz, /readyz and /metrics."""

    def __init__(self, context: WebContext) -> None:
        self._context = context
        self._words = context.settings.secret_words

    async def tasks(self, request: web.Request) -> web.Response:
        """A page of tasks, by id."""
        query = request.query
        try:
            limit = whole_number(query.get("limit"), "limit", LIMIT_DEFAULT, most=LIMIT_MOST)
            offset = whole_number(query.get("offset"), "offset", 0)
            found = select(
                self._context.view.rows.values(),
                status=_status(query.get("status")),
                class_name=query.get("class"),
                skald=query.get("skald"),
                text=query.get("q"),
            )
        except ValueError as error:
            return answer({"error": str(error)}, status=400)
        items = [_without_output(self._doc(row)) for row in found[offset : offset + limit]]
        return answer({"items": items, "total": len(found)})

    async def task(self, request: web.Request) -> web.Response:
        """One task, or 404."""
        task_id = request.match_info["id"]
        row = self._context.view.rows.get(task_id)
        if row is None:
            return answer({"error": f"no task {task_id}"}, status=404)
        return answer({**self._doc(row), "metrics": self._context.task_metrics(task_id)})

    def _doc(self, row: Row) -> dict[str, Any]:
        return task_doc(row, self._words, self._context.now_ms(), self._context.secret_paths(row))

    async def skalds(self, request: web.Request) -> web.Response:
        """The living skalds, by id."""
        context = self._context
        items = member_docs(context.view, context.settings, context.incarnation())
        return answer({"items": items, "total": len(items)})

    async def classes(self, request: web.Request) -> web.Response:
        """The worker classes of all living skalds, by name."""
        items = class_docs(self._context.view.members)
        return answer({"items": items, "total": len(items)})

    async def class_description(self, request: web.Request) -> web.Response:
        """Served by the nodes that run the class; any other names them."""
        name = request.match_info["name"]
        described = self._context.describe_class(name)
        if described is not None:
            return answer({"name": name, **mask_schema(dict(described), self._words)})
        where = {doc["name"]: doc["run_by"] for doc in class_docs(self._context.view.members)}
        return answer({"error": f"this node does not run class {name}", "run_by": where.get(name, [])}, status=404)

    async def openapi(self, request: web.Request) -> web.Response:
        """The description of this API."""
        return web.Response(body=OPENAPI_FILE.read_bytes(), content_type="application/json")

    async def healthz(self, request: web.Request) -> web.Response:
        """200 while the event loop turns."""
        return answer({"ok": True})

    async def readyz(self, request: web.Request) -> web.Response:
        """200 when this node can do its work, else 503; what is missing is false."""
        readiness = dict(self._context.readiness())
        is_ready = all(readiness.values())
        return answer({"ready": is_ready, **readiness}, status=200 if is_ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus text."""
        return web.Response(body=self._context.metrics(), headers={hdrs.CONTENT_TYPE: METRICS_TYPE})


def select(
    rows: Iterable[Row],
    *,
    status: Status | None = None,
    class_name: str | None = None,
    skald: str | None = None,
    text: str | None = None,
) -> list[Row]:
    """The rows that match, by id. Empty or None matches all; `text` is looked for in the id, case ignored."""
    wanted = text.lower() if text else ""
    found = [
        row
        for row in rows
        if (status is None or row.status is status)
        and (not class_name or row.class_name == class_name)
        and (not skald or (row.holder is not None and row.holder.skald_id == skald))
        and (not wanted or wanted in row.task_id.lower())
    ]
    found.sort(key=lambda row: row.task_id)
    return found


def answer(document: Any, status: int = 200) -> web.Response:
    """A JSON response that no cache keeps."""
    body = orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)
    return web.Response(
        body=body, status=status, content_type="application/json", headers={hdrs.CACHE_CONTROL: "no-store"}
    )


def _without_output(doc: dict[str, Any]) -> dict[str, Any]:
    """For lists: what a crashed run printed last may be 8 KB a task."""
    if isinstance(doc["error"], dict):
        doc["error"] = {name: value for name, value in doc["error"].items() if name != "output"}
    return doc


def task_counts(rows: Iterable[Row]) -> dict[str, int]:
    """Number of tasks by status, every status named."""
    counts = {status.value: 0 for status in Status}
    for row in rows:
        counts[row.status.value] += 1
    return counts


def _status(given: str | None) -> Status | None:
    """Raises ValueError with the names there are."""
    if not given:
        return None
    for status in Status:
        if status.value.lower() == given.lower():
            return status
    raise ValueError(f"no status {given!r}: it is one of {', '.join(item.value for item in Status)}")


def whole_number(given: str | None, name: str, default: int, most: int | None = None) -> int:
    """A number in a query. Raises ValueError saying what it must be."""
    if given is None or given == "":
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 10) or (most is not None and int(given) > most):
        raise ValueError(f"{name} must be a whole number from 0" + (f" to {most}" if most is not None else ""))
    return int(given)
