"""A real server beside clients that are slow, hang up or send half a request."""

import asyncio
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest

from vlm.checkpoint.save import save
from vlm.embedder import Embedder

HALF = (
    b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n",
    b'{"texts": ["a d',
)


class Running:
    """A server process, its port, and what it has written to stderr."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def stop(self) -> str:
        self.process.terminate()
        return self.process.communicate(timeout=60)[1]

    def half_sent(self, parts: tuple[bytes, ...]) -> socket.socket:
        """A connection over which half a request went."""
        connection = socket.create_connection(("127.0.0.1", self.port))
        for part in parts:
            connection.sendall(part)
        return connection


@pytest.fixture
def running(tiny_embedder: Embedder, tmp_path: Path) -> Iterator[Running]:
    save(tiny_embedder, tmp_path / "model")
    command = [sys.executable, "-m", "vlm.cli", "serve", "--model", str(tmp_path / "model"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)", process.stderr.readline())
        for _ in range(100):
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                break
        yield Running(process, int(port))
        process.kill()


def milliseconds(port: int, requests: int, clients: int = 20) -> list[float]:
    """Of requests by clients that wait for each answer; every answer must be right in form."""

    async def ask_all() -> list[float]:
        times: list[float] = []

        async def ask(client: httpx.AsyncClient, numbers: range) -> None:
            for number in numbers:
                start = time.perf_counter()
                answer = await client.post("/embed", json={"texts": [f"a dog {number}"]})
                times.append(1000 * (time.perf_counter() - start))
                assert answer.status_code == 200 and len(answer.json()["texts"]) == 1

        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            await asyncio.gather(*(ask(client, range(n, requests, clients)) for n in range(clients)))
        return times

    return asyncio.run(ask_all())


@pytest.mark.long
def test_256_slow_clients_beside_a_thousand_honest_requests(running: Running, capsys: pytest.CaptureFixture[str]):
    milliseconds(running.port, 200)  # warm
    rounds: list[tuple[float, float]] = []
    for _ in range(3):  # in turn: other work of this machine falls on both
        without = milliseconds(running.port, 1000)
        with ExitStack() as slow:
            for parts in (HALF, HALF[:1], (HALF[0][:40],)):  # half a body, no body, half of the headers
                for _ in range(256):
                    slow.enter_context(running.half_sent(parts))
            beside = milliseconds(running.port, 1000)
        assert len(without) == len(beside) == 1000  # none was lost
        rounds.append((float(np.percentile(without, 99)), float(np.percentile(beside, 99))))
    with capsys.disabled():
        print("\np99 in ms, without and with slow clients:", [(round(a, 1), round(b, 1)) for a, b in rounds])
    ratios = sorted(beside / without for without, beside in rounds)
    assert ratios[1] <= 2, rounds


@pytest.mark.long
@pytest.mark.parametrize("clients", [1, 10])
def test_a_client_that_hangs_up_costs_one_line_of_the_log(running: Running, clients: int):
    for _ in range(clients):
        running.half_sent(HALF).close()
    assert len(milliseconds(running.port, 20)) == 20
    lines = running.stop().splitlines()
    assert len(lines) == clients, lines
    assert all("hung up" in line for line in lines)
