"""What mini gains and loses when it learns German words: the table of docs/teach-words.md.

python docs/german_words.py photos
python -m benchmarks.teach_words        # trains runs/words and runs/words-lora where they are not finished
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import vlm

RUNS = {"finetune.toml": "runs/words", "finetune-lora.toml": "runs/words-lora"}
TASK = "text->image R@1"
SHARES = (0.75, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.teach_words", description=__doc__)
    parser.add_argument("--photos", default="photos", help="the folder that docs/german_words.py made")
    photos = parser.parse_args().photos
    for recipe, run in RUNS.items():
        train(recipe, run, photos)
    print(f"{TASK:<26}{'German':<10}{'English':<10}Japanese")
    rows = [("mini, before", "mini"), ("finetune.toml", RUNS["finetune.toml"])]
    with tempfile.TemporaryDirectory() as folder:
        for share in SHARES:
            between(share, Path(folder, str(share)))
            rows.append((f"{share:.2f} of the way", str(Path(folder, str(share)))))
        rows.append(("finetune-lora.toml", RUNS["finetune-lora.toml"]))
        for place, (name, model) in enumerate(rows):
            measured = [*found(model, "--data", photos, "--split", "validation"), *found(model, "--split", "val_style")]
            if not place:
                print_row("chance", [row["chance"] for row in measured])
            print_row(name, [row["value"] for row in measured])


def train(recipe: str, run: str, photos: str) -> None:
    """Train by a recipe that reads another folder; a finished run is left as it is."""
    text = Path("training/recipes", recipe).read_text(encoding="utf-8").replace('"photos"', f'"{photos}"')
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, recipe).write_text(text, encoding="utf-8")
        command = ["-m", "vlm", "train", str(Path(folder, recipe)), "--out", run, "--resume", "auto"]
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def between(share: float, folder: Path) -> None:
    """Save a mean of the weights before and after (WiSE-FT)."""
    before, after = vlm.load("mini"), vlm.load(RUNS["finetune.toml"])
    learned = after.model.state_dict()
    mixed = {name: weight.lerp(learned[name], share) for name, weight in before.model.state_dict().items()}
    after.model.load_state_dict(mixed)
    vlm.save(after, folder)


def found(model: str, *data: str) -> list[dict[str, Any]]:
    """Rows of text-to-image R@1 that `vlm evaluate` prints, one for each language."""
    command = [sys.executable, "-m", "vlm", "evaluate", model, *data, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return [row for row in json.loads(done.stdout) if row["task"] == TASK]


def print_row(name: str, numbers: list[float]) -> None:
    print(f"{name:<26}" + "".join(f"{number:<10.3f}" for number in numbers).rstrip())


if __name__ == "__main__":
    main()
