"""The pages for people: the status page with its first content rendered here, and one page a task. Live change is
static/*.js over `stream`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import orjson
from aiohttp import hdrs, web
from markupsafe import Markup

from skalds_streams.core.redact import redact_text
from skalds_streams.core.row import Row, Status
from skalds_streams.projections.masking import error_reason, error_text, text_cleaner
from skalds_streams.version import __version__
from skalds_streams.web.api import select, task_counts
from skalds_streams.web.context import WebContext
from skalds_streams.web.documents import brief_doc, member_docs, since_ms, task_doc, task_href, web_link
from skalds_streams.web.logs import Logs
from skalds_streams.web.words import (
    WANTED,
    cause_words,
    controls_told,
    crashes,
    not_ready,
    outcome_words,
    policy_words,
    relative,
    situation,
    waiting_reasons,
)

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"
FIRST_ROWS = 200
"""Rows in the page as it is sent; the script shows more once the stream is there."""


class Pages:
    """Handlers of `/` and `/tasks/{id}`."""

    def __init__(self, context: WebContext, logs: Logs) -> None:
        self._context, self._logs = context, logs
        self._words = context.settings.secret_words
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["when"] = self._when

    def banners(self) -> list[str]:
        """All sentences for people: those of the process, then what this node is not ready for."""
        return [*self._context.banners(), *not_ready(self._context.readiness())]

    async def status(self, request: web.Request) -> web.Response:
        """The status page; `status` and `q` filter its tasks."""
        context, now_ms = self._context, self._context.now_ms()
        rows = context.view.rows
        chosen = request.query.get("status", "")
        text = request.query.get("q", "")
        found = select(rows.values(), status=next((item for item in Status if item.value == chosen), None), text=text)
        traces = {module: redact_text(trace) for module, trace in sorted(context.not_loadable().items())}
        return self._render(
            "status.html",
            counts=task_counts(rows.values()),
            total=len(rows),
            chosen=chosen,
            text=text,
            found=len(found),
            tasks=[brief_doc(row, self._words, now_ms, context.secret_paths(row)) for row in found[:FIRST_ROWS]],
            skalds=member_docs(context.view, context.settings, context.incarnation()),
            not_loadable=traces,
        )

    async def task(self, request: web.Request) -> web.Response:
        """All that is known of one task, in words."""
        task_id = request.match_info["id"]
        row = self._context.view.rows.get(task_id)
        if row is None:
            return self._render("no_task.html", status=404, task_id=task_id)
        doc = task_doc(row, self._words, self._context.now_ms(), self._context.secret_paths(row))
        return self._render("task.html", **self._told(row, doc), log=await self._logs.shown(row))

    def _told(self, row: Row, doc: dict[str, Any]) -> dict[str, Any]:
        paths = self._context.secret_paths(row)
        clean = text_cleaner(row, self._words, paths)
        told = situation(row, clean)
        is_here = row.holder is not None and row.holder.incarnation == self._context.incarnation()
        return {
            "runs_here": is_here and row.status is Status.RUNNING,
            "metrics": self._context.task_metrics(row.task_id) if is_here else None,
            "holder_page": None if is_here else self._holder_page(row),
            "task": doc,
            "brief": brief_doc(row, self._words, self._context.now_ms(), paths),
            "situation": told,
            "wanted": WANTED[row.wanted],
            "controls": controls_told(row),
            "cause": cause_words(row, clean),
            "note": outcome_words(row, clean),
            "waiting": waiting_reasons(row, clean),
            "policy": policy_words(row, self._context.view.members),
            "crashes": crashes(row.attempt) if row.attempt else "none",
            "error": error_text(doc["error"]),
            "ended_by": error_reason(doc["error"]),
            "trace": _lines_of(doc["error"], "traceback"),
            "output": _lines_of(doc["error"], "output"),
            "refused": error_text(doc["refused"]["error"]) if _has_error(doc["refused"]) else "",
            "parameters": _pretty(doc["attachments_masked"]),
            "document": _pretty(doc),
            "since_ms": since_ms(row),
        }

    def _holder_page(self, row: Row) -> str | None:
        """The task's page on the node that runs it, which knows more."""
        holder = self._context.view.members.get(row.holder.incarnation) if row.holder is not None else None
        node = web_link(holder.web) if holder is not None else None
        return node.rstrip("/") + task_href(row.task_id) if node is not None else None

    def _render(self, template: str, status: int = 200, **values: Any) -> web.Response:
        context = self._context
        text = self._templates.get_template(template).render(
            **values,
            cluster=context.settings.cluster,
            skald_id=context.skald_id(),
            incarnation=context.incarnation(),
            banners=self.banners(),
            version=__version__,
        )
        headers = {hdrs.CACHE_CONTROL: "no-store"}
        return web.Response(text=text, status=status, content_type="text/html", charset="utf-8", headers=headers)

    def _when(self, at_ms: int) -> Markup | str:
        """A moment as relative time; the script adds the reader's local time and keeps it moving."""
        if at_ms <= 0:
            return "never"
        try:
            moment = datetime.fromtimestamp(at_ms / 1000, UTC)
        except (OverflowError, OSError, ValueError):
            return "at an impossible time"
        iso, shown = moment.strftime("%Y-%m-%dT%H:%M:%SZ"), relative(at_ms, self._context.now_ms())
        return Markup('<time datetime="{}" data-ms="{}" title="{}">{}</time>').format(
            iso, at_ms, f"{moment:%Y-%m-%d %H:%M:%S} UTC", shown
        )


def _lines_of(error: Mapping[str, Any] | None, name: str) -> str:
    lines = (error or {}).get(name) or []
    return "\n".join(str(line).rstrip("\n") for line in lines) if isinstance(lines, list) else str(lines)


def _has_error(refused: Any) -> bool:
    return isinstance(refused, dict) and isinstance(refused.get("error"), dict)


def _pretty(value: Any) -> str:
    return "" if value is None else orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()
