"""ViTClassifier: what it predicts, and what it is built from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlm.checkpoint.load import load_classifier
from vlm.checkpoint.save import save
from vlm.config import PreprocessConfig, Problem, VisionConfig
from vlm.errors import CheckpointError, ConfigError
from vlm.images.preprocess import Preprocess
from vlm.models.vision import VisionTransformer, ViTClassifier, resize_pos_embed

CONFIG = VisionConfig(image_size=16, patch_size=8, width=8, depth=1, num_heads=2, mlp_dim=16)
LABELS = ("dog", "cat", "bird", "sun", "car", "tree", "犬")


def classifier(problem: Problem = "single_label", **more) -> ViTClassifier:
    """Seven labels, random weights."""
    torch.manual_seed(0)
    preprocess = Preprocess(PreprocessConfig(image_size=16, resize="squash"))
    model = ViTClassifier(CONFIG, 7, labels=LABELS, preprocess=preprocess, problem=problem, **more).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return paths


def outputs(model: ViTClassifier, images: list[Path]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.stack([model.prepare()(path) for path in images]))


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_five_most_probable_labels_of_each_image_come_first(images: list[Path], batch_size: int):
    model = classifier()
    probabilities = outputs(model, images).softmax(1)
    found = model.predict(images, batch_size=batch_size)
    assert len(found) == 5
    for ranked, row in zip(found, probabilities, strict=True):
        expected = sorted(zip(LABELS, row.tolist(), strict=True), key=lambda pair: -pair[1])[:5]
        assert [label for label, _ in ranked] == [label for label, _ in expected]
        assert [p for _, p in ranked] == pytest.approx([p for _, p in expected], abs=1e-5)
    assert model.predict(images[:1], top=2)[0] == [(label, pytest.approx(p, abs=1e-6)) for label, p in found[0][:2]]
    assert len(model.predict(images[0], top=100)[0]) == 7


def test_one_image_a_generator_and_every_kind_of_image_are_read(images: list[Path]):
    model = classifier()
    expected = [label for label, _ in model.predict(images[:1])[0]]
    with Image.open(images[0]) as opened:
        kinds = [images[0], str(images[0]), images[0].read_bytes(), opened.copy(), np.asarray(opened)]
    for kind in kinds:
        assert [[label for label, _ in ranked] for ranked in model.predict(kind)] == [expected]
    assert [ranked[0][0] for ranked in model.predict(kind for kind in kinds)] == [expected[0]] * 5
    assert model.predict([]) == []


def test_a_multi_label_model_names_the_labels_that_reach_their_threshold(images: list[Path]):
    model = classifier("multi_label")
    probabilities = outputs(model, images).sigmoid()
    for found, row in zip(model.predict(images), probabilities.tolist(), strict=True):
        assert {label for label, _ in found} == {label for label, p in zip(LABELS, row, strict=True) if p >= 0.5}
        assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    model.thresholds = (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0)
    assert all({label for label, _ in found} == {"dog", "bird"} for found in model.predict(images))
    assert all(len(found) == 3 for found in model.predict(images, top=3))


def test_a_regression_model_gives_its_values_in_order(images: list[Path]):
    model = classifier("regression")
    for found, row in zip(model.predict(images), outputs(model, images).tolist(), strict=True):
        assert found == [(label, pytest.approx(value, abs=1e-5)) for label, value in zip(LABELS, row, strict=True)]


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_a_saved_classifier_answers_as_before(images: list[Path], tmp_path: Path, problem: Problem):
    model = classifier(problem, thresholds=[0.1 * n for n in range(7)] if problem == "multi_label" else None)
    save(model, tmp_path / "model")
    again = load_classifier(tmp_path / "model")
    assert (again.problem, again.thresholds) == (problem, model.thresholds)
    assert again.predict(images) == model.predict(images)


def test_a_classifier_of_an_older_version_is_a_single_label_one(tmp_path: Path):
    save(classifier(), tmp_path / "model")
    assert "problem" not in (tmp_path / "model/config.json").read_text()  # as they were written before
    assert load_classifier(tmp_path / "model").problem == "single_label"


def test_without_preprocessing_no_image_is_read(images: list[Path]):
    model = classifier()
    model.preprocess = None
    with pytest.raises(CheckpointError, match="preprocessing"):
        model.predict(images)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"problem": "multilabel"}, "multilabel.*multi_label"),
        ({"problem": "multi_label", "thresholds": [0.5]}, "1 thresholds for 7"),
        ({"thresholds": [0.5] * 7}, "single_label"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, facts: str):
    with pytest.raises(ConfigError, match=facts):
        ViTClassifier(CONFIG, 7, **settings)


@pytest.mark.parametrize("image_size", [None, 24, (16, 32)])
def test_a_backbone_keeps_its_weights_and_gets_a_head_of_zeros(image_size: int | tuple[int, int] | None):
    torch.manual_seed(0)
    vision = VisionTransformer(CONFIG)
    preprocess = Preprocess(PreprocessConfig(image_size=16))
    model = ViTClassifier.on_backbone(vision, preprocess, ["a", "b"], image_size=image_size, drop_path=0.1)
    assert not model.training and model.vision.config.drop_path == 0.1
    assert not model.head.weight.any() and model.labels == ("a", "b")
    size = 16 if image_size is None else image_size
    assert model.prepare().config.image_size == model.vision.config.image_size == size
    expected = vision.state_dict() | {"pos_embed": resize_pos_embed(vision.pos_embed, CONFIG, size)}
    for name, weight in model.vision.state_dict().items():
        torch.testing.assert_close(weight, expected[name])
