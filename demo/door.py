"""What Gradio would fetch for whoever asks (`file=http://...`, `proxy=...`) is not found: nothing is fetched."""

import re

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_ELSEWHERE = re.compile(r"proxy=|(file|stream)=\s*https?:", re.IGNORECASE)


class Door:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _ELSEWHERE.search(scope["path"]):
            await PlainTextResponse("There is no such address.", status_code=404)(scope, receive, send)
        else:
            await self.app(scope, receive, send)
