"""API calls and events are checked before they are queued: their form, their arguments, and how many a client has."""

import inspect
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import parse_qs

import gradio as gr
from gradio.data_classes import CancelBody, PredictBody, ResetBody
from gradio.utils import get_upload_folder
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm.demo.page.texts import english
from vlm.demo.search.samples import SAMPLES

MAX_BODY = 4_000_000  # bytes of a call; images are uploaded before it
MAX_WAITING = 32  # queued calls of one client
_CALL = re.compile(r"/(?:gradio_api/)?(?:call/v2|call|run|api)/(?P<name>\w+)/?")
_EVENT = re.compile(r"/gradio_api/(?:queue/join|(?:run|api)/predict)/?")
_NOTICE = re.compile(r"/gradio_api/(?P<kind>cancel|reset)/?")
_NOTICES: dict[str, type[BaseModel]] = {"cancel": CancelBody, "reset": ResetBody}
_UPLOAD = re.compile(r"/gradio_api/upload/?")
_ANSWER = re.compile(r"/(?:gradio_api/)?call/(?:v2/)?(?P<name>\w+)/(?P<event>[^/]+)/?")
_STREAM = re.compile(r"/gradio_api/queue/data/?")
_READS = ("GET", "HEAD", "OPTIONS")
_log = logging.getLogger("vlm.demo")


class CallGuard:
    """ASGI middleware: one line with status 4xx for a call that cannot be answered, and one log line.

    404 unknown endpoint or address, 413 too many bytes, 422 not the form or the arguments of the endpoint, 429 the
    client already has `MAX_WAITING` calls in the queue.  Gradio's other addresses that take data are not served.

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
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        if method in _READS:
            refusal = self._unknown_answer(path, scope["query_string"].decode("latin-1"))
        elif _UPLOAD.fullmatch(path):
            await self._app(scope, receive, _logged(scope, send))
            return
        elif method != "POST" or not any(form.fullmatch(path) for form in (_CALL, _EVENT, _NOTICE)):
            refusal = 404, "There is no such address."
        else:
            await self._call(scope, receive, send)
            return
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(refusal, scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the body, then hand it on."""
        path = scope["path"]
        notice = _NOTICE.fullmatch(path)
        call = None if notice or _EVENT.fullmatch(path) else _CALL.fullmatch(path)
        client = scope["client"][0] if scope.get("client") else "?"
        body = await _read(receive)
        name = call["name"] if call else None
        refusal = _notice_error(notice["kind"], body) if notice else self._refusal(name, body, client)
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)
            return
        assert body is not None
        if name is not None:
            body = _with_defaults(self._endpoints[name], body)
            lengths = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
            scope = {**scope, "headers": [*lengths, (b"content-length", str(len(body)).encode())]}
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, again, _logged(scope, send))

    def _unknown_answer(self, path: str, query: str) -> tuple[int, str] | None:
        """The refusal where answers are asked for that nobody waits for."""
        answer, queue = _ANSWER.fullmatch(path), self._page._queue
        if answer and answer["name"] not in self._endpoints:
            return 404, f"There is no endpoint /{answer['name'][:80]}. Wanted one of: {', '.join(self._endpoints)}."
        if answer:
            waited_for = (queue.event_ids_to_events, queue.pending_messages_per_session,
                          *queue.pending_event_ids_session.values())  # fmt: skip
            if not any(answer["event"] in events for events in waited_for):
                return 404, "There is no such call, or its answer was fetched already. Send the call again."
        if _STREAM.fullmatch(path):
            session = parse_qs(query).get("session_hash", [""])[0]
            if session not in queue.pending_messages_per_session:
                return 404, "This session waits for no answer. Open the page again."
        return None

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
        if type(number) is not int or number not in self._page.fns or not isinstance(session, str):
            return "fn_index or session_hash is missing or unknown. Open the page again."
        if (error := _form_error(PredictBody, sent)) is not None:
            return error
        wanted = len(self._page.fns[number].inputs)
        if len(sent["data"]) != wanted:
            return f"{len(sent['data'])} arguments came, {wanted} were wanted. Open the page again."
        return None

    def _waiting(self, client: str) -> int:
        queues = self._page._queue.event_queue_per_concurrency_id.values()
        return sum(
            event.request.client is not None and event.request.client.host == client
            for queue in queues
            for event in queue.queue
        )


def _form_error(form: type[BaseModel], sent: Any) -> str | None:
    """Returns the fields of a body that are missing or of another type."""
    try:
        form.model_validate(sent, strict=True)
    except RecursionError:
        return "The body is nested too deeply. Open the page again."
    except ValidationError as error:
        fields = {str(one["loc"][0]) for one in error.errors() if one["loc"]}
        return f"The body is not as wanted: {', '.join(sorted(fields)) or 'no object'}. Open the page again."
    return None


def _notice_error(kind: str, body: bytes | None) -> tuple[int, str] | None:
    """The refusal of a notice that an event is no longer wanted."""
    try:
        sent = json.loads(body or b"")
    except (ValueError, RecursionError):
        sent = None
    error = _form_error(_NOTICES[kind], sent)
    return None if error is None else (422, error)


async def _refuse(refusal: tuple[int, str], scope: Scope, receive: Receive, send: Send) -> None:
    status, line = refusal
    _log_refusal(scope, status, line)
    await JSONResponse({"error": line}, status)(scope, receive, send)


def _log_refusal(scope: Scope, status: int, line: str) -> None:
    client = scope["client"][0] if scope.get("client") else "?"
    _log.warning("%s %r from %s: %d %s", scope["method"], scope["path"][:100], client, status, line)


def _logged(scope: Scope, send: Send) -> Send:
    """`send` that logs one line where the application refuses the request."""

    async def logging_send(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            _log_refusal(scope, message["status"], "refused by Gradio")
        await send(message)

    return logging_send


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
    """The arguments alone, with the default values of those that were left out."""
    sent = json.loads(body)
    parameters = list(inspect.signature(function).parameters.values())
    data = sent["data"] + [parameter.default for parameter in parameters[len(sent["data"]) :]]
    session = {"session_hash": sent["session_hash"]} if isinstance(sent.get("session_hash"), str) else {}
    return json.dumps({"data": data} | session).encode()


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
