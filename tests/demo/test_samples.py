"""The sample images and their licences."""

from pathlib import Path

import pyarrow.parquet

from vlm.demo.search.samples import SAMPLES, samples

PICTURE_WORDS = Path(__file__).parents[2] / "training" / "picture_words"


def test_the_gallery_is_val_style_and_val_concept_byte_for_byte() -> None:
    rows = pyarrow.parquet.read_table(PICTURE_WORDS / "validation.parquet").to_pylist()
    rows = [row for row in rows if row["split"] in ("val_style", "val_concept")]
    assert len(rows) == len(samples())
    for row, one in zip(rows, samples(), strict=True):
        assert one.path.read_bytes() == row["image"]["bytes"]
        assert (one.en, one.ja) == (row["captions_en"][0], row["captions_ja"][0])
        assert (one.author, one.license) == (row["author"], row["license"])


def test_every_licence_of_the_gallery_is_there_in_full() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in (SAMPLES / "LICENSES").iterdir()}
    for name in {one.license for one in samples()}:
        assert any(file.startswith(name) and len(text) > 1000 for file, text in texts.items()), name
    for name, text in texts.items():
        assert text == (PICTURE_WORDS / "LICENSES" / name).read_text(encoding="utf-8")
