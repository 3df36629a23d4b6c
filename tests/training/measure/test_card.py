"""What a model card says, against the files of the run and the model itself."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.measure.test_report import SMALL
from vlm.config import VisionConfig
from vlm.embedder import Embedder
from vlm.errors import HubError
from vlm.models.vision import ViTClassifier
from vlm.training import VitRecipe, train
from vlm.training.measure.card import classifier_card, clip_card, minutes_of_steps, push_to_hub
from vlm.training.measure.measurement import Measurement, markdown_table

ROWS = [Measurement("val", "top-1", "en", 0.12345, 0.05, 12), Measurement("held", "R@5", "ja", 0.5, 0.00012, 345)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """20 steps, of 2 seconds at first and 4 later."""
    folder = tmp_path / "my-run"
    folder.mkdir()
    entries = [{"step": 10, "seconds": 2.0}, {"step": 20, "seconds": 4.0}]
    (folder / "timing.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def test_minutes_are_those_of_all_steps(run: Path):
    assert minutes_of_steps(run) == (10 * 2 + 10 * 4) / 60


def test_a_table_has_a_line_for_each_row():
    assert markdown_table(ROWS).splitlines() == [
        "| split | task | language | value | chance | n |",
        "|---|---|---|---|---|---|",
        "| val | top-1 | en | 0.123 | 0.0500 | 12 |",
        "| held | R@5 | ja | 0.500 | 0.0001 | 345 |",
    ]


def test_a_clips_card_says_what_it_is_how_it_was_made_and_how_it_is_opened(run: Path, tiny_embedder: Embedder):
    card = clip_card(run, "\n[run]\nsteps = 20\n\n", 12345, tiny_embedder, ROWS)
    millions = sum(p.numel() for p in tiny_embedder.model.parameters()) / 1e6
    assert card.startswith("---\nlibrary_name: vlm\npipeline_tag: zero-shot-image-classification\n---\n\n# my-run\n")
    assert f"A CLIP model, {millions:.1f} million parameters. It saw 12,345 images for about 1.0 minutes.\n" in card
    assert '```python\nimport vlm\n\nembedder = vlm.load("my-run")\n```' in card
    assert markdown_table(ROWS) in card
    assert card.endswith("`vlm train recipe.toml --out my-run` with\n\n```toml\n[run]\nsteps = 20\n```\n")


@pytest.mark.parametrize("count", [2, 50, 51])
def test_a_classifiers_card_names_its_classes_or_the_first_50(run: Path, count: int):
    labels = [f"class {number}" for number in range(count)]
    config = VisionConfig(image_size=16, patch_size=8, width=512, depth=1, num_heads=2, mlp_dim=16)
    classifier = ViTClassifier(config, count, labels=labels)
    card = classifier_card(run, "", 7, classifier, ROWS)
    millions = sum(p.numel() for p in classifier.parameters()) / 1e6
    assert f"A ViT that tells {count} classes apart, {millions:.1f} million parameters." in card and millions > 1
    named = ", ".join(labels[:50]) + (", ..." if count > 50 else "")
    assert f"Its classes: {named}. It learned from 7 images for about 1.0 minutes." in card
    assert 'classifier = vlm.load_classifier("my-run")' in card
    assert "pipeline_tag: image-classification" in card


@pytest.mark.parametrize(("error", "reason"), [("401 Unauthorized\nlong story", "401 Unauthorized"), ("", "KeyError")])
def test_a_push_that_fails_says_why_in_one_line(run: Path, monkeypatch: pytest.MonkeyPatch, error: str, reason: str):
    class Hub:
        def create_repo(self, *_: object, **__: object) -> None:
            raise KeyError if not error else RuntimeError(error)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    (run / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(HubError) as found:
        push_to_hub(run, "somebody/small")
    message = str(found.value)
    assert str(run) in message and reason in message and "somebody/small" in message and "\n" not in message


@pytest.mark.parametrize("damage", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_the_n_of_a_card_is_the_number_of_images_that_were_measured(tmp_path: Path, damage: bytes):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 30)):
        for number in range(count):
            path = tmp_path / "photos" / split / ("dark", "light")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            level = (60, 190)[number % 2]
            Image.fromarray(np.clip(rng.normal(level, 20, (16, 16, 3)), 0, 255).astype(np.uint8)).save(path)
    (tmp_path / "photos" / "validation" / "dark" / "6.png").write_bytes(damage)
    settings = {
        "model": {"vision": SMALL},
        "data": {"train": str(tmp_path / "photos"), "workers": 0},
        "run": {"steps": 1, "batch_size": 4},
    }  # fmt: skip
    assert train(VitRecipe.from_dict(settings), tmp_path / "run")
    rows = [line for line in (tmp_path / "run" / "README.md").read_text().splitlines() if "top-1" in line]
    assert rows and all(re.search(r"\|\s*29\s*\|", row) for row in rows), rows
