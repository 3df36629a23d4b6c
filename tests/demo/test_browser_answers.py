"""Answers in headless Chromium: they say what was asked, fade when the question changes, and are announced."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vlm
from tests.support.demo_pages import (
    APPLE,
    DOG,
    LOCALES,
    OCTOPUS,
    Opener,
    browser_tests,
    drop_image,
    go,
    needs_mini,
    numbers,
    open_part,
    upload,
)
from tests.support.demo_server import Server, serving
from vlm.demo.page.texts import TEXTS
from vlm.demo.search.samples import EXAMPLES, samples

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [*browser_tests, needs_mini]
both_languages = pytest.mark.parametrize("language", ["ja", "en"])
LABELS = {"ja": "犬、猫、鳥", "en": "dog, cat, bird"}


def classify(page: "Page") -> None:
    """Press Classify and wait for the new ranking."""
    page.evaluate("document.querySelector('#ranking .ranking')?.remove()")
    page.locator("#classify-button").click()
    page.locator("#ranking .bars").wait_for()


def stale(page: "Page") -> list[str]:
    return page.locator(".stale").evaluate_all("(all) => all.map((one) => one.id)")


@both_languages
def test_an_answer_fades_when_its_question_changes(mini_demo: Server, opened: Opener, language: str) -> None:
    page = opened(mini_demo, LOCALES[language])
    panel, labels = go(page, "classify"), page.locator("#labels textarea")
    upload(panel, DOG)
    labels.fill(LABELS[language])
    classify(page)
    page.locator("#ranking .label").first.click()
    page.locator("#where img").wait_for()
    assert stale(page) == []

    labels.fill(LABELS[language] + "\nx")
    assert stale(page) == ["ranking", "where"]
    note = TEXTS["stale"][language].format(button=TEXTS["classify_button"][language])
    assert page.locator("#ranking .stale-note").inner_text() == note
    assert page.locator("#ranking .ranking").get_attribute("inert") is not None  # a label there is of the old question
    classify(page)
    page.locator("#where img").wait_for(state="detached")
    assert stale(page) == []

    open_part(panel, "templates", language)
    panel.locator('[data-template="plain"]').click()
    page.locator("#ranking.stale").wait_for()
    classify(page)
    assert stale(page) == []

    panel.get_by_role("button", name=TEXTS["part_remove"][language]).click()  # the image is removed
    page.locator("#ranking.stale").wait_for()
    drop_image(panel, OCTOPUS)
    classify(page)
    assert stale(page) == []
    go(page, "look")
    page.locator("#look-button").click()
    page.locator("#look-figures figure").nth(4).wait_for()
    upload(go(page, "classify"), APPLE)  # every tab shows this image: all answers about the old one fade
    page.locator("#ranking.stale").wait_for()
    assert stale(page) == ["ranking", "look-attention", "look-figures"]
    panel.locator(".examples button").nth(1).click()
    page.locator("#ranking:not(.stale) .bars").wait_for()
    assert stale(page) == ["look-attention", "look-figures"]


@both_languages
def test_a_question_asked_while_an_answer_is_awaited_is_answered(
    mini_demo: Server, opened: Opener, language: str
) -> None:
    page = opened(mini_demo, LOCALES[language])
    upload(go(page, "classify"), DOG)
    page.evaluate(
        """async () => {
          const box = document.querySelector("#labels textarea");
          for (const text of ["dog, cat", "dog, cat, cow"]) {
            box.value = text;
            box.dispatchEvent(new Event("input", {bubbles: true}));
            await new Promise((done) => setTimeout(done, 20));
            document.querySelector("#classify-button").click();
          }
        }"""
    )
    read = TEXTS["labels_read"][language].format(count=3, labels="dog · cat · cow")
    page.locator("#ranking:not(.stale) .asked", has_text=read).wait_for()


@both_languages
def test_a_search_fades_when_its_text_image_or_filter_changes(mini_demo: Server, opened: Opener, language: str) -> None:
    page = opened(mini_demo, LOCALES[language])
    panel = go(page, "search")
    panel.locator(".suggestions button").first.click()
    page.locator("#found .cards").wait_for()
    assert stale(page) == []
    open_part(panel, "filters", language)
    page.locator("#styles").get_by_label("noto", exact=True).check()
    assert stale(page) == ["found"]
    page.locator("#search-button").click()
    page.locator("#found:not(.stale) .cards").wait_for()
    page.locator("#query input, #query textarea").fill("x")
    assert stale(page) == ["found"]
    page.keyboard.press("Enter")
    page.locator("#found:not(.stale)").wait_for()


@both_languages
def test_an_error_clears_every_answer(mini_demo: Server, opened: Opener, language: str) -> None:
    page = opened(mini_demo, LOCALES[language])
    page.locator("#tab-classify .examples button").first.click()
    page.locator("#ranking .bars").wait_for()
    page.locator("#ranking .label").first.click()
    page.locator("#where img").wait_for()
    page.locator("#labels textarea").fill(" ")
    page.locator("#classify-button").click()
    page.locator("#ranking .notice", has_text=TEXTS["no_labels"][language]).wait_for()
    assert page.locator("#where").inner_text().strip() == ""
    assert page.locator(".notice >> visible=true").count() == 1
    go(page, "look")
    page.locator("#tab-look .examples button").first.click()
    page.locator("#look-figures figure").nth(4).wait_for()
    page.locator("#look-text input, #look-text textarea").fill("x" * 501)
    page.locator("#look-button").click()
    page.locator("#look-attention .notice").wait_for()
    assert page.locator("#look-figures figure").count() == 0


@both_languages
def test_what_was_asked_stands_above_the_answer(mini_demo: Server, opened: Opener, language: str) -> None:
    page = opened(mini_demo, LOCALES[language])
    upload(go(page, "classify"), DOG)
    page.locator("#labels textarea").fill(LABELS[language])
    classify(page)
    assert page.locator("#ranking .asked img").evaluate("(image) => image.naturalWidth") == 96
    names = " · ".join(LABELS[language].replace("、", ",").replace(" ", "").split(","))
    assert page.locator("#ranking .asked").inner_text() == TEXTS["labels_read"][language].format(count=3, labels=names)
    panel = go(page, "search")
    panel.locator(".suggestions button").first.click()
    words = EXAMPLES["search"][0][language]
    page.locator("#found .asked", has_text=TEXTS["asked_text"][language].format(text=words)).wait_for()
    page.locator("#found .cards button").nth(2).click()
    page.locator("#found .asked img").wait_for()
    first = page.locator("#found .cards button").first
    assert page.locator("#found .asked img").get_attribute("src") == first.locator("img").get_attribute("src")


@both_languages
@pytest.mark.parametrize("typed", ["犬 猫 鳥", "犬/猫/鳥", "dog|cat|bird", "dog\tcat\tbird", "犬\n\u200b\n猫\n鳥\n犬"])
def test_labels_are_read_whatever_stands_between_them(
    mini_demo: Server, opened: Opener, language: str, typed: str
) -> None:
    page = opened(mini_demo, LOCALES[language])
    upload(go(page, "classify"), DOG)
    page.locator("#labels textarea").fill(typed)
    classify(page)
    assert page.locator("#ranking .label").count() == 3
    names = "犬 · 猫 · 鳥" if "犬" in typed else "dog · cat · bird"
    assert page.locator("#ranking .asked").inner_text() == TEXTS["labels_read"][language].format(count=3, labels=names)


@both_languages
def test_one_label_has_its_own_probability_and_a_weak_one_is_flagged_above(
    mini_demo: Server, opened: Opener, language: str
) -> None:
    page = opened(mini_demo, LOCALES[language])
    embedder, label = vlm.load("mini"), {"ja": "りんご", "en": "apple"}[language]
    expected = embedder.match_probability(
        vlm.ZeroShotClassifier(embedder, [label]).class_embeds @ embedder.embed_images([APPLE])[0]
    )
    assert expected is not None
    upload(go(page, "classify"), APPLE)
    page.locator("#labels textarea").fill(label)
    classify(page)
    assert numbers(page.locator("#ranking .percent")) == pytest.approx(expected.tolist(), abs=0.005 + 1e-9)
    assert TEXTS["one_note"][language] in page.locator("#ranking").inner_text()
    page.locator("#labels textarea").fill({"ja": "民主主義、哲学", "en": "democracy, philosophy"}[language])
    classify(page)
    flag, bars = page.locator("#ranking .none-fits").first, page.locator("#ranking .bars")
    for key in ("none_fits", "drawings_only", "photo_model"):
        assert TEXTS[key][language] in flag.inner_text()
    assert flag.bounding_box()["y"] < bars.bounding_box()["y"]  # pyright: ignore[reportOptionalSubscript]
    assert "民主主義" in page.locator("#ranking").inner_text() or language == "en"
    assert TEXTS["unknown_words"][language].split("{")[0] in page.locator("#ranking").inner_text()
    weight = "(one) => getComputedStyle(one).fontWeight"
    assert {item.evaluate(weight) for item in bars.locator("li").all()} == {"400"}


@both_languages
def test_a_screen_reader_hears_one_line(mini_demo: Server, opened: Opener, language: str) -> None:
    page = opened(mini_demo, LOCALES[language])
    line = page.locator('#announcer[role="status"]')
    upload(go(page, "classify"), DOG)
    page.locator("#labels textarea").fill(LABELS[language])
    classify(page)
    first, share = page.locator("#ranking .label").first.inner_text(), numbers(page.locator("#ranking .percent"))[0]
    said = TEXTS["summary_ranking"][language].format(count=3, label=first, number=f"{share:.0%}")
    page.locator("#announcer", has_text=said).wait_for(state="attached")
    go(page, "search").locator(".suggestions button").first.click()
    page.locator("#found .cards").wait_for()
    name = page.locator("#found .cards .name").first.inner_text()
    page.wait_for_function("(name) => document.querySelector('#announcer').textContent.includes(name)", arg=name)
    assert line.inner_text() == TEXTS["summary_found"][language].format(count=24, first=name)


@both_languages
def test_every_way_to_search_obeys_the_filters_and_the_first_card_explains_its_numbers(
    mini_demo: Server, opened: Opener, language: str
) -> None:
    page = opened(mini_demo, LOCALES[language])
    panel = go(page, "search")
    open_part(panel, "filters", language)
    page.locator("#styles").get_by_label("twemoji", exact=True).check()
    count = sum(one.style == "twemoji" for one in samples())

    def found() -> list[str]:
        page.locator("#found:not(.stale) .cards").wait_for()
        return page.locator("#found .cards button").evaluate_all("(all) => all.map((one) => one.dataset.file)")

    def in_style(files: list[str]) -> bool:
        return len(files) == min(24, count) and {file.split("/")[0] for file in files} == {"twemoji"}

    panel.locator(".suggestions button").nth(1).click()
    assert in_style(found())
    wanted = found()[3]
    page.locator("#found .cards button").nth(3).click()  # similar ones: most like itself
    page.locator(f'#found li:first-child [data-file="{wanted}"]').wait_for()
    assert in_style(found())
    page.locator("#query input, #query textarea").fill("dog")
    page.locator("#search-button").click()
    page.locator("#found .asked", has_text="dog").wait_for()
    assert in_style(found())
    explained = page.locator("#found .cards .score").all_inner_texts()
    start = TEXTS["score_and_match"][language].split("{")[0]
    assert explained[0].startswith(start)
    assert not any(one.startswith(start) for one in explained[1:])


def test_the_images_of_the_page_can_be_shown_again(mini_demo: Server, opened: Opener, tmp_path: Path) -> None:
    """The image, the labels and the tab survive a reload; other tabs show the same image; Ctrl+Enter classifies."""
    page = opened(mini_demo, "en-US")
    upload(go(page, "classify"), DOG)
    page.locator("#labels textarea").fill("dog, cat")
    page.locator("#labels textarea").press("Control+Enter")
    page.locator("#ranking .bars").wait_for()
    go(page, "look")
    assert page.url.endswith("#look")
    assert page.locator("#tab-look .image img").get_attribute("src").endswith("dog.webp")  # pyright: ignore
    page.wait_for_timeout(500)  # kept in the browser
    page.reload()
    page.locator("#tab-look .image img").wait_for(state="attached")
    assert page.locator('[role="tab"][aria-selected="true"]').get_attribute("data-tab-id") == "look"
    page.locator("#look-button").click()
    page.locator("#look-figures figure").first.wait_for()
    page.go_back()
    page.locator('[role="tab"][data-tab-id="classify"][aria-selected="true"]').wait_for()
    assert page.locator("#labels textarea").input_value() == "dog, cat"
    page.go_forward()
    page.locator('[role="tab"][data-tab-id="look"][aria-selected="true"]').wait_for()


def test_image_and_labels_survive_a_restart_of_the_server(tmp_path: Path, browser: "Browser") -> None:
    page = browser.new_context(locale="en-US").new_page()
    with serving("mini", tmp_path) as server:
        page.goto(server.address)
        page.wait_for_selector("#labels textarea")
        upload(go(page, "classify"), DOG)
        page.locator("#labels textarea").fill("dog, cat")
        page.wait_for_timeout(800)  # kept in the browser
    with serving("mini", tmp_path, port=int(server.address.rsplit(":", 1)[1])):
        page.reload()
        page.locator("#tab-classify .image img").first.wait_for(state="attached")
        assert page.locator("#labels textarea").input_value() == "dog, cat"
        classify(page)
        assert page.locator("#ranking .label").count() == 2
    page.context.close()
