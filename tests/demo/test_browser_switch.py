"""Switching the whole page to a model of the (fake) hub and back, in headless Chromium."""

from pathlib import Path

import pytest

import vlm
from tests.support.demo_pages import APPLE, DOG, LOCALES, Opener, browser_tests, go, needs_mini, numbers, quiet, upload
from tests.support.demo_server import serving
from tests.support.fake_hub import FakeHub, fake_hub  # noqa: F401
from vlm.demo.page.texts import TEXTS
from vlm.demo.search.samples import samples
from vlm.interop.names.catalog import catalog

pytestmark = [*browser_tests, needs_mini]
NAME = "japanese"  # a short name whose source is hf:ORG/NAME


@pytest.mark.parametrize("language", ["ja", "en"])
def test_the_page_switches_to_a_model_of_the_hub_and_back(
    tiny_embedder: vlm.Embedder,
    fake_hub: FakeHub,  # noqa: F811
    tmp_path: Path,
    opened: Opener,
    language: str,
) -> None:
    source = catalog()[NAME].source
    vlm.save(tiny_embedder, tmp_path / "tiny")
    fake_hub.add_folder(source.removeprefix("hf:"), tmp_path / "tiny")
    labels = ["犬", "猫", "鳥"]
    with serving("mini", tmp_path, "--models", str(tmp_path / "none")) as server:
        page = opened(server, LOCALES[language])
        panel = go(page, "classify")
        upload(panel, DOG)
        page.locator("#labels textarea").fill("\n".join(labels))
        page.locator("#classify-button").click()
        page.locator("#ranking .bars").wait_for()
        page.locator('#model-note [data-open-tab="models"]').click()
        page.locator(f'#offered [data-model="{NAME}"]').click()
        assert not fake_hub.downloads() or "model.safetensors" not in fake_hub.downloads()
        agree = page.locator(f'#switch-state [data-agree="{NAME}"]')
        agree.wait_for()
        assert "model.safetensors" not in fake_hub.downloads()  # only after consent
        assert catalog()[NAME].licence in page.locator("#switch-state").inner_text()
        page.locator("#switch-state [data-cancel]").click()
        agree.wait_for(state="detached")
        page.locator(f'#offered [data-model="{NAME}"]').click()
        agree.click()
        done = TEXTS["switch_done"][language]
        page.locator("#switch-state", has_text=done.format(name=NAME)).wait_for()
        assert "model.safetensors" in fake_hub.downloads()
        assert page.locator("#model-note strong").inner_text() == NAME

        go(page, "classify")
        assert page.locator("#ranking.stale").count() == 1  # the answer of the model before
        page.locator("#classify-button").click()
        page.locator("#ranking:not(.stale) .bars").wait_for()
        expected = sorted(vlm.classify(tiny_embedder, [DOG], labels)[0].tolist(), reverse=True)
        assert numbers(page.locator("#ranking .percent")) == pytest.approx(expected, abs=0.0005 + 1e-9)
        go(page, "search")
        page.locator("#query input, #query textarea").fill("りんご")
        page.keyboard.press("Enter")
        page.locator("#found .cards").wait_for()
        gallery = tiny_embedder.embed_images([one.path for one in samples()])
        best = (gallery @ tiny_embedder.embed_texts(["りんご"])[0]).max().item()
        assert f"{best:.2f}" in page.locator("#found .score").first.inner_text()

        other = opened(server, LOCALES[language])  # a page opened later names the model of now
        other.locator("#model-note strong", has_text=NAME).wait_for()
        go(page, "models")
        page.locator('#offered [data-model="mini"]').click()
        page.locator("#switch-state", has_text=done.format(name="mini")).wait_for()
        go(page, "classify")
        upload(panel, APPLE)
        page.locator("#classify-button").click()
        page.locator("#ranking:not(.stale) .bars").wait_for()
        expected = sorted(vlm.classify(vlm.load("mini"), [APPLE], labels)[0].tolist(), reverse=True)
        assert numbers(page.locator("#ranking .percent")) == pytest.approx(expected, abs=0.0005 + 1e-9)
    quiet(server)


def test_a_page_for_other_machines_offers_what_is_here_only(tmp_path: Path, opened: Opener) -> None:
    with serving("mini", tmp_path, "--models", str(tmp_path / "none"), "--host", "0.0.0.0") as server:
        page = opened(server, "en-US")
        go(page, "models")
        rows = page.locator("#offered li strong").all_inner_texts()
        assert rows == ["mini", TEXTS["in_use"]["en"]]
