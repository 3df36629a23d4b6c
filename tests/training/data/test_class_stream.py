"""Images, class numbers and names stay together on their way to the model."""

import pytest
import torch

from tests.support.data_formats import only
from tests.support.tiny_run import write_vit_recipe
from tests.training.tasks.test_classification import batch, opened
from vlm.training.data.class_stream import ClassStream
from vlm.training.data.rows import BrokenSample
from vlm.training.data.targets import open_classes
from vlm.training.engine.distributed import SINGLE_PROCESS, Processes
from vlm.training.recipe.config import VitRecipe
from vlm.training.recipe.reading import read_recipe
from vlm.training.tasks.classification import open_stream


def test_a_batch_goes_to_a_device_with_the_patches_it_keeps():
    keep = torch.arange(16).view(8, 2)
    moved = batch()._replace(keep=keep).to(torch.device("cpu")).keep
    assert moved is not None and torch.equal(moved, keep)
    assert batch().to(torch.device("cpu")).keep is None


def test_what_cannot_be_opened_is_left_out_of_a_measurement(run_folder, monkeypatch, capsys):
    settings = read_recipe(write_vit_recipe(run_folder, data={"validation_split": None, "held_out": 10}), VitRecipe)
    _, _, images = opened(settings)
    whole = [torch.cat(part) for part in zip(*images.batches(4), strict=True)]
    pixels = images.pairs.pixels

    def broken(index: int) -> torch.Tensor:
        if index in damaged:
            raise BrokenSample(f"image {index}", "damaged", "it is")
        return pixels(index)

    images.say_broken("validation")
    assert capsys.readouterr().err == ""
    damaged = [1, 5, 6]
    monkeypatch.setattr(images.pairs, "pixels", broken)
    others = [0, 2, 3, 4, *range(7, 10)]
    for size in (1, 4, 250):
        left = [torch.cat(part) for part in zip(*images.batches(size), strict=True)]
        assert all(torch.equal(part, full[others]) for part, full in zip(left, whole, strict=True))
    images.say_broken("validation")
    said = "3 of 10 validation images left out; the first: image 1: damaged"
    assert capsys.readouterr().err.startswith(said)
    damaged = list(range(10))
    with pytest.raises(ValueError, match=r"10 validation.*0"):
        images.say_broken("validation")


def test_a_sample_keeps_its_class_and_name_and_its_patches_until_the_dense_steps(run_folder):
    changes = {"patch_dropout": 0.3, "dense_share": 0.5}
    settings = read_recipe(
        write_vit_recipe(run_folder, data=changes, transform={"padding": 0, "flip": 0, "erase": 0}), VitRecipe
    )
    classifier, training, _ = opened(settings)
    classes = open_classes(settings.data)
    stream = open_stream(settings, classifier, training, SINGLE_PROCESS)
    rows, numbers = training.rows, {training.rows.uid(i): i for i in range(len(training))}
    for step in range(6):
        some = stream[step]
        assert [only(rows.labels(numbers[uid])) for uid in some.uids] == [classes.keys[i] for i in some.targets]
        assert torch.equal(some.images, torch.stack([training.pairs.pixels(numbers[uid]) for uid in some.uids]))
        assert (None if some.keep is None else some.keep.shape) == ((16, 12) if step < 3 else None)  # 4.8 of 16 go
    halves = [
        open_stream(settings, classifier, training, Processes(rank=rank, size=2, device=SINGLE_PROCESS.device))[2]
        for rank in (0, 1)
    ]
    assert [uid for half in halves for uid in half.uids] == stream[2].uids
    never = ClassStream(training, stream.transform, stream.order, seed=0, num_patches=16, patch_dropout=0.3)
    assert never[999].keep is not None  # no dense steps
