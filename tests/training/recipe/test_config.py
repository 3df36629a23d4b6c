import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from vlm.config import VisionConfig, named_size
from vlm.errors import RecipeError
from vlm.training.data.augment import AugmentConfig
from vlm.training.recipe.config import (
    DataSection,
    LoopRecipe,
    ModelSection,
    Recipe,
    SourceSection,
    VitRecipe,
    read_any_recipe,
    read_recipe,
)

RECIPES = sorted((Path(__file__).parents[3] / "training" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_read_and_its_model_can_be_built(path):
    recipe = read_any_recipe(path)
    if isinstance(recipe, VitRecipe):
        assert recipe.model.source is not None or recipe.model.architecture().num_patches > 1
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


def test_what_an_older_recipe_did_not_have_was_none():
    before = Recipe().to_dict()
    del before["run"]["shard"], before["augment"]
    new = [f"augment.{name}: " for name in AugmentConfig().to_dict()]
    found = Recipe().differences(before)
    assert found[0] == "run.shard: False, was None"
    assert [line.split(": ")[0] + ": " for line in found[1:]] == new


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run": {"stepz": 3}}, "no setting 'stepz'. Did you mean 'steps'"),
        ({"run": {"steps": 0}}, "steps must be positive, got 0"),
        ({"run": {"batch_size": 10, "accumulate": 4}}, "batch_size 10 does not divide into accumulate = 4"),
        ({"run": {"precision": "float8"}}, "precision is 'float8'; it must be one of float32, bfloat16"),
        ({"run": {"seed": -1}}, "seed must be 0 or more, got -1"),
        ({"run": {"ema_decay": 1.0}}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"run": {"shard": True}}, "'muon' needs whole matrices, shard = true cuts them. Use matrices = 'adamw'"),
        ({"optim": {"matrices": "adam"}}, "matrices is 'adam'; it must be one of muon, adamw"),
        ({"optim": {"layer_decay": 0.0}}, r"layer_decay must be in \(0, 1\], got 0.0"),
        ({"optim": {"lr": 0.0}}, "lr must be positive, got 0.0"),
        ({"optim": {"layer_decay": 1.5}}, r"layer_decay must be in \(0, 1\], got 1.5"),
        ({"optim": {"betas": [0.9, 1.0]}}, r"betas must both be in \[0, 1\), got \(0.9, 1.0\)"),
        ({"optim": {"betas": [-0.1, 0.9]}}, r"betas must both be in \[0, 1\), got \(-0.1, 0.9\)"),
        ({"optim": {"final_lr": 2.0}}, r"final_lr must be in \[0, 1\], got 2.0"),
        ({"augment": {"zoom": [0.0, 1.0]}}, r"zoom is \(0.0, 1.0\); wanted two positive factors"),
        ({"augment": {"erase": 3.0}}, r"erase must be in \[0, 1\], got 3.0"),
        ({"data": {"keyword_share": -0.1}}, r"keyword_share must be in \[0, 1\], got -0.1"),
        ({"data": {"patch_dropout": 1.0}}, r"patch_dropout must be in \[0, 1\), got 1.0"),
        (
            {"data": {"coarse_size": 48}},
            "coarse_size is 48; it must be 0 or a side in pixels, and then dense_share",
        ),
        ({"data": {"coarse_size": -8, "dense_share": 0.5}}, "coarse_size is -8; it must be 0 or a side in pixels"),
        ({"data": {"train": [{"path": "a"}, {"path": "b", "weight": 0}, {"path": "c"}]}}, "weight must be positive"),
        ({"model": {"lock_vision": True}}, "lock_vision keeps a trained image tower as it is: name one"),
        ({"model": {"source": "mini", "embed_dim": 8}}, "source brings its own"),
        ({"model": {"source": "mini", "vision": {"depth": 2}}}, "source brings its own"),
        ({"model": {"source": "mini", "text": {"depth": 2}}}, "source brings its own"),
        ({"model": {"loss": "cosine"}}, "loss is 'cosine'; it must be one of clip, siglip"),
        ({"model": {"train": "blocks"}}, "train is 'blocks'; it must be 'all', 'heads' or the like of 'last-2'"),
        ({"model": {"source": "mini", "train": "last-0"}}, "train is 'last-0'"),
        ({"model": {"lora_rank": -1}}, "lora_rank must be 0 or more and lora_alpha 1 or more, got -1 and 16"),
        ({"model": {"lora_alpha": 0}}, "lora_rank must be 0 or more and lora_alpha 1 or more, got 0 and 0"),
        ({"model": {"source": "mini", "lora_rank": 2, "train": "heads"}}, "train = 'heads' names none"),
        ({"model": {"lora_rank": 2}}, "train and lora_rank are about a trained model: name one"),
        ({"model": {"train": "heads"}}, "train and lora_rank are about a trained model: name one"),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_what_to_do(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        Recipe.from_dict(values)
    assert "\n" not in str(caught.value)


HELD_OUT = {"train": "x", "held_out": 5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {}}, "names no data"),
        ({"data": {"train": "x"}}, "what to validate on"),
        ({"data": HELD_OUT | {"validation_split": "y"}}, "what to validate on"),
        ({"data": HELD_OUT | {"validation": "y"}}, "what to validate on"),
        ({"model": {"head": "names"}}, r"name one, \[model\] source"),
        ({"model": {"num_heads": 2}}, r"name one, \[model\] source"),
        ({"model": {"train_blocks": 0}}, r"name one, \[model\] source"),
        (
            {"model": {"source": "mini", "vision": {"width": 8, "dropout": 0.1, "depth": 2}}},
            "^depth, width cannot be changed in a trained model; only drop_path, dropout, image_size.$",
        ),
        ({"transform": {"flipp": 1.0}}, "Did you mean 'flip'"),
    ],
)
def test_a_wrong_recipe_of_a_classifier_is_one_line(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        VitRecipe.from_dict({"data": HELD_OUT} | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"train": "x", "validation": "y"}},
        {"data": {"train": "x", "validation_split": "y"}},
        {"model": {"source": "mini", "head": "names", "num_heads": 2, "train_blocks": 0}},
        {"model": {"source": "mini", "vision": {"image_size": 32, "dropout": 0.1, "drop_path": 0.1}}},
        {"model": {"vision": {"width": 64, "num_heads": 4}}},
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
    ("run", "steps batch_size accumulate eval_every save_every keep log_every", "positive"),
    ("optim", "lr muon_lr clip_norm max_logit_scale", "positive"),
    ("optim", "warmup_steps weight_decay muon_decay", "at least 0"),
    ("optim", "final_lr", "share"),
    ("run", "ema_decay", "fraction"),
    ("run", "seed", "at least 0"),
    ("data", "workers", "at least 0"),
    ("data", "max_broken", "share"),
    ("data", "patch_dropout dense_share", "fraction"),
    ("data", "std", "positive"),
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


def test_an_unreadable_recipe_is_one_line_with_its_name(tmp_path):
    with pytest.raises(ValueError, match=r"There is no recipe .*none\.toml"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[run\nsteps = 3")
    with pytest.raises(ValueError, match=r"bad\.toml: "):
        read_recipe(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes("[run] # für".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.toml: .*can't decode"):
        read_recipe(tmp_path / "latin.toml")
    with pytest.raises(ValueError, match=rf"{tmp_path.name}: .*(directory|denied)"):
        read_recipe(tmp_path)
    (tmp_path / "wrong.toml").write_text("task = 'clip'\n[run]\nsteps = 'many'")
    with pytest.raises(ValueError, match=r"wrong\.toml: .*steps is 'many'; wanted int"):
        read_recipe(tmp_path / "wrong.toml")


@pytest.mark.parametrize("top", ["", 'task = "clipp"\n', "[run]\ntask = 'clip'\n", "task = 3\n"])
def test_a_recipe_without_a_task_asks_for_one(tmp_path, top):
    (tmp_path / "recipe.toml").write_text(top)
    with pytest.raises(RecipeError, match=r'recipe\.toml.*task = "clip".*task = "vit"'):
        read_any_recipe(tmp_path / "recipe.toml")


def test_a_recipe_of_another_task_is_refused_by_its_name(tmp_path):
    (tmp_path / "recipe.toml").write_text("task = 'clip'\n")
    with pytest.raises(RecipeError, match=r'recipe\.toml.*task = "clip"'):
        read_recipe(tmp_path / "recipe.toml", VitRecipe)


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


def test_what_learns_is_a_number_of_blocks():
    sections = [ModelSection(source="mini", train=train) for train in ("all", "heads", "last-1", "last-10")]
    assert [section.train_blocks for section in sections] == [None, 0, 1, 10]
    assert ModelSection(source="mini", lora_rank=1, lora_alpha=1, train="last-2").train_blocks == 2


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
        with pytest.raises(ValueError, match=rf"coarse_size is {side}; the model's images are \(48, 32\)\. Less"):
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
    assert run.accumulate == data.captions_per_image == recipe.optim.layer_decay == SourceSection(path="").weight == 1
    assert loss.mix_share == 1  # once asked for, every step mixes


def test_numbers_of_the_paper_are_those_of_the_paper():
    """Radford et al. 2021: table 19, Adam's betas for ViTs; section 2.5, logits are never scaled by more than 100."""
    assert (Recipe().optim.betas, Recipe().optim.max_logit_scale) == ((0.9, 0.98), 100)
