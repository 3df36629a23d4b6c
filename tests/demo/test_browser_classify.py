"""The tab Classify in headless Chromium, in both languages, on `mini`; its numbers against the library's own."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vlm
from tests.support.demo_pages import (
    APPLE,
    DOG,
    LOCALES,
    OCTOPUS,
    Opener,
    browser_tests,
    drop,
    drop_image,
    go,
    needs_mini,
    numbers,
    open_part,
    upload,
)
from tests.support.demo_server import Server
from vlm.demo.actions import PageActions
from vlm.demo.page.texts import TEXTS
from vlm.demo.search.samples import EXAMPLES, sample
from vlm.demo.tabs.classify import TEMPLATES
from vlm.demo.views import classification

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [*browser_tests, needs_mini]

WORDS = {"ja": ["犬", "猫", "鳥"], "en": ["dog", "cat", "bird"]}
HALF = 0.0005 + 1e-9  # the page shows a tenth of a percent


@pytest.fixture(scope="module")
def actions() -> PageActions:
    return PageActions("mini")


def ask(page: "Page", labels: list[str], between: str = "\n") -> None:
    page.locator("#labels textarea").fill(between.join(labels))
    answers(page, page.locator("#classify-button"))


def answers(page: "Page", button: "Locator") -> None:
    """Presses and waits for a new ranking, which must differ from the old one: Gradio draws no page twice."""
    page.evaluate("document.querySelector('#ranking .ranking')?.remove()")
    button.click()
    page.locator("#ranking .bars").wait_for()


def shown(page: "Page") -> dict[str, float]:
    labels = page.locator("#ranking .label").all_inner_texts()
    return dict(zip(labels, numbers(page.locator("#ranking .percent")), strict=True))


@pytest.mark.parametrize("language", ["ja", "en"])
def test_typed_labels_and_a_dropped_image_are_ranked_as_the_library_ranks_them(
    mini_demo: Server, opened: Opener, language: str
) -> None:
    page = opened(mini_demo, LOCALES[language])
    embedder, labels = vlm.load("mini"), WORDS[language]
    drop_image(go(page, "classify"), DOG)
    ask(page, labels, "、" if language == "ja" else ", ")
    expected = dict(zip(labels, vlm.classify(embedder, [DOG], labels)[0].tolist(), strict=True))
    assert shown(page) == pytest.approx(expected, abs=HALF)
    assert list(shown(page)) == sorted(labels, key=lambda label: -expected[label])
    assert TEXTS["asked_as"][language][:12] in page.locator("#ranking").inner_text()

    page.locator("#tab-classify").get_by_role("button", name=TEXTS["part_remove"][language]).click()
    upload(go(page, "classify"), OCTOPUS)  # by the file dialogue
    tako = "タコ" if language == "ja" else "octopus"
    for given, weak in ((labels, True), ([tako, *labels], False)):  # "none of these" until its own name is there
        ask(page, given)
        assert embedder.no_good_match(max(alone(embedder, OCTOPUS, given))) is weak
        assert (TEXTS["none_fits"][language] in page.locator("#ranking").inner_text()) is weak


def alone(embedder: vlm.Embedder, image: Path, labels: list[str]) -> list[float]:
    """The probability of each label on its own."""
    vectors = vlm.ZeroShotClassifier(embedder, labels).class_embeds
    matches = embedder.match_probability(vectors @ embedder.embed_images([image])[0])
    assert matches is not None
    return matches.tolist()


@pytest.mark.parametrize("language", ["ja", "en"])
def test_softmax_adds_up_to_one_and_sigmoid_judges_each_alone(mini_demo: Server, opened: Opener, language: str) -> None:
    page = opened(mini_demo, LOCALES[language])
    page.locator("#tab-classify .examples button").first.click()
    page.locator("#ranking .bars").wait_for()
    name, labels = next((name, labels[language]) for name, labels in EXAMPLES["classify"].items())
    assert page.locator("#labels textarea").input_value().splitlines() == labels
    assert sum(shown(page).values()) == pytest.approx(1, abs=len(labels) * HALF)
    page.locator(".scales label", has_text=TEXTS["sigmoid"][language]).click()
    expected = dict(zip(labels, alone(vlm.load("mini"), sample(name).path, labels), strict=True))
    assert shown(page) == pytest.approx(expected, abs=HALF)
    assert page.locator("#ranking .sigmoid.fine").inner_text() == TEXTS["match_note"][language]
    page.locator(".scales label", has_text=TEXTS["softmax"][language]).click()
    assert sum(shown(page).values()) == pytest.approx(1, abs=len(labels) * HALF)


@pytest.mark.parametrize("language", ["ja", "en"])
def test_templates_are_chosen_edited_and_obeyed(mini_demo: Server, opened: Opener, language: str) -> None:
    page = opened(mini_demo, LOCALES[language])
    embedder, labels = vlm.load("mini"), WORDS[language]
    panel = go(page, "classify")
    upload(panel, DOG)
    open_part(panel, "templates", language)
    box = page.locator("#templates textarea")
    for key in ("plain", "ja", "en"):
        panel.locator(f'[data-template="{key}"]').click()
        page.wait_for_function(
            "(wanted) => document.querySelector('#templates textarea').value === wanted", arg=TEMPLATES[key]
        )
        ask(page, labels)
        probabilities = vlm.classify(embedder, [DOG], labels, TEMPLATES[key].split("\n"))[0].tolist()
        assert shown(page) == pytest.approx(dict(zip(labels, probabilities, strict=True)), abs=HALF), key
    box.fill("{}の絵文字\nan emoji of {}")
    ask(page, labels)
    probabilities = vlm.classify(embedder, [DOG], labels, ["{}の絵文字", "an emoji of {}"])[0].tolist()
    assert shown(page) == pytest.approx(dict(zip(labels, probabilities, strict=True)), abs=HALF)
    box.fill("no place")
    page.locator("#classify-button").click()
    wanted = TEXTS["no_place_for_label"][language].format(template="no place")
    page.locator("#ranking .notice", has_text=wanted).wait_for()


@pytest.mark.parametrize("language", ["ja", "en"])
def test_a_label_that_is_clicked_shows_its_own_heat_map(
    mini_demo: Server, opened: Opener, actions: PageActions, language: str
) -> None:
    page = opened(mini_demo, LOCALES[language])
    upload(go(page, "classify"), DOG)
    ask(page, WORDS[language])
    for label in WORDS[language][:2]:
        page.locator(f'#ranking [data-label="{label}"]').click()
        page.locator("#where-note", has_text=TEXTS["where_note"][language].format(label=label)).wait_for()
        image = page.locator("#where img").get_attribute("src")
        assert image
        assert f'src="{image}"' in classification.heat_map(label, actions.locate(DOG, label).figure)
    ask(page, WORDS[language][:2])  # a new ranking: the map of the old one is gone
    page.locator("#where img").wait_for(state="detached")


@pytest.mark.parametrize("language", ["ja", "en"])
def test_several_dropped_images_are_a_table_and_a_csv_file(
    mini_demo: Server, opened: Opener, tmp_path: Path, language: str
) -> None:
    page = opened(mini_demo, LOCALES[language])
    panel, labels = go(page, "classify"), ["赤リンゴ", "犬", "猫"] if language == "ja" else ["apple", "dog", "cat"]
    broken = tmp_path / "broken.webp"
    broken.write_text("not an image")
    page.locator("#labels textarea").fill("\n".join(labels))
    open_part(panel, "several", language)
    page.locator("#classify-all-button").click()
    page.locator("#table .notice", has_text=TEXTS["no_images"][language]).wait_for()
    drop(page.locator("#images button.upload-container"), APPLE, OCTOPUS, broken)
    page.locator("#images tbody tr, #images .file").nth(2).wait_for()
    page.locator("#classify-all-button").click()
    page.locator("#table table").wait_for()

    best = vlm.classify(vlm.load("mini"), [APPLE, OCTOPUS], labels)
    rows = page.locator("#table tbody tr").all_inner_texts()
    assert [row.split("\t")[0].strip() for row in rows] == ["redapple.webp", "octopus.webp", "broken.webp"]
    assert rows[0].split("\t")[1:] == [labels[int(best[0].argmax())], f"{best[0].max():.1%}"]
    assert TEXTS["none_fits_short"][language] in rows[1]
    assert "%" not in rows[1]  # a probability among labels of which none fits would mislead
    assert TEXTS["not an image"][language] in rows[2]

    with page.expect_download() as coming:
        page.get_by_role("link", name=TEXTS["download_csv"][language]).click()
    assert coming.value.suggested_filename == TEXTS["csv_name"][language]
    coming.value.save_as(tmp_path / "table.csv")
    read: list[dict[str, Any]] = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text("utf-8-sig"))))
    assert [row[TEXTS["csv_image"][language]] for row in read] == ["redapple.webp", "octopus.webp", "broken.webp"]
    for row, probabilities in zip(read, best.tolist(), strict=False):
        assert [float(row[label]) for label in labels] == pytest.approx(probabilities, abs=1e-5)
    assert read[2][TEXTS["csv_error"][language]] == TEXTS["not an image"][language]
