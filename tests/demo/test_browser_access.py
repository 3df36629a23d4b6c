"""The demo without a mouse, without eyes, on a telephone and in the dark: every tab, with its answer on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    tab_to,
)
from tests.support.demo_server import Server
from vlm.demo.page.texts import TEXTS
from vlm.demo.search.samples import EXAMPLES

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [*browser_tests, needs_mini]


# ---- axe-core ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["ja", "en"])
def test_axe_finds_nothing_serious_on_any_tab_empty_or_filled(
    full_demo: Server, opened: Opener, language: str, scheme: Literal["light", "dark"]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(full_demo, LOCALES[language], 1280, scheme)
    found: list[str] = []
    for tab in TABS:
        go(page, tab)
        for state in ("empty", "filled"):
            if state == "filled":
                answered(page, tab, language)
            for rule in axe.run(page).response["violations"]:
                if rule["impact"] in ("serious", "critical"):
                    parts = [node["html"][:120] for node in rule["nodes"][:2]]
                    found.append(f"{tab} {state}: {rule['id']} {parts}")
    assert not found


# ---- layout --------------------------------------------------------------------------------------------------------

BEYOND = """() => [...document.querySelectorAll("main *")].filter((part) => {
  const {left, right} = part.getBoundingClientRect();
  return part.checkVisibility() && !part.closest(".card, .scrolling, .visually-hidden")
    && (right > innerWidth + 1 || left < -1);
}).map((part) => `${part.tagName}.${part.className}: ${part.textContent.slice(0, 40)}`)"""

CLIPPED = """() => [...document.querySelectorAll("main :is(p, span, h1, h2, a, button, code, label, th, td)")].filter(
  (part) => part.checkVisibility() && !part.closest(".for-readers, .examples, .visually-hidden, svg")
    && getComputedStyle(part).overflowX !== "visible" && part.scrollWidth > part.clientWidth + 1 && part.clientWidth,
).map((part) => `${part.tagName}.${part.className}: ${part.textContent.slice(0, 40)}`)"""

# WCAG 2.2: relative luminance of the text's colour and of the first ground behind it that is not transparent
FAINT = """() => {
  const read = (colour) => {
    const context = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const faint = [];
  for (const part of document.querySelectorAll("main *")) {
    const text = [...part.childNodes].filter((node) => node.nodeType === 3 && node.nodeValue.trim());
    const unseen = part.closest(".for-readers, .examples .name, svg") || !part.checkVisibility({opacityProperty: true});
    if (unseen || !text.length) continue;
    let ground = part;
    while (ground && read(getComputedStyle(ground).backgroundColor)[3] < 255) ground = ground.parentElement;
    const behind = light(ground ? read(getComputedStyle(ground).backgroundColor) : [255, 255, 255]);
    const ink = light(read(getComputedStyle(part).color));
    const contrast = (Math.max(ink, behind) + 0.05) / (Math.min(ink, behind) + 0.05);
    if (contrast < 4.5) faint.push(`${contrast.toFixed(2)} ${part.tagName}.${part.className}: ${text[0].nodeValue}`);
  }
  return faint;
}"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_clipped_too_wide_or_too_faint(
    full_demo: Server, opened: Opener, width: int, scheme: Literal["light", "dark"]
) -> None:
    language = "ja" if (width == 390) == (scheme == "light") else "en"
    page = opened(full_demo, LOCALES[language], width, scheme)
    for tab in TABS:
        go(page, tab)
        _has_room(page, width)
        answered(page, tab, language)
        _has_room(page, width)


def _has_room(page: "Page", width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for fault in (BEYOND, CLIPPED, FAINT):
        assert page.evaluate(fault) == []


def test_on_a_telephone_the_answer_comes_into_view(full_demo: Server, opened: Opener) -> None:
    page = opened(full_demo, "ja-JP", 390)
    panel = go(page, "search")
    panel.locator(".suggestions button").first.click()
    page.locator("#found .cards").wait_for()
    page.wait_for_function("document.querySelector('#found').getBoundingClientRect().top < innerHeight / 2")
    page.locator("#found .cards button").nth(20).click()
    page.wait_for_function("Math.abs(document.querySelector('#found').getBoundingClientRect().top) < 40")


# ---- names ---------------------------------------------------------------------------------------------------------

NAMED = {
    "button", "checkbox", "combobox", "Canvas", "figure", "group", "image", "img", "link", "listbox", "progressbar",
    "radio", "region", "searchbox", "slider", "spinbutton", "tab", "tabpanel", "textbox",
}  # fmt: skip


def accessible(page: "Page") -> list[tuple[str, str]]:
    """(role, name) of all that a screen reader is told of."""
    session: Any = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    told = [node for node in nodes if not node.get("ignored")]
    return [(node["role"]["value"], node.get("name", {}).get("value", "").strip()) for node in told]


@pytest.mark.parametrize("language", ["ja", "en"])
def test_every_control_and_image_has_a_name_in_the_language_of_the_page(
    full_demo: Server, opened: Opener, language: str
) -> None:
    page = opened(full_demo, LOCALES[language])
    not_words = {"English", "日本語", "Language / 言語", "dog.webp"}
    own = {
        "twemoji",
        "noto",
        "noto-v1",
        "fxemoji",
        "fluent",
        "fluent-flat",
        "emojione",
        "iconoir",
        "flat-color-icons",
        "mini",
        "second",
    }
    for tab in TABS:
        answered(page, tab, language)
        told = [(role, name) for role, name in accessible(page) if role in NAMED]
        assert len(told) > 15  # the tree is there
        assert [role for role, name in told if not name] == [], tab
        if language == "ja":
            english = [name for _, name in told if name.isascii() and name not in not_words | own]
            assert [name for name in english if "KB" not in name] == [], tab  # a file's size


# ---- keyboard ------------------------------------------------------------------------------------------------------


def test_the_keyboard_alone_does_all_on_classify(full_demo: Server, opened: Opener, tmp_path: Path) -> None:
    page = opened(full_demo, "en-US")
    panel, press = page.locator("#tab-classify"), page.keyboard.press
    with page.expect_file_chooser() as chooser:
        tab_to(page, panel.locator(".image button.upload-container"))
        press("Enter")
    chooser.value.set_files(DOG)
    panel.locator(".image img").wait_for(state="attached")
    tab_to(page, page.locator("#labels textarea"))
    page.keyboard.type("dog, cat")
    tab_to(page, page.locator("#classify-button"))
    press("Enter")
    page.locator("#ranking .bars").wait_for()
    tab_to(page, page.locator('#ranking [value="softmax"]'))
    press("ArrowRight")
    page.locator("#ranking .sigmoid.fine").wait_for()
    tab_to(page, page.locator('#ranking [data-label="cat"]'))
    press("Space")
    page.locator("#where-note", has_text="cat").wait_for()
    tab_to(page, panel.locator("button.label-wrap").first)
    press("Enter")
    tab_to(page, panel.locator('[data-template="plain"]'))
    press("Enter")
    page.wait_for_function("document.querySelector('#templates textarea').value === '{}'")
    tab_to(page, page.locator("#templates textarea"))
    page.keyboard.type(" alone")
    assert "alone" in page.locator("#templates textarea").input_value()
    tab_to(page, panel.locator("button.label-wrap").nth(1))
    press("Enter")
    with page.expect_file_chooser() as chooser:
        tab_to(page, page.locator("#images button.upload-container"))
        press("Enter")
    chooser.value.set_files([DOG])
    page.locator("#images a").first.wait_for()
    tab_to(page, page.locator("#classify-all-button"))
    press("Enter")
    page.locator("#table table").wait_for()
    tab_to(page, page.locator("#table a >> visible=true"))
    with page.expect_download() as coming:
        press("Enter")
    coming.value.save_as(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text("utf-8-sig").splitlines()[0].startswith("image,best")
    tab_to(page, panel.locator(".examples button").first, "Shift+Tab")
    press("Enter")
    page.wait_for_function("document.querySelector('#labels textarea').value.split('\\n').length === 4")
    tab_to(page, page.locator('[data-language="ja"]'), "Shift+Tab")
    press("Enter")
    page.locator("#classify-button", has_text=TEXTS["classify_button"]["ja"]).wait_for()


def test_the_keyboard_alone_does_all_on_the_other_tabs(full_demo: Server, opened: Opener) -> None:
    page = opened(full_demo, "en-US")
    press = page.keyboard.press
    tab_to(page, page.get_by_role("tab").first)

    press("ArrowRight")  # search
    tab_to(page, page.locator("#query input, #query textarea"))
    page.keyboard.type("a red apple")
    press("Enter")
    page.locator("#found .cards li").nth(23).wait_for()
    tab_to(page, page.locator("#tab-search .suggestions button").nth(1))
    press("Space")
    page.wait_for_function(f"document.querySelector('#query input').value === {EXAMPLES['search'][1]['en']!r}")
    tab_to(page, page.locator("#tab-search button.label-wrap"))
    press("Enter")
    tab_to(page, page.locator("#styles").get_by_label("noto", exact=True))
    press("Space")
    tab_to(page, page.locator("#search-button"), "Shift+Tab")
    press("Enter")
    page.locator('#found li:first-child [data-file^="noto/"]').wait_for()
    sixth = page.locator("#found .cards button").nth(5)
    wanted = sixth.get_attribute("data-file")
    tab_to(page, sixth)
    press("Enter")
    page.locator(f'#found li:first-child [data-file="{wanted}"]').wait_for()  # an image is most like itself

    tab_to(page, page.get_by_role("tab").nth(1), "Shift+Tab")
    press("ArrowRight")  # classifier
    tab_to(page, page.locator("#tab-classifier .examples button").first)
    press("Enter")
    page.locator("#classifier-answer .bars").wait_for()
    tab_to(page, page.locator("#classifier-choice input"))
    press("ArrowDown")
    press("Enter")
    tab_to(page, page.locator("#classifier-button"))
    press("Enter")
    page.locator("#classifier-answer .bars").wait_for()

    tab_to(page, page.get_by_role("tab").nth(2), "Shift+Tab")
    press("ArrowRight")  # look inside
    tab_to(page, page.locator("#tab-look .examples button").first)
    press("Enter")
    caption = page.locator("#look-attention figcaption")
    caption.filter(has_text="block 6, head 1, query: vector of the whole image").wait_for()
    tab_to(page, page.locator('#look-head input[type="range"]'))
    press("ArrowRight")
    caption.filter(has_text="block 6, head 2").wait_for()
    tab_to(page, page.locator('[data-patch="7"]'))
    press("Enter")
    caption.filter(has_text="query: patch 7").wait_for()

    tab_to(page, page.get_by_role("tab").nth(3), "Shift+Tab")
    press("ArrowRight")  # models
    tab_to(page, page.locator("#tab-models .examples button").first)
    press("Enter")
    page.locator("#compared .bars").nth(1).wait_for()
    tab_to(page, page.locator("#card-button"))
    press("Enter")
    page.locator("#model-card article").wait_for()
    tab_to(page, page.locator("#model-card article"))  # which scrolls by arrows
    tab_to(page, page.locator("#remote-id input, #remote-id textarea"))
    page.keyboard.type("mini")
    tab_to(page, page.locator("#remote-size-button"))
    press("Enter")
    page.locator("#remote-state .notice").wait_for()
