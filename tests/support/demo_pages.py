"""The demo in headless Chromium: fixtures that open it (conftest.py names them), and what a hand does on it."""

import base64
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import pytest
import torch

import vlm
from tests.support.demo_server import Server, serving
from vlm.bundled import BUNDLED
from vlm.config import PreprocessConfig, VisionConfig
from vlm.demo.page.texts import TEXTS
from vlm.demo.search.samples import SAMPLES
from vlm.images.preprocess import Preprocess
from vlm.models.vision import ViTClassifier

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = shutil.which("chromium")
APPLE = SAMPLES / "fxemoji" / "redapple.webp"
DOG = SAMPLES / "fxemoji" / "dog.webp"
OCTOPUS = SAMPLES / "fxemoji" / "octopus.webp"
LOCALES = {"ja": "ja-JP", "en": "en-US"}
TABS = ("classify", "search", "classifier", "look", "models")
JAPANESE = re.compile("[\u3041-\u30ff\u4e00-\u9fff]+")

browser_tests = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: no browser tests"),
]
needs_mini = pytest.mark.skipif(
    not (BUNDLED["mini"] / "manifest.json").is_file(), reason="vlm/assets/mini is not there yet: train it first"
)

Opener = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser tests")
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
        context.set_default_timeout(240_000)  # the first search embeds the gallery
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


@pytest.fixture(scope="module")
def mini_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo on the bundled model, for all tests of a file."""
    with serving("mini", tmp_path_factory.mktemp("mini")) as running:
        yield running
    quiet(running)


@pytest.fixture(scope="module")
def full_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo on the bundled model with all five tabs: a classifier, and a second model to compare with."""
    folder = tmp_path_factory.mktemp("mini")
    save_classifier(folder / "runs" / "groups", ["an animal or plant", "a place, vehicle or weather", "food", "a sign"])
    vlm.save(vlm.load("mini"), folder / "runs" / "second")
    with serving("mini", folder, "--models", str(folder / "runs")) as running:
        yield running
    quiet(running)


def quiet(server: Server) -> None:
    """Nothing went wrong on the server, and it asked nobody for anything."""
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "DIALLED OUT" not in log


def save_classifier(folder: Path, labels: list[str]) -> ViTClassifier:
    """A classifier that knows nothing, in a folder: 32 px, D 32."""
    config = VisionConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_dim=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = ViTClassifier(config, len(labels), labels=labels, preprocess=Preprocess(PreprocessConfig(image_size=32)))
        torch.nn.init.normal_(made.head.weight)
    vlm.save(made, folder)
    return made.eval()


# ---- parts of the page ---------------------------------------------------------------------------------------------


def go(page: "Page", tab: str) -> "Locator":
    """Opens a tab -> what stands in it."""
    page.locator(f'[role="tab"][data-tab-id="{tab}"]').click()
    panel = page.locator(f"#tab-{tab}")
    panel.wait_for()
    page.wait_for_timeout(250)  # a tab that is new sets its boxes once more: what is typed at once, by no hand, is lost
    page.evaluate("new Promise((idle) => requestIdleCallback(() => requestIdleCallback(idle)))")
    return panel


def open_part(panel: "Locator", key: str, language: str) -> None:
    """A part that is folded up at first."""
    panel.locator("button.label-wrap", has_text=TEXTS[key][language]).click()


def answered(page: "Page", tab: str, language: str) -> "Locator":
    """The tab with everything unfolded and an answer on it, reached by mouse."""
    panel = go(page, tab)
    first = panel.locator(".suggestions button" if tab == "search" else ".examples button").first
    match tab:
        case "classify":
            first.click()
            page.locator("#ranking .label").first.click()
            page.locator("#where img").wait_for()
            open_part(panel, "templates", language)
            open_part(panel, "several", language)
            page.locator("#images input[type=file]").set_input_files(DOG)
            page.locator("#images a").first.wait_for()
            page.locator("#classify-all-button").click()
            page.locator("#table table").wait_for()
        case "search":
            open_part(panel, "filters", language)
            first.click()
            page.locator("#found .cards").wait_for()
        case "classifier":
            first.click()
            page.locator("#classifier-answer figure").wait_for()
        case "look":
            page.locator("#look-text input, #look-text textarea").fill("耳" if language == "ja" else "ear")
            first.click()
            page.locator("#look-figures figure").nth(5).wait_for()
        case _:
            first.click()
            page.locator("#compared .bars").nth(1).wait_for()
            page.locator("#card-button").click()
            page.locator("#model-card article").wait_for()
    page.wait_for_timeout(300)  # Gradio's signs of waiting fade
    return panel


def upload(panel: "Locator", path: Path) -> None:
    """By the file dialogue."""
    panel.locator('.image input[type="file"]').first.set_input_files(path)
    panel.locator(".image img").first.wait_for(state="attached")


def drop(box: "Locator", *paths: Path) -> None:
    """Drag-and-drop of files from the desktop onto a box."""
    files = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths]
    box.evaluate(
        """(box, files) => {
          const dataTransfer = new DataTransfer();
          for (const [name, data] of files) {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            dataTransfer.items.add(new File([bytes], name, {type: "image/webp"}));
          }
          for (const type of ["dragenter", "dragover", "drop"])
            box.dispatchEvent(new DragEvent(type, {dataTransfer, bubbles: true, cancelable: true}));
        }""",
        files,
    )


def drop_image(panel: "Locator", path: Path) -> None:
    drop(panel.locator(".image button.upload-container"), path)
    panel.locator(".image img").first.wait_for(state="attached")


def tab_to(page: "Page", wanted: "Locator", key: str = "Tab") -> None:
    """The Tab key until the wanted part has the focus: whoever has no mouse gets there."""
    for _ in range(120):
        if wanted.evaluate("(part) => part === document.activeElement"):
            return
        page.keyboard.press(key)
    raise AssertionError(f"the Tab key never reaches {wanted}")


def numbers(found: "Locator") -> list[float]:
    """The percentages that are visible, 82.4% as 0.824."""
    return [float(text.rstrip("%")) / 100 for text in found.locator("visible=true").all_inner_texts()]
