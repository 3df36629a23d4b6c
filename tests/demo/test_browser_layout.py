"""The page reflows on small screens, moves little while it loads, and prints dark on white, in headless Chromium."""

import shutil
from pathlib import Path
from typing import Literal

import pytest

from tests.support.demo_pages import (
    DOG,
    LOCALES,
    TABS,
    Opener,
    answered,
    browser_tests,
    go,
    needs_mini,
    open_part,
    upload,
)
from tests.support.demo_server import Server

pytestmark = [*browser_tests, needs_mini]

SHIFT = """() => new Promise((done) => {
  let sum = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) sum += entry.value;
  }).observe({type: "layout-shift", buffered: true});
  setTimeout(() => done(sum), 1500);
})"""
# of every text that is printed: the luminance of its colour, and of the first ground behind it that is not transparent
PRINTED = """() => {
  const channel = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((c) => channel(c / 255))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const clear = (colour) => /rgba\\(.*, 0\\)|transparent/.test(colour);
  return [...document.querySelectorAll("main *")].filter((part) => part.checkVisibility()
      && !part.closest("svg, .visually-hidden, .for-readers")
      && [...part.childNodes].some((node) => node.nodeType === 3 && node.nodeValue.trim()))
    .map((part) => {
      let ground = part;
      while (ground && clear(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
      return [part.textContent.trim().slice(0, 40), light(getComputedStyle(part).color),
        ground ? light(getComputedStyle(ground).backgroundColor) : 1];
    });
}"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_moves_little_after_it_has_loaded(mini_demo: Server, opened: Opener, width: int) -> None:
    """Cumulative layout shift; below 0.1 is good (web.dev/cls)."""
    page = opened(mini_demo, LOCALES["ja"], width)
    assert page.evaluate(SHIFT) < 0.1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_answer_prints_dark_on_white_without_buttons(
    mini_demo: Server, opened: Opener, scheme: Literal["light", "dark"]
) -> None:
    page = opened(mini_demo, LOCALES["en"], 1280, scheme)
    panel = go(page, "classify")
    upload(panel, DOG)
    page.locator("#labels textarea").fill("dog\ncat")
    page.locator("#classify-button").click()
    page.locator("#ranking .bars").wait_for()
    page.emulate_media(media="print", color_scheme=scheme)
    printed = page.evaluate(PRINTED)
    assert {"dog", "cat"} <= {text for text, _, _ in printed}
    assert not [(text, ink, ground) for text, ink, ground in printed if ink > 0.2 or ground < 0.9]
    assert not page.locator("#classify-button").is_visible()
    assert not panel.locator(".examples").first.is_visible()
    filled = page.locator("#ranking .track span").first
    assert filled.evaluate("(bar) => getComputedStyle(bar).backgroundColor") == "rgb(85, 85, 85)"
    assert len(page.pdf()) > 5000


# ---- small screens -------------------------------------------------------------------------------------------------

WIDER = """() => [...document.querySelectorAll("main *")].filter((part) => {
  const {left, right} = part.getBoundingClientRect();
  return part.checkVisibility() && !part.closest(".card, .scrolling, .visually-hidden, .for-readers, .examples .name")
    && (right > innerWidth + 1 || left < -1);
}).map((part) => `${part.tagName}.${part.className}`)"""
both_languages = pytest.mark.parametrize("language", ["ja", "en"])


@both_languages
@pytest.mark.parametrize(("width", "margin"), [(320, "12px"), (390, "12px"), (640, "16px")])
def test_every_tab_reflows_to_one_column(
    full_demo: Server, opened: Opener, width: int, margin: str, language: str
) -> None:
    """320 px is 1280 px at 400 % zoom (WCAG 1.4.10)."""
    page = opened(full_demo, LOCALES[language], width)
    main = page.locator("main")
    assert main.evaluate("(part) => getComputedStyle(part).paddingInlineStart") == margin
    assert page.get_by_role("tab").count() == len(TABS)  # none in a menu
    for tab in TABS:
        for panel in (go(page, tab), answered(page, tab, language)):
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
            assert page.evaluate(WIDER) == [], tab
            if width <= 420:
                for column in panel.locator(".row > .column").all():
                    box = column.bounding_box()
                    assert box is None or box["width"] > 0.8 * width, tab


@both_languages
@pytest.mark.parametrize("width", [320, 1280])
def test_a_long_file_name_takes_two_lines_and_is_whole_in_the_title(
    full_demo: Server, opened: Opener, tmp_path: Path, width: int, language: str
) -> None:
    names = [
        f"{'x' * 150}.webp",
        f"{'とても長い名前の写真' * 5}.webp",
        f"{'the sea and a dog, ' * 7}.webp",
    ]  # Gradio cuts at 200 bytes
    for name in names:
        shutil.copy(DOG, tmp_path / name)
    page = opened(full_demo, LOCALES[language], width)
    panel = go(page, "classify")
    open_part(panel, "several", language)
    page.locator("#images input[type=file]").set_input_files([tmp_path / name for name in names])
    page.locator("#images a").nth(2).wait_for()
    page.locator("#labels textarea").fill("dog, cat")
    page.locator("#classify-all-button").click()
    page.locator("#table table").wait_for()
    for name, cell in zip(names, page.locator("#table tbody th").all(), strict=True):
        assert cell.get_attribute("title") == name
        shown = cell.locator(".file-name")
        height, line = shown.evaluate("(one) => [one.offsetHeight, parseFloat(getComputedStyle(one).lineHeight)]")
        assert height <= 2 * line + 1
    assert page.locator("#table a >> visible=true").count() == 1  # the file in the language of the page
