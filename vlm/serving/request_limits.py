"""Checks on a request before the server works for it: host, token, size, time, and how many are answered at once."""

import asyncio
import hmac
import ipaddress
import logging
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm.serving.answers import Answer, problem

MAX_BYTES = 32 * 2**20  # of one request
MAX_RUNNING = 256  # requests that are answered at once
MAX_BUFFERED = 2**30  # bytes of all requests whose bodies are incomplete
BODY_SECONDS = 60.0  # in which the body of a request must be complete
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")  # names of this machine in a browser

_OPEN_PATHS = ("/", "/openapi.json")  # the description is no secret, and a browser's address bar sends no token
_log = logging.getLogger("vlm.serving")


class _HungUp(Exception):
    """The client closed the connection before its request was complete."""


class RequestLimits:
    """ASGI middleware that answers what is refused, reads the bodies of other requests, and passes them on.

    A request counts towards `MAX_RUNNING` when its body is complete, so slow clients do not keep others waiting.

    Args:
        app: answers the requests.
        token: that clients must send; None: no token.
        hosts: names by which the server may be called; None: any.
        max_bytes: of one request.
        body_seconds: in which a body must be complete.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: Sequence[str] | None,
        max_bytes: int,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._app = app
        self._token = token
        self._hosts = None if hosts is None else {_plain_host(name) for name in hosts}
        self._max_bytes = max_bytes
        self._body_seconds = body_seconds
        self._running = 0
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["path"], Headers(scope=scope))
        body = b""
        if refusal is None:
            try:
                async with asyncio.timeout(self._body_seconds):  # wait_for would start a task for each request
                    body = await self._read_body(receive)
            except TimeoutError:
                refusal = problem(408, f"The request was not complete after {self._body_seconds:g} s. Send it faster.")
            except _HungUp:
                _log.warning("vlm: a client hung up before its request to %s was complete", scope["path"])
                return
            except _TooMuch as error:
                refusal = problem(error.status, str(error))
            if refusal is not None:
                refusal.headers["Connection"] = "close"  # the rest of the body is not read
        if refusal is None and self._running >= MAX_RUNNING:
            refusal = problem(503, f"{MAX_RUNNING} requests are being answered already. Send it again in a second.")
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()  # a disconnect
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        self._running += 1
        try:
            await self._app(scope, replay, send)
        finally:
            self._running -= 1

    async def _read_body(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        taken = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _HungUp
                part: bytes = message.get("body", b"")
                parts.append(part)
                taken += len(part)
                self._buffered += len(part)
                if taken > self._max_bytes:
                    raise _TooMuch(413, self._too_many_bytes(f"more than {self._max_bytes:,}"))
                if self._buffered > max(MAX_BUFFERED, self._max_bytes):
                    raise _TooMuch(503, "Too many large requests are arriving at once. Send it again in a second.")
                if not message.get("more_body", False):
                    return b"".join(parts)
        finally:
            self._buffered -= taken

    def _refusal(self, path: str, headers: Headers) -> Answer | None:
        name = headers.get("host")  # HTTP/1.0 has none; browsers, which a foreign page could misuse, always send it
        if self._hosts is not None and name is not None and not self._is_own_name(name):
            names = " or ".join(sorted(self._hosts))
            return problem(403, f"This server is for this machine, and was called by another name. Call it {names}.")
        if self._token is not None and path not in _OPEN_PATHS:
            given = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, f"Bearer {self._token}".encode("latin-1")):
                answer = problem(401, "The token is missing or wrong. Send the header Authorization: Bearer TOKEN")
                answer.headers["WWW-Authenticate"] = "Bearer"
                return answer
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            return problem(413, self._too_many_bytes(f"{int(length[:20]):,}"))
        return None

    def _is_own_name(self, name: str) -> bool:
        plain = _plain_host(name)
        try:
            return ipaddress.ip_address(plain).is_loopback  # an address needs no name server that could lie
        except ValueError:
            return plain in (self._hosts or ())

    def _too_many_bytes(self, came: str) -> str:
        return f"The request has {came} bytes, at most {self._max_bytes:,} are read. Send less at once."


class _TooMuch(Exception):
    """A body that is not read to its end."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def _plain_host(name: str) -> str:
    """ "LocalHost.:8000" -> "localhost", "[::1]:8000" -> "::1"."""
    bare = re.sub(r":\d*$", "", name) if name.count(":") == 1 or name.startswith("[") else name
    return bare.strip("[]").rstrip(".").lower()
