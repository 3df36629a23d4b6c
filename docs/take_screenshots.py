"""Screenshots of all tabs of a running demo: docs/images/demo-TAB-LANGUAGE[-390].png, 1280 and 390 pixels wide.

vlm demo --models FOLDER &      # holds a classifier, such as vlm.zero_shot.classifier_from_names of mini
python docs/take_screenshots.py http://127.0.0.1:7860
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

OUT = Path(__file__).parent / "images"
LOCALES = {"ja": "ja-JP", "en": "en-US"}
WIDTHS = {1280: "", 390: "-390"}  # pixels -> end of the file's name
ANSWERS = {
    "classify": "#ranking .bars",
    "search": "#found .cards",
    "classifier": "#classifier-answer .bars",
    "look": "#look-figures figure",
    "models": "#offered li",
}


def main(address: str) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for language, locale in LOCALES.items():
            for width, suffix in WIDTHS.items():
                page = browser.new_context(
                    locale=locale, viewport={"width": width, "height": 800}, reduced_motion="reduce"
                ).new_page()
                page.goto(address)
                page.locator("#labels textarea").wait_for()
                shown = page.get_by_role("tab").evaluate_all("(all) => all.map((one) => one.dataset.tabId)")
                for tab in shown:
                    _fill(page, tab)
                    _save(page, f"demo-{tab}-{language}{suffix}")
                page.context.close()
        browser.close()


def _fill(page: Page, tab: str) -> None:
    """Open a tab and ask for an answer."""
    page.locator(f'[role="tab"][data-tab-id="{tab}"]').click()
    panel = page.locator(f"#tab-{tab}")
    panel.wait_for()
    page.wait_for_timeout(300)
    first = panel.locator(".suggestions button" if tab == "search" else ".examples button").first
    if first.is_visible():
        first.click()
    page.locator(ANSWERS[tab]).first.wait_for()
    if tab == "classify":
        page.locator("#ranking .label").first.click()
        page.locator("#where img").wait_for()


def _save(page: Page, name: str) -> None:
    """A few ten kilobytes: 256 colours, chosen by k-means."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)  # until images are drawn and signs of waiting are gone
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    shot.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(OUT / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
