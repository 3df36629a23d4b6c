"""What a CLIP recipe makes: models, what of them learns, data, losses, against their definitions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.messages import refused
from tests.support.tiny_run import write_recipe
from vlm.checkpoint.save import save
from vlm.config import CLIPConfig, PreprocessConfig, TextConfig, VisionConfig
from vlm.embedder import Embedder
from vlm.errors import RecipeError
from vlm.loss import clip_loss, siglip_loss
from vlm.models.clip import CLIP
from vlm.positives import SameThing
from vlm.training.data.formats.table import Table
from vlm.training.data.order import Shuffled
from vlm.training.engine.distributed import SINGLE_PROCESS, Processes
from vlm.training.measure.retrieval import embed_all_images, retrieval_recall
from vlm.training.recipe.config import Recipe
from vlm.training.recipe.reading import read_recipe
from vlm.training.recipe.sections import ModelSection
from vlm.training.tasks.contrastive import (
    _sizes,
    choose_layers,
    contrastive,
    final_rows,
    open_embedder,
    open_order,
    open_pairs_of,
    open_stream,
    ordinary,
)

NOTHING = {"zoom": [1.0, 1.0], "stretch": 0.0, "rotate": 0.0, "shear": 0.0, "shift": 0.0, "colour": 0.0, "hue": 0.0,
           "gray": 0.0, "line": 0.0, "blur": 0.0, "background": 0.0, "erase": 0.0}  # fmt: skip


def recipe(folder: Path, **changes: dict[str, Any]) -> Recipe:
    return read_recipe(write_recipe(folder, **changes))


def sentences(embedder: Embedder, ids: Tensor) -> list[str]:
    """Texts again, of ids (B, c, T)."""
    tokenizer: Any = embedder.tokenizer
    return [tokenizer._model.decode([int(i) for i in row if i > 2]) for row in ids.flatten(0, 1)]


def test_a_new_model_fits_its_tokenizer_reads_as_the_data_say_and_starts_from_its_seed(run_folder, tiny_tokenizer):
    one, same, other = (
        open_embedder(recipe(run_folder, data={"mean": 0.4, "std": 0.2}, run={"seed": seed}), SINGLE_PROCESS)
        for seed in (1, 1, 2)
    )
    expected = PreprocessConfig(image_size=16, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2), to_srgb=True)
    assert one.preprocess.config == expected
    text = one.model.config.text
    assert (text.vocab_size, text.context_length) == (tiny_tokenizer.vocab_size, tiny_tokenizer.context_length)
    assert (text.eot_id, text.pad_id) == (tiny_tokenizer.eot_id, tiny_tokenizer.pad_id)
    qkv = [opened.model.get_parameter("text.blocks.0.attn.qkv.weight") for opened in (one, same, other)]
    assert torch.equal(qkv[0], qkv[1]) and not torch.equal(qkv[0], qkv[2])
    assert {p.dtype for p in one.model.parameters()} == {torch.float32}
    assert one.model.vision.any_size is False
    exact = open_embedder(recipe(run_folder, run={"precision": "float64"}), SINGLE_PROCESS)
    assert {p.dtype for p in exact.model.parameters()} == {torch.float64}
    coarse = open_embedder(recipe(run_folder, data={"coarse_size": 8, "dense_share": 0.5}), SINGLE_PROCESS)
    assert coarse.model.vision.any_size is True
    with pytest.raises(ValueError, match=r"\[model\] tokenizer.*vlm tokenizer"):
        open_embedder(recipe(run_folder, model={"tokenizer": None}), SINGLE_PROCESS)


def test_a_source_may_get_another_tokenizer_but_not_another_loss(run_folder, tiny_clip, tiny_embedder, tmp_path):
    save(tiny_embedder, tmp_path / "clip")
    biased = CLIP(CLIPConfig.from_dict(tiny_clip.config.to_dict() | {"logit_bias": -3.0}))
    save(Embedder(biased, *tiny_embedder.parts()), tmp_path / "siglip")

    def opened(source: str, **model: Any) -> Embedder:
        shape = {"embed_dim": None, "vision": None, "text": None, "source": str(tmp_path / source)}
        return open_embedder(recipe(run_folder, model=shape | model), SINGLE_PROCESS)

    assert torch.equal(opened("clip").model.vision.pos_embed, tiny_clip.vision.pos_embed)
    assert opened("clip").tokenizer(["a dog"]).tolist() == tiny_embedder.tokenizer(["a dog"]).tolist()
    assert opened("siglip", tokenizer=None, loss="siglip").model.logit_bias is not None
    for source, wrong, right in (("clip", "siglip", "clip"), ("siglip", "clip", "siglip")):
        with refused(RecipeError, source, f"loss = '{right}'"):
            opened(source, loss=wrong)


def uneven() -> CLIP:
    """Three blocks for images, one for texts."""
    sizes: Any = {"width": 16, "num_heads": 2, "mlp_dim": 32}
    vision = VisionConfig(image_size=8, patch_size=4, depth=3, pool="attention", **sizes)
    text = TextConfig(vocab_size=20, context_length=6, depth=1, eot_id=2, **sizes)
    return CLIP(CLIPConfig(embed_dim=12, vision=vision, text=text))


@pytest.mark.parametrize(
    ("settings", "learning"),
    [
        ({}, "vision text vision_proj text_proj logit_scale"),
        ({"lock_vision": True}, "text text_proj logit_scale"),
        ({"train_blocks": 0}, "vision.norm vision.pool vision_proj text.norm text_proj logit_scale"),
        (
            {"train_blocks": 2},
            "vision.blocks.1 vision.blocks.2 vision.norm vision.pool text.blocks.0 text.norm vision_proj text_proj "
            "logit_scale",
        ),
        ({"train_blocks": 1, "lock_vision": True}, "text.blocks.0 text.norm text_proj logit_scale"),
    ],
)
def test_what_a_recipe_names_learns_and_nothing_else(settings, learning):
    clip = uneven()
    choose_layers(clip, ModelSection(source="any", **settings))
    parts = tuple(learning.split())
    for name, p in clip.named_parameters():
        assert p.requires_grad == any(name == part or name.startswith(f"{part}.") for part in parts), name


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [
        ({}, {"vision.blocks.0", "vision.blocks.1", "vision.blocks.2", "text.blocks.0"}),
        ({"train_blocks": 1}, {"vision.blocks.2", "text.blocks.0"}),
        ({"lock_vision": True}, {"text.blocks.0"}),
    ],
)
def test_adapters_learn_on_the_blocks_named_and_become_part_of_an_ordinary_model(settings, blocks):
    section, clip = ModelSection(source="any", lora_rank=2, lora_alpha=6, **settings), uneven()
    choose_layers(clip, section)
    learning = [name for name, p in clip.named_parameters() if p.requires_grad]
    assert all(".lora_" in name for name in learning)
    assert {".".join(name.split(".")[:3]) for name in learning} == blocks
    for p in clip.parameters():
        torch.nn.init.normal_(p, std=0.3)
    images, ids = torch.randn(2, 3, 8, 8), torch.tensor([[3, 4, 2, 0, 0, 0], [5, 2, 0, 0, 0, 0]])
    merged = ordinary(clip.config, section, clip.state_dict())
    for ours, theirs in zip(merged(images, ids), clip(images, ids), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in merged.named_parameters()] == [name for name, _ in uneven().named_parameters()]


@pytest.mark.parametrize(("lock", "blocks"), [(False, 3), (True, 1)])
def test_more_blocks_than_learn_are_refused(lock, blocks):
    choose_layers(uneven(), ModelSection(source="any", lock_vision=lock, train_blocks=blocks))
    with refused(RecipeError, f"train_blocks is {blocks + 1}", f"0 to {blocks}"):
        choose_layers(uneven(), ModelSection(source="any", lock_vision=lock, train_blocks=blocks + 1))


def test_how_much_of_a_model_learns_is_said_where_it_is_not_all():
    clip = uneven()
    size = sum(p.numel() for p in clip.parameters())
    assert _sizes(clip) == f"{size / 1e6:.1f} M parameters"
    for p in clip.vision.parameters():
        p.requires_grad_(False)
    rest = size - sum(p.numel() for p in clip.vision.parameters())
    assert _sizes(clip) == f"{size / 1e6:.1f} M parameters, {rest / 1e6:.2f} M of them learn"


def test_a_mixture_goes_on_from_part_to_part_and_is_drawn_by_weight(run_folder):
    data = str(run_folder / "data.parquet")
    parts = [{"path": data, "splits": ["train"]}, {"path": data, "splits": ["validation"], "weight": 3.0}]
    values = recipe(run_folder, run={"seed": 5}).to_dict()
    values["data"] |= {"train": parts, "train_splits": [], "shuffle_window": 7}
    settings = Recipe.from_dict(values)
    embedder = open_embedder(settings, SINGLE_PROCESS)
    pairs = open_pairs_of(settings, embedder)[0]
    assert len(pairs) == 60
    assert [pairs.rows.uid(i) for i in (0, 47, 48, 59)] == [f"{data}: image-{i}" for i in (0, 47, 48, 59)]
    samples = np.array([open_order(settings, pairs).place(number).sample for number in range(1000)])
    assert (samples < 48).sum() == 250
    stream = open_stream(settings, embedder, pairs, SINGLE_PROCESS)
    assert stream[0].uids == [f"{data}: image-{i}" for i in samples[:16]]
    values["data"] |= {"train": data, "train_splits": ["train"]}
    settings = Recipe.from_dict(values)
    pairs = open_pairs_of(settings, embedder)[0]
    places = [open_order(settings, pairs).place(number) for number in range(48)]
    assert sorted(place.sample for place in places) == list(range(48))
    assert len({place.sample // 7 for place in places[:14]}) <= 3  # windows of neighbours


@pytest.mark.parametrize(
    ("data", "window"),
    [({"cache": "none"}, 6), ({"cache": "none", "shuffle_window": 0}, 48), ({"cache": "memory"}, 48)],
)
def test_neighbours_stay_together_where_reading_wants_it_and_the_recipe_says_nothing(
    run_folder, monkeypatch, data, window
):
    monkeypatch.setattr(Table, "run_length", 6)
    settings = recipe(run_folder, data=data)
    pairs = open_pairs_of(settings, open_embedder(settings, SINGLE_PROCESS))[0]
    order = open_order(settings, pairs)
    assert isinstance(order, Shuffled) and (order.count, order.window) == (48, window)


def test_validation_data_are_not_trained_on_by_oversight(run_folder):
    settings = recipe(run_folder, data={"train_splits": []})
    embedder = open_embedder(settings, SINGLE_PROCESS)
    assert len(open_pairs_of(settings, embedder)[0]) == 48  # those called train
    asked = recipe(run_folder, data={"train_splits": ["train", "val"]})
    assert len(open_pairs_of(asked, embedder)[0]) == 60
    said_nothing = recipe(run_folder, data={"train_splits": [], "validation": None, "validation_split": None})
    assert [len(pairs) for pairs in open_pairs_of(said_nothing, embedder)] == [48, 12]


def test_validation_samples_that_cannot_be_used_are_counted_and_the_first_is_named(run_folder, tmp_path, capsys):
    Image.new("RGB", (20, 20)).save(tmp_path / "good.png")
    lines = ["filepath,title", "one.png,a dog", "good.png,a cat", "two.png,a bird"]
    (tmp_path / "some.csv").write_text("\n".join(lines))
    (tmp_path / "none.csv").write_text("\n".join([lines[0], lines[1], lines[3]]))
    some, none = (
        recipe(run_folder, data={"validation": str(tmp_path / name), "validation_split": ""})
        for name in ("some.csv", "none.csv")
    )
    embedder = open_embedder(some, SINGLE_PROCESS)
    assert len(open_pairs_of(some, embedder)[1]) == 1
    assert capsys.readouterr().err.startswith("2 validation samples left out; the first: one.png")
    with pytest.raises(ValueError, match=r"none.csv.*sample.*one.png"):
        open_pairs_of(none, embedder)[1]
    whole = recipe(run_folder, data={"validation_split": ""})
    capsys.readouterr()
    assert len(open_pairs_of(whole, embedder)[1]) == 60
    assert len(open_pairs_of(recipe(run_folder), embedder)[1]) == 12
    assert capsys.readouterr().err == ""


def test_steps_are_sparse_and_coarse_until_the_dense_ones(run_folder):
    data = {"coarse_size": 8, "dense_share": 0.5, "patch_dropout": 0.25, "captions_per_image": 2}
    settings = recipe(run_folder, data=data, augment=NOTHING)
    embedder = open_embedder(settings, SINGLE_PROCESS)
    pairs = open_pairs_of(settings, embedder)[0]
    stream = open_stream(settings, embedder, pairs, SINGLE_PROCESS)
    for step in range(6):
        batch = stream[step]
        assert batch.images.shape == ((16, 3, 8, 8) if step < 3 else (16, 3, 16, 16))
        assert (None if batch.keep is None else batch.keep.shape) == ((16, 3) if step < 3 else None)  # of 4 patches
        assert batch.ids.shape[:2] == (16, 2)
    numbers = {pairs.rows.uid(i): i for i in range(len(pairs))}
    for image, uid in zip(stream[5].images, stream[5].uids, strict=True):
        assert torch.equal(image, pairs.pixels(numbers[uid]))
    halves = [
        open_stream(settings, embedder, pairs, Processes(rank=r, size=2, device=SINGLE_PROCESS.device)) for r in (0, 1)
    ]
    assert [uid for half in halves for uid in half[1].uids] == stream[1].uids


def test_shares_of_the_recipe_choose_the_captions(run_folder):
    def words(**data: Any) -> list[str]:
        settings = recipe(run_folder, data={"keyword_share": 0.0} | data)
        embedder = open_embedder(settings, SINGLE_PROCESS)
        stream = open_stream(settings, embedder, open_pairs_of(settings, embedder)[0], SINGLE_PROCESS)
        return sentences(embedder, stream[0].ids)

    names, keywords, templates = words(), words(keyword_share=1.0), words(template_share=1.0)
    assert any(" " in text for text in names) and not any(" " in text for text in keywords)
    assert sum(map(len, templates)) > 1.3 * sum(map(len, names))


@pytest.mark.parametrize("loss", ["clip", "siglip"])
@pytest.mark.parametrize("chunks", [1, 4])
def test_the_loss_of_a_step_is_that_of_all_its_captions_on_average(run_folder, loss, chunks):
    settings = recipe(
        run_folder,
        model={"loss": loss},
        data={"captions_per_image": 2},
        run={"precision": "float64", "accumulate": chunks},
    )
    embedder = open_embedder(settings, SINGLE_PROCESS)
    clip = embedder.model.eval()
    batch = open_stream(settings, embedder, open_pairs_of(settings, embedder)[0], SINGLE_PROCESS)[0]
    assert SameThing.of(batch.groups, 0, 16).tile(slice(0, 16), slice(0, 16)).sum() > 16  # some show the same
    pixels = embedder.preprocess.normalize(batch.images).double()
    losses = []
    for ids in batch.ids.unbind(1):
        images, texts = clip(pixels, ids, batch.keep)
        if clip.logit_bias is None:
            losses.append(clip_loss(images, texts, clip.logit_scale, batch.groups))
        else:
            losses.append(siglip_loss(images, texts, clip.logit_scale, clip.logit_bias, batch.groups))
    truth = (losses[0] + losses[1]) / 2
    gradients = torch.autograd.grad(truth, list(clip.parameters()))
    found = contrastive(settings, embedder, SINGLE_PROCESS)(clip, batch, 8.0)
    assert found.item() == pytest.approx(truth.item(), rel=1e-10)
    for p, gradient in zip(clip.parameters(), gradients, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, 8 * gradient, rtol=1e-8, atol=1e-10)


def test_a_cards_numbers_are_those_of_the_validation_data(run_folder):
    settings = recipe(run_folder)
    embedder = open_embedder(settings, SINGLE_PROCESS)
    pairs = open_pairs_of(settings, embedder)[1]
    rows = {(row.task, row.language): row for row in final_rows(settings, embedder, pairs)}
    for name, value in retrieval_recall(embedder, pairs).items():
        _, k, language = name.split()
        row = rows[f"text->image {k}", language]
        assert (row.split, row.value) == ("validation", pytest.approx(value))
    assert embed_all_images(embedder, pairs).shape == (12, 8)
