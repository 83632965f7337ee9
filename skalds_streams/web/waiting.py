"""The page of a process that waits before it can begin: it lives, it is not ready, and what it waits for.

The whole page comes with Faust's web server, after everything else has started. Where the port is taken, as by the
process that this one is to follow, there is no page until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from skalds_streams.proxy.waiting import Waiting
from skalds_streams.settings import Settings
from skalds_streams.web.api import answer
from skalds_streams.web.guard import guard

CLOSE_S = 1.0

log = structlog.get_logger(__name__)


@asynccontextmanager
async def waiting_page(settings: Settings, waiting: Waiting) -> AsyncIterator[None]:
    """From when the process begins to wait until the end of the block. The port is free then."""
    showing = asyncio.create_task(_show(settings, waiting))
    try:
        yield
    finally:
        showing.cancel()
        (ended,) = await asyncio.gather(showing, return_exceptions=True)
        if isinstance(ended, Exception):
            log.warning("page.not_shown", error=repr(ended))


async def _show(settings: Settings, waiting: Waiting) -> None:
    await waiting.begun.wait()
    runner = web.AppRunner(_application(settings, waiting), access_log=None, shutdown_timeout=CLOSE_S)
    try:
        await runner.setup()
        await web.TCPSite(runner, settings.web_bind, settings.web_port).start()
        await asyncio.Event().wait()
    except OSError as error:
        log.info("page.not_shown", error=str(error))
    finally:
        await runner.cleanup()


def _application(settings: Settings, waiting: Waiting) -> web.Application:
    async def healthz(request: web.Request) -> web.Response:
        return answer({"ok": True})

    async def readyz(request: web.Request) -> web.Response:
        return answer({"ready": False, "waits_for": waiting.reason}, status=503)

    async def page(request: web.Request) -> web.Response:
        return web.Response(status=503, text=f"This node has not begun yet: {waiting.reason or 'it starts'}.\n")

    application = web.Application(middlewares=[guard(settings)])
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    application.router.add_route("*", "/{path:.*}", page)
    return application
