"""Mounts everything on an aiohttp application: which path is answered by whom."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from skalds_streams.web.api import Api
from skalds_streams.web.context import WebContext
from skalds_streams.web.guard import guard, has_guard
from skalds_streams.web.logs import Logs
from skalds_streams.web.pages import STATIC, Pages
from skalds_streams.web.stream import Stream


def setup(app: web.Application, context: WebContext) -> None:
    """Add the routes, and the guard if the application has none. Before the application starts.

    Raises RuntimeError when the application is started already. A `/` that somebody else has mounted is answered by us.
    """
    if app.frozen:
        raise RuntimeError("the web application is started already: routes and guard can't be added any more")
    if not has_guard(app):
        app.middlewares.append(guard(context.settings))
    logs = Logs(context)
    pages, api = Pages(context, logs), Api(context)
    stream = Stream(context, pages.banners)
    app.on_shutdown.extend([stream.close, logs.close])
    app.on_cleanup.append(logs.clean_up)
    _mount_front(app, pages.status)
    router = app.router
    router.add_get("/tasks/{id:.+}", pages.task)
    router.add_get("/api/tasks", api.tasks)
    router.add_get("/api/tasks/{id:.+}/logs", logs.handle, allow_head=False)
    router.add_get("/api/tasks/{id:.+}", api.task)
    router.add_get("/api/skalds", api.skalds)
    router.add_get("/api/classes", api.classes)
    router.add_get("/api/classes/{name:.+}", api.class_description)
    router.add_get("/api/events", stream.handle, allow_head=False)
    router.add_get("/api/openapi.json", api.openapi)
    router.add_get("/healthz", api.healthz)
    router.add_get("/readyz", api.readyz)
    router.add_get("/metrics", api.metrics)
    router.add_static("/static", STATIC, append_version=False)


def _mount_front(app: web.Application, page: Handler) -> None:
    """Answer `/`: as a route, or before the route that is there."""
    if not any(resource.canonical == "/" for resource in app.router.resources()):
        app.router.add_get("/", page)
        return

    @web.middleware
    async def front(request: web.Request, handler: Handler) -> web.StreamResponse:
        ours = request.path == "/" and request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
        return await (page if ours else handler)(request)

    app.middlewares.append(front)
