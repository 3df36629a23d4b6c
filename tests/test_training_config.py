import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from training.config import ModelSection, Recipe, VitRecipe, read_recipe

RECIPES = sorted((Path(__file__).parent.parent / "training" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_read_and_its_model_can_be_built(path):
    if "python -m training.train_vit" in path.read_text(encoding="utf-8"):
        model = read_recipe(path, VitRecipe).model
        assert model.source is not None or model.architecture().num_patches > 1
        return
    recipe = read_recipe(path)
    if recipe.model.tokenizer is not None:
        recipe.model.architecture(4096, 2, 0, 32)


def test_a_recipe_survives_the_way_through_plain_values():
    recipe = Recipe.from_dict({"run": {"steps": 7}, "optim": {"betas": [0.5, 0.6]}, "data": {"train_splits": ["a"]}})
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.differences(json.loads(json.dumps(recipe.to_dict()))) == []


def test_differences_name_the_setting_and_both_values():
    recipe = Recipe.from_dict({"optim": {"lr": 0.5}})
    before = Recipe.from_dict({"optim": {"lr": 0.25}}).to_dict()
    assert recipe.differences(before) == ["optim.lr: 0.5, was 0.25"]


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
        ({"optim": {"betas": [0.9, 1.0]}}, r"betas must both be in \[0, 1\), got \(0.9, 1.0\)"),
        ({"optim": {"final_lr": 2.0}}, r"final_lr must be in \[0, 1\], got 2.0"),
        ({"augment": {"zoom": [0.0, 1.0]}}, r"zoom is \(0.0, 1.0\); wanted two positive factors"),
        ({"augment": {"erase": 3.0}}, r"erase must be in \[0, 1\], got 3.0"),
        ({"data": {"keyword_share": -0.1}}, r"keyword_share must be in \[0, 1\], got -0.1"),
        ({"data": {"patch_dropout": 1.0}}, r"patch_dropout must be in \[0, 1\), got 1.0"),
        (
            {"data": {"coarse_size": 48}},
            "coarse_size is 48; it must be 0 or a side in pixels, and then dense_share",
        ),
        ({"model": {"lock_vision": True}}, "lock_vision keeps a trained picture tower as it is: name one"),
        ({"model": {"source": "mini", "embed_dim": 8}}, "source brings its own"),
        ({"model": {"loss": "cosine"}}, "loss is 'cosine'; it must be one of clip, siglip"),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_what_to_do(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        Recipe.from_dict(values)
    assert "\n" not in str(caught.value)


def test_an_unreadable_recipe_is_one_line_with_its_name(tmp_path):
    with pytest.raises(ValueError, match=r"There is no recipe .*none\.toml"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[run\nsteps = 3")
    with pytest.raises(ValueError, match=r"bad\.toml: "):
        read_recipe(tmp_path / "bad.toml")
    (tmp_path / "wrong.toml").write_text("[run]\nsteps = 'many'")
    with pytest.raises(ValueError, match=r"wrong\.toml: .*steps is 'many'; wanted int"):
        read_recipe(tmp_path / "wrong.toml")


def test_siglip_starts_where_its_paper_does():
    config = ModelSection(loss="siglip").architecture(100, 2, 0, 16)
    assert config.logit_bias == -10
    assert config.logit_scale == pytest.approx(2.302585)
    assert ModelSection().architecture(100, 2, 0, 16).logit_bias is None


def test_a_size_can_be_changed_in_parts():
    section = ModelSection(size="B/32", vision={"depth": 3}, text={"width": 64, "num_heads": 4})
    config = section.architecture(100, 2, 0, 16)
    assert (config.vision.depth, config.vision.width, config.text.width, config.text.vocab_size) == (3, 768, 64, 100)
    assert dataclasses.replace(section, embed_dim=32).architecture(100, 2, 0, 16).embed_dim == 32
