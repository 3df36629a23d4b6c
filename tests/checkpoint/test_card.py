from pathlib import Path

from torch import nn

from vlm.checkpoint.card import short_card
from vlm.checkpoint.save import save
from vlm.config import VisionConfig
from vlm.embedder import Embedder
from vlm.models.vision import ViTClassifier


def test_a_model_saved_without_a_card_gets_one_that_says_what_it_is_and_how_to_open_it(
    tiny_embedder: Embedder, tmp_path: Path
):
    vision = VisionConfig(image_size=32, patch_size=8, width=32, depth=1, num_heads=2, mlp_dim=64)
    save(tiny_embedder, tmp_path / "both")
    save(ViTClassifier(vision, 3, labels=["犬", "cat", "bird"]), tmp_path / "eyes")
    clip, vit = ((tmp_path / name / "README.md").read_text(encoding="utf-8") for name in ("both", "eyes"))
    assert "\npipeline_tag: zero-shot-image-classification\n" in clip
    assert "\npipeline_tag: image-classification\n" in vit
    assert 'vlm.load("both")' in clip
    assert 'vlm.load_classifier("eyes")' in vit
    assert "A ViT classifier of 3 classes, " in vit


def test_the_size_in_the_card_is_the_number_of_weights():
    weights = nn.Linear(2500, 1000, bias=False)
    assert "A CLIP model, 2.5 million parameters." in short_card("name", {"kind": "clip"}, weights)
