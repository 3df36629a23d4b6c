"""benchmarks/time_to_accuracy.py: what it reads, writes and compares, without a training run."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from benchmarks.open_clip_run import copy_rows, count_rows, open_checkpoint, read_log, write_model, write_rows
from benchmarks.time_to_accuracy import SCORES, best, first_at, split, table, tuning
from benchmarks.timed_runs import Point, as_toml
from vlm.config import CLIPConfig, PreprocessConfig, TextConfig, VisionConfig
from vlm.embedder import Embedder
from vlm.images.preprocess import Preprocess
from vlm.interop.formats.openclip import write_model as openclip_weights
from vlm.models.clip import CLIP
from vlm.tokenizers.load import load_tokenizer

TOKENIZER = Path(__file__).parents[3] / "training/picture_words/tokenizer"
MEAN = SCORES["mean of both"]


def point(minute: float, en: float, ja: float) -> Point:
    return Point(step=int(minute * 10), seconds=minute * 60, loss=1.0, logit_scale=14.3, en=en, ja=ja)


def about(library: str) -> dict[str, Any]:
    sizes = {"chance_en": 0.002, "chance_ja": 0.004, "queries": 500, "images": 547, "parameters": 4_500_000}
    return {"library": library, "batch_size": 256, "about": "here, now"} | sizes


def log_of(step_seconds: list[list[float]], every: int) -> str:
    """What open_clip_train/train.py writes of epochs whose steps take these times (its format string, its rule)."""
    lines = []
    for epoch, steps in enumerate(step_seconds):
        window: list[float] = []
        for i, seconds in enumerate(steps):
            window.append(seconds)
            if i % every == 0 or i + 1 == len(steps):
                mean = sum(window) / len(window)
                lines.append(
                    f"2026-01-01,00:00:00 | INFO | Train Epoch: {epoch} [ 64/320 ({100 * (i + 1) / len(steps):.0f}%)] "
                    f"Data (t): {mean / 4:.3f} Batch (t): {mean:.3f}, {64 / seconds:#g}/s, {64 / seconds:#g}/s/gpu "
                    f"LR: 0.000500 Logit Scale: 14.286 Contrastive_loss: {5 - i:#.5g} (4.0) Loss: {5 - i:#.5g} (4.0)"
                )
                window = []
    return "\n".join(["2026-01-01,00:00:00 | INFO | Start epoch 0", *lines])


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 6, 9])
def test_the_log_gives_back_the_seconds_of_every_epoch(steps: int) -> None:
    times = [[0.5 + 0.25 * epoch + 0.125 * step for step in range(steps)] for epoch in range(3)]
    windows = list(read_log(log_of(times, 4), steps, 4))
    for epoch, seconds in enumerate(times):
        own = [window for window in windows if window.epoch == epoch]
        assert sum(window.steps for window in own) == steps
        assert sum(window.seconds for window in own) == pytest.approx(sum(seconds), abs=0.0006 * steps)
        assert sum(window.waiting for window in own) == pytest.approx(sum(seconds) / 4, abs=0.0006 * steps)
        assert own[-1].loss == pytest.approx(5 - (steps - 1))


def test_the_csv_file_holds_each_caption_once_and_the_very_pixels(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=generator)
    captions = [['a "red", apple', "赤いりんご"], ["犬\tと\n猫"], ["8", "it's"]]
    assert write_rows(zip(pixels, captions, strict=True), tmp_path) == 5
    read = pandas.read_csv(tmp_path / "train.csv", sep="\t")  # as open_clip_train.data.CsvDataset does
    assert [str(text) for text in read["title"]] == [text for row in captions for text in row]
    assert count_rows(tmp_path / "train.csv") == len(read)
    copy_rows(tmp_path / "train.csv", tmp_path / "few.csv", 3)
    assert pandas.read_csv(tmp_path / "few.csv", sep="\t").equals(read[:3])
    for path, number in zip(read["filepath"], [0, 0, 1, 2, 2], strict=True):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), pixels[number].permute(1, 2, 0).numpy())


def test_a_caption_that_pandas_takes_for_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'null' as a missing value"):
        write_rows([(torch.zeros(3, 8, 8, dtype=torch.uint8), ["null"])], tmp_path)


def tiny() -> Embedder:
    tokenizer = load_tokenizer(TOKENIZER)
    vision = VisionConfig(image_size=16, patch_size=8, width=64, depth=1, num_heads=1, mlp_dim=128, patch_bias=False)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=32,
        width=64,
        depth=1,
        num_heads=1,
        mlp_dim=128,
        eot_id=tokenizer.eot_id,
        pad_id=tokenizer.pad_id,
    )
    torch.manual_seed(0)
    preprocess = PreprocessConfig(image_size=16, resize="squash", mean=(0.75, 0.75, 0.75), std=(0.3, 0.3, 0.3))
    return Embedder(CLIP(CLIPConfig(embed_dim=32, vision=vision, text=text)), tokenizer, Preprocess(preprocess))


def test_a_checkpoint_of_openclip_scores_as_the_same_weights_here(tmp_path: Path) -> None:
    embedder = tiny()
    write_model(embedder, tmp_path / "model")
    _, weights = openclip_weights(embedder.model.config, embedder.model.state_dict())
    torch.save({"epoch": 1, "name": "run", "state_dict": weights, "optimizer": {}}, tmp_path / "epoch_1.pt")
    opened = open_checkpoint(tmp_path / "epoch_1.pt", tmp_path / "model", tmp_path / "opened")
    texts = ["a red apple", "赤いりんご", "dog"]
    images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "white")]
    torch.testing.assert_close(opened.embed_texts(texts), embedder.embed_texts(texts), atol=1e-5, rtol=0)
    torch.testing.assert_close(opened.embed_images(images), embedder.embed_images(images), atol=1e-5, rtol=0)


def test_a_recipe_survives_being_written() -> None:
    recipe = {
        "model": {"size": "mini", "vision": {"drop_path": 0.1, "pool": "mean"}},
        "data": {"train": [{"path": "a.csv", "weight": 2.0}, {"path": "猫.csv"}], "captions_per_image": 2},
        "optim": {"betas": [0.9, 0.98], "lr": 1e-5},
        "run": {"compile": False, "steps": 10},
    }
    assert tomllib.loads(as_toml(recipe)) == recipe


def test_time_counts_from_the_first_checkpoint_that_is_good_enough() -> None:
    curve = [point(1, 0.1, 0.1), point(2, 0.3, 0.3), point(3, 0.2, 0.2), point(4, 0.3, 0.3)]
    assert best(curve, MEAN) == (pytest.approx(0.3), 2.0)
    assert first_at(curve, MEAN, 0.2) == (pytest.approx(0.3), 2.0)
    assert first_at(curve, MEAN, 0.31) is None


def test_the_table_says_how_often_faster_and_when_a_score_was_not_reached() -> None:
    theirs = [point(5, 0.1, 0.4), point(10, 0.2, 0.4)]
    ours = [point(2, 0.1, 0.1), point(4, 0.25, 0.3)]
    lines = table((about("OpenCLIP"), theirs), [(about("vlm"), ours)]).split("\n")
    rows = {line.split(" | ")[0]: line for line in lines}
    assert "| English | 0.0020 | 0.200 | 10.0 | 4.0 (R@1 0.250) | 2.50 |" in rows["| English"]
    assert "| not reached | - |" in rows["| Japanese"]


def test_several_seeds_give_a_median_and_a_spread() -> None:
    theirs, seeds = [point(12, 0.2, 0.2)], [[point(minute, 0.3, 0.3)] for minute in (4, 2, 3)]

    def english() -> str:
        lines = table((about("OpenCLIP"), theirs), [(about("vlm"), ours) for ours in seeds]).split("\n")
        return next(line for line in lines if line.startswith("| English"))

    assert "| 4.0 (R@1 0.300), 2.0 (R@1 0.300), 3.0 (R@1 0.300) | 4.00 (3.00 to 6.00) | 0.300, " in english()
    seeds[1] = [point(2, 0.1, 0.1)]
    assert "not reached, 3.0 (R@1 0.300) | - |" in english()


def test_the_tuning_table_shows_what_differs_and_the_best_mean() -> None:
    runs = [
        ({"about": f"2026, a machine; `x.json --lr {lr} --wd 0.2 --logs {lr}`"}, [point(1, *first), point(2, 0.2, 0.3)])
        for lr, first in (("0.1", (0.3, 0.3)), ("0.2", (0.1, 0.1)))
    ]
    head, _, *rows = tuning(runs).split("\n")
    assert head.startswith("| --lr | minutes |")
    assert rows == ["| 0.1 | 2.0 | 0.300 / 0.300 | 1.0 |", "| 0.2 | 2.0 | 0.200 / 0.300 | 2.0 |"]


def test_what_follows_two_dashes_goes_to_the_peer() -> None:
    assert split(["peer", "a", "--", "--lr", "1"]) == (["peer", "a"], ("--lr", "1"))
    assert split(["table", "a"]) == (["table", "a"], ())
