"""Serve a Gradio page in a thread, behind the checks of `vlm.demo.server`."""

import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from vlm.demo.server.calls import CallGuard
from vlm.demo.server.security import RequestGuard, allowed_hosts
from vlm.errors import InputError

FIRST_PORT, PORTS = 7860, 100  # tried in turn
GRACE = 2  # seconds for open answers when the server is stopped


class RunningPage:
    """A page that is being served."""

    def __init__(self, address: str, server: uvicorn.Server, thread: threading.Thread) -> None:
        self.address = address
        self._server = server
        self._thread = thread

    def wait(self) -> None:
        """Return when the server has stopped."""
        while self._thread.is_alive():
            self._thread.join(1)

    def close(self) -> None:
        """Stop the server."""
        self._server.should_exit = True
        self._thread.join()


def serve_page(
    page: gr.Blocks,
    *,
    host: str | None = None,
    port: int | None = None,
    hosts: Sequence[str] = (),
    proxies: Sequence[str] = (),
    **settings: Any,
) -> RunningPage:
    """Serve a page in the background.

    Args:
        page: with its queue.
        host: address to bind to; default: GRADIO_SERVER_NAME, else 127.0.0.1.
        port: default: GRADIO_SERVER_PORT, else the first free port from 7860 on.
        hosts: names by which the page may be called, besides those of this machine.
        proxies: addresses of proxies whose X-Forwarded-For is believed.
        settings: passed on to `gr.mount_gradio_app`.

    Raises:
        InputError: the port is in use, or the address is not one of this machine.
    """
    host = (host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1").strip("[]")
    listener = _listen(host, port or _port_from_env())
    chosen: int = listener.getsockname()[1]
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(RequestGuard, hosts=allowed_hosts(host, hosts), proxies=proxies),
            Middleware(CORSMiddleware),  # allows no origin; without it Gradio would answer other origins
            Middleware(CallGuard, page=page),
        ],
    )
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=host,
        server_port=chosen,
        root_path=os.environ.get("GRADIO_ROOT_PATH"),
        **settings,
    )
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, proxy_headers=False, timeout_graceful_shutdown=GRACE
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        threading.Event().wait(0.01)
    name = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)
    return RunningPage(f"http://{name}:{chosen}", server, thread)


def _port_from_env() -> int:
    given = os.environ.get("GRADIO_SERVER_PORT") or "0"
    if not given.isdecimal() or int(given) > 65535:
        raise InputError(f"GRADIO_SERVER_PORT is {given!r}; it must be a whole number from 0 to 65535.")
    return int(given)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket on a port, or on the first free one for port 0."""
    try:
        family, *_, address = socket.getaddrinfo(host, port or None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"'{host}' is no address of this machine ({error}). Give --host another one.") from error
    candidates = [port] if port else range(FIRST_PORT, FIRST_PORT + PORTS)
    reason: OSError | None = None
    for candidate in candidates:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address[0], candidate))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            reason = error
    raise InputError(
        f"Port {candidates[0]} of {host} cannot be used ({reason}). Give another one with --port."
        if port
        else f"No port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} of {host} can be used ({reason}). Give --port."
    )
