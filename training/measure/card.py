"""The model card of a finished run, and its way to the hub."""

import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from vlm.embedder import Embedder
from vlm.models.vision import ViTClassifier
from vlm.training.measure.evaluate import Row


def clip_card(run: Path, recipe: str, images: int, embedder: Embedder, rows: Sequence[Row]) -> str:
    """README.md of a trained CLIP; `run` is the folder with timing.jsonl, `recipe` the TOML text."""
    return _card(
        run,
        task="zero-shot-image-classification",
        opener='embedder = vlm.load("{name}")',
        saw=f"{_size('A CLIP model', embedder.model)} It saw {images:,} images",
        command="train_clip",
        recipe=recipe,
        rows=rows,
    )


def classifier_card(run: Path, recipe: str, images: int, classifier: ViTClassifier, rows: Sequence[Row]) -> str:
    """The same of a classifier."""
    what = _size(f"A ViT that tells {len(classifier.labels)} classes apart", classifier)
    return _card(
        run,
        task="image-classification",
        opener='classifier = vlm.load_classifier("{name}")',
        saw=f"{what} Its classes: {', '.join(classifier.labels[:50])}{', ...' * (len(classifier.labels) > 50)}. "
        f"It learned from {images:,} images",
        command="train_vit",
        recipe=recipe,
        rows=rows,
    )


def _size(what: str, model: nn.Module) -> str:
    return f"{what}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters."


def _card(run: Path, *, task: str, opener: str, saw: str, command: str, recipe: str, rows: Sequence[Row]) -> str:
    """Data, recipe, time and numbers."""
    return f"""---
library_name: vlm
pipeline_tag: {task}
---

# {run.name}

{saw} for about {minutes_of_steps(run):.1f} minutes.

```python
import vlm

{opener.format(name=run.name)}
```

## What it scores

On validation data, which also guided the choices made. Chance is what a ranking that knows nothing gets.

{markdown_table(rows)}

## Recipe

`python -m training.{command} recipe.toml --out {run.name}` with

```toml
{recipe.strip()}
```
"""


def markdown_table(rows: Sequence[Row]) -> str:
    lines = ["| split | task | language | value | chance | n |", "|---|---|---|---|---|---|"]
    lines += [f"| {r.split} | {r.task} | {r.language} | {r.value:.3f} | {r.chance:.4f} | {r.n} |" for r in rows]
    return "\n".join(lines)


def minutes_of_steps(run: Path) -> float:
    """Mean seconds of a step, as far as written down, times the number of steps."""
    entries = [json.loads(line) for line in (run / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    return sum(entry["seconds"] for entry in entries) / len(entries) * entries[-1]["step"] / 60


def push_to_hub(folder: Path, repo: str) -> None:
    """The model in `folder`, nothing else of the run, as org/name.  Uses the login that huggingface_hub keeps."""
    from huggingface_hub import HfApi

    files = [*json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"], "manifest.json"]
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=files)
    except Exception as error:  # the hub's HTTP library has errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the model is finished, in {folder}, but did not get to the hub: {reason}") from error
