"""Rare classes with and without balanced sampling: recall of the rarest ten of forty classes, one seed.

    python -m benchmarks.balance > benchmarks/balance.md

Made-up images of 16 x 16: each class is a pattern of 4 x 4 colours under heavy noise.  Class k has 400 / (k + 1)
images, from 400 down to 10; validation has 20 of each.  The same small ViT, seed, steps and augmentation each time.
"""

import io
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.machine import about
from vlm.checkpoint.load import load_classifier
from vlm.training.data.labelled import ask, classes_of_classifier, open_labelled
from vlm.training.engine.distributed import SINGLE_PROCESS
from vlm.training.recipe.config import VitRecipe
from vlm.training.tasks.train import train

CLASSES, MOST, FEWEST, VALIDATION, STEPS = 40, 400, 10, 20, 400
NOISE = 110.0  # standard deviation, in grey levels


def main() -> None:
    torch.set_num_threads(1)
    print("# Rare classes with and without balanced sampling\n")
    print(about("python -m benchmarks.balance", ["torch"], 1))
    print(f"{CLASSES} classes, {MOST} to {FEWEST} training images each, {STEPS} steps of 64, one seed. Recall on "
          f"{VALIDATION} images of each class; chance {1 / CLASSES:.3f}.\n")  # fmt: skip
    print("| balance | recall of the rarest ten | of the ten most frequent | of all, mean over classes |")
    print("|---|---:|---:|---:|")
    with TemporaryDirectory() as folder:
        data = write(Path(folder) / "d.parquet")
        for balance in ("none", "sqrt", "equal"):
            recall = recall_of_classes(data, balance, Path(folder) / balance)
            print(f'| "{balance}" | {recall[-10:].mean():.3f} | {recall[:10].mean():.3f} | {recall.mean():.3f} |')


def write(path: Path) -> Path:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (CLASSES, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    images, labels, splits = [], [], []
    for split in ("train", "validation"):
        for number, pattern in enumerate(patterns):
            count = max(FEWEST, MOST // (number + 1)) if split == "train" else VALIDATION
            for _ in range(count):
                levels = (pattern + rng.normal(0, NOISE, pattern.shape)).clip(0, 255).astype(np.uint8)
                file = io.BytesIO()
                Image.fromarray(levels).save(file, "png")
                images.append(file.getvalue())
                labels.append(f"{number:02d}")
                splits.append(split)
    pq.write_table(pa.table({"image": images, "label": labels, "split": splits}), path)
    return path


def recall_of_classes(data: Path, balance: str, out: Path) -> np.ndarray:
    """(CLASSES,), the most frequent class first."""
    recipe = VitRecipe.from_dict({
        "model": {"vision": {"image_size": 16, "patch_size": 4, "width": 48, "depth": 3, "num_heads": 3,
                             "mlp_dim": 96}},
        "data": {"train": str(data), "train_splits": ["train"], "validation_split": "validation", "workers": 0,
                 "resize": "squash", "balance": balance},
        "transform": {"padding": 1},
        "optim": {"matrices": "adamw", "lr": 2e-3, "warmup_steps": 20},
        "run": {"steps": STEPS, "batch_size": 64, "precision": "float32", "eval_every": STEPS, "save_every": STEPS},
    })  # fmt: skip
    train(recipe, out, SINGLE_PROCESS)
    classifier = load_classifier(out)
    classes = classes_of_classifier(classifier.labels, str(data), None, None)
    images = open_labelled(str(data), "validation", classes)
    answers = ask(classifier, classifier.prepare(), images, what="validation")
    right = answers.outputs.argmax(1) == answers.targets
    return np.array([float(right[answers.targets == number].float().mean()) for number in range(CLASSES)])


if __name__ == "__main__":
    main()
