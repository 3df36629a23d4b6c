import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.messages import refused
from vlm.config import PreprocessConfig, VisionConfig, named_size
from vlm.errors import RecipeError
from vlm.training.recipe.config import LoopRecipe, Recipe, VitRecipe
from vlm.training.recipe.reading import read_any_recipe
from vlm.training.recipe.sections import DataSection, ModelSection, OptimSection, SourceSection

RECIPES = sorted((Path(__file__).parents[3] / "training" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_read_and_its_model_can_be_built(path: Path):
    recipe = read_any_recipe(path)
    if isinstance(recipe, VitRecipe):
        assert recipe.model.start is not None or recipe.model.architecture().num_patches > 1
        return
    if recipe.model.tokenizer is not None:
        recipe.model.architecture(4096, 2, 0, 32)


def test_a_recipe_survives_the_way_through_plain_values():
    recipe = Recipe.from_dict({"run": {"steps": 7}, "optim": {"betas": [0.5, 0.6]}, "data": {"train_splits": ["a"]}})
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.differences(json.loads(json.dumps(recipe.to_dict()))) == []


def test_differences_name_the_setting_and_both_values():
    mixture = [{"path": "a", "splits": ["x"]}, {"path": "b"}]
    recipe = Recipe.from_dict({"optim": {"lr": 0.5}, "run": {"keep": 3}, "data": {"train": mixture}})
    before = Recipe.from_dict({"optim": {"lr": 0.25}, "run": {"steps": 7}, "data": {"train": mixture}}).to_dict()
    assert recipe.differences(before) == ["optim.lr: 0.5, was 0.25", "run.steps: 200, was 7", "run.keep: 3, was 2"]


def test_a_setting_that_an_older_recipe_did_not_have_has_not_changed():
    before = Recipe().to_dict()
    del before["run"]["shard"], before["augment"]
    assert Recipe().differences(before) == []


NEW = {"size": "mini"}  # a model from nothing


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"run": {"stepz": 3}}, ["stepz", "steps"]),
        ({"run": {"steps": 0}}, ["steps", "positive", "0"]),
        ({"run": {"batch_size": 10, "accumulate": 4}}, ["batch_size 10", "accumulate = 4"]),
        ({"run": {"precision": "float8"}}, ["precision", "float8", "float32, bfloat16"]),
        ({"run": {"seed": -1}}, ["seed", "-1"]),
        ({"run": {"ema_decay": 1.0}}, ["ema_decay", "[0, 1)", "1.0"]),
        ({"run": {"shard": True}}, ["muon", "shard", "matrices = 'adamw'"]),
        ({"optim": {"matrices": "adam"}}, ["matrices", "'adam'", "muon, adamw"]),
        ({"optim": {"layer_decay": 0.0}}, ["layer_decay", "(0, 1]", "0.0"]),
        ({"optim": {"layer_decay": 1.5}}, ["layer_decay", "(0, 1]", "1.5"]),
        ({"optim": {"lr": 0.0}}, ["lr", "positive", "0.0"]),
        ({"optim": {"betas": [0.9, 1.0]}}, ["betas", "[0, 1)", "(0.9, 1.0)"]),
        ({"optim": {"betas": [-0.1, 0.9]}}, ["betas", "[0, 1)", "(-0.1, 0.9)"]),
        ({"optim": {"final_lr": 2.0}}, ["final_lr", "[0, 1]", "2.0"]),
        ({"augment": {"zoom": [0.0, 1.0]}}, ["zoom", "(0.0, 1.0)", "positive"]),
        ({"augment": {"erase": 3.0}}, ["erase", "[0, 1]", "3.0"]),
        ({"data": {"keyword_share": -0.1}}, ["keyword_share", "[0, 1]", "-0.1"]),
        ({"data": {"patch_dropout": 1.0}}, ["patch_dropout", "[0, 1)", "1.0"]),
        ({"data": {"mean": [0.5, 0.5]}}, ["mean", "2 values", "3 channels"]),
        ({"data": {"std": 0.0}}, ["std", "positive"]),
        ({"data": {"coarse_size": 48}}, ["coarse_size", "48", "dense_share"]),
        ({"data": {"coarse_size": -8, "dense_share": 0.5}}, ["coarse_size", "-8"]),
        ({"data": {"train": [{"path": "a"}, {"path": "b", "weight": 0}, {"path": "c"}]}}, ["weight", "positive"]),
        ({"model": NEW | {"lock_vision": True}}, ["lock_vision", "[model] source"]),
        ({"model": {"source": "mini", "embed_dim": 8}}, ["embed_dim", "source"]),
        ({"model": {"source": "mini", "vision": {"depth": 2}}}, ["vision", "source"]),
        ({"model": {"source": "mini", "text": {"depth": 2}}}, ["text", "source"]),
        ({"model": {"source": "mini", "size": "B/32"}}, ["size", "source"]),
        ({"model": {"loss": "cosine"}}, ["loss", "cosine", "clip, siglip"]),
        ({"model": {"source": "mini", "train_blocks": -1}}, ["train_blocks", "-1"]),
        ({"model": {"lora_rank": -1}}, ["lora_rank", "lora_alpha", "-1 and 16"]),
        ({"model": {"lora_alpha": 0}}, ["lora_rank", "lora_alpha", "0 and 0"]),
        ({"model": {"source": "mini", "lora_rank": 2, "train_blocks": 0}}, ["lora_rank", "train_blocks = 0"]),
        ({"model": NEW | {"lora_rank": 2}}, ["lora_rank", "[model] source"]),
        ({"model": NEW | {"train_blocks": 0}}, ["train_blocks", "[model] source"]),
        ({"run": {"batch_size": 1}}, ["batch_size is 1", "contrastive"]),
        ({"data": {"train": [{"path": "a"}], "held_out": 5}}, ["mixture", "validation"]),
        ({"data": {"held_out": 5, "validation": "y"}}, ["held_out", "validation"]),
        ({"task": "vit"}, ["task", "vit", "clip"]),
        ({"run": {"steps": 500, "epochs": 2}}, ["steps = 500", "epochs = 2", "Leave out one"]),
        ({"run": {"epochs": 0.5, "steps": 200}}, ["steps = 200", "epochs = 0.5", "Leave out one"]),
        ({"run": {"steps": 50}, "optim": {"warmup_steps": 51}}, ["51", "50 steps", "98%", "warmup_steps = 5,"]),
        ({"run": {"steps": 3}, "optim": {"warmup_steps": 10}}, ["10", "3 steps", "30%", "warmup_steps = 1,"]),
        ({"data": {"balance": "sqrt", "shuffle_window": 9}}, ["balance", "shuffle_window"]),
        ({"data": {"balance": "sqrt", "train": [{"path": "a"}, {"path": "b"}]}}, ["balance", "mixture"]),
        ({"data": {"balance": "root"}}, ["balance", "root", "none, sqrt, equal"]),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_what_to_do(values: dict[str, Any], facts: list[str]):
    with refused(ValueError, *facts):
        Recipe.from_dict(values)


HELD_OUT = {"train": "x", "held_out": 5}
NEW_VIT = {"vision": {"width": 64, "num_heads": 4}}


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"data": {}}, ["[data] train"]),
        ({"data": HELD_OUT | {"validation_split": "y"}}, ["held_out", "validation"]),
        ({"data": HELD_OUT | {"validation": "y"}}, ["held_out", "validation"]),
        ({"model": NEW_VIT | {"head": "zero_shot"}}, ["head", "[model] source"]),
        ({"model": NEW_VIT | {"num_heads": 2}}, ["num_heads", "[model] source"]),
        ({"model": NEW_VIT | {"train_blocks": 0}}, ["train_blocks", "[model] source"]),
        (
            {"model": {"source": "mini", "vision": {"width": 8, "dropout": 0.1, "depth": 2}}},
            ["depth, width", "only drop_path, dropout, image_size"],
        ),
        ({"transform": {"flipp": 1.0}}, ["flipp", "'flip'"]),
        ({"task": "clip"}, ["task", "clip", "vit"]),
    ],
)
def test_a_wrong_recipe_of_a_classifier_is_one_line(changes: dict[str, Any], facts: list[str]):
    with refused(ValueError, *facts):
        VitRecipe.from_dict({"data": HELD_OUT} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"train": "x", "validation": "y"}},
        {"data": {"train": "x", "validation_split": "y"}},
        {"model": {"source": "mini", "head": "zero_shot", "num_heads": 2, "train_blocks": 0}},
        {"model": {"source": "mini", "vision": {"image_size": 32, "dropout": 0.1, "drop_path": 0.1}}},
        {"model": {"vision": {"width": 64, "num_heads": 4}}},
        {"model": {"head": "zero_shot", "train_blocks": 1}},  # of the bundled model
    ],
)
def test_what_a_classifier_can_be_made_of_is_accepted(changes: dict[str, Any]):
    plan = {"data": HELD_OUT} | changes
    found = VitRecipe.from_dict(plan).to_dict()
    assert all(found[section][name] == value for section in plan for name, value in plan[section].items())


RANGES = {  # (refused, taken) at the ends
    "positive": ([-1, 0], [1]),
    "at least 0": ([-1], [0]),
    "share": ([-0.01, 1.01], [0.0, 1.0]),
    "fraction": ([-0.01, 1.0], [0.0, 0.99]),
}
BOTH = [
    ("run", "steps accumulate eval_every save_every keep log_every", "positive"),
    ("optim", "lr muon_lr clip_norm max_logit_scale", "positive"),
    ("optim", "warmup_steps weight_decay muon_decay", "at least 0"),
    ("optim", "final_lr", "share"),
    ("run", "ema_decay", "fraction"),
    ("run", "seed", "at least 0"),
    ("data", "workers", "at least 0"),
    ("data", "max_broken", "share"),
    ("data", "patch_dropout dense_share", "fraction"),
]
OF_CLIP = [
    ("data", "captions_per_image", "positive"),
    ("data", "shuffle_window", "at least 0"),
    ("data", "keyword_share template_share kana_share", "share"),
]
OF_CLASSIFIER = [
    ("loss", "label_smoothing", "fraction"),
    ("loss", "mixup cutmix", "at least 0"),
    ("loss", "mix_share", "share"),
]


@pytest.mark.parametrize(
    ("kind", "section", "names", "allowed"),
    [(Recipe, *row) for row in BOTH + OF_CLIP] + [(VitRecipe, *row) for row in BOTH + OF_CLASSIFIER],
)
def test_numbers_end_where_they_lose_their_meaning(kind: type[LoopRecipe], section: str, names: str, allowed: str):
    start = {"data": HELD_OUT} if kind is VitRecipe else {}
    refused, taken = RANGES[allowed]
    for name in names.split():
        for value in taken:
            recipe = kind.from_dict(start | {section: start.get(section, {}) | {name: value}})
            assert recipe.to_dict()[section][name] == value
        for value in refused:
            with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value}"):
                kind.from_dict(start | {section: start.get(section, {}) | {name: value}})


def test_siglip_starts_where_its_paper_does():
    config = ModelSection(loss="siglip").architecture(100, 2, 0, 16)
    assert config.logit_bias == -10
    assert math.exp(config.logit_scale) == pytest.approx(10)
    assert ModelSection().architecture(100, 2, 0, 16).logit_bias is None


def test_a_size_can_be_changed_in_parts():
    section = ModelSection(size="B/32", vision={"depth": 3}, text={"width": 64, "num_heads": 4})
    config, size = section.architecture(100, 7, 3, 16), named_size("B/32")
    ids = {"vocab_size": 100, "eot_id": 7, "pad_id": 3, "context_length": 16}
    assert config.vision == dataclasses.replace(size.vision, depth=3)
    assert config.text == dataclasses.replace(size.text, width=64, num_heads=4, **ids)
    assert (config.embed_dim, config.logit_scale) == (size.embed_dim, size.logit_scale)
    assert dataclasses.replace(section, embed_dim=32).architecture(100, 2, 0, 16).embed_dim == 32
    assert ModelSection(text=ids).architecture(200, 9, 5, 32).text == ModelSection().architecture(**ids).text


@pytest.mark.parametrize(
    ("section", "start"),
    [({}, "mini"), ({"source": "x"}, "x"), ({"size": "mini"}, None), ({"tokenizer": "t"}, None),
     ({"embed_dim": 8}, None), ({"vision": {"depth": 2}}, None), ({"text": {"depth": 2}}, None)],
)  # fmt: skip
def test_a_recipe_that_describes_no_model_starts_from_the_bundled_one(section: dict[str, Any], start: str | None):
    assert ModelSection.from_dict(section).start == start


def test_images_of_a_new_model_are_cropped_and_have_the_usual_colours_unless_a_recipe_says_otherwise():
    assert DataSection().preprocessing(32) == PreprocessConfig(image_size=32, to_srgb=True)
    own = DataSection(resize="squash", mean=0.75, std=(0.1, 0.2, 0.3)).preprocessing((32, 48))
    mean, std = (0.75, 0.75, 0.75), (0.1, 0.2, 0.3)
    assert own == PreprocessConfig(image_size=(32, 48), resize="squash", mean=mean, std=std, to_srgb=True)


def test_validation_data_are_described_like_training_data():
    data = DataSection(train="a", columns={"image": "photo"}, root="r", validation_split="v")
    assert data.validation_source("a") == SourceSection(path="a", splits=("v",), columns={"image": "photo"}, root="r")
    other = dataclasses.replace(data, validation="b", validation_columns={}, validation_root="s", validation_split="")
    assert other.validation_source("a") == SourceSection(path="b", columns={}, root="s")


def test_training_data_of_one_part_is_a_mixture_of_one():
    one = DataSection(train="a", train_splits=("x", "y"), columns={"image": "file"}, root="r")
    assert one.sources == (SourceSection(path="a", splits=("x", "y"), columns={"image": "file"}, root="r"),)
    parts = (SourceSection(path="a"), SourceSection(path="b", weight=2.0))
    assert DataSection(train=parts).sources == parts


def test_coarse_images_are_smaller_than_the_models_on_both_sides():
    model = VisionConfig(image_size=(48, 32), patch_size=8)
    assert DataSection().coarse(model) == model
    assert DataSection(coarse_size=24).coarse(model) == dataclasses.replace(model, image_size=24)
    for side in (32, 40):
        with pytest.raises(ValueError, match=rf"coarse_size.*{side}.*model's images.*\(48, 32\)"):
            DataSection(coarse_size=side).coarse(model)


@pytest.mark.parametrize("kind", [Recipe, VitRecipe])
def test_the_loop_reads_every_kind_of_recipe_alike(kind: type[LoopRecipe]):
    data = HELD_OUT if kind is VitRecipe else {}
    recipe = kind.from_dict({"data": data | {"workers": 3, "dense_share": 0.3}, "run": {"steps": 10}})
    assert (recipe.workers, recipe.dense_share, recipe.dense_from) == (3, 0.3, 7)
    assert kind.from_dict({"data": data}).dense_from == 200  # none
    with pytest.raises(TypeError, match=r"abstract.*dense_share.*workers"):
        LoopRecipe()  # type: ignore[abstract]


def test_what_a_recipe_does_not_ask_for_is_not_done():
    """Adapters, locks, averages, patches left out, samples mixed, captions rewritten, layers slowed ..."""
    recipe, vit = Recipe(), VitRecipe.from_dict({"data": HELD_OUT})
    run, model, data, loss = recipe.run, recipe.model, recipe.data, vit.loss
    assert not any((run.checkpoint_activations, run.compile, run.shard, run.ema_decay))
    assert not any((model.source, model.lock_vision, model.lora_rank, vit.model.source, vit.model.num_heads))
    assert not any((data.patch_dropout, data.coarse_size, data.dense_share, data.shuffle_window))
    assert not any((data.template_share, data.kana_share, vit.data.patch_dropout, vit.data.dense_share))
    assert not any((loss.label_smoothing, loss.mixup, loss.cutmix, vit.transform.flip, vit.transform.erase))
    assert recipe.augment.flip == 0  # there is text in images, and left is not right
    assert recipe.augment.line == recipe.augment.background == recipe.augment.erase == 0  # these suit drawings
    assert run.accumulate == data.captions_per_image == recipe.optim.layer_decay == SourceSection(path="").weight == 1
    assert loss.mix_share == 1  # once asked for, every step mixes


def test_numbers_of_the_paper_are_those_of_the_paper():
    """Radford et al. 2021: table 19, Adam's betas for ViTs; section 2.5, logits are never scaled by more than 100."""
    assert (Recipe().optim.betas, Recipe().optim.max_logit_scale) == ((0.9, 0.98), 100)


@pytest.mark.parametrize(("epochs", "samples", "steps"), [(1, 1000, 8), (3, 1000, 24), (0.5, 1000, 4), (1, 10, 1)])
def test_epochs_make_the_steps_that_show_all_samples_so_often(epochs: float, samples: int, steps: int):
    recipe = Recipe.from_dict({"run": {"epochs": epochs, "batch_size": 128}})
    assert recipe.of_length(samples).run.steps == steps
    assert f"{steps:,} steps of 128" in recipe.of_length(samples).length(samples)
    assert Recipe.from_dict({"run": {"steps": 7}}).of_length(samples).run.steps == 7


@pytest.mark.parametrize("kind", [Recipe, VitRecipe])
def test_a_warm_up_is_compared_with_the_steps_that_epochs_make(kind: type[LoopRecipe]):
    """3 epochs of 100 samples in batches of 10 are 30 steps."""
    values = {"data": {"train": "x"}, "run": {"epochs": 3, "batch_size": 10}}
    assert kind.from_dict(values | {"optim": {"warmup_steps": 30}}).of_length(100).run.steps == 30
    with refused(RecipeError, "31", "30 steps", "warmup_steps = 3,"):
        kind.from_dict(values | {"optim": {"warmup_steps": 31}}).of_length(100)
    assert kind.from_dict(values).of_length(100).optim.warmup(30) == 3
    assert OptimSection().warmup(5000) == 100
    assert kind.from_dict(kind.from_dict(values).to_dict()) == kind.from_dict(values)
