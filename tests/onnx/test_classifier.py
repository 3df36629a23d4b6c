"""Classifiers by ONNX Runtime: the same answers, and a file that explains itself."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import vlm
from vlm.checkpoint.load import load_classifier
from vlm.cli import main
from vlm.config import PreprocessConfig, Problem, VisionConfig
from vlm.errors import InputError
from vlm.models.vision import ViTClassifier

CONFIG = VisionConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_dim=64)
LABELS = ("dog", "cat", "鳥")


def classifier(problem: Problem = "single_label") -> ViTClassifier:
    torch.manual_seed(0)
    config = PreprocessConfig(image_size=32, crop_pct=0.8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.25))
    thresholds = [0.2, 0.5, 0.9] if problem == "multi_label" else None
    model = ViTClassifier(
        CONFIG, 3, labels=LABELS, preprocess=vlm.Preprocess(config), problem=problem, thresholds=thresholds
    )
    torch.nn.init.normal_(model.head.weight)
    return model.eval()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_file_alone_classifies_any_batch_as_the_model_does(tmp_path: Path):
    """As a program without this library: only onnxruntime, Pillow, numpy and the file's metadata."""
    model = classifier()
    vlm.export(model, tmp_path / "out", "onnx")
    path = tmp_path / "out/image.onnx"
    told = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props if entry.key != "version"}
    assert told["labels"] == list(LABELS) and told["problem"] == "single_label"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    height, width = told["image_size"]
    assert told["resize"] == "crop" and told["resize_size"] == [40, 40]
    resized = image.resize((int(40 * 70 / 50), 40), Image.Resampling[told["interpolation"].upper()])
    left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
    levels = np.asarray(resized.crop((left, top, left + width, top + height)), dtype=np.float32) / 255
    pixels = ((levels - np.array(told["mean"])) / np.array(told["std"])).astype(np.float32).transpose(2, 0, 1)
    session = onnxruntime.InferenceSession(path)
    for count in (1, 5):
        (logits,) = session.run(None, {"pixels": np.stack([pixels] * count)})
        answers = [told["labels"][i] for i in np.asarray(logits).argmax(1)]
        assert answers == [model.predict(image, top=1)[0][0][0]] * count


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_backend_onnx_predicts_the_same(cache: Path, problem: Problem):
    model = classifier(problem)
    vlm.save(model, cache / "model")
    run = load_classifier(cache / "model", backend="onnx")
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(run(images), model(images), atol=1e-5, rtol=1e-4)
    assert (run.labels, run.problem, run.thresholds) == (model.labels, problem, model.thresholds)
    with pytest.raises(InputError, match="train"):
        run.train()(images)


def test_backend_int8_is_close_and_has_its_own_file(cache: Path):
    vlm.save(classifier(), cache / "model")
    run = load_classifier(cache / "model", backend="int8")
    images = torch.randn(20, 3, 32, 32)
    with torch.inference_mode():
        whole, rounded = classifier()(images), run(images)
    assert 0 < float((whole - rounded).abs().max()) < 0.2 * float(whole.std())
    assert run.state_dict().keys() == classifier().state_dict().keys()


@pytest.mark.parametrize("backend", ["onnx", "int8"])
def test_the_command_runs_a_classifier_by_a_back_end(cache: Path, backend: str, capsys: pytest.CaptureFixture[str]):
    vlm.save(classifier(), cache / "model")
    Image.new("RGB", (40, 40), "red").save(cache / "a.png")
    words = ["classify", str(cache / "a.png"), "--classifier", str(cache / "model"), "--json"]
    assert main([*words, "--backend", backend]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    expected = json.loads(capsys.readouterr().out)
    assert len(found) == 3 and [row["label"] for row in found] == [row["label"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=0.05)
