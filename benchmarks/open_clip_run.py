"""OpenCLIP's own trainer on picture-words: its data, its model of `mini`'s size, its log and its checkpoints.

    python -m benchmarks.open_clip_run CONFIG.json ARGUMENTS...     open_clip_train.main, which then knows CONFIG's name

Nothing of the trainer is replaced.  What it is given:

data        a CSV file, one line for every caption of every image, English and Japanese: its README recommends tars
            "for larger scale datasets", and this set has 10 thousand images.  The CSV loader shuffles all lines
            exactly at every epoch.  (For tars, open_clip_torch 3.3.0 pins webdataset <= 0.2.86; 1.x breaks its reader.)
images    96 x 96 pixels as BMP files, the format Pillow opens fastest (45 us of processor time; WebP: 176 us), so
            that it decodes as little as our cache of pixels does.
captions    names, no keywords: what is measured are names, and a keyword that several images of a batch share counts
            as wrong for all but one of them in OpenCLIP's loss.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vlm.embedder import Embedder

ROOT = Path(__file__).parents[1]
PICTURE_WORDS = ROOT / "training/picture_words"
NAME = "ViT-mini"  # OpenCLIP gives Adam its ViT settings where a model's name has "vit" in it
# what pandas.read_csv takes for a missing value, and the trainer would then read as "nan"
MISSING = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"} | {
    "N/A",
    "NA",
    "NULL",
    "NaN",
    "None",
    "n/a",
    "nan",
    "null",
}


class Window(NamedTuple):
    """A line of OpenCLIP's log: the steps since the line before."""

    epoch: int  # from 0
    steps: int
    seconds: float  # all of these, waiting for data included
    waiting: float  # of them
    loss: float  # of the last step
    logit_scale: float  # the factor, 1 / temperature


# -- what it is given ----------------------------------------------------------------------------------------------


def prepare(folder: Path, images: int | None = None) -> int:
    """Write `folder`/train.csv, images/ and model/; the number of lines.  `images`: fewer, to try the programs."""
    from vlm.checkpoint.load import load
    from vlm.training.data.pairs import open_pairs

    folder = from_root(folder)  # the CSV file and the model's file name paths
    embedder = load("mini", device="cpu")  # its sizes, tokenizer and preprocessing; its weights are not used
    write_model(embedder, folder / "model")
    pairs = open_pairs(PICTURE_WORDS / "train.parquet", embedder.preprocess, cache="none")
    rows = (
        (pairs.pixels(index), [text for captions, _ in pairs.captions(index) for text in captions])
        for index in range(len(pairs))[:images]
    )
    return write_rows(rows, folder)


def from_root(path: Path) -> Path:
    """As the trainer, which is started in the checkout, finds it: relative to the checkout if it lies there."""
    path = path.resolve()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def write_rows(rows: Iterable[tuple[Tensor, list[str]]], folder: Path) -> int:
    """(uint8 (3, H, W), captions) of each image -> folder/images/*.bmp, folder/train.csv; the number of lines."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = 0
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["filepath", "title"])
        for number, (pixels, captions) in enumerate(rows):
            path = folder / "images" / f"{number:06d}.bmp"
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
            for caption in captions:
                if caption in MISSING:
                    raise ValueError(f"pandas reads the caption {caption!r} as a missing value. Leave it out.")
                table.writerow([path, caption])
                lines += 1
    return lines


def count_rows(table: Path) -> int:
    """Captions of a CSV file; a caption may run over several lines."""
    with table.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.reader(file, delimiter="\t")) - 1


def copy_rows(table: Path, few: Path, count: int) -> None:
    """The first `count` captions of a CSV file as another one."""
    with table.open(encoding="utf-8", newline="") as source, few.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(islice(csv.reader(source, delimiter="\t"), count + 1))


def write_model(embedder: Embedder, folder: Path) -> None:
    """folder/open_clip_config.json and the tokenizer, as `vlm.export` writes them, and NAME.json, which names them."""
    from vlm.interop.exports import export

    if not (folder / "open_clip_config.json").exists():
        export(embedder, folder, "openclip")
        (folder / "open_clip_model.safetensors").unlink()  # the trainer begins from nothing
    settings = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    settings["text_cfg"]["hf_tokenizer_name"] = str(folder)
    (folder / f"{NAME}.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


# -- how it is started ---------------------------------------------------------------------------------------------


class Settings(NamedTuple):
    """What is tuned."""

    lr: float
    batch_size: int
    warmup: int  # steps
    patch_dropout: float
    precision: str
    weight_decay: float
    extra: tuple[str, ...] = ()  # anything else that open_clip_train.params knows


def command(
    data: Path, lines: Path, logs: Path, name: str, settings: Settings, *, epochs: int, log_every: int
) -> list[str]:
    """The trainer's command line; on a CPU, without evaluation, a checkpoint at every epoch of the CSV file `lines`."""
    preprocess = json.loads((data / "model/open_clip_config.json").read_text(encoding="utf-8"))["preprocess_cfg"]
    options: dict[str, Any] = {
        "--model": NAME,
        "--train-data": lines,
        "--dataset-type": "csv",
        "--device": "cpu",
        "--precision": settings.precision,
        "--workers": 1,
        "--image-interpolation": preprocess["interpolation"],
        "--image-resize-mode": preprocess["resize_mode"],
        "--logs": logs,
        "--name": name,
        "--save-frequency": 1,
        "--log-every-n-steps": log_every,
        "--epochs": epochs,
        "--batch-size": settings.batch_size,
        "--lr": settings.lr,
        "--warmup": settings.warmup,
        "--wd": settings.weight_decay,
        "--force-patch-dropout": settings.patch_dropout,
    }
    flags = [str(part) for option in options.items() for part in option]
    flags += ["--image-mean", *map(str, preprocess["mean"]), "--image-std", *map(str, preprocess["std"])]
    # after them, so that they win
    return [sys.executable, "-m", "benchmarks.open_clip_run", str(data / f"model/{NAME}.json"), *flags, *settings.extra]


def main(arguments: list[str]) -> int:
    import open_clip

    open_clip.add_model_config(Path(arguments[0]))
    from open_clip_train.main import main as train

    return train(arguments[1:]) or 0


# -- what it leaves ------------------------------------------------------------------------------------------------

_LINE = re.compile(
    r"Train Epoch: (?P<epoch>\d+) \[.*?\] Data \(t\): (?P<data>[\d.]+) Batch \(t\): (?P<batch>[\d.]+), "
    r".*?Logit Scale: (?P<scale>[\d.]+) .*?Loss: (?P<loss>\S+) \("
)


def read_log(text: str, steps_per_epoch: int, log_every: int) -> Iterator[Window]:
    """The lines of out.log about training, in order.

    open_clip_train/train.py writes one after step 0, `log_every`, 2 `log_every`, ... of each epoch (steps count from 0)
    and after its last, with the mean times (to a millisecond) of the steps since the line before.
    """
    epoch, done = -1, 0
    for found in _LINE.finditer(text):
        if int(found["epoch"]) != epoch:
            epoch, done = int(found["epoch"]), 0
        until = min(done + log_every if done else 1, steps_per_epoch)
        steps, done = until - done, until
        seconds, waiting = float(found["batch"]) * steps, float(found["data"]) * steps
        yield Window(epoch, steps, seconds, waiting, float(found["loss"]), float(found["scale"]))


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(epochs done, file), oldest first."""
    found = [(int(path.stem.removeprefix("epoch_")), path) for path in (run / "checkpoints").glob("epoch_*.pt")]
    return sorted(found)


def open_checkpoint(checkpoint: Path, model: Path, place: Path) -> Embedder:
    """A checkpoint of the trainer as our `Embedder`; `place`: a folder that is written for it.

    `model`: what `write_model` wrote.
    """
    from vlm.checkpoint.load import load

    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    settings = json.loads((model / "open_clip_config.json").read_text(encoding="utf-8"))
    settings["model_cfg"]["text_cfg"]["context_length"] = len(weights["positional_embedding"])  # --force-context-length
    place.mkdir(parents=True, exist_ok=True)
    for path in model.glob("*token*"):
        (place / path.name).write_bytes(path.read_bytes())
    (place / "open_clip_config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_file({name: weight.contiguous() for name, weight in weights.items()}, place / "open_clip_model.safetensors")
    return load(str(place))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
