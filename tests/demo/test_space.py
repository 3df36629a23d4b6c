"""The demo as a Hugging Face Space: bare copies of vlm/ and, in it, demo/; nothing is installed from the checkout."""

import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from gradio_client import Client, handle_file

from tests.support.demo_pages import needs_mini
from vlm.demo.search.samples import SAMPLES

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.long


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """A Space's folder, far from the checkout."""
    shutil.copytree(ROOT / "vlm", tmp_path / "vlm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "demo", tmp_path / "vlm" / "demo", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "demo" / "requirements.txt", tmp_path)
    return tmp_path


def test_a_space_installs_all_that_vlm_and_the_demo_ask_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["demo"]}
    lines = (ROOT / "demo" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if not line.startswith("#")} == wanted


def test_the_bare_folder_offers_demo_without_loading_a_model(space: Path) -> None:
    show = "from vlm.demo import app; print(type(app.demo).__name__, app.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", show],
        capture_output=True,
        text=True,
        cwd=space,
        env=_bare(VLM_DEMO_MODEL="no-such-model"),
        check=False,
    )
    assert done.stdout.split() == ["DemoPage", str(space / "vlm" / "demo" / "app.py")], done.stderr


@needs_mini
def test_the_app_file_of_a_space_answers(space: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with (space / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "vlm/demo/app.py"], cwd=space, env=_bare(GRADIO_SERVER_PORT=port), stdout=log, stderr=log
        )
        try:
            client = _client(f"http://127.0.0.1:{port}", process, space / "log")
            ranking = client.predict(
                handle_file(str(SAMPLES / "fxemoji" / "redapple.webp")), "apple, dog", api_name="/classify"
            )
            models = client.predict(api_name="/models")
        finally:
            process.terminate()
            process.wait(30)
    assert ranking[0]["label"] == "apple"
    assert [model["name"] for model in models] == ["mini"]
    assert "Traceback" not in (space / "log").read_text()


def _bare(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", **variables}


def _client(address: str, process: subprocess.Popen[bytes], log: Path) -> Client:
    for _ in range(1800):
        try:
            with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=1):
                return Client(address, verbose=False, download_files=False)
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise RuntimeError(f"the Space did not start:\n{log.read_text()}")
