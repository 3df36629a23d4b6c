"""`vlm serve`: a model and an index for other programs, over HTTP."""

import ipaddress
import os
import signal
import socket
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from vlm import __version__
from vlm.commands.index_model import add_index_model, load_index_model
from vlm.commands.options import Run, add_backend, port, positive
from vlm.errors import InputError, missing_package


def serve(parser: ArgumentParser) -> Run:
    """Serve search, classification and embeddings over HTTP; by default only this machine can connect."""
    parser.add_argument("--index", type=Path, metavar="FOLDER", help="that `vlm index` made; without it no /search")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at, default %(default)s")
    parser.add_argument("--port", type=port, default=8000, help="default %(default)s; 0: any that is free")
    access = parser.add_mutually_exclusive_group()
    access.add_argument("--token", help="that clients must send; default VLM_TOKEN, which other users cannot see")
    access.add_argument("--no-token", action="store_true", help="serve everybody who can connect to --host")
    parser.add_argument("--max-megabytes", type=positive, default=32, help="of a request, default %(default)s")
    parser.add_argument("--max-megapixels", type=positive, default=40, help="of an image, default %(default)s")
    add_index_model(parser)
    add_backend(parser)

    def run(args: Namespace) -> None:
        token = None if args.no_token else (args.token if args.token is not None else os.environ.get("VLM_TOKEN"))
        if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
            parser.error("the token must be printable ASCII and not empty: it travels in an HTTP header")
        local = _is_loopback(args.host)
        if not local and token is None and not args.no_token:
            parser.error(
                f"other machines can connect to --host {args.host}: give a --token (or VLM_TOKEN), or --no-token"
            )
        if args.index is not None and not args.index.is_dir():
            raise InputError(f"There is no index '{args.index}'. Make one: vlm index FOLDER --index {args.index}")
        try:
            from vlm.serving.request_limits import LOOPBACK_NAMES
            from vlm.serving.server import create_app
            from vlm.serving.server import run as run_server
        except ModuleNotFoundError as error:
            raise missing_package("vlm serve", error.name or "fastapi", "retrieval") from error
        from vlm.serving.service import Service

        with _listen(args.host, args.port) as listener:
            embedder, _ = load_index_model(args, args.index)
            service = Service(embedder, args.index, max_pixels=args.max_megapixels * 1_000_000)
            hosts = (*LOOPBACK_NAMES, args.host) if local else None
            app = create_app(service, token=token, hosts=hosts, max_bytes=args.max_megabytes * 2**20)
            app.version = __version__
            host = f"[{args.host}]" if ":" in args.host else args.host
            address = f"http://{host}:{listener.getsockname()[1]}"
            print(f"vlm: {embedder.name} answers at {address}, Ctrl-C stops it", file=sys.stderr, flush=True)
            signal.signal(
                signal.SIGTERM, lambda number, frame: None
            )  # uvicorn stops in good order, then raises it again
            run_server(app, listener)

    return run


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a machine can be like this
        raise InputError(f"cannot listen at {host}, port {port}: {error}. Choose another --host or --port.") from error
