"""Release a finished run: float16 weights, and a model card whose numbers are measured on those weights.

Test splits are measured here and nowhere else, once per released model.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as parquet

from vlm.training.measure.attribution import ATTRIBUTION, write_attribution
from vlm.training.measure.card import minutes_of_steps
from vlm.training.measure.drawings import ICON_WORDS, PICTURE_WORDS, TEST, VALIDATION, evaluate_drawings
from vlm.training.measure.match_calibration import calibrate, section
from vlm.training.measure.measurement import Measurement, markdown_table


def release(out: Path, model: Path, runs: Sequence[Path]) -> None:
    """Write the released model: weights rounded to float16, and a card with the numbers of the rounded weights.

    Args:
        out: folder of the released model; a model that is there is replaced.
        model: folder of the finished model; evaluation.json is written into it.
        runs: folders of the runs that led to it, in order; their recipes stand in the card.
    """
    import torch

    from vlm.checkpoint.load import load
    from vlm.checkpoint.save import save

    trained = load(model)
    with tempfile.TemporaryDirectory() as folder:
        save(trained, Path(folder) / out.name, dtype=torch.float16)
        packed = load(Path(folder) / out.name)
        measured = evaluate_drawings(packed, [*VALIDATION, *TEST])
        trained.calibration, reliable = calibrate(packed)
    parameters = sum(p.numel() for p in trained.model.parameters())
    (model / "evaluation.json").write_text(
        json.dumps([one._asdict() for one in measured], ensure_ascii=False, indent=1), encoding="utf-8"
    )
    text = card(out.name, runs, parameters, measured) + "\n" + section(trained.calibration, reliable)
    for name in ATTRIBUTION:  # `save` replaces a model only where nothing else lies
        (out / name).unlink(missing_ok=True)
    save(trained, out, text, dtype=torch.float16)
    write_attribution(out)
    print(f"{out}: {sum(path.stat().st_size for path in out.iterdir()) / 1e6:.1f} MB", file=sys.stderr)


def card(name: str, runs: Sequence[Path], parameters: int, measured: Sequence[Measurement]) -> str:
    """The text of README.md.

    Args:
        name: of the model.
        runs: folders of the runs that led to it, in order.
        parameters: number of the model's weights.
        measured: what the card reports.
    """
    drawn, icons = (parquet.read_metadata(folder / "train.parquet").num_rows for folder in (PICTURE_WORDS, ICON_WORDS))
    minutes = sum(minutes_of_steps(run) for run in runs)
    recipes = "\n\n".join(f"```toml\n{(run / 'recipe.toml').read_text(encoding='utf-8').strip()}\n```" for run in runs)
    return f"""---
library_name: vlm
pipeline_tag: zero-shot-image-classification
language: [en, ja]
license: mit
---

# {name}

A CLIP of {parameters / 1e6:.1f} million parameters for English and Japanese, trained on picture-words and icon-words.

**It knows drawings, not photographs:** emoji, icons, pictograms and clip art. For photographs use a model of
`vlm models`.

絵（絵文字、アイコン、ピクトグラム、クリップアート）だけから日本語と英語で学習した小さな CLIP です。
**写真は知りません。** 写真には `vlm models` のモデルを使ってください。

```python
import vlm

embedder = vlm.load("{name}")
vlm.classify(embedder, ["dog.png"], labels=["犬", "猫"])
```

## Data

The `train` files of `training/picture_words` ({drawn:,} drawings: emoji and clip art) and `training/icon_words`
({icons:,} icons), with names and keywords in English and Japanese. Nothing else was seen in training. Choices were made
on validation splits only; the test splits were scored for this card, and nothing was chosen by them. Authors and
licences: `ATTRIBUTION.md` and `LICENSES.txt` beside this card.

## Recipe

About {minutes:.0f} minutes of steps (mean step x number of steps) of `vlm train` on two cores or one, in
{len(runs)} run{"s"[: len(runs) > 1]}; `make train` runs them again, and says how they are joined:

{recipes}

## What it scores

Chance is the value of a ranking that gives every pair the same score. R@k: share of queries with a correct answer
among the first k; a text query is the first caption of a concept, and every image of that concept is correct.
Texts that are the same are one query. `*_style`: artists or icon sets not in training; `*_concept`: concepts not in
training; `*_both`: neither; `*_icon_*`: icon-words, the others picture-words. Images whose pixels also occur in
training are left out.

Text->image R@1 in six lines / テキスト→画像の R@1（要約）：

{summary_table(measured)}

数値はすべてチャンスレベルと並べています。`*_style` は学習していない作者やアイコン集、`*_concept` は学習していない
概念です。選択に使ったのは検証用（`val_*`）だけです。

<details>
<summary>All {len(measured)} numbers / すべての数値</summary>

{markdown_table(measured)}

</details>
"""


SUMMARY = {
    "val_style": "emoji by an artist not in training; used for choices",
    "test_style": "emoji by another artist not in training",
    "test_concept": "emoji of concepts not in training",
    "val_icon_style": "icons of two sets not in training; used for choices",
    "test_icon_style": "icons of three other sets not in training",
    "test_icon_concept": "icons of concepts not in training",
}


def summary_table(measured: Sequence[Measurement]) -> str:
    """Text-to-image R@1 of the splits of `SUMMARY` that were measured, both languages, as a Markdown table."""
    found = {(one.split, one.language): one for one in measured if one.task == "text->image R@1"}
    lines = ["| what is searched | English | Japanese | chance | images |", "|---|---|---|---|---|"]
    for split, what in SUMMARY.items():
        if (english := found.get((split, "en"))) and (japanese := found.get((split, "ja"))):
            values = f"{english.value:.3f} | {japanese.value:.3f} | {english.chance:.4f} | {english.n}"
            lines.append(f"| {what} (`{split}`) | {values} |")
    return "\n".join(lines)
