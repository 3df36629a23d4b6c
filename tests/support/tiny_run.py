"""A training run that takes a second: 48 images of 16 x 16, a model of width 16."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm.tokenizers.protocol import Tokenizer
from vlm.training.engine.distributed import Processes
from vlm.training.recipe.reading import read_any_recipe
from vlm.training.tasks.train import train

COLOURS = {"red": "赤", "green": "緑", "blue": "青", "black": "黒", "grey": "灰"}
SHAPES = {"dog": "犬", "cat": "猫", "bird": "鳥", "sun": "日"}
Sections = dict[str, dict[str, Any]]
RECIPE: Sections = {
    "model": {
        "embed_dim": 8,
        "vision": {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32},
        "text": {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32},
    },
    "data": {"train_splits": ["train"], "validation_split": "validation", "patch_dropout": 0.5, "workers": 0},
    "optim": {"matrices": "adamw", "warmup_steps": 1},
    "run": {
        "steps": 6,
        "batch_size": 16,
        "precision": "float32",
        "eval_every": 3,
        "save_every": 2,
        "log_every": 1,
        "ema_decay": 0.9,
    },
}
VIT_RECIPE: Sections = {
    "model": {"vision": RECIPE["model"]["vision"] | {"drop_path": 0.2}},
    "data": {
        "train_splits": ["train"],
        "validation_split": "validation",
        "columns": {"label": "concept"},
        "patch_dropout": 0.25,
        "workers": 0,
    },
    "transform": {"padding": 2, "flip": 0.5, "erase": 0.3},
    "loss": {"label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0},
    "optim": {"warmup_steps": 1},
    "run": {
        "steps": 6,
        "batch_size": 16,
        "precision": "float32",
        "eval_every": 3,
        "save_every": 2,
        "log_every": 1,
        "ema_decay": 0.9,
    },
}


def write_data(folder: Path, tokenizer: Tokenizer) -> Path:
    """data.parquet, 48 rows to train on and 12 to validate, and tokenizer/."""
    rng, rows = np.random.default_rng(0), []
    for number in range(60):
        colour, shape = list(COLOURS)[number % 5], list(SHAPES)[number % 4]
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        pixels[: 4 + 3 * (number % 4)] //= 1 + number % 5
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        row = {
            "uid": f"image-{number}",
            "image": {"bytes": file.getvalue(), "path": None},
            "captions_en": [f"a {colour} {shape}"],
            "captions_ja": [COLOURS[colour] + SHAPES[shape]] if number % 3 else [],
            "keywords_en": [colour, shape],
            "keywords_ja": [],
            "concept": f"{colour} {shape}",
            "split": "train" if number < 48 else "validation",
        }
        rows.append(row)
    texts = pa.list_(pa.string())
    schema = pa.schema(
        [
            ("uid", pa.string()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            *((f"{kind}_{language}", texts) for kind in ("captions", "keywords") for language in ("en", "ja")),
            ("concept", pa.string()),
            ("split", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "data.parquet")
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    return folder / "data.parquet"


def write_recipe(folder: Path, **changes: dict[str, Any]) -> Path:
    """recipe.toml for the data in `folder`, each section of RECIPE with its changes; None takes a setting out."""
    data = str(folder / "data.parquet")
    places = {"model": {"tokenizer": str(folder / "tokenizer")}, "data": {"train": data, "validation": data}}
    return _write(folder, "clip", RECIPE, places, changes)


def write_vit_recipe(folder: Path, **changes: dict[str, Any]) -> Path:
    """The same for a classifier: VIT_RECIPE."""
    return _write(folder, "vit", VIT_RECIPE, {"data": {"train": str(folder / "data.parquet")}}, changes)


def train_file(recipe: Path, out: Path, processes: Processes, **options: Any) -> int:
    """Train as `vlm train` does, in this process."""
    return train(read_any_recipe(recipe), out, processes, text=recipe.read_text(encoding="utf-8"), **options)


def _write(folder: Path, task: str, recipe: Sections, places: Sections, changes: Sections) -> Path:
    lines = [f'task = "{task}"']
    for section in ("model", "data", "augment", "transform", "loss", "optim", "run"):
        values = recipe.get(section, {}) | places.get(section, {}) | changes.get(section, {})
        lines += [f"[{section}]"] * bool(values)
        lines += [f"{name} = {_toml(value)}" for name, value in values.items() if value is not None]
    path = folder / f"recipe-{len(list(folder.glob('recipe-*')))}.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + " }"
    return json.dumps(value)
