"""Makes the folder of docs/teach-words.md: drawings of picture-words with German names.

    python docs/german_words.py photos

1,276 drawings of animals, plants and food by six artists to train on, 106 by a seventh to validate on.  The names in
german-words.csv are those of Unicode CLDR (Unicode License v3).
"""

import csv
import sys
from pathlib import Path

import pyarrow.parquet as parquet

DOCS = Path(__file__).parent
DATA = DOCS.parent / "training" / "picture_words"
SPLITS = {"train": "train", "val_style": "validation"}  # of picture-words -> of the folder


def main(folder: Path) -> None:
    with (DOCS / "german-words.csv").open(encoding="utf-8") as file:
        german = {row["concept"]: row["caption"] for row in csv.DictReader(file)}
    (folder / "images").mkdir(parents=True)
    rows: list[list[str]] = []
    for part in ("train", "validation"):
        for row in parquet.read_table(DATA / f"{part}.parquet").to_pylist():
            if row["split"] in SPLITS and row["concept"] in german:
                name = f"images/{row['uid'].replace('/', '-')}.png"
                (folder / name).write_bytes(row["image"]["bytes"])
                rows.append([name, german[row["concept"]], row["concept"], SPLITS[row["split"]]])
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "caption", "concept", "split"], *rows])
    counts = {split: sum(row[3] == split for row in rows) for split in SPLITS.values()}
    print(f"{folder}: {counts['train']} images to train on, {counts['validation']} to validate on, {len(german)} words")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
