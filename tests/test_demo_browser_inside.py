"""The tabs Classifier, Look inside and Models in headless Chromium: both languages, wide and narrow, keyboard."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from demo_server import Server, serving
from test_demo_browser import CHROMIUM, DOG, Opener, browser, opened  # noqa: F401 - fixtures

import vlm
from demo.texts import TEXTS
from vlm.config import PreprocessConfig, VisionConfig
from vlm.preprocess import Preprocess
from vlm.vision import ViTClassifier

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser tests")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: no browser tests"),
]

JAPANESE = re.compile("[\u3041-\u30ff\u4e00-\u9fff]+")


@pytest.fixture
def shelf(tiny_embedder: vlm.Embedder, tmp_path: Path) -> Path:
    """A CLIP, a classifier and the place they lie in."""
    vlm.save(tiny_embedder, tmp_path / "runs" / "tiny")
    config = VisionConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_dim=64)
    torch.manual_seed(0)
    classifier = ViTClassifier(config, 7, preprocess=Preprocess(PreprocessConfig(image_size=32)))
    vlm.save(classifier, tmp_path / "runs" / "vit")
    return tmp_path / "runs"


@pytest.fixture
def server(shelf: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(str(shelf / "tiny"), tmp_path, "--models", str(shelf)) as running:
        yield running
    log = running.log.read_text()
    assert "Traceback" not in log
    assert "DIALLED OUT" not in log


def go(page: "Page", name: str) -> None:
    page.locator(f'[role="tab"][data-tab-id="{name}"]').click()


def give(page: "Page", tab: str) -> None:
    panel(page, tab).locator('.picture input[type="file"]').first.set_input_files(DOG)
    panel(page, tab).locator(".picture img").first.wait_for(state="attached")


def panel(page: "Page", tab: str) -> "Locator":
    return page.locator('[role="tabpanel"]').filter(has=page.locator(f"#{tab}-button"))


def fits(page: "Page", width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_tab_answers_in_both_languages_wide_and_narrow(server: Server, opened: Opener) -> None:  # noqa: F811
    for locale, language, width, scheme in (("ja-JP", "ja", 390, "dark"), ("en-US", "en", 1280, "light")):
        page = opened(server, locale, width, scheme)

        def speaks(tab: str, page: "Page" = page, language: str = language) -> None:
            shown = panel(page, tab).inner_text()
            japanese = JAPANESE.findall(shown)
            assert bool(japanese) == (language == "ja"), japanese

        go(page, "classifier")
        give(page, "classifier")
        page.locator("#classifier-button").click()
        page.locator("#classifier-answer .bars li").nth(4).wait_for()
        assert "14.3%" in page.locator("#classifier-answer .fine").inner_text()  # chance, 1 of 7
        assert page.locator("#classifier-answer figure img").count() == 1
        speaks("classifier")
        fits(page, width)

        go(page, "look")
        give(page, "look")
        page.locator("#look-text input, #look-text textarea").fill("耳" if language == "ja" else "ear")
        page.locator("#look-button").click()
        page.locator("#look-figures figure").nth(5).wait_for()
        for figure in page.locator("#look-figures figure, #look-attention figure").all():
            assert re.search("第[23]章|[Cc]hapter [23]", figure.locator(".reference").inner_text())
        speaks("look")
        fits(page, width)

        go(page, "models")
        give(page, "compare")
        page.locator("#compare-labels textarea").fill("犬\n猫" if language == "ja" else "dog\ncat")
        page.locator("#compare-button").click()
        page.locator("#compared section").nth(1).wait_for()
        assert page.locator("#compared h2").all_inner_texts() == ["tiny", "mini"]
        assert page.locator("#compared .bars li").count() == 4
        page.locator("#card-button").click()
        page.locator("#model-card article").wait_for()
        fits(page, width)


def test_the_keyboard_alone_turns_the_sliders_and_chooses_a_patch(server: Server, opened: Opener) -> None:  # noqa: F811
    page = opened(server, "en-US")
    go(page, "look")
    examples = panel(page, "look").locator(".examples button")
    examples.first.focus()
    page.keyboard.press("Enter")
    caption = page.locator("#look-attention figcaption")
    caption.filter(has_text="block 2, head 1, read by the picture's vector").wait_for()
    page.locator('#look-head input[type="range"]').focus()
    page.keyboard.press("ArrowRight")
    caption.filter(has_text="block 2, head 2").wait_for()
    page.locator('[data-patch="7"]').focus()
    page.keyboard.press("Enter")
    caption.filter(has_text="read by patch 7").wait_for()
    page.locator('[data-block="1"][data-head="1"]').click()
    caption.filter(has_text="block 1, head 1").wait_for()
    assert page.locator('[data-patch="7"]').get_attribute("aria-label") == "Patch 7: row 2, column 3 / パッチ7：2行3列"


def test_without_a_classifier_the_tab_says_how_to_make_one(tmp_path: Path, opened: Opener) -> None:  # noqa: F811
    with serving("mini", tmp_path, "--models", str(tmp_path)) as running:
        page = opened(running, "ja-JP")
        go(page, "classifier")
        note = panel(page, "classifier").locator(".model-note")
        assert TEXTS["no_classifier_yet"]["ja"] in note.inner_text()
        assert "python -m training.train_vit" in note.inner_text()
        give(page, "classifier")
        page.locator("#classifier-button").click()
        page.locator(".notice", has_text=TEXTS["no_model_named"]["ja"]).wait_for()


def test_a_remote_model_asks_first_and_a_missing_network_is_one_line(
    server: Server,
    opened: Opener,  # noqa: F811
) -> None:
    page = opened(server, "ja-JP")
    go(page, "models")
    give(page, "compare")
    page.locator("#compare-labels textarea").fill("犬")
    page.locator("#second-model input").fill("hf:org/name")
    page.keyboard.press("Enter")
    page.locator("#compare-button").click()
    page.locator("#compared .notice", has_text=TEXTS["consent_first"]["ja"].format(name="hf:org/name")).wait_for()
    page.locator("#remote-id input, #remote-id textarea").fill("mini")
    page.locator("#remote-size-button").click()
    page.locator("#remote-state .notice", has_text=TEXTS["not_remote"]["ja"].format(name="mini")).wait_for()
