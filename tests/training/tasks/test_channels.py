"""Classifiers of 1, 3, 4 and 13 channels: data, augmentation, training, saving and ONNX."""

from pathlib import Path

import numpy as np
import pytest
import torch

import vlm
from vlm.errors import RecipeError
from vlm.training import VitRecipe, train

LABELS = ("low", "high")


def write_bands(folder: Path, channels: int, dtype: str) -> Path:
    """A table of 40 .npy files; in class "high" the last band is brighter."""
    rng, lines = np.random.default_rng(0), ["filepath,label"]
    folder.mkdir()
    for number in range(40):
        levels = rng.random((16, 16, channels)) * 0.5
        levels[..., -1] += 0.4 * (number % 2)
        array = levels.astype(np.float32) if dtype == "float32" else (levels * np.iinfo(dtype).max).astype(dtype)
        np.save(folder / f"{number}.npy", array)
        lines.append(f"{number}.npy,{LABELS[number % 2]}")
    (folder / "data.csv").write_text("\n".join(lines))
    return folder / "data.csv"


def recipe(data: Path, channels: int, bits: int, **transform: float) -> VitRecipe:
    vision = {"image_size": 16, "patch_size": 8, "in_channels": channels, "width": 16, "depth": 1, "num_heads": 2,
              "mlp_dim": 32, "pool": "mean", "class_token": False}  # fmt: skip
    return VitRecipe.from_dict({
        "model": {"vision": vision},
        "data": {"train": str(data), "held_out": 10, "workers": 0, "mean": [0.3] * channels, "std": [0.2] * channels,
                 "bits": bits},
        "transform": transform or {"padding": 1, "flip": 0.5, "rotate": 5.0, "erase": 0.2},
        "optim": {"warmup_steps": 2, "lr": 0.01},
        "run": {"steps": 40, "batch_size": 10, "eval_every": 40, "save_every": 40},
    })  # fmt: skip


@pytest.mark.parametrize(
    ("channels", "dtype", "bits"),
    [(1, "uint8", 8), (3, "uint8", 16), (4, "uint16", 16), (13, "uint16", 8), (13, "float32", 16)],
)
def test_images_of_any_number_of_channels_are_trained_on_saved_and_predicted(
    tmp_path: Path, channels: int, dtype: str, bits: int
):
    data = write_bands(tmp_path / "data", channels, dtype)
    assert train(recipe(data, channels, bits), tmp_path / "run")
    model = vlm.load_classifier(tmp_path / "run")
    assert model.prepare().config.mean == pytest.approx((0.3,) * channels)
    assert (model.vision.config.in_channels, model.prepare().config.bits) == (channels, bits)
    images = [tmp_path / f"data/{number}.npy" for number in range(40)]
    right = [ranked[0][0] == LABELS[number % 2] for number, ranked in enumerate(model.predict(images))]
    assert np.mean(right) > 0.9


def test_colours_of_thirteen_channels_are_not_augmented(tmp_path: Path):
    data = write_bands(tmp_path / "data", 13, "uint8")
    with pytest.raises(RecipeError, match="13 channels"):
        train(recipe(data, 13, 8, colour=0.3), tmp_path / "run")


@pytest.mark.parametrize(("setting", "count"), [("mean", 3), ("std", 12)])
def test_one_mean_and_one_std_a_channel(tmp_path: Path, setting: str, count: int):
    values = recipe(tmp_path, 13, 8).to_dict()
    values["data"][setting] = [0.5] * count
    with pytest.raises(RecipeError, match=f"{setting} has {count} values.*13 channels"):
        VitRecipe.from_dict(values)


def test_a_model_of_thirteen_channels_is_exported_to_onnx(tmp_path: Path):
    import onnxruntime

    model = train_nothing(13)
    vlm.export(model, tmp_path / "out", "onnx")
    (file,) = (tmp_path / "out").glob("*.onnx")
    session = onnxruntime.InferenceSession(file)
    images = torch.randn(3, 13, 16, 16)
    with torch.no_grad():
        expected = model(images).numpy()
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-5)


def train_nothing(channels: int) -> vlm.ViTClassifier:
    """A model with random weights."""
    torch.manual_seed(0)
    preprocess = vlm.Preprocess(vlm.PreprocessConfig(image_size=16, mean=(0.5,) * channels, std=(0.2,) * channels))
    config = vlm.VisionConfig(
        image_size=16, patch_size=8, in_channels=channels, width=16, depth=1, num_heads=2, mlp_dim=32
    )
    model = vlm.ViTClassifier(config, 2, labels=LABELS, preprocess=preprocess).eval()
    torch.nn.init.normal_(model.head.weight)
    return model
