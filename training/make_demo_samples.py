"""The demo's gallery, `demo/samples/`, out of `training/picture_words/`: val_style and val_concept, 1,062 images.

    python -m training.make_demo_samples

One WebP file per image, byte for byte as in the data, and `metadata.jsonl` beside them, one line per image.
"""

import json
from pathlib import Path

import pyarrow.parquet

SPLITS = ("val_style", "val_concept")
DATA = Path(__file__).parent / "picture_words" / "validation.parquet"
OUT = Path(__file__).parents[1] / "demo" / "samples"
LICENSES = Path(__file__).parent / "picture_words" / "LICENSES"


def main() -> None:
    lines: list[str] = []
    for row in pyarrow.parquet.read_table(DATA).to_pylist():
        if row["split"] not in SPLITS:
            continue
        path = OUT / f"{row['uid']}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"]["bytes"])
        about = {"file_name": f"{row['uid']}.webp", "en": row["captions_en"][0], "ja": row["captions_ja"][0]}
        about |= {key: row[key] for key in ("concept", "author", "source", "license")}
        lines.append(json.dumps(about, ensure_ascii=False) + "\n")
    (OUT / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    (OUT / "LICENSES").mkdir(exist_ok=True)
    for name in ("Apache-2.0.txt", "CC-BY-4.0.txt", "MIT-Microsoft.txt", "MIT-emojibase.txt", "Unicode-3.0.txt"):
        (OUT / "LICENSES" / name).write_bytes((LICENSES / name).read_bytes())
    print(f"{len(lines)} images in {OUT}")


if __name__ == "__main__":
    main()
