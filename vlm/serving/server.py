"""The HTTP around service.py: who may ask, how much at once, and one line of JSON for whatever goes wrong."""

import hmac
import json
import re
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import ValidationError
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm.serving.api_page import api_page
from vlm.serving.api_types import (
    MAX_IMAGES,
    MAX_LABELS,
    Asked,
    ClassifyAsked,
    EmbedAsked,
    Embeddings,
    Health,
    LabelScore,
    Problem,
    SearchAsked,
    SearchHit,
    UploadedImage,
)
from vlm.serving.service import Service

MAX_BYTES = 32 * 2**20  # of one request
MAX_WAITING = 256  # requests under way
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")  # what a browser on this machine calls it
KEEP_ALIVE = 75  # seconds, longer than clients keep a connection: none closes as the next request sets out
GRACE = 30  # seconds that running requests have when the server is told to stop

_OPEN_PATHS = ("/", "/openapi.json")  # the description is no secret, and a browser's address bar sends no token
_LISTS = ("images", "labels", "templates", "texts")  # fields that a form may repeat
_DESCRIPTION = "Images and words in one space. Send JSON, images in base64; or a form with files (curl -F)."
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "what was sent cannot be used"},
    401: {"model": Problem, "description": "the token is missing or wrong"},
    403: {"model": Problem, "description": "the server is for this machine, and was called by another name"},
    413: {"model": Problem, "description": "the request has too many bytes"},
    415: {"model": Problem, "description": "neither JSON nor a form"},
    500: {"model": Problem, "description": "the server failed; its log says why"},
    503: {"model": Problem, "description": "too many requests at once"},
}

AskedType = TypeVar("AskedType", bound=Asked)


class Answer(JSONResponse):
    """Names of files that are not UTF-8 stay valid JSON, as the commands print them."""

    def render(self, content: Any) -> bytes:
        """UTF-8; names of files that are none stay valid JSON."""
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


class Door:
    """Looks at a request before anybody works for it, and counts its bytes while they come."""

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: Sequence[str] | None, max_bytes: int) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts
        self._max_bytes = max_bytes
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers what is refused, and passes the rest on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["path"], Headers(scope=scope))
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max_bytes:
                raise HTTPException(413, self._too_many_bytes(f"more than {self._max_bytes:,}"))
            return message

        self._running += 1
        try:
            await self._app(scope, counted, send)
        finally:
            self._running -= 1

    def _refusal(self, path: str, headers: Headers) -> Answer | None:
        name = re.sub(r":\d*$", "", headers.get("host", ""))
        if self._hosts is not None and name not in self._hosts:  # a page elsewhere whose name was made to lead here
            return _problem(403, "This server is for this machine. Call it 127.0.0.1 or localhost.")
        if self._token is not None and path not in _OPEN_PATHS:
            given = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, f"Bearer {self._token}".encode("latin-1")):
                answer = _problem(401, "The token is missing or wrong. Send the header Authorization: Bearer TOKEN")
                answer.headers["WWW-Authenticate"] = "Bearer"
                return answer
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            return _problem(413, self._too_many_bytes(f"{int(length):,}"))
        if self._running >= MAX_WAITING:
            return _problem(503, f"{MAX_WAITING} requests are being answered already. Come again in a second.")
        return None

    def _too_many_bytes(self, came: str) -> str:
        return f"The request has {came} bytes, at most {self._max_bytes:,} are read. Send less at once."


def create_app(
    service: Service, *, token: str | None = None, hosts: Sequence[str] | None = None, max_bytes: int = MAX_BYTES
) -> FastAPI:
    """The routes.  `hosts`: names by which the server may be called, None: any.  Its end closes `service`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        service.close()

    app = FastAPI(title="vlm", description=_DESCRIPTION, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Door, token=token, hosts=hosts, max_bytes=max_bytes)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ValueError, _on_value_error)
    app.add_exception_handler(Exception, _on_failure)
    takes = {name: _body(model) for name, model in _ASKED.items()}

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        safe = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return HTMLResponse(api_page(app.openapi()), headers=safe)

    @app.get("/health", response_model=Health, responses=_PROBLEMS)
    async def health() -> Answer:
        """Embeds an image that it has just drawn, and says which model did it."""
        return Answer(await service.health())

    @app.post("/search", response_model=list[SearchHit], responses=_PROBLEMS, openapi_extra=takes["search"])
    async def search(request: Request) -> Answer:
        """The images of the index nearest to a text, an image or a sum of both. The header No-Good-Match is true
        when even the best is none."""
        rows, no_good_match = await service.search(await _read(request, SearchAsked))
        return Answer(rows, headers={"No-Good-Match": str(no_good_match).lower()})

    @app.post("/classify", response_model=list[LabelScore], responses=_PROBLEMS, openapi_extra=takes["classify"])
    async def classify(request: Request) -> Answer:
        """Which of the labels fits each image."""
        return Answer(await service.classify(await _read(request, ClassifyAsked)))

    @app.post("/embed", response_model=Embeddings, responses=_PROBLEMS, openapi_extra=takes["embed"])
    async def embed(request: Request) -> Answer:
        """Texts and images to unit vectors; the cosine of two is their dot product."""
        return Answer(await service.embed(await _read(request, EmbedAsked)))

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            models: list[tuple[type[Asked], JsonSchemaMode]] = [(model, "validation") for model in _ASKED.values()]
            asked = models_json_schema(models, ref_template="#/components/schemas/{model}")[1]["$defs"]
            schema["components"]["schemas"].update(asked)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # FastAPI's own way to add to it
    return app


def run(app: FastAPI, listener: socket.socket) -> None:
    """Until SIGINT or SIGTERM; requests that are being answered then are answered."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=GRACE
    )
    uvicorn.Server(config).run(sockets=[listener])


_ASKED: dict[str, type[Asked]] = {"search": SearchAsked, "classify": ClassifyAsked, "embed": EmbedAsked}


def _body(model: type[Asked]) -> dict[str, Any]:
    schema = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    return {"requestBody": {"required": True, "content": {"application/json": schema, "multipart/form-data": schema}}}


async def _read(request: Request, model: type[AskedType]) -> AskedType:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return model.model_validate_json(await request.body(), strict=True)
    if kind != "multipart/form-data":
        raise HTTPException(415, f"The content type is {kind!r}. Send application/json or multipart/form-data.")
    fields: dict[str, Any] = {}
    async with request.form(max_files=MAX_IMAGES, max_fields=MAX_LABELS + 200) as form:
        for name, value in form.multi_items():
            read = UploadedImage(await value.read(), value.filename) if isinstance(value, UploadFile) else value
            if name in _LISTS:
                fields.setdefault(name, []).append(read)
            elif name in fields:
                raise ValueError(f"The form has {name!r} more than once, wanted one.")
            else:
                fields[name] = read
    return model.model_validate(fields)


def _problem(status: int, line: str) -> Answer:
    return Answer({"error": " ".join(line.split())[:1000]}, status)


def _on_http_error(request: Request, error: Exception) -> Answer:
    assert isinstance(error, HTTPException)
    line = {
        404: "There is nothing at this address. See / for what there is.",
        405: "This address takes another method.",
    }
    return _problem(error.status_code, line.get(error.status_code, error.detail))


def _on_value_error(request: Request, error: Exception) -> Answer:
    if not isinstance(error, ValidationError):
        return _problem(400, str(error))
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(map(str, first["loc"])) or "The request"
    more = f" ({len(others)} more like this.)" if others else ""
    return _problem(400, f"{where[:200]}: {first['msg'].removeprefix('Value error, ')}.{more} See / for what is taken.")


def _on_failure(request: Request, error: Exception) -> Answer:
    return _problem(500, "The server failed at this request; its log says why.")
