"""The page and its endpoints, without a browser."""

import base64
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import gradio
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from tests.support.demo_pages import DOG
from tests.support.demo_server import serving
from vlm.demo.actions import PageActions
from vlm.demo.app import build
from vlm.demo.page.texts import TEXTS
from vlm.demo.search.samples import SAMPLES

ROOT = Path(__file__).parents[2]


def test_the_named_endpoints_answer_programs(actions: PageActions, tmp_path: Path) -> None:
    with serving(actions.source, tmp_path) as server:
        _ask(server.address, actions, tmp_path)
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "DIALLED OUT" not in log


def _ask(address: str, actions: PageActions, tmp_path: Path) -> None:
    client = Client(address, verbose=False, download_files=str(tmp_path))
    dog = handle_file(str(DOG))

    ranking = actions.classify(DOG, "犬、猫")
    expected = [{"label": one.label, "probability": one.probability, "match": one.match} for one in ranking]
    assert client.predict(image=dog, labels="犬、猫", api_name="/classify") == expected
    assert client.predict(dog, ["犬", "猫"], api_name="/classify") == expected

    found = client.predict("赤いりんご", None, api_name="/search")
    results = actions.search("赤いりんご")
    assert [one["score"] for one in found] == pytest.approx([result.score for result in results])
    images = [base64.b64decode(one["thumbnail"].split(",")[1]) for one in found]
    assert images == [result.path.read_bytes() for result in results]
    assert client.predict(found[3]["key"], api_name="/similar")[0]["score"] == pytest.approx(1, abs=1e-5)
    two = client.predict(
        [dog, handle_file(str(SAMPLES / "fxemoji" / "redapple.webp"))], "犬、猫", api_name="/classify_all"
    )
    assert two[0]["labels"] == expected
    assert [one["name"] for one in two] == ["dog.webp", "redapple.webp"]
    assert client.predict(image=dog, api_name="/search")[0]["score"] == pytest.approx(1, abs=1e-5)

    broken = tmp_path / "broken.png"
    broken.write_text("not an image")
    for image, labels, key in [(handle_file(str(broken)), "犬", "not an image"), (dog, "", "no_labels")]:
        with pytest.raises(AppError) as error:
            client.predict(image, labels, api_name="/classify")
        assert str(error.value) == TEXTS[key]["en"]
    for forged in (str(DOG), {"path": str(DOG)}):  # a path of the server's own, not an upload
        with pytest.raises(AppError):
            client.predict(forged, "犬", api_name="/classify")

    endpoints: Any = client.view_api(return_format="dict", print_info=False)
    assert {"/classify", "/classify_all", "/where", "/search", "/similar"} <= set(endpoints["named_endpoints"])


def test_a_text_box_that_nobody_opened_sends_the_empty_text(actions: PageActions) -> None:
    values = {block.value for block in build(actions).blocks.values() if isinstance(block, gradio.Textbox)}
    assert values == {""}  # without a value, one inside a closed accordion sends None


def test_the_api_pages_say_what_the_page_offers(actions: PageActions) -> None:
    """`python docs/write_demo_api.py` writes them."""
    page: Any = build(actions).get_api_info()
    written = runpy.run_path(str(ROOT / "docs/write_demo_api.py"))["pages"](page["named_endpoints"])
    assert written["en"] == (ROOT / "docs/demo-api.md").read_text(encoding="utf-8")
    assert written["ja"] == (ROOT / "docs/demo-api.ja.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_a_space_finds_demo_and_no_model_is_loaded_for_it() -> None:
    show = "import gradio; from demo.app import demo as d; print(isinstance(d, gradio.Blocks), d.analytics_enabled)"
    done = _run("-c", show, VLM_DEMO_MODEL="no-such-model")
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_a_model_that_is_not_there_is_one_line_and_exit_code_1() -> None:
    done = _run("-m", "demo", "--model", "no-such-model")
    assert done.returncode == 1
    assert "no-such-model" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def _run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
        check=False,
    )
