"""The built site in headless Chromium: search in both languages, narrow screens, equations, the language menu."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")

pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")]

QUERIES = {
    "位置埋め込み": "guide/ja/05-input-layer/",
    "検証データ": "data.ja/",
    "因果マスク": "guide/ja/01-transformer/",
    "コサイン類似度": "features.ja/",
    "帰納バイアス": "guide/ja/03-transformers-in-vision/",
    "対照学習": "guide/ja/02-vision-and-language/",
    "マルチヘッド": "guide/ja/07-mhsa/",
    "残差接続": "guide/ja/06-encoder/",
    "ゼロショット分類": "guide/ja/09-applications/",
    "トークナイザー": "glossary.ja/",
    "position embeddings": "guide/en/05-input-layer/",
    "causal mask": "guide/en/01-transformer/",
    "webdataset": "data/",
    "ONNX": "backends/",
    "patch size": "guide/en/03-transformers-in-vision/",
    "inductive bias": "guide/en/03-transformers-in-vision/",
    "resume": "data/",
    "prune": "retrieval/",
    "residual stream": "guide/en/06-encoder/",
    "confusion": "guide/en/08-mlp-head/",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """No line for each request."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1280, "height": 900})
        browser.close()


@pytest.mark.parametrize(("query", "wanted"), QUERIES.items())
def test_a_search_lists_the_page_of_its_subject(page: Page, address: str, query: str, wanted: str) -> None:
    page.goto(f"{address}?q={query}")
    page.wait_for_selector(".md-search-result__link", timeout=20_000)
    links = [link.get_attribute("href") or "" for link in page.query_selector_all(".md-search-result__link")]
    pages = dict.fromkeys(link.removeprefix(address).split("?")[0].split("#")[0] for link in links)
    assert wanted in list(pages)[:10]


def test_no_page_scrolls_sideways_at_390_pixels(page: Page, site: Path, address: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    widths: dict[str, int] = {}
    for file in site.rglob("index.html"):
        path = file.relative_to(site).as_posix().removesuffix("index.html")
        if not path.startswith("source/"):
            page.goto(address + path)
            widths[path] = page.evaluate("document.documentElement.scrollWidth")
    page.set_viewport_size({"width": 1280, "height": 900})
    assert len(widths) > 60
    assert not {path: width for path, width in widths.items() if width > 390}


AXE_PAGES = (
    "", "index.ja/", "guide/en/07-mhsa/", "guide/ja/05-input-layer/", "photos/", "photos.ja/", "demo-tour.ja/",
    "api-examples/", "interop.ja/", "reference/models/", "source/vlm/assets/mini/README/",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", AXE_PAGES)
def test_axe_finds_nothing_serious(page: Page, address: str, path: str, scheme: Literal["light", "dark"]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    page.goto(address + path)
    page.wait_for_function("document.readyState === 'complete'")
    found = [rule for rule in axe.run(page).response["violations"] if rule["impact"] in ("serious", "critical")]
    page.emulate_media(color_scheme="light")
    assert not [(rule["id"], [node["html"][:150] for node in rule["nodes"][:3]]) for rule in found]


@pytest.mark.parametrize("chapter", sorted(path.stem for path in (ROOT / "docs/guide/en").glob("[01]*.md")))
@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_equation_is_drawn(page: Page, address: str, chapter: str, language: str) -> None:
    page.goto(f"{address}guide/{language}/{chapter}/")
    page.wait_for_function("document.readyState === 'complete'")
    equations = page.query_selector_all(".arithmatex")
    assert equations
    assert all(equation.query_selector(".katex-html") for equation in equations)
    assert not page.query_selector_all(".katex-error")


@pytest.mark.parametrize(
    ("english", "japanese"),
    [("", "index.ja/"), ("guide/en/05-input-layer/", "guide/ja/05-input-layer/"), ("retrieval/", "retrieval.ja/")],
)
def test_the_language_menu_leads_to_the_same_page(page: Page, address: str, english: str, japanese: str) -> None:
    for start, language, wanted in ((english, "ja", japanese), (japanese, "en", english)):
        page.goto(address + start)
        assert page.get_attribute("html", "lang") == ("en" if language == "ja" else "ja")
        link = page.locator(f"a.md-select__link[hreflang={language}]")
        page.goto(link.evaluate("link => link.href"))
        assert page.url == address + wanted
