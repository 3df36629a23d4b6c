"""A small HTTPS proxy that serves the demo below a path, like nginx as docs/demo-proxy.md configures it."""

import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

PREFIX = "/demo"
_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


@contextmanager
def proxy(backend: str, folder: Path) -> Iterator[str]:
    """Serve `backend` at https://localhost:PORT/demo/ -> that address."""
    cert, key = certificate(folder)

    async def forward(request: Request) -> StreamingResponse:
        path = request.url.path.removeprefix(PREFIX)
        sent = {name: value for name, value in request.headers.items() if name not in _HOP}
        client_host = request.client.host if request.client else ""
        given = sent.get("x-forwarded-for")
        sent |= {
            "x-forwarded-for": f"{given}, {client_host}" if given else client_host,
            "x-forwarded-proto": "https",
            "x-forwarded-host": request.headers["host"],
        }
        client = httpx.AsyncClient(timeout=None)
        built = client.build_request(
            request.method, f"{backend}{path or '/'}?{request.url.query}", headers=sent, content=await request.body()
        )
        answer = await client.send(built, stream=True)

        async def body() -> AsyncIterator[bytes]:
            async for part in answer.aiter_raw():
                yield part
            await answer.aclose()
            await client.aclose()

        kept = {name: value for name, value in answer.headers.items() if name not in _HOP}
        return StreamingResponse(body(), answer.status_code, kept)

    app = Starlette(routes=[Route(PREFIX + "{path:path}", forward, methods=["GET", "POST", "HEAD", "OPTIONS"])])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        config = uvicorn.Config(app, ssl_certfile=cert, ssl_keyfile=key, log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"https://localhost:{port}{PREFIX}/"
        server.should_exit = True
        thread.join(10)
