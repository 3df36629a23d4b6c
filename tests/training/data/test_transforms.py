"""What a classifier sees of an image while it learns, against torchvision's own transforms."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from tests.support.tiny_run import write_vit_recipe
from tests.training.tasks.test_classification import PREPROCESS, batch
from vlm.errors import RecipeError
from vlm.training.data.class_stream import ClassImages, ClassStream, transformed
from vlm.training.data.device_transforms import transform_by
from vlm.training.data.labelled import ClassSet, open_labelled
from vlm.training.data.stream import EndlessOrder, Places, batches
from vlm.training.data.transforms import Transform
from vlm.training.recipe.augmentation import TransformConfig
from vlm.training.recipe.config import VitRecipe
from vlm.training.recipe.reading import read_recipe

FRAME = (12, 20)


def places(count: int) -> Places:
    numbers = np.arange(count)
    return Places(numbers // 3, numbers * 7, numbers)


def test_transforms_depend_on_place_and_seed_alone(run_folder):
    data = open_labelled(
        str(run_folder / "data.parquet"), "train", ClassSet(keys=("red dog", "red cat", "grey sun"), column="concept")
    )
    sources = ClassImages(data, PREPROCESS)
    config = TransformConfig(padding=2, flip=0.5, rotate=20.0, colour=0.4, erase=0.5)

    def stream(seed: int, batch_size: int, rank: int = 0, world: int = 1) -> ClassStream:
        order = EndlessOrder(len(sources), seed=0, batch_size=batch_size, rank=rank, world=world)
        return ClassStream(sources, Transform(config, (16, 16), seed), order, seed=seed, num_patches=16)

    state = torch.random.get_rng_state()
    whole = stream(0, 4)[1]
    assert torch.equal(torch.random.get_rng_state(), state)
    halves = [stream(0, 4, rank, 2)[1] for rank in (0, 1)]
    assert torch.equal(torch.cat([half.images for half in halves]), whole.images)
    assert not torch.equal(stream(1, 4)[1].images, whole.images)
    longer = stream(0, 2)
    assert torch.equal(torch.cat([longer[2].images, longer[3].images]), whole.images)
    assert len({image.numpy().tobytes() for step in range(9) for image in stream(0, 4)[step].images}) == 36


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"padding": 3, "fill": 90}, v2.RandomCrop(FRAME, padding=3, fill=90)),
        ({"scale": (0.2, 0.6)}, v2.RandomResizedCrop(FRAME, scale=(0.2, 0.6), antialias=True)),
        ({"flip": 0.4}, v2.RandomHorizontalFlip(0.4)),
        (
            {"rotate": 30.0, "fill": 90},
            v2.RandomAffine([-30, 30], interpolation=v2.InterpolationMode.BILINEAR, fill=90),
        ),
        ({"colour": 0.4}, v2.ColorJitter(0.4, 0.4, 0.4)),
        ({"rand_augment": 11, "fill": 90}, v2.RandAugment(num_ops=2, magnitude=11, fill=[90] * 3)),
        ({"erase": 0.5, "fill": 90}, v2.RandomErasing(0.5, value=90)),
        ({"flip": 0.4, "erase": 0.5}, v2.Compose([v2.RandomHorizontalFlip(0.4), v2.RandomErasing(0.5, value=0)])),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_each_setting_is_the_transform_of_torchvision_it_names(monkeypatch, settings, theirs):
    images = torch.randint(0, 256, (9, 3, *FRAME), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    seeds: list[int] = []
    sow = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: (seeds.append(seed), sow(seed))[1])
    found = Transform(TransformConfig(**settings), FRAME, 5)(images, places(9))
    assert len(set(seeds)) == 9 and 0 <= min(seeds) <= max(seeds) < 2**63
    for image, seen, seed in zip(images, found, seeds, strict=True):
        sow(seed)
        assert torch.equal(seen, theirs(image))
    assert not torch.equal(found, images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("settings", "apart"),
    [
        ({"padding": 3, "fill": 90}, 0),
        ({"scale": (0.2, 0.6)}, 1),
        ({"scale": (0.9, 1.0)}, 1),
        ({"flip": 0.4}, 0),
        ({"rotate": 30.0, "fill": 90}, 1),
        ({"colour": 0.4}, 1),
        ({"erase": 0.5, "fill": 90}, 0),
        ({"padding": 2, "scale": (0.3, 1.0), "flip": 0.5, "erase": 0.5}, 1),
        ({"padding": 2, "flip": 0.5, "rotate": 20.0, "erase": 0.5}, 1),
        ({"padding": 2, "scale": (0.3, 1.0), "flip": 0.5, "rotate": 20.0, "colour": 0.4, "erase": 0.5}, 7),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_whole_batch_transformed_later_is_what_the_workers_make(settings, apart, channels):
    """To so many grey levels: each of three factors up to 1.4 stretches what was there before, and cuts one off."""
    generator = torch.Generator().manual_seed(1)
    smooth = torch.rand(40, channels, 4, 6, generator=generator) * 255
    images = torch.nn.functional.interpolate(smooth, FRAME, mode="bilinear").to(torch.uint8)
    config = TransformConfig(**settings)
    transform = Transform(config, FRAME, 5, channels)
    wanted, state = transform(images, places(40)), torch.random.get_rng_state()
    draws = transform.draw(places(40))
    assert torch.equal(torch.random.get_rng_state(), state) and transform.can_be_later
    found = transform_by(images, config, draws)
    differences = (found.int() - wanted.int()).abs()
    assert int(differences.max()) <= apart and float(differences.float().mean()) < 0.3
    assert not torch.equal(found, images)


def test_a_stream_transformed_later_is_that_of_the_workers_in_parts_and_ranks(run_folder):
    data = open_labelled(
        str(run_folder / "data.parquet"), "train", ClassSet(keys=("red dog", "red cat", "grey sun"), column="concept")
    )
    sources, config = ClassImages(data, PREPROCESS), TransformConfig(padding=2, flip=0.5, erase=0.5)

    def stream(later: bool, rank: int = 0, world: int = 1) -> ClassStream:
        order = EndlessOrder(len(sources), seed=0, batch_size=8, rank=rank, world=world)
        transform = Transform(config, (16, 16), 3)
        return ClassStream(sources, transform, order, seed=3, num_patches=16, transform_later=later)

    wanted = stream(False)[2]
    (parts,) = batches(stream(True), 2, 3, 0, largest_item=3)
    halves = [stream(True, rank, 2)[2].to(torch.device("cpu")) for rank in (0, 1)]
    assert wanted.draws is None and parts.draws is not None and not torch.equal(parts.images, wanted.images)
    assert torch.equal(transformed(parts, config), wanted.images) and torch.equal(parts.targets, wanted.targets)
    assert torch.equal(torch.cat([transformed(half, config) for half in halves]), wanted.images)


def test_what_no_batch_can_do_stays_in_the_workers(run_folder):
    assert not Transform(TransformConfig(rand_augment=9, flip=0.5), FRAME, 0).can_be_later
    assert not Transform(TransformConfig(flip=0.5), FRAME, 0, bits=16).can_be_later
    assert not Transform(TransformConfig(), FRAME, 0).can_be_later
    changes = {"data": {"augment_on": "device"}, "transform": {"rand_augment": 9}}
    with pytest.raises(RecipeError, match="rand_augment"):
        read_recipe(write_vit_recipe(run_folder, **changes), VitRecipe)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padding": -1}, "padding must be 0 or more, got -1"),
        ({"rotate": -1.0}, "rotate must be 0 or more, got -1.0"),
        ({"colour": -0.1}, "colour must be 0 or more"),
        ({"flip": 1.1}, r"flip must be in \[0, 1\]"),
        ({"erase": -0.1}, r"erase must be in \[0, 1\]"),
        ({"scale": (0.0, 1.0)}, r"scale is \(0.0, 1.0\); wanted two shares of the area"),
        ({"scale": (0.6, 0.5)}, "the smaller one first"),
        ({"scale": (0.5, 1.1)}, "wanted two shares of the area"),
        ({"rand_augment": -1}, "rand_augment must be 0 to 30 and fill 0 to 255, got -1 and 0"),
        ({"rand_augment": 31}, "got 31 and 0"),
        ({"fill": -1}, "got 0 and -1"),
        ({"fill": 256}, "got 0 and 256"),
    ],
)
def test_a_transform_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TransformConfig(**settings)
    TransformConfig(scale=(0.5, 0.5), flip=1.0, erase=1.0, rand_augment=30, fill=255)


def test_no_transform_leaves_images_as_they_are():
    images = batch().images
    assert Transform(TransformConfig(), (16, 16), 0)(images, None) is images  # type: ignore[arg-type]
