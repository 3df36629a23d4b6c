"""Small data sets for the tests of `training.check`."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from vlm.training.audit.check import check_rows, open_tokenizer
from vlm.training.audit.scan import Divided
from vlm.training.data.formats.columns import recognise
from vlm.training.data.formats.table import Table

Row = dict[str, Any]
COLOURS = ["red", "green", "blue", "black", "white"]
THINGS = ["dog", "cat", "bird", "sun", "house", "car", "apple", "fish"]


def noise_image(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Coloured blocks: another seed is another image, and shrinking leaves it what it is."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def row(number: int, data: bytes, caption: str, **more: Any) -> Row:
    return {"uid": f"sample {number}", "image": {"bytes": data, "path": None}, "caption": caption, **more}


def sound(**more: Any) -> list[Row]:
    captions = [f"a {colour} {thing}" for colour in COLOURS for thing in THINGS]
    return [row(n, encoded(noise_image(n)), caption, **more) for n, caption in enumerate(captions)]


def divided(rows: list[Row]) -> Divided:
    return Divided([Table("set", Dataset.from_list(rows), recognise("set", list(rows[0]), {}))])


def examine(rows: list[Row], out: Path | None = None, **options: Any) -> dict[str, Any]:
    return check_rows(divided(rows), open_tokenizer("mini"), out=out, **options)
