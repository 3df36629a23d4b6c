"""API calls and events are checked before they are queued: their form, their arguments, and how many a client has."""

import inspect
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import gradio as gr
from gradio.utils import get_upload_folder
from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm.demo.page.texts import english
from vlm.demo.search.samples import SAMPLES

MAX_BODY = 4_000_000  # bytes of a call; images are uploaded before it
MAX_WAITING = 32  # queued calls of one client
_CALL = re.compile(r"/(?:gradio_api/)?(?:call/v2|call|run|api)/(?P<name>\w+)/?")
_EVENT = re.compile(r"/gradio_api/(?:queue/join|(?:run|api)/predict)/?")
_log = logging.getLogger("vlm.demo")


class CallGuard:
    """ASGI middleware: one line with status 4xx for a call that cannot be answered, and one log line.

    404 unknown endpoint, 413 too many bytes, 422 not the form or the arguments of the endpoint, 429 the client already
    has `MAX_WAITING` calls in the queue.

    Args:
        app: the next application.
        page: whose endpoints are called.
    """

    def __init__(self, app: ASGIApp, *, page: gr.Blocks) -> None:
        self._app = app
        self._page = page
        self._endpoints = {
            str(fn.api_name): fn.fn for fn in page.fns.values() if fn.api_visibility == "public" and fn.fn is not None
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        event = _EVENT.fullmatch(path)
        call = None if event else _CALL.fullmatch(path)
        if scope["type"] != "http" or scope["method"] != "POST" or not (call or event):
            await self._app(scope, receive, send)
            return
        client = scope["client"][0] if scope.get("client") else "?"
        body = await _read(receive)
        name = call["name"] if call else None
        refusal = self._refusal(name, body, client)
        if refusal is not None:
            status, line = refusal
            _log.warning("POST %r from %s: %d %s", path[:100], client, status, line)
            await JSONResponse({"error": line}, status)(scope, receive, send)
            return
        assert body is not None
        if name is not None:
            body = _with_defaults(self._endpoints[name], body)
            lengths = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
            scope = {**scope, "headers": [*lengths, (b"content-length", str(len(body)).encode())]}
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, again, send)

    def _refusal(self, name: str | None, body: bytes | None, client: str) -> tuple[int, str] | None:
        if name is not None and name not in self._endpoints:
            return 404, f"There is no endpoint /{name[:80]}. Wanted one of: {', '.join(self._endpoints)}."
        if body is None:
            return 413, f"The call has more than {MAX_BODY:,} bytes. Upload images first, then send their records."
        try:
            sent = json.loads(body)
        except (ValueError, RecursionError):
            sent = None
        if not isinstance(sent, dict) or not isinstance(sent.get("data"), list):
            return 422, 'The body is not {"data": [...]} in JSON. Send the arguments as a list under "data".'
        line = self._event_error(sent) if name is None else _argument_error(name, self._endpoints[name], sent["data"])
        if line is None and not _names_uploads(sent["data"]):
            line = english("not an upload")
        if line is not None:
            return 422, line
        if self._waiting(client) >= MAX_WAITING:
            return 429, f"{MAX_WAITING} calls from {client} are waiting already. Send more when they are answered."
        return None

    def _event_error(self, sent: dict[str, Any]) -> str | None:
        """Returns the error in an event of the page, which names its function by number."""
        number, session = sent.get("fn_index"), sent.get("session_hash")
        if not isinstance(number, int) or number not in self._page.fns or not isinstance(session, str):
            return "fn_index or session_hash is missing or unknown. Open the page again."
        wanted = len(self._page.fns[number].inputs)
        if len(sent["data"]) > wanted:
            return f"{len(sent['data'])} arguments came, {wanted} were wanted. Open the page again."
        return None

    def _waiting(self, client: str) -> int:
        queues = self._page._queue.event_queue_per_concurrency_id.values()
        return sum(
            event.request.client is not None and event.request.client.host == client
            for queue in queues
            for event in queue.queue
        )


def _argument_error(name: str, function: Callable[..., Any], data: list[Any]) -> str | None:
    """Returns the error in the arguments of a named endpoint, by its signature."""
    parameters = inspect.signature(function).parameters
    hints = get_type_hints(function)
    needed = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    if not len(needed) <= len(data) <= len(parameters):
        wanted = f"{len(needed)} to {len(parameters)}" if len(needed) < len(parameters) else str(len(needed))
        return f"/{name} takes {wanted} arguments ({', '.join(parameters)}), {len(data)} came."
    for parameter, value in zip(parameters, data, strict=False):
        try:
            TypeAdapter(hints[parameter]).validate_python(value, strict=True)
        except (ValidationError, RecursionError):
            wanted = "the record of an uploaded image" if "Upload" in str(hints[parameter]) else str(hints[parameter])
            return f"/{name}: the argument {parameter!r} is not {wanted.replace('<class ', '').strip('>')}."
    return None


def _with_defaults(function: Callable[..., Any], body: bytes) -> bytes:
    """The call with the default values of the arguments that were left out."""
    sent = json.loads(body)
    parameters = list(inspect.signature(function).parameters.values())
    sent["data"] += [parameter.default for parameter in parameters[len(sent["data"]) :]]
    return json.dumps(sent).encode()


def _names_uploads(data: list[Any]) -> bool:
    """Returns True if all files in the arguments are uploads or samples."""
    allowed = (Path(get_upload_folder()).resolve(), SAMPLES)
    remaining: list[Any] = [data]
    while remaining:
        item = remaining.pop()
        if isinstance(item, list):
            remaining += item
        elif isinstance(item, dict):
            remaining += item.values()
            if "path" in item and not _is_below(item["path"], allowed):
                return False
    return True


def _is_below(path: Any, folders: tuple[Path, ...]) -> bool:
    try:
        return isinstance(path, str) and any(Path(path).resolve().is_relative_to(folder) for folder in folders)
    except (OSError, ValueError):  # no path at all, such as one with a zero byte
        return False


async def _read(receive: Receive) -> bytes | None:
    """The whole body, None if it is longer than `MAX_BODY`."""
    parts: list[bytes] = []
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
        if length <= MAX_BODY:
            parts.append(message.get("body", b""))
    return b"".join(parts) if length <= MAX_BODY else None
