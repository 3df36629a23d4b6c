"""Every layout of the table in docs/interop.md, through the hub, against the library that wrote it."""

from pathlib import Path

import pytest

import vlm
from tests.support.fake_hub import FakeHub
from tests.support.hub_layouts import difference
from tests.support.hub_rows import REFUSED, ROWS
from vlm.errors import CheckpointError

EXAMPLES = [
    "the same repository, `hf:ORG/NAME/FILE`",
    "`eos_token_id` 2, padded vocabulary",
    "sentence-transformers, `0_CLIPModel/`",
    "Hugging Face MetaCLIP 2",
    "timm `model_best.pth.tar` with its average of weights",
    "Hugging Face DeiT; height, width and a centre crop",
]


def check(hub: FakeHub, folder: Path, title: str) -> None:
    layout = ROWS[title]
    found = difference(layout, hub, folder)
    assert found.texts is None or found.texts <= layout.largest, found
    assert max(found.images, found.large) <= layout.largest or layout.known, found


@pytest.mark.parametrize("title", EXAMPLES)
def test_a_layout_gives_what_its_own_library_makes_of_it(fake_hub: FakeHub, tmp_path: Path, title: str) -> None:
    check(fake_hub, tmp_path / "it", title)


@pytest.mark.long
@pytest.mark.parametrize("title", ROWS)
def test_every_layout_gives_what_its_own_library_makes_of_it(fake_hub: FakeHub, tmp_path: Path, title: str) -> None:
    check(fake_hub, tmp_path / "it", title)


@pytest.mark.parametrize("title", REFUSED)
def test_what_is_no_whole_model_is_one_line_that_says_so(fake_hub: FakeHub, tmp_path: Path, title: str) -> None:
    write, said = REFUSED[title]
    write(fake_hub, tmp_path)
    with pytest.raises(CheckpointError) as refused:
        vlm.load("hf:org/model")
    line = str(refused.value)
    assert "\n" not in line and not [word for word in said if word not in line], line
    if "family" in title:
        assert fake_hub.downloads() == ["config.json"]
