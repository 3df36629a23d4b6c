"""The page as a whole in headless Chromium: languages, errors, HTML, on a model with random weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vlm
from tests.support.demo_pages import (
    DOG,
    JAPANESE,
    TABS,
    Opener,
    browser_tests,
    go,
    quiet,
    upload,
)
from tests.support.demo_server import Server, serving
from vlm.demo.page.texts import TEXTS

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = browser_tests


@pytest.fixture
def tiny(tiny_embedder: vlm.Embedder, tmp_path: Path) -> Iterator[Server]:
    vlm.save(tiny_embedder, tmp_path / "tiny")
    with serving(str(tmp_path / "tiny"), tmp_path) as server:
        yield server
    quiet(server)


def test_the_page_in_both_languages(tiny: Server, opened: Opener) -> None:
    for locale, language in [("ja-JP", "ja"), ("en-US", "en")]:
        page = opened(tiny, locale)
        _shows_only(page, language)
        go(page, "search")
        _shows_only(page, language)

    page = opened(tiny, "ja-JP")  # the switch changes everything at once, and a reload keeps the choice
    page.locator("#labels textarea").fill("犬")
    for language in ("en", "ja", "en"):
        page.locator(f'[data-language="{language}"]').click()
        page.locator("#classify-button", has_text=TEXTS["classify_button"][language]).wait_for()
        _shows_only(page, language)
        assert page.locator("#labels textarea").input_value() == "犬"
    page.reload()
    page.locator("#classify-button", has_text=TEXTS["classify_button"]["en"]).wait_for()
    page.locator('[role="tab"]', has_text=TEXTS["search"]["en"]).wait_for()
    _shows_only(page, "en")


def _shows_only(page: "Page", language: str) -> None:
    """No text of the other language stands on the page, Gradio's own texts included; both alphabets tell it."""
    shown = page.locator("main").inner_text().replace("日本語", "").replace("English", "")
    names = page.get_by_role("tab").all_inner_texts()
    assert names == [TEXTS[name][language] for name in TABS if name != "classifier"]  # there is none
    japanese = JAPANESE.findall(shown)
    assert bool(japanese) == (language == "ja"), japanese
    for said in TEXTS.values():
        other = said["en" if language == "ja" else "ja"]
        assert len(other) < 12 or other not in shown, other


def test_mistakes_are_one_line_in_the_language_of_the_page(tiny: Server, opened: Opener, tmp_path: Path) -> None:
    page = opened(tiny, "ja-JP")
    notice = page.locator("[role=alert].notice >> visible=true")

    def says(key: str, **values: str) -> None:
        page.locator(".notice", has_text=TEXTS[key]["ja"].format(**values)).wait_for()
        assert notice.inner_text() == TEXTS[key]["ja"].format(**values)

    page.locator("#classify-button").click()
    says("no_image")
    upload(go(page, "classify"), DOG)
    page.locator("#classify-button").click()
    says("no_labels")
    page.locator("#labels textarea").fill("x" * 501)
    page.locator("#classify-button").click()
    says("text_too_long", count="501", most="500")
    page.locator('[data-language="en"]').click()
    page.locator(".notice", has_text="too long").wait_for()
    page.locator('[data-language="ja"]').click()

    broken = tmp_path / "broken.png"
    broken.write_text("not an image")
    page.reload()
    page.wait_for_selector("#labels textarea")
    upload(go(page, "classify"), broken)
    page.locator("#labels textarea").fill("犬、猫")
    page.locator("#classify-button").click()
    says("not an image")
    go(page, "search")
    page.locator("#search-button").click()
    says("nothing_to_search")


def test_html_in_labels_stays_text(tiny: Server, opened: Opener) -> None:
    page = opened(tiny, "en-US")
    labels = ["<img src=x onerror=alert(1)>", "${alert(2)}", "{{value}}", "`${1+1}`"]
    upload(go(page, "classify"), DOG)
    page.locator("#labels textarea").fill("\n".join(labels))
    page.locator("#classify-button").click()
    page.locator(".bars").wait_for()
    assert sorted(page.locator(".bars .label").all_inner_texts()) == sorted(labels)
