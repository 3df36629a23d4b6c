"""Which weights learn, and LoRA adapters from their start to the ordinary model at the end; whole tiny runs."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vlm
from tests.support.tiny_run import train_file as train
from tests.support.tiny_run import write_recipe
from vlm.config import PreprocessConfig
from vlm.embedder import Embedder
from vlm.images.preprocess import Preprocess
from vlm.models.clip import CLIP
from vlm.training.engine.distributed import SINGLE_PROCESS
from vlm.training.engine.lora import merge_adapters
from vlm.training.engine.muon import Muon
from vlm.training.engine.optim import optimizers
from vlm.training.recipe.reading import read_recipe
from vlm.training.tasks import contrastive
from vlm.training.tasks.contrastive import choose_layers, open_embedder

NEW = {"tokenizer": None, "embed_dim": None, "vision": None, "text": None}
ADAPTED = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


@pytest.fixture(scope="module")
def source(run_folder, tmp_path_factory) -> Path:
    """Any CLIP of ours: a short run's."""
    out = tmp_path_factory.mktemp("source") / "model"
    assert train(write_recipe(run_folder, run={"steps": 2, "eval_every": 2}), out, SINGLE_PROCESS) == 0
    return out


def recipe_from(source: Path, run_folder: Path, model: dict[str, Any], **sections: dict[str, Any]) -> Path:
    return write_recipe(run_folder, model={"source": str(source), **NEW, **model}, **sections)


def opened(source: Path, run_folder: Path, **model: Any) -> CLIP:
    clip = open_embedder(read_recipe(recipe_from(source, run_folder, model)), SINGLE_PROCESS).model
    assert isinstance(clip, CLIP)
    return clip


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: Path, after: Path) -> set[str]:
    """Names of weights that are not the same to the bit; the names themselves must be."""
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {name for name in old if old[name].numpy().tobytes() != new[name].numpy().tobytes()}


def adapted(folder: Path, towers: tuple[str, ...] = ("vision", "text")) -> set[str]:
    return {n for n in weights(folder) if n.startswith(towers) and ".blocks." in n and n.endswith(ADAPTED)}


@torch.no_grad()
def embeds(clip: CLIP) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 3, *clip.config.vision.image_shape, generator=generator)
    ids = torch.randint(3, 100, (5, clip.config.text.context_length), generator=generator)
    ids[:, -1] = clip.config.text.eot_id
    return clip.eval()(images, ids)


def disturb(clip: CLIP) -> None:
    """As if the adapters had learned much."""
    for name, p in clip.named_parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(len(name)))


def test_before_the_first_step_a_model_with_adapters_is_the_source_exactly(source, run_folder):
    saved = vlm.load(source).model
    assert isinstance(saved, CLIP)
    truth, ours = embeds(saved), embeds(opened(source, run_folder, lora_rank=3))
    assert all(torch.equal(a, b) for a, b in zip(truth, ours, strict=True))


def test_merged_adapters_give_what_they_gave_beside_the_weights(source, run_folder):
    clip = opened(source, run_folder, lora_rank=3)
    start = embeds(clip)
    disturb(clip)
    beside = embeds(clip)
    merge_adapters(clip)
    for merged, apart, before in zip(embeds(clip), beside, start, strict=True):
        torch.testing.assert_close(merged, apart, rtol=0, atol=1e-5)
        assert (apart - before).abs().max() > 0.05  # they did learn much
    assert {name: p.shape for name, p in clip.named_parameters()} == {n: w.shape for n, w in weights(source).items()}


def test_a_merged_matrix_is_w_plus_alpha_over_rank_b_a(source, run_folder):
    clip = opened(source, run_folder, lora_rank=4, lora_alpha=6)
    disturb(clip)
    state = {name: weight.clone() for name, weight in clip.state_dict().items()}
    merge_adapters(clip)
    name = "text.blocks.0.mlp.fc1"
    b, a = (state[f"{name}.lora_{half}.default.weight"] for half in "BA")
    assert a.shape == (4, 16) and b.shape == (32, 4)
    truth = state[f"{name}.base_layer.weight"] + 6 / 4 * b @ a
    torch.testing.assert_close(clip.state_dict()[f"{name}.weight"], truth)


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_only_the_adapters_move_and_the_result_is_an_ordinary_folder(source, run_folder, tmp_path, matrices):
    recipe = recipe_from(
        source, run_folder, {"lora_rank": 2}, optim={"matrices": matrices}, run={"steps": 3, "accumulate": 2}
    )
    assert train(recipe, tmp_path / "lora", SINGLE_PROCESS) == 0
    assert changed(source, tmp_path / "lora") == adapted(source)
    assert vlm.load(tmp_path / "lora").embed_texts(["a red dog"]).norm() == pytest.approx(1)
    (last, *_) = sorted((tmp_path / "lora" / "checkpoints").iterdir(), reverse=True)
    saved, before = load_file(last / "tensors.safetensors"), weights(source)
    for name in adapted(source):  # the matrices under the adapters too
        base = saved[f"/model/{name.removesuffix('.weight')}.base_layer.weight"]
        assert base.numpy().tobytes() == before[name].numpy().tobytes()


@pytest.mark.parametrize(
    ("model", "learning"),
    [
        ({"train_blocks": 0}, ("vision.norm", "vision_proj", "text.norm", "text_proj", "logit_scale")),
        (
            {"train_blocks": 1},
            ("vision.blocks.1", "vision.norm", "vision_proj", "text.blocks.0", "text.norm", "text_proj", "logit_scale"),
        ),
        ({"train_blocks": 0, "lock_vision": True}, ("text.norm", "text_proj", "logit_scale")),
    ],
)
def test_only_the_layers_named_learn(source, run_folder, tmp_path, model, learning):
    recipe = recipe_from(source, run_folder, model, run={"steps": 2, "eval_every": 2})
    assert train(recipe, tmp_path / "model", SINGLE_PROCESS) == 0
    moved = changed(source, tmp_path / "model")
    assert {name for name in moved if not name.startswith(learning)} == set()
    assert {part for part in learning if not any(name.startswith(part) for name in moved)} == set()


def test_adapters_follow_train_and_lock_vision(source, run_folder):
    for model, places in (
        ({"train_blocks": 1}, ("vision.blocks.1.", "text.blocks.0.")),
        ({"lock_vision": True}, ("text.blocks.0.",)),
    ):
        clip = opened(source, run_folder, lora_rank=2, **model)
        learning = {name for name, p in clip.named_parameters() if p.requires_grad}
        assert all(".lora_" in name for name in learning)
        assert {name.split("attn")[0].split("mlp")[0] for name in learning} == set(places)


def test_muon_leaves_adapters_to_adamw(source, run_folder):
    recipe = read_recipe(recipe_from(source, run_folder, {"lora_rank": 2}, optim={"matrices": "muon"}))
    found = optimizers(open_embedder(recipe, SINGLE_PROCESS).model, recipe.optim)
    assert [type(optimizer) for optimizer in found] == [torch.optim.AdamW]
    assert sum(len(group["params"]) for group in found[0].param_groups) == 2 * len(adapted(source))
    recipe = read_recipe(recipe_from(source, run_folder, {}, optim={"matrices": "muon"}))
    assert any(isinstance(o, Muon) for o in optimizers(open_embedder(recipe, SINGLE_PROCESS).model, recipe.optim))


def test_a_stopped_run_with_adapters_goes_on_to_the_same_end_to_the_bit(source, run_folder, tmp_path, monkeypatch):
    def stop_and_measure(*arguments: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return measure(*arguments)

    measure = contrastive.retrieval_recall
    recipe = recipe_from(source, run_folder, {"lora_rank": 2, "train_blocks": 1}, run={"accumulate": 2})
    assert train(recipe, tmp_path / "whole", SINGLE_PROCESS) == 0
    monkeypatch.setattr(contrastive, "retrieval_recall", stop_and_measure)
    assert train(recipe, tmp_path / "stopped", SINGLE_PROCESS) == 75
    monkeypatch.setattr(contrastive, "retrieval_recall", measure)
    torch.manual_seed(12345)
    assert train(recipe, tmp_path / "stopped", SINGLE_PROCESS, resume=True) == 0
    for name in ("model.safetensors", "metrics.jsonl", "checkpoints/step-00000006/tensors.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_model_of_openclip_is_tuned_like_one_of_ours(tiny_clip, tiny_tokenizer, tmp_path, run_folder):
    vision = replace(tiny_clip.config.vision, pre_norm=True, patch_bias=False)
    ours = Embedder(
        CLIP(replace(tiny_clip.config, vision=vision)), tiny_tokenizer, Preprocess(PreprocessConfig(image_size=32))
    )
    vlm.export(ours, tmp_path / "openclip", "openclip")
    source = tmp_path / "openclip"
    recipe = recipe_from(source, run_folder, {"lora_rank": 2}, run={"steps": 2, "eval_every": 2})
    assert train(recipe, tmp_path / "tuned", SINGLE_PROCESS) == 0
    vlm.save(vlm.load(source), tmp_path / "before")
    assert changed(tmp_path / "before", tmp_path / "tuned") == adapted(tmp_path / "before")


def test_choosing_layers_of_a_new_model_leaves_all_learning(tiny_clip: CLIP, source, run_folder):
    choose_layers(tiny_clip, read_recipe(write_recipe(run_folder)).model)
    assert all(p.requires_grad for p in tiny_clip.parameters())
