"""The tabs Classifier, Look inside and Models in headless Chromium, in both languages; figures against the library."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vlm
from tests.support.demo_pages import (
    DOG,
    JAPANESE,
    LOCALES,
    Opener,
    browser_tests,
    drop_image,
    go,
    numbers,
    quiet,
    save_classifier,
    upload,
)
from tests.support.demo_server import Server, serving
from vlm.demo.models import inspection
from vlm.demo.page.texts import TEXTS
from vlm.demo.views import inspection as views
from vlm.demo.views.models import classifier_answer

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = browser_tests

CLASSES = [f"class {number}" for number in range(7)]


@dataclass(frozen=True)
class ModelRegistry:
    """A CLIP, two classifiers, and the place they lie in."""

    clip: vlm.Embedder
    classifier: vlm.ViTClassifier
    place: Path


@pytest.fixture
def registry(tiny_embedder: vlm.Embedder, tmp_path: Path) -> ModelRegistry:
    vlm.save(tiny_embedder, tmp_path / "runs" / "tiny")
    save_classifier(tmp_path / "runs" / "other", ["only", "two"])
    made = save_classifier(tmp_path / "asked-first", CLASSES)
    return ModelRegistry(tiny_embedder, made, tmp_path / "runs")


@pytest.fixture
def server(registry: ModelRegistry, tmp_path: Path) -> Iterator[Server]:
    options = ("--models", str(registry.place), "--classifier", str(tmp_path / "asked-first"))
    with serving(str(registry.place / "tiny"), tmp_path, *options) as running:
        yield running
    quiet(running)


def speaks(panel: "Locator", language: str) -> None:
    japanese = JAPANESE.findall(panel.inner_text())
    assert bool(japanese) == (language == "ja"), japanese


def choose(page: "Page", box: str, name: str) -> None:
    """By typing into a dropdown."""
    page.locator(f"{box} input").fill(name)
    page.keyboard.press("Enter")


@pytest.mark.parametrize("language", ["ja", "en"])
def test_the_classifier_answers_with_its_own_classes_and_rollout(
    server: Server, registry: ModelRegistry, opened: Opener, language: str
) -> None:
    page = opened(server, LOCALES[language])
    panel = go(page, "classifier")
    assert page.locator("#classifier-choice input").input_value() == "asked-first"  # named by --classifier
    drop_image(panel, DOG)
    page.locator("#classifier-button").click()
    page.locator("#classifier-answer .bars li").nth(4).wait_for()
    expected = inspection.predict(registry.classifier, DOG)
    assert page.locator("#classifier-answer .label").all_inner_texts() == [label for label, _ in expected.top]
    assert numbers(page.locator("#classifier-answer .percent")) == pytest.approx(
        [probability for _, probability in expected.top], abs=0.0005 + 1e-9
    )
    assert "14.3%" in page.locator("#classifier-answer .fine").inner_text()  # chance, 1 of 7
    image = page.locator("#classifier-answer figure img").get_attribute("src")
    assert image
    assert image in classifier_answer("asked-first", expected)
    speaks(panel, language)

    choose(page, "#classifier-choice", "runs/other")  # found in --models
    panel.locator(".examples button").nth(1).click()
    page.locator("#classifier-answer strong", has_text="runs/other").wait_for()
    assert sorted(page.locator("#classifier-answer .label").all_inner_texts()) == ["only", "two"]
    choose(page, "#classifier-choice", str(registry.place / "nowhere"))
    page.locator("#classifier-button").click()
    page.locator("#classifier-answer .notice", has_text=TEXTS["cannot_open_model"][language].split("{")[0]).wait_for()


@pytest.mark.parametrize("language", ["ja", "en"])
def test_the_sliders_the_patches_and_the_heads_show_the_attention_they_name(
    server: Server, registry: ModelRegistry, opened: Opener, language: str
) -> None:
    page = opened(server, LOCALES[language])
    panel = go(page, "look")
    drop_image(panel, DOG)
    text = page.locator("#look-text input, #look-text textarea")
    text.fill("耳" if language == "ja" else "ear")
    page.keyboard.press("Enter")
    page.locator("#look-figures figure").nth(5).wait_for()
    seen = inspection.prepare(registry.clip.model.vision, registry.clip.preprocess, DOG)
    for figure in page.locator("#look-figures figure, #look-attention figure").all():
        assert re.search("第[23]章|[Cc]hapter [23]", figure.locator(".reference").inner_text())
    assert text.input_value() in page.locator(".figure-relevance figcaption").inner_text()
    speaks(panel, language)

    def attends(block: int, head: int, patch: int) -> None:
        wanted = views.attention(inspection.attention(seen, block, head, patch), block, head, patch)
        source = re.findall('src="([^"]+)"', wanted)[0]
        page.locator(f'#look-attention img[src="{source}"]').wait_for()

    attends(2, 1, 0)  # the last block
    page.locator('#look-head input[type="number"]').fill("2")
    page.keyboard.press("Enter")
    attends(2, 2, 0)
    page.locator('#look-block input[type="range"]').press("ArrowLeft")
    attends(1, 2, 0)
    page.locator('[data-patch="7"]').click()
    attends(1, 2, 7)
    page.locator('[data-block="2"][data-head="1"]').click()
    attends(2, 1, 0)  # the thumbnail that was clicked: what the whole image's vector reads
    page.locator('[data-patch="7"]').click()
    attends(2, 1, 7)
    page.locator('#look-patch input[type="range"]').press("Home")
    attends(2, 1, 0)
    named = TEXTS["patch_name"][language].format(number=7, row=2, column=3)
    assert page.locator('[data-patch="7"]').get_attribute("aria-label") == named
    text.fill("")
    page.locator("#look-button").click()
    page.locator(".figure-relevance").wait_for(state="detached")


@pytest.mark.parametrize("language", ["ja", "en"])
def test_two_models_stand_side_by_side_each_with_its_own_ranking(
    server: Server, registry: ModelRegistry, opened: Opener, language: str
) -> None:
    page = opened(server, LOCALES[language])
    panel, labels = go(page, "models"), ["犬", "猫"] if language == "ja" else ["dog", "cat"]
    upload(panel, DOG)
    page.locator("#compare-labels textarea").fill("\n".join(labels))
    page.locator("#compare-button").click()
    page.locator("#compared section").nth(1).wait_for()
    assert page.locator("#compared h2").all_inner_texts() == ["tiny", "mini"]
    for section, embedder in zip(
        page.locator("#compared section").all(), (registry.clip, vlm.load("mini")), strict=True
    ):
        expected = sorted(vlm.classify(embedder, [DOG], labels)[0].tolist(), reverse=True)
        assert numbers(section.locator(".percent")) == pytest.approx(expected, abs=0.0005 + 1e-9)
        assert re.search(r"\d+\.\d", section.locator(".small-heading").inner_text())  # milliseconds
    speaks(page.locator("#compared"), language)
    page.locator("#card-button").click()
    page.locator("#model-card article").wait_for()
    choose(page, "#second-model", "hf:org/name")
    page.locator("#compare-button").click()
    asks = TEXTS["consent_first"][language].format(name="hf:org/name")
    page.locator("#compared .notice", has_text=asks).wait_for()
    page.locator("#remote-id input, #remote-id textarea").fill("mini")
    page.locator("#remote-size-button").click()
    no = TEXTS["not_remote"][language].format(name="mini")
    page.locator("#remote-state .notice", has_text=no).wait_for()


def test_without_a_classifier_there_is_no_tab_for_it(tmp_path: Path, opened: Opener) -> None:
    with serving("mini", tmp_path, "--models", str(tmp_path)) as running:
        page = opened(running, "ja-JP")
        tabs = page.get_by_role("tab").evaluate_all("(all) => all.map((one) => one.dataset.tabId)")
        assert tabs == ["classify", "search", "look", "models"]
        go(page, "models")  # one model: its card, not mini against mini
        page.locator("#model-card article").wait_for()
        assert page.locator("#compare-button >> visible=true").count() == 0
