"""Which models the demo takes from whom; their comparison; remote models without a network."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import vlm
from tests.support.fake_hub import FakeHub, reach
from vlm.config import PreprocessConfig, VisionConfig
from vlm.demo.models import downloads
from vlm.demo.models.comparison import compare, threads
from vlm.demo.models.registry import ModelRegistry, find_models, without_header
from vlm.demo.page.texts import PageError
from vlm.demo.search.samples import SAMPLES
from vlm.demo.views import models
from vlm.images.preprocess import Preprocess
from vlm.models.vision import ViTClassifier

DOG = SAMPLES / "fxemoji" / "dog.webp"


@pytest.fixture
def place(tiny_embedder: vlm.Embedder, tmp_path: Path) -> Path:
    """runs/tiny, runs/deep/er/vit, and things that are no models."""
    runs = tmp_path / "runs"
    vlm.save(tiny_embedder, runs / "tiny", card="---\nlicense: mit\n---\n# A card\n")
    config = VisionConfig(image_size=32, patch_size=8, width=32, depth=1, num_heads=2, mlp_dim=64)
    vlm.save(ViTClassifier(config, 3, preprocess=Preprocess(PreprocessConfig(image_size=32))), runs / "deep/er/vit")
    for name, text in (("list", "[]"), ("broken", "{"), ("foreign", '{"architectures": []}'), ("kind", "{}")):
        (runs / name).mkdir()
        (runs / name / "config.json").write_text(text)
    (runs / "loop").symlink_to(runs)
    return runs


def key_of(action: Any, *values: Any) -> str:
    with pytest.raises(PageError) as no:
        action(*values)
    assert "\n" not in str(no.value)
    return no.value.key


def test_models_are_found_by_what_their_config_says(place: Path) -> None:
    found = [(entry.name, entry.kind) for entry in find_models(place)]
    assert found == [("runs/deep/er/vit", "vit_classifier"), ("runs/tiny", "clip")]
    assert find_models(place / "no-such-place") == []
    assert [entry.name for entry in find_models(place / "tiny")] == ["tiny"]


def test_what_was_named_at_the_start_is_listed_once_and_first(place: Path) -> None:
    registry = ModelRegistry([place], model=str(place / "tiny"), classifier=str(place / "deep/er/vit"))
    assert [entry.name for entry in registry.entries("clip")] == ["tiny", "mini"]
    assert [entry.name for entry in registry.entries("vit_classifier")] == ["vit"]


def test_a_page_for_others_opens_listed_models_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = ModelRegistry([place])
    assert registry.source("runs/tiny", "clip") == str(place / "tiny")
    monkeypatch.setattr(vlm, "load", lambda source: pytest.fail(f"{source} was opened"))
    for name in (str(place / "tiny"), "hf:org/name", "openclip:A/b", "../runs/tiny", "runs/../runs/tiny", "/etc"):
        assert key_of(registry.embedder, name) == "only_listed"
    assert key_of(registry.embedder, "") == "no_model_named"
    assert key_of(registry.embedder, None) == "not_text"
    assert key_of(registry.card, str(place / "tiny"), "clip") == "only_listed"


def test_one_s_own_page_opens_any_folder_and_remote_models_after_consent(place: Path) -> None:
    registry = ModelRegistry(any_source=True)
    vision = registry.classifier(str(place / "deep/er/vit")).vision
    assert vision.config.depth == 1
    assert registry.card(str(place / "tiny"), "clip") == "# A card"
    assert key_of(registry.embedder, "hf:org/name") == "consent_first"
    registry.mark_downloaded("hf:org/name")
    assert registry.source("hf:org/name", "clip") == "hf:org/name"
    for name in ("no-such-folder", str(place / "broken"), str(place / "deep/er/vit"), str(DOG)):
        assert key_of(registry.embedder, name) == "cannot_open_model"
    assert key_of(registry.card, str(place / "list"), "clip") == "no_card"


def test_a_model_is_loaded_once_until_it_is_saved_anew(place: Path, tiny_embedder: vlm.Embedder) -> None:
    registry = ModelRegistry([place])
    first = registry.embedder("runs/tiny")
    assert registry.embedder("runs/tiny") is first
    shutil.rmtree(place / "tiny")
    vlm.save(tiny_embedder, place / "tiny", card="another")
    assert registry.embedder("runs/tiny") is not first


def test_compared_models_rank_as_the_library_does(tiny_embedder: vlm.Embedder) -> None:
    names = ["犬", "a cat", "車"]
    one, other = compare([("a", tiny_embedder), ("b", tiny_embedder)], DOG, names)
    expected = vlm.classify(tiny_embedder, [DOG], names)[0]
    assert [label for label, _ in one.ranking] == [names[place] for place in expected.argsort(descending=True)]
    assert dict(one.ranking) == pytest.approx(dict(zip(names, expected.tolist(), strict=True)), abs=1e-6)
    assert other.ranking == one.ranking
    assert one.parameters == sum(weight.numel() for weight in tiny_embedder.model.state_dict().values())
    assert one.milliseconds > 0
    assert key_of(compare, [("a", tiny_embedder)], b"none", names) == "not an image"


def test_a_card_folds_what_it_folds_and_shows_other_html_as_text() -> None:
    card = "<details>\n<summary>All 595</summary>\n\n| a |\n|---|\n| 1 |\n\n</details>\n\n<script>x</script>\n"
    page = models.card(card)
    assert '<details aria-label="All 595"><summary>All 595</summary>' in page
    assert page.index("<details") < page.index("<table") < page.index("</details>")
    assert "<script>" not in page
    assert "<details" not in models.card("<details>\n<summary>never closed</summary>\n")


def test_a_card_is_shown_without_the_header_of_the_hub() -> None:
    assert without_header("---\na: 1\n---\n\n# Title\n\n---\n\ntext\n") == "# Title\n\n---\n\ntext"
    assert without_header("# Title\n") == "# Title"


# ---- models on a hub -------------------------------------------------------------------------------------------------


def test_a_download_is_watched_until_it_is_there(fake_hub: FakeHub) -> None:
    fake_hub.add("org/name", {"config.json": b'{"model_type": "clip"}', "model.safetensors": bytes(4000)})
    size = downloads.size("hf:org/name")
    steps = list(downloads.download(" hf:org/name ", pause=0.001))
    assert size == 4000 and all(step.total == 4000 and step.done <= 4000 for step in steps)
    assert downloads.size("hf:org/name") == 0
    assert fake_hub.downloads().count("model.safetensors") == 1


def test_no_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reach("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert key_of(downloads.size, "hf:org/name") == "cannot_fetch"
    assert key_of(lambda: list(downloads.download("hf:org/name", pause=0.01))) == "cannot_fetch"
    for name in ("mini", "/etc/passwd", "https://a.example", ""):
        assert key_of(downloads.size, name) == "not_remote"
    assert key_of(downloads.size, "hf:no-slash") == "cannot_fetch"


def test_the_thread_count_said_is_torch_s() -> None:
    assert threads() == torch.get_num_threads()
