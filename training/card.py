"""The model card of a finished run, and its way to the hub."""

import json
from collections.abc import Sequence
from pathlib import Path

from training.evaluate import Row
from vlm.embedder import Embedder


def model_card(run: Path, recipe: str, pictures: int, embedder: Embedder, rows: Sequence[Row]) -> str:
    """README.md: data, recipe, time and numbers.  `run` is the folder with timing.jsonl; `recipe` the TOML text."""
    size = sum(p.numel() for p in embedder.model.parameters()) / 1e6
    return f"""---
library_name: vlm
pipeline_tag: zero-shot-image-classification
---

# {run.name}

A CLIP model, {size:.1f} million parameters. It saw {pictures:,} pictures for about {minutes_of_steps(run):.1f} minutes.

```python
import vlm

embedder = vlm.load("{run.name}")
```

## What it scores

On validation data, which also guided the choices made. Chance is what a ranking that knows nothing gets.

{markdown_table(rows)}

## Recipe

`python -m training.train_clip recipe.toml --out {run.name}` with

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
