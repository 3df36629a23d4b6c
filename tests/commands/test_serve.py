"""The command `vlm serve`: its options, its page for people, its end."""

import asyncio
import io
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import zlib
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from tests.support.serving import base64_of, png
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.commands.serve import serve as declare
from vlm.embedder import Embedder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "--no-token"),
        (["--host", "192.168.0.7"], "--no-token"),
        (["--token", "a", "--no-token"], "not allowed with"),
        (["--token", ""], "not empty"),
        (["--token", "パス"], "ASCII"),
        (["--port", "99999"], "65535"),
    ],
)
def test_a_door_that_would_stand_open_is_wrong_usage(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("VLM_TOKEN", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *words])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_what_the_user_can_put_right_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cases: list[tuple[list[str], str]] = [
        (["--index", str(tmp_path / "none")], "There is no index"),
        (["--host", "203.0.113.1", "--no-token"], "Choose another"),
    ]
    for words, said in cases:
        assert main(["serve", *words]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


@pytest.mark.long
def test_told_to_stop_it_answers_what_it_was_asked(tiny_embedder: Embedder, photos: Path, tmp_path: Path):
    """A real process: SIGTERM while eight requests wait; all are answered, then it ends with 0."""
    save(tiny_embedder, tmp_path / "model")
    words = ["--index", str(photos), "--model", str(tmp_path / "model"), "--port", "0"]
    environment = {**os.environ, "VLM_TOKEN": "geheim"}
    with subprocess.Popen(
        [sys.executable, "-m", "vlm.cli", "serve", *words], stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        (address,) = re.findall(r"http://127\.0\.0\.1:\d+", line)

        async def ask_all() -> list[httpx.Response]:
            header = {"Authorization": "Bearer geheim"}
            async with httpx.AsyncClient(base_url=address, headers=header, timeout=60) as client:
                for _ in range(100):  # it listens before it can answer
                    if (await client.get("/health")).status_code == 200:
                        break
                # open eight connections: one that waits to be accepted is dropped by a server that stops
                await asyncio.gather(*(client.get("/health") for _ in range(8)))
                labels = [f"label {n}" for n in range(300)]
                body = {"images": [base64_of(png(1))], "labels": labels, "k": 1}
                asked = [asyncio.create_task(client.post("/classify", json=body)) for _ in range(8)]
                await asyncio.sleep(0.1)
                server.send_signal(signal.SIGTERM)
                return await asyncio.gather(*asked)

        answers = asyncio.run(ask_all())
        rest = server.communicate(timeout=60)[1]
    assert [answer.status_code for answer in answers] == [200] * 8
    assert len({answer.json()[0]["label"] for answer in answers}) == 1
    assert server.returncode == 0, rest
    assert rest == ""


def test_help_comes_without_torch_or_a_web_framework():
    code = "import sys; from vlm.cli import main\ntry: main(['serve', '--help'])\nfinally: print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--no-token" in done.stdout
    assert not re.search(r"'(torch|fastapi|starlette|uvicorn|pydantic|numpy)'", done.stdout)


class Served(NamedTuple):
    client: TestClient
    address: str  # as it was printed
    port: int


@pytest.fixture
def serve(
    tiny_embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Served]]:
    """The command up to where uvicorn would take over."""
    save(tiny_embedder, tmp_path / "model")
    monkeypatch.delenv("VLM_TOKEN", raising=False)
    handler, running = signal.getsignal(signal.SIGTERM), ExitStack()

    def start(*words: str | Path) -> Served:
        found: list[tuple[FastAPI, int]] = []
        monkeypatch.setattr(
            "vlm.serving.server.run", lambda app, listener: found.append((app, listener.getsockname()[1]))
        )
        assert main(["serve", "--model", str(tmp_path / "model"), "--port", "0", *map(str, words)]) == 0
        (app, port), printed = found[0], capsys.readouterr()
        assert printed.out == ""
        (address,) = re.findall(r"^vlm: model answers at (\S+), Ctrl-C stops it\n$", printed.err)
        client = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        return Served(running.enter_context(client), address, port)

    with running:
        yield start
    signal.signal(signal.SIGTERM, handler)


def status(client: TestClient, **headers: str) -> int:
    return client.get("/health", headers=headers).status_code


def test_without_options_it_is_for_this_machine_and_needs_no_token(serve: Callable[..., Served]):
    client, address, port = serve()
    assert address == f"http://127.0.0.1:{port}"
    assert status(client) == 200
    assert status(client, Host="evil.example") == 403
    assert client.post("/search", json={"text": "a dog"}).status_code != 200  # no index
    os.kill(os.getpid(), signal.SIGTERM)  # left to uvicorn, which then ends in good order


@pytest.mark.parametrize(
    ("words", "variable", "token"),
    [
        (["--token", "said"], None, "said"),
        (["--token", "said"], "found", "said"),
        ([], "found", "found"),
        (["--no-token"], "found", None),
        (["--token", "two words~!"], None, "two words~!"),
    ],
)
def test_the_token_is_the_one_said_else_that_of_the_environment(
    serve: Callable[..., Served],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    variable: str | None,
    token: str | None,
):
    if variable:
        monkeypatch.setenv("VLM_TOKEN", variable)
    client = serve(*words).client
    assert status(client) == (401 if token else 200)
    assert status(client, Authorization=f"Bearer {token}") == 200


def test_others_are_let_in_by_any_name_with_a_token_or_when_told_so(serve: Callable[..., Served]):
    client, address, port = serve("--host", "0.0.0.0", "--token", "secret")
    assert address == f"http://0.0.0.0:{port}"
    assert status(client, Host="a.example", Authorization="Bearer secret") == 200
    assert status(client, Host="a.example") == 401
    assert status(serve("--host", "0.0.0.0", "--no-token").client, Host="a.example") == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.9", "::1"])
def test_this_machine_has_many_names(serve: Callable[..., Served], host: str):
    try:
        socket.create_server((host, 0), family=socket.getaddrinfo(host, 0)[0][0]).close()
    except OSError:
        pytest.skip(f"no {host} here")
    client, address, port = serve("--host", host)
    assert address == f"http://{'[::1]' if host == '::1' else host}:{port}"
    assert (status(client), status(client, Host="a.example")) == (200, 403)


def test_requests_and_images_are_as_large_as_allowed_and_no_larger(serve: Callable[..., Served]):
    client = serve("--max-megabytes", "1", "--max-megapixels", "1").client
    headers = {"Content-Type": "application/json"}
    fits = client.post("/embed", content=b'{"texts": ["a"]}'.ljust(2**20), headers=headers)
    assert (fits.status_code, len(fits.json()["texts"])) == (200, 1)
    assert client.post("/embed", content=b'{"texts": ["a"]}'.ljust(2**20 + 1), headers=headers).status_code == 413
    answers = []
    for width in (1000, 1001):
        file = io.BytesIO()
        Image.new("RGB", (width, 1000), "red").save(file, "png")
        answers.append(client.post("/embed", json={"images": [base64_of(file.getvalue())]}).status_code)
    assert answers[0] == 200 != answers[1]


def of_size(width: int, height: int) -> bytes:
    """A PNG whose header says so, with hardly any pixels."""
    small = png()
    header = b"IHDR" + struct.pack(">2I", width, height) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def test_unless_told_otherwise_the_limits_are_those_of_the_guide(serve: Callable[..., Served]):
    guide = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    (megabytes,) = re.findall(r"\| (\d+) MiB \(`--max-megabytes`\)", guide)
    (megapixels,) = re.findall(r"\| (\d+) megapixels \(`--max-megapixels`\)", guide)
    client, headers = serve().client, {"Content-Type": "application/json"}
    sizes = (int(megabytes) * 2**20, int(megabytes) * 2**20 + 1)
    answers = [client.post("/embed", content=b'{"texts": ["a"]}'.ljust(size), headers=headers) for size in sizes]
    assert [answer.status_code for answer in answers] == [200, 413]
    images = (of_size(10_000, int(megapixels) * 100), of_size(10_000, int(megapixels) * 100 + 1))
    said = [client.post("/embed", json={"images": [base64_of(data)]}).json()["error"] for data in images]
    assert ["truncated" in error for error in said] == [True, False]  # which is seen only after the size
    parser = ArgumentParser()
    declare(parser)
    assert f"http://127.0.0.1:{parser.parse_args([]).port}/" in guide


def test_the_index_is_the_one_named(serve: Callable[..., Served], photos: Path):
    client = serve("--index", photos).client
    assert len(client.post("/search", json={"text": "a dog", "k": 4}).json()) == 4


@pytest.mark.parametrize(("port", "code"), [("65535", 1), ("65536", 2), ("-1", 2), ("8o", 2), ("²", 2)])
def test_a_port_is_a_number_that_can_be_one(port: str, code: int, capsys: pytest.CaptureFixture[str]):
    """None is listened at: the address is nobody's on this machine."""
    words = ["serve", "--host", "203.0.113.1", "--no-token", "--port", port]
    try:
        assert main(words) == code
    except SystemExit as stopped:
        assert stopped.code == code
    said = f"port {port}: " if code == 1 else f"must be a whole number from 0 to 65535, got {port}"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("token", ["two\nlines", " padded", "padded ", " "])
def test_a_token_no_header_can_carry_is_wrong_usage(token: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--token", token])
    assert stopped.value.code == 2
    assert "must be printable ASCII and not empty" in capsys.readouterr().err


def test_without_its_packages_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delitem(sys.modules, "vlm.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "uvicorn" in error and "pip install 'vlm-clip[retrieval]'" in error
