"""ViTs without a head, as timm and transformers write them: sources of training, of the probe and of `vlm look`."""

from pathlib import Path

import pytest
import torch

import vlm
from tests.support.headless import KINDS
from vlm.cli import main
from vlm.training import VitRecipe, train
from vlm.training.measure.probe import probe


@pytest.mark.parametrize("kind", KINDS)
def test_a_headless_checkpoint_is_trained_probed_and_looked_into(kind: str, run_folder: Path, tmp_path: Path):
    theirs = KINDS[kind](tmp_path / "source")
    data, source = str(run_folder / "data.parquet"), str(tmp_path / "source")
    settings = {
        "model": {"source": source},
        "data": {"train": data, "train_splits": ["train"], "validation_split": "validation",
                 "columns": {"label": "concept"}, "workers": 0},
        "optim": {"warmup_steps": 1},
        "run": {"steps": 1, "batch_size": 8, "eval_every": 1, "save_every": 1},
    }  # fmt: skip
    assert train(VitRecipe.from_dict(settings), tmp_path / "run")
    assert len(vlm.load_classifier(tmp_path / "run").labels) == 20

    classifier = vlm.ViTClassifier.from_pretrained(source, ["a", "b"])
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens, ours = theirs(images), classifier.vision.features(images)
    torch.testing.assert_close(ours.class_token, tokens[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.patches.flatten(2).transpose(1, 2), tokens[:, -16:], atol=1e-5, rtol=1e-5)
    ranked = classifier.predict(str(Path(__file__).parents[3] / "docs/images/tutorial-cow.png"))
    assert ranked == [[("a", 0.5), ("b", 0.5)]]  # the new head starts at zero

    results = probe(source, data, label="concept", choose="validation", shots=[1], draws=1)
    assert [row.method for row in results] == ["few-shot, 1 per class", "k-NN", "linear probe"]
    assert all(row.n == 12 for row in results)
    cow = str(Path(__file__).parents[3] / "docs/images/tutorial-cow.png")
    assert main(["look", cow, "--model", source, "--out", str(tmp_path / "look")]) == 0
    assert (tmp_path / "look/look-attention.png").is_file()
