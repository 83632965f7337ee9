"""Who may ask, and what a browser may do with the answer: token, Host header, security headers. One middleware for
every request.

Rules: with SKALDS_WEB_TOKEN set, all but /healthz needs it, as `Authorization: Bearer …` or as the cookie that a
visit to `/?token=…` sets; bound to loopback, only loopback names are answered, so that a foreign page can't reach us
through a name of its own (DNS rebinding); the token is never logged, never in a redirect, and the cookie holds a
digest of it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import MutableMapping
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from skalds_streams.settings import Settings

COOKIE = "skalds_token"
OPEN_PATHS = frozenset({"/healthz"})
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
TEMPLATES = Path(__file__).parent / "templates"


def guard(settings: Settings) -> Middleware:
    """The middleware. Needs the settings only, so that it can be handed to an application that somebody else makes."""
    token = settings.web_token.get_secret_value()
    names = _allowed_names(settings)

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = _refusal(request, token, names) or await handler(request)
        except web.HTTPException as error:
            add_security_headers(error.headers)
            raise
        if not response.prepared:
            add_security_headers(response.headers)
        return response

    guarded.is_skalds_guard = True  # type: ignore[attr-defined]  # lets `has_guard` find it
    return guarded


def has_guard(app: web.Application) -> bool:
    """Whether the application has a guard among its middlewares."""
    return any(getattr(item, "is_skalds_guard", False) for item in app.middlewares)


def add_security_headers(headers: MutableMapping[str, str]) -> None:
    """Those of SECURITY_HEADERS that are not there yet."""
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)


def _refusal(request: web.Request, token: str, names: frozenset[str] | None) -> web.StreamResponse | None:
    """The answer to a request that may go no further; None when it may."""
    if names is not None and _host_name(request.headers.get(hdrs.HOST, "")) not in names:
        text = (
            "This address is not served here: open the page as localhost, or set SKALDS_WEB_URL to the name you use.\n"
        )
        return web.Response(status=403, text=text)
    if not token or request.path in OPEN_PATHS:
        return None
    if request.method == hdrs.METH_GET and request.path == "/" and "token" in request.query:
        return _sign_in(request, token)
    if _has_bearer(request, token) or _same(request.cookies.get(COOKIE, ""), _digest(token)):
        return None
    return _unauthorized(request)


def _allowed_names(settings: Settings) -> frozenset[str] | None:
    """Names that a server bound to loopback is asked by; None when it is bound elsewhere and may have any name."""
    if settings.web_bind != "localhost" and not _is_loopback(settings.web_bind):
        return None
    names = {"localhost", "127.0.0.1", "::1", settings.web_bind.lower()}
    if settings.web_url and (name := urlsplit(settings.web_url).hostname):
        names.add(name.lower())
    return frozenset(names)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(header: str) -> str:
    """The name in a Host header: lower case, without port and brackets. "" for one that is no host."""
    try:
        parts = urlsplit(f"//{header}")
        return (parts.hostname or "") if parts.username is None and not parts.path else ""
    except ValueError:
        return ""


def _sign_in(request: web.Request, token: str) -> web.StreamResponse:
    if not any(_same(given, token) for given in request.query.getall("token")):
        return _unauthorized(request)
    target = request.rel_url.with_query([(name, value) for name, value in request.query.items() if name != "token"])
    response = web.Response(status=303, headers={hdrs.LOCATION: str(target), hdrs.CACHE_CONTROL: "no-store"})
    response.set_cookie(COOKIE, _digest(token), httponly=True, samesite="Strict", path="/", secure=request.secure)
    return response


def _has_bearer(request: web.Request, token: str) -> bool:
    scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    return scheme.lower() == "bearer" and _same(given.strip(), token)


def _unauthorized(request: web.Request) -> web.StreamResponse:
    headers: dict[str, str] = {hdrs.WWW_AUTHENTICATE: "Bearer", hdrs.CACHE_CONTROL: "no-store"}
    if "text/html" not in request.headers.get(hdrs.ACCEPT, ""):
        return web.json_response({"error": "this needs the token of SKALDS_WEB_TOKEN"}, status=401, headers=headers)
    page, policy = _sign_in_page()
    headers["Content-Security-Policy"] = policy
    return web.Response(status=401, text=page, content_type="text/html", headers=headers)


@cache
def _sign_in_page() -> tuple[str, str]:
    """The form and its policy. Static files need the token too, so its style is inside, allowed by its digest."""
    style = (TEMPLATES / "sign_in.css").read_text()
    page = (TEMPLATES / "sign_in.html").read_text().replace("/*style*/", style)
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return page, (
        f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def _same(given: str, wanted: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())


def _digest(token: str) -> str:
    """What the cookie holds: the same on every node with this token, and not the token."""
    return hmac.new(token.encode(), b"skalds_streams web cookie", hashlib.sha256).hexdigest()
