"""The model card of a finished run, and the upload of the model to the Hugging Face hub."""

import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from vlm.embedder import Embedder
from vlm.errors import HubError
from vlm.models.vision import ViTClassifier
from vlm.training.measure.measurement import Measurement, markdown_table


def clip_card(run: Path, recipe: str, images: int, embedder: Embedder, measured: Sequence[Measurement]) -> str:
    """The text of README.md for a trained CLIP.

    Args:
        run: folder of the run, with timing.jsonl.
        recipe: TOML text.
        images: number of training images.
        embedder: the trained model.
        measured: validation numbers.
    """
    return _card(
        run,
        task="zero-shot-image-classification",
        opener='embedder = vlm.load("{name}")',
        saw=f"{_size('A CLIP model', embedder.model)} It saw {images:,} images",
        recipe=recipe,
        measured=measured,
    )


def classifier_card(
    run: Path, recipe: str, images: int, classifier: ViTClassifier, measured: Sequence[Measurement]
) -> str:
    """The text of README.md for a trained classifier.

    Args:
        run: folder of the run, with timing.jsonl.
        recipe: TOML text.
        images: number of training images.
        classifier: the trained model.
        measured: validation numbers.
    """
    what = _size(f"A ViT that tells {len(classifier.labels)} classes apart", classifier)
    return _card(
        run,
        task="image-classification",
        opener='classifier = vlm.load_classifier("{name}")',
        saw=f"{what} Its classes: {', '.join(classifier.labels[:50])}{', ...' * (len(classifier.labels) > 50)}. "
        f"It learned from {images:,} images",
        recipe=recipe,
        measured=measured,
    )


def _size(what: str, model: nn.Module) -> str:
    return f"{what}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters."


def _card(run: Path, *, task: str, opener: str, saw: str, recipe: str, measured: Sequence[Measurement]) -> str:
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

Measured on validation data, which may have guided choices. Chance is the value of equal scores for everything.

{markdown_table(measured)}

## Recipe

`vlm train recipe.toml --out {run.name}` with

```toml
{recipe.strip()}
```
"""


def minutes_of_steps(run: Path) -> float:
    """Minutes of all steps: the mean of the logged seconds per step, times the number of steps."""
    entries = [json.loads(line) for line in (run / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    return sum(entry["seconds"] for entry in entries) / len(entries) * entries[-1]["step"] / 60


def push_to_hub(folder: Path, repo: str) -> None:
    """Upload the model, and nothing else of the run, with the login of huggingface_hub.

    Args:
        folder: of the finished run.
        repo: org/name.

    Raises:
        HubError: the upload failed; the model is finished, in `folder`.
    """
    from huggingface_hub import HfApi

    files = [*json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"], "manifest.json"]
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=files)
    except Exception as error:  # the hub's HTTP library has errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HubError(
            f"The model is finished, in {folder}, but the upload to {repo} failed: {reason}. "
            "Run the command again with --resume auto to upload it."
        ) from error
