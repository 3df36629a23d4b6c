"""The demo as people see it: headless Chromium, in Japanese and English, wide and narrow, light and dark.

The first half runs on a model that knows nothing; the second needs the bundled `mini`.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import pytest
from demo_server import Server, serving

import vlm
from demo.gallery import SAMPLES
from demo.texts import TEXTS
from vlm.checkpoint import BUNDLED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser tests")
CHROMIUM = shutil.which("chromium")
DOG = SAMPLES / "fxemoji" / "dog.webp"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: no browser tests"),
]

Opener = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    arguments = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: "Browser") -> Iterator[Opener]:
    """Opens a page that reaches this machine only; at the end nothing else was asked for and nothing went wrong."""
    strays: list[str] = []
    contexts: list[Any] = []

    def open_page(
        server: Server, language: str = "ja-JP", width: int = 1280, scheme: Literal["light", "dark"] = "light"
    ) -> "Page":
        context = browser.new_context(
            locale=language, viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()

        def route(asked: Any) -> None:
            if urlsplit(asked.request.url).hostname == "127.0.0.1":
                asked.continue_()
            else:
                strays.append(asked.request.url)
                asked.abort()

        page.route(re.compile("^(?!data:|blob:)"), route)
        page.on("pageerror", lambda error: strays.append(str(error)))
        page.on("dialog", lambda dialog: strays.append(f"dialog: {dialog.message}"))
        page.goto(server.address)
        page.wait_for_selector("#labels textarea")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not strays


@pytest.fixture
def tiny(tiny_embedder: vlm.Embedder, tmp_path: Path) -> Iterator[Server]:
    vlm.save(tiny_embedder, tmp_path / "tiny")
    with serving(str(tmp_path / "tiny"), tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (BUNDLED["mini"] / "manifest.json").is_file():
        pytest.skip("vlm/assets/mini is not there yet: train it first")
    with serving("mini", tmp_path_factory.mktemp("mini")) as server:
        yield server


def search_tab(page: "Page") -> None:
    page.get_by_role("tab").nth(1).click()
    page.locator("#query textarea, #query input").wait_for()


# ---- on a model that knows nothing ---------------------------------------------------------------------------------


def test_the_page_in_both_languages(tiny: Server, opened: Opener, tmp_path: Path) -> None:
    for locale, language in [("ja-JP", "ja"), ("en-US", "en")]:
        page = opened(tiny, locale)
        _shows_only(page, language)
        search_tab(page)
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
    assert names == [TEXTS[name][language] for name in ("classify", "search", "classifier", "look", "models")]
    japanese = re.findall("[\u3041-\u30ff\u4e00-\u9fff]+", shown)
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
    says("no_picture")
    upload(page, DOG)
    page.locator("#classify-button").click()
    says("no_labels")
    page.locator("#labels textarea").fill("犬、猫、犬")
    page.locator("#classify-button").click()
    says("labels_twice", labels="犬")
    page.locator('[data-language="en"]').click()
    page.locator(".notice", has_text="more than once").wait_for()
    page.locator('[data-language="ja"]').click()

    broken = tmp_path / "broken.png"
    broken.write_text("not a picture")
    page.reload()
    page.wait_for_selector("#labels textarea")
    upload(page, broken)
    page.locator("#labels textarea").fill("犬、猫")
    page.locator("#classify-button").click()
    says("not a picture")
    search_tab(page)
    page.locator("#search-button").click()
    says("nothing_to_search")
    assert "Traceback" not in tiny.log.read_text()
    assert "DIALLED OUT" not in tiny.log.read_text()


def test_html_in_labels_stays_text(tiny: Server, opened: Opener) -> None:
    page = opened(tiny, "en-US")
    labels = ["<img src=x onerror=alert(1)>", "${alert(2)}", "{{value}}", "`${1+1}`"]
    upload(page, DOG)
    page.locator("#labels textarea").fill("\n".join(labels))
    page.locator("#classify-button").click()
    page.locator(".bars").wait_for()
    assert sorted(page.locator(".bars .label").all_inner_texts()) == sorted(labels)


def test_nothing_is_wider_than_the_page(tiny: Server, opened: Opener) -> None:
    for page in (opened(tiny, "ja-JP", 390, "light"), opened(tiny, "en-US", 390, "dark")):
        page.locator(".examples button").first.click()
        page.locator(".bars").wait_for()
        _fits(page)
        search_tab(page)
        page.locator(".suggestions button").first.click()
        page.locator(".cards").wait_for()
        _fits(page)


def _fits(page: "Page") -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    beyond = """[...document.querySelectorAll("main :is(p, span, h1, h2, button, code, label)")]
        .filter((part) => part.checkVisibility() && part.getBoundingClientRect().right > 390)
        .map((part) => part.textContent)"""
    assert page.evaluate(beyond) == []


def test_the_keyboard_alone_classifies_and_searches(tiny: Server, opened: Opener) -> None:
    page = opened(tiny, "en-US")
    page.locator(".examples button").first.focus()
    page.keyboard.press("Enter")
    page.locator(".bars").wait_for()
    assert page.locator("#labels textarea").input_value().splitlines()[0] == "dog"
    page.get_by_role("tab").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#query textarea, #query input").focus()
    page.keyboard.type("a red apple")
    page.keyboard.press("Enter")
    page.locator(".cards li").nth(23).wait_for()
    first = page.locator(".cards button").nth(5)
    wanted = first.get_attribute("data-file")
    first.focus()
    page.keyboard.press("Enter")
    page.locator(f'.cards li:first-child [data-file="{wanted}"]').wait_for()  # a picture is most like itself


# ---- on the bundled model ------------------------------------------------------------------------------------------


def test_a_dog_is_a_dog_and_a_red_apple_is_found(mini: Server, opened: Opener) -> None:
    page = opened(mini, "ja-JP")
    assert TEXTS["knows_drawings"]["ja"] in page.locator(".model-note").inner_text()
    upload(page, DOG)
    page.locator("#labels textarea").fill("犬\n猫")
    page.locator("#classify-button").click()
    page.locator(".bars").wait_for()
    assert page.locator(".bars .label").all_inner_texts()[0] == "犬"

    search_tab(page)
    page.locator("#query textarea, #query input").fill("赤いりんご")
    page.locator("#search-button").click()
    page.locator(".cards li").nth(23).wait_for()
    files = page.locator(".cards button").evaluate_all("(all) => all.map((one) => one.dataset.file)")
    assert any(re.search("red-?apple", file) for file in files[:5]), files[:5]


def upload(page: "Page", path: Path) -> None:
    page.locator('.picture input[type="file"]').first.set_input_files(path)
    page.locator(".picture img").first.wait_for(state="attached")
