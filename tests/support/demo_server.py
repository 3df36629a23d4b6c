"""`python -m demo` as its own process, which notes every address outside this machine that it asks for."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_WATCHED = """
import sys

def note(event, values):
    if event == "socket.connect" and isinstance(values[1], tuple) and values[1][0] not in ("127.0.0.1", "::1"):
        print("DIALLED OUT", values[1], file=sys.stderr, flush=True)
    if event == "socket.getaddrinfo" and values[0] not in ("127.0.0.1", "::1", "localhost", None):
        print("DIALLED OUT", values[0], file=sys.stderr, flush=True)

sys.addaudithook(note)
from vlm.cli import main
sys.exit(main(["demo", *sys.argv[1:]]))
"""


@dataclass(frozen=True)
class Server:
    address: str
    log: Path


@contextmanager
def serving(model: str, folder: Path, *options: str, port: int = 0) -> Iterator[Server]:
    """The demo on a port, 0 for a free one, until the block ends; its log and its uploads go to `folder`."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
        port = free.getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}", folder / "demo.log")
    with server.log.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _WATCHED, "--model", model, *options],
            cwd=Path(__file__).parents[2],
            env={
                **os.environ,
                "GRADIO_SERVER_PORT": str(port),
                "GRADIO_TEMP_DIR": str(folder / "uploads"),
                "OMP_NUM_THREADS": "1",
            },
            stdout=log,
            stderr=log,
        )
        try:
            _wait(server, process)
            yield server
        finally:
            process.terminate()
            process.wait(30)


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1800):
        if "answers at http://" in server.log.read_text():
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"the demo did not start:\n{server.log.read_text()}")
