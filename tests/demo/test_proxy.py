"""The demo behind an HTTPS proxy, below a path, as docs/demo-proxy.md says."""

import shutil
from pathlib import Path

import httpx
import pytest

import vlm
from tests.support.demo_pages import CHROMIUM, browser_tests
from tests.support.demo_proxy import PREFIX, proxy
from tests.support.demo_server import serving
from vlm.demo.page.texts import TEXTS

pytestmark = [
    *browser_tests,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]


def test_the_page_works_below_a_path_of_an_https_proxy(
    tiny_embedder: vlm.Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    vlm.save(tiny_embedder, tmp_path / "tiny")
    monkeypatch.setenv("GRADIO_ROOT_PATH", PREFIX)
    options = ("--proxy", "127.0.0.1", "--allow-host", "localhost")
    with serving(str(tmp_path / "tiny"), tmp_path, *options) as server, proxy(server.address, tmp_path) as address:
        with playwright.sync_playwright() as driver:
            chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = chromium.new_context(ignore_https_errors=True, locale="en-US").new_page()
            strays: list[str] = []
            page.on("request", lambda request: strays.append(request.url))
            page.goto(address)
            page.locator("#tab-classify .examples button").first.click()
            page.locator("#ranking .bars").wait_for()
            page.locator("#tab-classify .image img").wait_for(state="attached")
            width = page.locator("#tab-classify .image img").evaluate("(image) => image.naturalWidth")
            page.locator('[data-language="ja"]').click()
            page.locator("#classify-button", has_text=TEXTS["classify_button"]["ja"]).wait_for()
            chromium.close()
        assert width == 96
        assert [url for url in strays if not url.startswith((address, "data:", "blob:"))] == []
        refused = httpx.get(address, headers={"Host": "evil.example"}, verify=False)
        assert refused.status_code == 403
        cross = httpx.post(f"{address}gradio_api/upload", headers={"Origin": "https://evil.example"}, verify=False)
        assert cross.status_code == 403
    log = server.log.read_text()
    assert "from 127.0.0.1: 403" in log
    assert "Traceback" not in log
