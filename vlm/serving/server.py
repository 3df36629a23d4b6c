"""The HTTP server of service.py: routes, their description, and one line of JSON for every error."""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from pydantic import ValidationError
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlm.errors import IndexFileError, VlmError
from vlm.serving.answers import Answer, problem
from vlm.serving.api_page import api_page
from vlm.serving.api_types import (
    ClassifyRequest,
    Embeddings,
    EmbedRequest,
    Health,
    LabelScore,
    Problem,
    Readiness,
    RequestBody,
    SearchHit,
    SearchRequest,
)
from vlm.serving.form_data import parse_form
from vlm.serving.request_limits import BODY_SECONDS, MAX_BYTES, RequestLimits
from vlm.serving.service import Service

KEEP_ALIVE = 75  # seconds, longer than clients keep a connection: none closes as the next request sets out
GRACE = 30  # seconds that running requests have when the server is told to stop
HEADER_SECONDS = 30.0  # in which the headers of a request must be complete

_LISTS = ("images", "labels", "templates", "texts")  # fields that a form may repeat
_DESCRIPTION = "Images and words in one space. Send JSON, images in base64; or a form with files (curl -F)."
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "what was sent cannot be used"},
    401: {"model": Problem, "description": "the token is missing or wrong"},
    403: {"model": Problem, "description": "the server is for this machine, and was called by another name"},
    408: {"model": Problem, "description": "the request took too long to arrive"},
    413: {"model": Problem, "description": "the request has too many bytes"},
    415: {"model": Problem, "description": "neither JSON nor a form"},
    500: {"model": Problem, "description": "the server failed; its log says why"},
    503: {"model": Problem, "description": "too many requests at once, or the index is damaged"},
}
_log = logging.getLogger("vlm.serving")

BodyType = TypeVar("BodyType", bound=RequestBody)


def create_app(
    service: Service,
    *,
    token: str | None = None,
    hosts: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
    body_seconds: float = BODY_SECONDS,
) -> FastAPI:
    """Make the application with its routes.

    Args:
        service: answers the requests; closed when the application ends.
        token: that clients must send; None: no token.
        hosts: names by which the server may be called; None: any.
        max_bytes: of one request.
        body_seconds: in which the body of a request must be complete.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        service.close()

    app = FastAPI(title="vlm", description=_DESCRIPTION, docs_url=None, redoc_url=None, lifespan=lifespan)
    limits = {"token": token, "hosts": hosts, "max_bytes": max_bytes, "body_seconds": body_seconds}
    app.add_middleware(RequestLimits, **limits)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ValidationError, _on_validation_error)
    app.add_exception_handler(VlmError, _on_our_error)
    app.add_exception_handler(Exception, _on_failure)
    takes = {name: _body(model) for name, model in _BODIES.items()}

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        safe = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return HTMLResponse(api_page(app.openapi()), headers=safe)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", response_model=Health, responses=_PROBLEMS)
    async def health() -> Answer:
        """State of the server and its model; computes nothing."""
        return Answer(service.health())

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", response_model=Readiness, responses=_PROBLEMS)
    async def ready() -> Answer:
        """Embeds an image that it has just drawn, and opens the index."""
        return Answer(await service.readiness())

    @app.post("/search", response_model=list[SearchHit], responses=_PROBLEMS, openapi_extra=takes["search"])
    async def search(request: Request) -> Answer:
        """The images of the index nearest to a text, an image or a sum of both. The header No-Good-Match is true
        when even the best is none."""
        rows, no_good_match = await service.search(await _read(request, SearchRequest))
        return Answer(rows, headers={"No-Good-Match": str(no_good_match).lower()})

    @app.post("/classify", response_model=list[LabelScore], responses=_PROBLEMS, openapi_extra=takes["classify"])
    async def classify(request: Request) -> Answer:
        """Probabilities of the labels for each image."""
        return Answer(await service.classify(await _read(request, ClassifyRequest)))

    @app.post("/embed", response_model=Embeddings, responses=_PROBLEMS, openapi_extra=takes["embed"])
    async def embed(request: Request) -> Answer:
        """Texts and images to unit vectors; the cosine similarity of two is their dot product."""
        return Answer(await service.embed(await _read(request, EmbedRequest)))

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            models: list[tuple[type[RequestBody], JsonSchemaMode]] = [
                (model, "validation") for model in _BODIES.values()
            ]
            bodies = models_json_schema(models, ref_template="#/components/schemas/{model}")[1]["$defs"]
            schema["components"]["schemas"].update(bodies)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # FastAPI's own way to add to it
    return app


def run(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; requests that are being answered then are answered.

    Args:
        app: of `create_app`.
        listener: a listening socket.
    """
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )
    uvicorn.Server(config).run(sockets=[listener])


class TimedProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose headers do not arrive within `HEADER_SECONDS`."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Stop the clock when a request has begun; start it when another one is on its way."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            self._stop_timer()
        elif self._timer is None:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(HEADER_SECONDS, self._close_unless_answering)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_unless_answering(self) -> None:
        self._timer = None
        answering = self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]
        if not answering and not self.transport.is_closing():
            self.transport.close()


_BODIES: dict[str, type[RequestBody]] = {"search": SearchRequest, "classify": ClassifyRequest, "embed": EmbedRequest}


def _body(model: type[RequestBody]) -> dict[str, Any]:
    schema = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    return {"requestBody": {"required": True, "content": {"application/json": schema, "multipart/form-data": schema}}}


async def _read(request: Request, model: type[BodyType]) -> BodyType:
    header = request.headers.get("content-type", "")
    kind = header.partition(";")[0].strip().lower()
    if kind == "application/json":
        return model.model_validate_json(await request.body(), strict=True)
    if kind != "multipart/form-data":
        raise HTTPException(415, f"The content type is {kind!r}. Send application/json or multipart/form-data.")
    fields: dict[str, Any] = {}
    for name, value in parse_form(await request.body(), header):
        if name in _LISTS:
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise HTTPException(400, f"The form has {name[:100]!r} more than once, wanted one.")
        else:
            fields[name] = value
    return model.model_validate(fields)


def _on_http_error(request: Request, error: Exception) -> Answer:
    assert isinstance(error, HTTPException)
    line = {
        404: "There is nothing at this address. See / for what there is.",
        405: "This address takes another method.",
    }
    return problem(error.status_code, line.get(error.status_code, error.detail))


def _on_validation_error(request: Request, error: Exception) -> Answer:
    assert isinstance(error, ValidationError)
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(map(str, first["loc"])) or "The request"
    more = f" ({len(others)} more like this.)" if others else ""
    return problem(400, f"{where[:200]}: {first['msg'].removeprefix('Value error, ')}.{more} See / for what is taken.")


def _on_our_error(request: Request, error: Exception) -> Answer:
    """Answers errors of a request with one line; logs errors of the index."""
    if isinstance(error, IndexFileError):
        _log.error("vlm: %s", error)
        return problem(503, "The index of this server is missing or damaged; its log says what to do.")
    return problem(400, str(error))


def _on_failure(request: Request, error: Exception) -> Answer:
    return problem(500, "The server failed at this request; its log says why.")
