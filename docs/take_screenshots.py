"""The demo's screenshots, `docs/images/demo-TAB-{ja,en}.png`, from a demo that is running (runs/groups-wise:
docs/eight-groups.md).

python -m demo --classifier runs/groups-wise &
python docs/take_screenshots.py http://127.0.0.1:7860
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

OUT = Path(__file__).parent / "images"


def main(address: str) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for language, locale in (("ja", "ja-JP"), ("en", "en-US")):
            page = browser.new_page(locale=locale, viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
            page.goto(address)
            page.locator(".examples button").first.click()
            page.locator("#ranking .label").first.click()  # where it is
            page.locator("#where img").wait_for()
            _save(page, f"demo-classify-{language}")
            page.get_by_role("tab").nth(1).click()
            page.locator(".suggestions button").first.click()
            page.locator(".cards").wait_for()
            _save(page, f"demo-search-{language}")
            for tab, answer in (("classifier", "#classifier-answer .bars"), ("look", "#look-figures figure"),
                                ("models", "#compared .bars")):  # fmt: skip
                page.locator(f'[role="tab"][data-tab-id="{tab}"]').click()
                page.locator(".examples >> visible=true").locator("button").first.click()
                page.locator(answer).first.wait_for()
                _save(page, f"demo-{tab}-{language}")
        browser.close()


def _save(page: Page, name: str) -> None:
    """A few ten kilobytes: 256 colours are enough for a calm page, chosen by kmeans: no image loses its green."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)  # images drawn, progress gone
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    shot.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(OUT / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
