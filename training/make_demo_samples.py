"""The demo's gallery, `demo/samples/`: validation images of picture-words (val_style, val_concept) and icon-words.

    python -m training.make_demo_samples

One WebP file per image, byte for byte as in the data, and `metadata.jsonl` beside them, one line per image.
"""

import json
from pathlib import Path

import pyarrow.parquet

TRAINING = Path(__file__).parent
SPLITS = {"picture_words": ("val_style", "val_concept"), "icon_words": ("val_icon_style",)}
LICENSES = {
    "picture_words": ("Apache-2.0.txt", "CC-BY-4.0.txt", "MIT-Microsoft.txt", "MIT-emojibase.txt", "Unicode-3.0.txt"),
    "icon_words": ("iconoir.info.json", "flat-color-icons.info.json", "MIT.txt"),
}
OUT = TRAINING.parent / "demo" / "samples"


def main() -> None:
    lines: list[str] = []
    for data, splits in SPLITS.items():
        for row in pyarrow.parquet.read_table(TRAINING / data / "validation.parquet").to_pylist():
            if row["split"] not in splits:
                continue
            path = OUT / f"{row['uid']}.webp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"]["bytes"])
            about = {"file_name": f"{row['uid']}.webp", "en": row["captions_en"][0], "ja": row["captions_ja"][0]}
            about |= {key: row[key] for key in ("concept", "author", "source", "license")}
            lines.append(json.dumps(about, ensure_ascii=False) + "\n")
        (OUT / "LICENSES").mkdir(exist_ok=True)
        for name in LICENSES[data]:
            (OUT / "LICENSES" / name).write_bytes((TRAINING / data / "LICENSES" / name).read_bytes())
    (OUT / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} images in {OUT}")


if __name__ == "__main__":
    main()
