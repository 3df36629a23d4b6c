"""Every visible word in the page's language, Gradio's own included; what the browser refuses is said."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vlm
from tests.support.demo_pages import (
    CHROMIUM,
    DOG,
    JAPANESE,
    LOCALES,
    Opener,
    browser_tests,
    go,
    upload,
)
from tests.support.demo_server import Server, serving
from vlm.demo.page.texts import TEXTS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = browser_tests
both_languages = pytest.mark.parametrize("language", ["ja", "en"])


@pytest.fixture
def tiny(tiny_embedder: vlm.Embedder, tmp_path: Path) -> Iterator[Server]:
    vlm.save(tiny_embedder, tmp_path / "tiny")
    with serving(str(tmp_path / "tiny"), tmp_path) as server:
        yield server


@pytest.mark.parametrize(
    ("locale", "language"),
    [("fr-FR", "en"), ("de-DE", "en"), ("zh-CN", "en"), ("ar", "en"), ("en-GB", "en"), ("ja", "ja"), ("ja-JP", "ja")],
)
def test_browsers_of_other_languages_get_english(tiny: Server, opened: Opener, locale: str, language: str) -> None:
    page = opened(tiny, locale)
    page.locator("#classify-button", has_text=TEXTS["classify_button"][language]).wait_for()
    page.wait_for_timeout(500)  # Gradio sets the browser's language once its texts are loaded
    assert page.evaluate("document.documentElement.lang") == language
    assert page.evaluate("document.documentElement.dir || 'ltr'") == "ltr"
    shown = page.locator("main").inner_text().replace("日本語", "")
    assert bool(JAPANESE.findall(shown)) == (language == "ja")
    assert TEXTS["labels"][language] in shown


def test_the_chosen_language_is_kept_in_other_tabs_and_visits(tiny: Server, browser: "Browser") -> None:
    context = browser.new_context(locale="ja-JP")
    page = context.new_page()
    page.goto(tiny.address)
    page.locator('[data-language="en"]').click()
    page.locator("#classify-button", has_text=TEXTS["classify_button"]["en"]).wait_for()
    page.close()
    other = context.new_page()
    other.goto(tiny.address)
    other.locator("#classify-button", has_text=TEXTS["classify_button"]["en"]).wait_for()
    assert other.evaluate("document.documentElement.lang") == "en"
    context.close()


@both_languages
def test_gradio_s_own_words_are_in_the_language_of_the_page(
    tiny_embedder: vlm.Embedder, tmp_path: Path, browser: "Browser", language: str
) -> None:
    """A file that is too big, and a lost connection."""
    vlm.save(tiny_embedder, tmp_path / "tiny")
    big = tmp_path / "big.png"
    big.write_bytes(bytes(70_000_000))
    context = browser.new_context(locale=LOCALES[language])
    page = context.new_page()

    def toast() -> str:
        page.locator(".toast-body").first.wait_for()
        page.wait_for_timeout(300)
        return " ".join(page.locator(".toast-body").all_inner_texts()).replace("big.png", "").replace("Mb", "")

    with serving(str(tmp_path / "tiny"), tmp_path) as server:
        page.goto(server.address)
        page.wait_for_selector("#labels textarea")
        go(page, "classify").locator('.image input[type="file"]').first.set_input_files(big)
        words = toast()
        page.reload()
        page.wait_for_selector("#labels textarea")
        page.wait_for_timeout(500)
    page.locator("#classify-button").click()
    for said in (words, toast()):
        assert bool(JAPANESE.findall(said)) == (language == "ja")
        assert bool(re.search("[a-z]{3,}", said)) == (language == "en"), said
    context.close()


@both_languages
def test_waiting_and_other_words_of_gradio_have_their_japanese(tiny: Server, opened: Opener, language: str) -> None:
    page = opened(tiny, LOCALES[language])
    words = ["queue: 3/7 |", "processing |", "Click to Access Webcam", "Uploading 2 files...",
             "Connection Lost", "32 calls from 1.2.3.4 are waiting already."]  # fmt: skip
    page.evaluate(
        """(words) => {
          for (const text of words) {
            const part = Object.assign(document.createElement("p"), {className: "made", textContent: text});
            document.querySelector(".gradio-container").append(part);
          }
        }""",
        words,
    )
    page.wait_for_timeout(100)
    shown = page.locator(".made").all_inner_texts()
    if language == "en":
        assert shown == words
    else:
        assert all(JAPANESE.search(text) for text in shown), shown
        page.locator('[data-language="en"]').click()
        page.wait_for_function("document.documentElement.lang === 'en'")
        assert page.locator(".made").all_inner_texts() == words


# ---- dead ends -----------------------------------------------------------------------------------------------------


@both_languages
def test_without_a_camera_there_is_no_camera_button(tiny: Server, opened: Opener, language: str) -> None:
    page = opened(tiny, LOCALES[language])
    page.wait_for_function("document.documentElement.classList.contains('no-camera')")
    camera = page.get_by_role("button", name=TEXTS["part_camera"][language])
    assert camera.count() == 0
    assert page.get_by_role("button", name=TEXTS["part_paste"][language]).count() == 1


def test_with_a_camera_there_is_a_camera_button(tiny: Server, browser: "Browser") -> None:
    fake = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    chromium = browser.browser_type.launch(executable_path=CHROMIUM, args=fake)
    page = chromium.new_page(locale="en-US")
    page.goto(tiny.address)
    page.get_by_role("button", name=TEXTS["part_camera"]["en"]).wait_for()
    chromium.close()


@both_languages
def test_a_paste_that_gives_no_image_is_said(tiny: Server, opened: Opener, language: str) -> None:
    page = opened(tiny, LOCALES[language])
    paste = page.get_by_role("button", name=TEXTS["part_paste"][language])
    page.evaluate("() => { navigator.clipboard.read = () => Promise.reject(new DOMException('', 'NotAllowedError')); }")
    paste.click()
    page.locator(".image-note", has_text=TEXTS["paste_refused"][language]).wait_for()
    page.evaluate("() => { navigator.clipboard.read = async () => []; }")
    paste.click()
    page.locator(".image-note", has_text=TEXTS["paste_no_image"][language]).wait_for()
    page.evaluate(
        """async (bytes) => {
          const image = new Blob([new Uint8Array(bytes)], {type: "image/webp"});
          navigator.clipboard.read = async () => [{types: ["image/webp"], getType: async () => image}];
        }""",
        list(DOG.read_bytes()),
    )
    paste.click()
    page.locator("#tab-classify .image img").wait_for(state="attached")
    assert page.locator(".image-note").count() == 0


def test_a_tiff_has_a_preview(tiny: Server, opened: Opener, tmp_path: Path) -> None:
    from PIL import Image

    Image.open(DOG).convert("RGB").save(tmp_path / "dog.tiff")
    page = opened(tiny, "en-US")
    go(page, "classify").locator('.image input[type="file"]').first.set_input_files(tmp_path / "dog.tiff")
    page.locator(".preview img").wait_for()
    assert page.locator(".preview img").evaluate("(image) => image.naturalWidth") > 20
    upload(go(page, "classify"), DOG)
    page.locator(".preview").wait_for(state="detached")
