"""Checks requests: host names of this machine, origin of the page, no fetching from other hosts.

A page on another site can send requests to a server on this machine.  With DNS rebinding (its name is made to lead to
127.0.0.1) the browser even lets it read the answers.  The Host header then still names that site.
"""

import ipaddress
import logging
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_FETCHES = re.compile(r"proxy=|(file|stream)=\s*https?:", re.IGNORECASE)  # where Gradio fetches from another host
_READS = ("GET", "HEAD")
_log = logging.getLogger("vlm.demo")


def is_loopback(host: str) -> bool:
    """Returns True if an address is reachable from its own machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name, which may be of any machine
        return False


def allowed_hosts(bound_to: str, named: Sequence[str]) -> frozenset[str] | None:
    """The names by which a server may be called; None: any name.

    Args:
        bound_to: the address that the server listens on.
        named: names given by the user, such as that of a proxy.
    """
    if is_loopback(bound_to):
        return frozenset(map(host_name, (*LOOPBACK_NAMES, bound_to, *named)))
    return frozenset(map(host_name, (*LOOPBACK_NAMES, *named))) if named else None


def host_name(host: str) -> str:
    """ "[::1]:7860" -> "::1", "Name.example:80" -> "name.example"; empty for what is no host."""
    host = host.strip().lower()
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


class RequestGuard:
    """ASGI middleware that refuses requests before Gradio sees them.

    - 403 for a Host that is not allowed, for a change sent by a page of another origin, and for websockets.
    - 404 for addresses at which Gradio would fetch from another host.

    It also removes X-Forwarded-* headers that do not come from a named proxy, and puts the client's address of those
    that do into `scope["client"]`.

    Args:
        app: the next application.
        hosts: allowed names, from `allowed_hosts`; None: any.
        proxies: addresses of proxies.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str] | None, proxies: Sequence[str] = ()) -> None:
        self._app = app
        self._hosts = hosts
        self._proxies = frozenset(proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope = self._without_foreign_forwarding(scope)
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, line = refusal
        client = scope["client"][0] if scope.get("client") else "?"
        _log.warning(
            "%s %s from %s: %d %s", scope.get("method", "websocket"), scope["path"][:100], client, status, line
        )
        if scope["type"] == "http":
            await JSONResponse({"error": line}, status)(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """(status, line) for a request that is refused."""
        headers = Headers(scope=scope)
        host = headers.get("x-forwarded-host", "").split(",")[0] or headers.get("host", "")
        if self._hosts is not None and host_name(host) not in self._hosts:
            return 403, "This page is not served under this name. Use localhost, or allow the name with --allow-host."
        if scope["type"] == "websocket":
            return 403, "This page uses no websockets."
        if scope["method"] not in _READS and not self._same_origin(headers, host):
            return 403, "This request comes from another page. Open the page itself."
        if _FETCHES.search(scope["path"]):
            return 404, "There is no such address."
        return None

    def _same_origin(self, headers: Headers, host: str) -> bool:
        """Programs send no Origin; browsers do with every change."""
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        try:
            address = urlsplit(origin)
        except ValueError:
            return False
        if not address.hostname:  # "null" of a sandboxed page or a file
            return False
        if address.netloc.lower() == host.strip().lower():
            return True
        named = host_name(address.netloc)
        return self._hosts is not None and named in self._hosts and named not in LOOPBACK_NAMES

    def _without_foreign_forwarding(self, scope: Scope) -> Scope:
        peer = scope["client"][0] if scope.get("client") else ""
        if peer not in self._proxies:
            kept = [(name, value) for name, value in scope["headers"] if not name.startswith(b"x-forwarded-")]
            return {**scope, "headers": kept}
        chain = [part.strip() for part in Headers(scope=scope).get("x-forwarded-for", "").split(",")]
        clients = [address for address in chain if address and address not in self._proxies]
        scheme = Headers(scope=scope).get("x-forwarded-proto", scope.get("scheme", "http")).split(",")[0].strip()
        return {**scope, "client": (clients[-1] if clients else peer, 0), "scheme": scheme}
