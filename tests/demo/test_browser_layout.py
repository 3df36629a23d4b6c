"""The page moves little while it loads, and prints dark on white in both schemes, in headless Chromium."""

from typing import Literal

import pytest

from tests.support.demo_pages import DOG, LOCALES, Opener, browser_tests, go, needs_mini, upload
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
