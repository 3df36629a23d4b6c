"""Requests that are refused before Gradio sees them."""

import re

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_ELSEWHERE = re.compile(r"proxy=|(file|stream)=\s*https?:", re.IGNORECASE)


class RequestGuard:
    """ASGI middleware: 404 for addresses at which Gradio would fetch from another host (`file=http://`, `proxy=`)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _ELSEWHERE.search(scope["path"]):
            await PlainTextResponse("There is no such address.", status_code=404)(scope, receive, send)
        else:
            await self.app(scope, receive, send)
