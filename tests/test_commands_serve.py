"""The command `vlm serve`: its options, its page for people, its end."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving import base64_of, png

from vlm.checkpoint import save
from vlm.cli import main
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
                body = {"pictures": [base64_of(png(1))], "labels": labels, "k": 1}
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
