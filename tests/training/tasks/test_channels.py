"""Classifiers of 1, 3, 4 and 13 channels: data, augmentation, training, saving and ONNX."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vlm
from vlm.cli import main
from vlm.errors import RecipeError
from vlm.training import VitRecipe, train
from vlm.training.data.labelled import classes_of, open_labelled
from vlm.training.measure.channel_statistics import channel_statistics

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


def class_folders(folder: Path, channels: int, bits: int) -> dict[Path, np.ndarray]:
    """Class folders of .npy and .tif files of one size: file -> (H, W, C) levels from 0 to 1."""
    import tifffile

    rng, written = np.random.default_rng(0), {}
    dtype: type = np.uint16 if bits == 16 else np.uint8
    for number in range(8):
        array = rng.integers(0, np.iinfo(dtype).max // (1 + number % 2), (16, 16, channels), endpoint=True, dtype=dtype)
        path = folder / LABELS[number % 2] / f"{number}.{'npy' if number < 4 else 'tif'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < 4:
            np.save(path, array)
        else:  # the bands of a pixel together, or one band after the other
            layout: Any = {"photometric": "minisblack", "planarconfig": ("contig", "separate")[number % 2]}
            tifffile.imwrite(path, array if number % 2 == 0 else np.moveaxis(array, 2, 0), **layout)
        written[path] = array / np.iinfo(dtype).max
    return written


@pytest.mark.parametrize(("channels", "bits"), [(13, 16), (13, 8), (5, 16), (2, 8)])
def test_class_folders_of_arrays_and_tiffs_keep_their_levels_and_are_measured(tmp_path: Path, channels: int, bits: int):
    written = class_folders(tmp_path / "data", channels, bits)
    classes = classes_of(str(tmp_path / "data"))
    data = open_labelled(str(tmp_path / "data"), None, classes)
    assert (classes.keys, len(data.index)) == (tuple(sorted(LABELS)), len(written))
    prepare = vlm.Preprocess(
        vlm.PreprocessConfig(image_size=16, mean=(0.0,) * channels, std=(1.0,) * channels, bits=16 if bits == 16 else 8)
    )
    for index, target in zip(data.index, data.targets.tolist(), strict=True):
        path = Path(str(data.rows.image(index)))
        assert classes.keys[target] == path.parent.name
        expected = torch.from_numpy(written[path]).permute(2, 0, 1).float()
        torch.testing.assert_close(prepare(path), expected, atol=1e-6, rtol=0)
    found = channel_statistics(str(tmp_path / "data"), channels)
    assert (found.n, found.left_out) == (8, 0)
    pixels = np.concatenate([levels.reshape(-1, channels) for levels in written.values()])
    np.testing.assert_allclose(found.mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.std, pixels.std(0), atol=1e-6)


def test_the_command_prints_lines_for_a_recipe_and_counts_what_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    class_folders(tmp_path / "data", 13, 16)
    (tmp_path / "data" / "low" / "broken.npy").write_bytes(b"\x93NUMPY")
    assert main(["check", str(tmp_path / "data"), "--channels", "13"]) == 0
    lines = capsys.readouterr().out
    section = tomllib.loads(lines)
    assert len(section["mean"]) == len(section["std"]) == 13
    assert "8 images, 1 could not be read" in lines
    assert main(["check", str(tmp_path / "data"), "--channels", "5"]) == 1
    assert "5 channels" in capsys.readouterr().err


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
