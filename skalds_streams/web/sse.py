"""Server-sent events: how a live answer begins, and how one too many is refused."""

from __future__ import annotations

from aiohttp import hdrs, web

from skalds_streams.web.api import answer
from skalds_streams.web.guard import SECURITY_HEADERS

RETRY_S = 5


def event_stream() -> web.StreamResponse:
    """Not prepared yet."""
    headers = {
        **SECURITY_HEADERS,
        hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
        hdrs.CACHE_CONTROL: "no-store",
        "X-Accel-Buffering": "no",
    }
    return web.StreamResponse(headers=headers)


def too_many(what: str, most: int) -> web.Response:
    """503, to be tried again in RETRY_S. what: "streams"."""
    refusal = answer({"error": f"too many {what}: this node serves {most}"}, status=503)
    refusal.headers[hdrs.RETRY_AFTER] = str(RETRY_S)
    return refusal
