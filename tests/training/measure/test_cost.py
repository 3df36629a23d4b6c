"""Arithmetic against what torch counts, on the meta device where it can: nothing is computed for it."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.support.tiny_run import write_recipe
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.config import CLIPConfig, TextConfig, VisionConfig, named_size
from vlm.models.clip import CLIP
from vlm.models.layers import Block
from vlm.models.packing import PackedRows, Packing
from vlm.tokenizers.load import load_tokenizer
from vlm.training.engine.muon import orthogonalise
from vlm.training.engine.optim import optimizers
from vlm.training.measure.cost import (
    Cost,
    block_bytes,
    image_flops,
    loss_flops,
    muon_flops,
    plan,
    print_plan,
    step_cost,
    text_flops,
)
from vlm.training.recipe.config import Recipe
from vlm.training.recipe.reading import read_recipe
from vlm.training.recipe.sections import ModelSection, OptimSection

SIZES = ["mini", "B/32", "B/16", "L/14"]


def counted(function) -> int:
    """FLOPs of matrix products, attention written out, as torch counts them."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def by_hand(config: VisionConfig | TextConfig, tokens: int) -> float:
    """Forward through the blocks, one row: 2 n (4 D D + 2 D F) in the linear layers, 4 n n D in the attention.

    All tokens of the last block are read, and where one is pooled, only its query, projection and MLP are computed.
    """
    D, F = config.width, config.mlp_dim

    def block(asking: int) -> int:
        return 2 * tokens * 3 * D**2 + 2 * asking * (D**2 + 2 * D * F) + 4 * asking * tokens * D

    return (config.depth - 1) * block(tokens) + block(1 if config.pool in ("class", "eot", "last") else tokens)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kept", [None, 10])
def test_flops_of_images_are_those_of_the_formula(size, kept):
    config = named_size(size)
    vision, E = config.vision, config.embed_dim
    patches = kept or vision.num_patches
    cut = 2 * patches * 3 * vision.patch_size**2 * vision.width
    forward = cut + by_hand(vision, patches + vision.num_prefix_tokens) + 2 * vision.width * E
    work = image_flops(config, kept)
    assert work.forward == pytest.approx(forward, rel=0.01)
    assert work.backward == pytest.approx(2 * forward - cut, rel=0.01)  # pixels need no gradient


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [None, 9])
def test_flops_of_texts_are_those_of_the_formula(size, tokens):
    config = named_size(size)
    forward = by_hand(config.text, tokens or config.text.context_length) + 2 * config.text.width * config.embed_dim
    work = text_flops(config, tokens)
    assert work.forward == pytest.approx(forward, rel=0.01)
    assert work.backward == pytest.approx(2 * forward, rel=0.01)


def test_flops_of_other_kinds_of_encoders_are_those_torch_counts_of_real_numbers(monkeypatch):
    monkeypatch.setattr("vlm.models.linear.mkl_holds_back", lambda: False)  # no rows of zeros that fill oneDNN's blocks
    sizes = VisionConfig(image_size=64, patch_size=8, width=64, depth=3, num_heads=4, mlp_dim=200)
    words = TextConfig(width=16, num_heads=2, depth=2, vocab_size=300, eot_id=1)
    padded = replace(words, pad_to_context=True, causal=False, pool="last")
    for vision, text in ((replace(sizes, pool="attention", class_token=False), words),
                         (replace(sizes, pool="mean"), padded)):  # fmt: skip
        clip = CLIP(CLIPConfig(embed_dim=48, vision=vision, text=text))
        images, keep = torch.zeros(4, 3, 64, 64), torch.arange(20).expand(4, -1)
        both = counted(lambda clip=clip, p=images, k=keep: clip.encode_image(p, k).sum().backward())
        assert 4 * image_flops(clip.config, 20).both == pytest.approx(both, rel=0.01)
        ids = torch.full((2, 9), 5)
        ids[:, -1] = 1
        both = counted(lambda clip=clip, ids=ids: clip.encode_text(ids).sum().backward())
        assert 2 * text_flops(clip.config, 9).both == pytest.approx(both, rel=0.01)


@pytest.mark.parametrize("early", [{"coarse_size": 32}, {"patch_dropout": 0.75}])
def test_dense_steps_cost_their_share_of_time_and_all_of_their_memory(early):
    vision = VisionConfig(image_size=64, patch_size=8, width=64, depth=3, num_heads=4, mlp_dim=200)
    config = CLIPConfig(embed_dim=48, vision=vision, text=TextConfig(width=16, num_heads=2, depth=1))

    def cost(config: CLIPConfig, **data: object) -> Cost:
        return step_cost(config, Recipe.from_dict({"data": data, "optim": {"matrices": "adamw"}}), 1)

    sixteen = cost(replace(config, vision=replace(vision, image_size=32)))  # patches of 64
    found, whole = cost(config, dense_share=0.1, **early), cost(config)
    images = [one.flops["images"] for one in (found, sixteen, whole)]
    assert images[0] == pytest.approx(0.9 * images[1] + 0.1 * images[2])
    assert found.memory["activations"] == whole.memory["activations"] > sixteen.memory["activations"]


def test_the_tiled_loss_computes_the_similarities_once_more_than_the_dense_one():
    images, texts = torch.randn(2, 192, 32).unbind(0)

    def dense() -> None:
        logits = images.requires_grad_() @ texts.requires_grad_().T
        (F.cross_entropy(logits, torch.arange(192)) + F.cross_entropy(logits.T, torch.arange(192))).backward()

    assert loss_flops(192, 32) == counted(dense) + 2 * 192 * 192 * 32


def test_flops_of_muon_are_those_torch_counts():
    for rows, columns in ((24, 24), (24, 96), (96, 24)):
        assert muon_flops(rows, columns) == counted(lambda n=rows, m=columns: orthogonalise(torch.randn(1, n, m)))


def kept_bytes(block: torch.nn.Module, z: torch.Tensor, *args: PackedRows) -> int:
    """Of all storages that autograd holds, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in block.parameters()}
    held: dict[int, int] = {}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (alive.append(t), hold(t))[1], lambda t: t):
        block(z, *args)
    return sum(held.values())


@pytest.mark.parametrize("packed", [False, True])
def test_what_a_block_keeps_is_what_autograd_holds(packed):
    B, n, D, F, h = 3, 40, 64, 256, 4
    block = Block(D, h, F, activation="gelu", norm_eps=1e-5, causal=packed)
    z = torch.randn(B * n, D) if packed else torch.randn(B, n, D)
    found = kept_bytes(block, z.requires_grad_(), *([PackedRows(Packing.of(torch.full((B,), n)))] if packed else []))
    assert B * block_bytes(D, F, h, n, half=False, packed=packed) == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_memory_of_weights_and_optimizer_is_what_they_hold(run_folder, matrices):
    recipe = read_recipe(write_recipe(run_folder, optim={"matrices": matrices}, run={"ema_decay": 0.9}))
    config = named_size("mini")
    clip = CLIP(config)
    steppers = optimizers(clip, OptimSection(matrices=matrices))
    for p in clip.parameters():
        p.grad = torch.zeros_like(p)
    for stepper in steppers:
        stepper.step()
    tensors = [t for s in steppers for state in s.state.values() for t in state.values() if torch.is_tensor(t)]
    memory = step_cost(config, recipe, 1).memory
    assert memory["optimizer"] == pytest.approx(sum(t.nbytes for t in tensors if t.ndim), rel=1e-3)
    assert memory["weights"] == memory["gradients"] == sum(p.nbytes for p in clip.parameters())


def test_what_is_cut_into_pieces_takes_less_memory_and_what_is_computed_twice_more_time(run_folder):
    config = named_size("B/32")

    def cost(gpus: int = 1, **run: object):
        recipe = read_recipe(write_recipe(run_folder, optim={"matrices": "adamw"}, run={"batch_size": 64, **run}))
        return step_cost(config, recipe, gpus)

    whole, eight, chunked = cost(), cost(8), cost(accumulate=8)
    assert sum(eight.flops.values()) == pytest.approx(sum(whole.flops.values()) / 8, rel=1e-6)
    assert cost(8, shard=True).memory["weights"] == pytest.approx(whole.memory["weights"] / 8)
    assert chunked.memory["activations"] < whole.memory["activations"] / 4
    forward = 64 * (whole.vision.forward + whole.text.forward)
    assert sum(chunked.flops.values()) - sum(whole.flops.values()) == pytest.approx(forward)
    assert cost(checkpoint_activations=True).memory["activations"] < whole.memory["activations"] / 4
    half = cost(precision="bfloat16").memory["activations"]
    assert whole.memory["activations"] / 2 < half < whole.memory["activations"]


def cost_of(gpus: int = 1, caption_tokens: int | None = None, **sections: dict[str, object]) -> Cost:
    sections["optim"] = {"matrices": "adamw"} | sections.get("optim", {})
    sections["run"] = {"batch_size": 64, "precision": "float32"} | sections.get("run", {})
    return step_cost(named_size("B/32"), Recipe.from_dict(sections), gpus, caption_tokens)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_locked_image_tower_is_computed_once_and_keeps_nothing(accumulate):
    run: dict[str, object] = {"accumulate": accumulate}
    free, locked = cost_of(run=run), cost_of(run=run, model={"source": "any", "lock_vision": True})
    with torch.device("meta"):
        clip = CLIP(named_size("B/32"))
    still = sum(p.numel() for part in (clip.vision, clip.vision_proj) for p in part.parameters())
    assert (locked.parameters, locked.trained) == (free.parameters, free.trained - still)
    assert locked.flops["images"] == 64 * free.vision.forward
    assert locked.flops["captions"] == free.flops["captions"]
    tower, tokens = named_size("B/32").vision, 50  # 7 x 7 patches and the class
    block = block_bytes(tower.width, tower.mlp_dim, tower.num_heads, tokens, half=False)
    kept = 12 * block + 2 * 4 * tokens * tower.width  # what enters the first block and leaves the last too
    difference = free.memory["activations"] - locked.memory["activations"]
    assert difference == pytest.approx(64 / accumulate * kept)
    assert locked.memory["gradients"] == 4 * locked.trained
    assert locked.memory["optimizer"] == 2 * 4 * locked.trained


def test_memory_goes_by_the_bytes_of_a_number_and_the_copies_kept():
    single = cost_of()
    for precision, weights in (("float16", 6), ("bfloat16", 6), ("float32", 4), ("float64", 8)):
        assert cost_of(run={"precision": precision}).memory["weights"] == weights * single.parameters
    assert cost_of(run={"precision": "float64"}).memory["activations"] == 2 * single.memory["activations"]
    assert single.memory["average of weights"] == 0
    assert cost_of(run={"ema_decay": 0.9}).memory["average of weights"] == 4 * single.parameters
    two, cut = cost_of(2), cost_of(2, run={"shard": True, "ema_decay": 0.9, "precision": "bfloat16"})
    assert two.memory["gradients"] == 2 * 4 * single.trained  # and DDP's buckets
    assert two.memory["weights"] == single.memory["weights"]
    assert [cut.memory[name] / single.parameters for name in ("weights", "gradients", "optimizer")] == [3, 2, 4]
    assert cut.memory["average of weights"] == 2 * single.parameters


def test_each_caption_more_costs_its_own_tower_and_its_own_loss():
    one, three = cost_of(), cost_of(data={"captions_per_image": 3})
    assert three.flops["captions"] == pytest.approx(3 * one.flops["captions"])
    assert three.flops["loss"] == pytest.approx(3 * one.flops["loss"])
    assert three.flops["images"] == one.flops["images"]
    assert three.memory["activations"] > one.memory["activations"]
    short, long = cost_of(caption_tokens=9), cost_of(caption_tokens=999)
    assert (short.tokens, long.tokens, one.tokens) == (9, 77, 77)
    assert short.flops["captions"] < one.flops["captions"] / 7 and long == one


def test_what_is_sent_is_a_ring_of_gradients_and_the_embeddings_there_and_back():
    """All-reduce: 2 (g - 1) / g of 4-byte gradients; gather and reduce-scatter: own rows to g - 1 others, twice."""
    assert cost_of().traffic == 0
    for gpus, captions in ((2, 1), (4, 1), (4, 2)):
        found = cost_of(gpus, data={"captions_per_image": captions})
        assert found.rows == 64 // gpus
        rows = 2 * (gpus - 1) * found.rows * captions * 512 * 4
        assert found.traffic == pytest.approx(2 * (gpus - 1) / gpus * 4 * found.trained + rows)


def number(line: str, pattern: str) -> float:
    found = re.search(pattern, line)
    assert found is not None, line
    return float(found[1])


def test_every_line_of_a_plan_adds_up():
    sections = {
        "run": {"batch_size": 64, "steps": 1000, "ema_decay": 0.9},
        "model": {"source": "any", "lock_vision": True},
    }
    recipe, config = Recipe.from_dict(sections), named_size("B/32")
    cost = step_cost(config, recipe, 4)
    total = sum(cost.memory.values()) / 2**30
    lines = plan(config, recipe, gpus=4, tflops=50, efficiency=0.5, gib=total + 0.001)
    model, image, caption, step, time, steps, memory, traffic, assumed = lines
    assert f"{cost.parameters / 1e6:.1f} M parameters, {cost.trained / 1e6:.1f} M of them" in model
    assert number(image, r"([\d.]+) forward") == pytest.approx(cost.vision.forward / 1e9, rel=1e-3)
    assert number(image, r"([\d.]+) backward") == 0
    assert number(caption, r" ([\d.]+) \+") == pytest.approx(cost.text.forward / 1e9, rel=1e-3)
    assert number(caption, r"\+ ([\d.]+) GFLOP, 77 tokens at most$") == pytest.approx(
        cost.text.backward / 1e9, rel=1e-3
    )
    assert " 64 images, 16 on each of 4 GPUs: images " in step
    work = sum(cost.flops.values())
    parts = [float(part) for part in re.findall(r"(?:images|captions|loss|optimizer) ([\d.e-]+)", step)]
    assert len(parts) == 4 and sum(parts) == pytest.approx(work / 1e12, rel=0.01)
    assert number(step, r"= ([\d.]+) TFLOP") == pytest.approx(work / 1e12, rel=1e-3)
    seconds = work / (50e12 * 0.5)
    assert number(time, r"= ([\d.e-]+) s a step") == pytest.approx(seconds, rel=0.01)
    assert number(time, r", (\d+) images/s") == pytest.approx(64 / seconds, rel=0.01)
    assert number(steps, r"= ([\d.]+) h") == pytest.approx(1000 * seconds / 3600, abs=0.006)
    assert number(steps, r"h, ([\d.]+) GPU-hours") == pytest.approx(4 * 1000 * seconds / 3600, abs=0.06)
    sizes = [float(size) for size in re.findall(r"[a-z] ([\d.]+)", memory.split("=")[0])]
    assert sum(sizes) == pytest.approx(total, abs=0.03)
    assert number(memory, r"= ([\d.]+) GiB") == pytest.approx(total, abs=0.06)
    assert memory.endswith(f" GiB of {total:.0f}, each GPU")
    assert number(traffic, r"([\d.]+) GB") == pytest.approx(cost.traffic / 1e9, abs=0.006)
    assert "50% of the peak" in assumed
    full = plan(config, recipe, gpus=4, tflops=50, efficiency=1, gib=total - 0.001)
    assert full[6].endswith(f" of {total:.0f}: too much, each GPU")
    short = plan(config, recipe, gpus=4, tflops=50, efficiency=1, caption_tokens=20)
    assert short[2].endswith(" GFLOP, 20 tokens")
    assert plan(config, recipe, gpus=4, tflops=50, efficiency=1)[6].endswith(" GiB, each GPU")
    for tflops, efficiency in ((0, 0.5), (50, 0), (50, 1.01)):
        with pytest.raises(ValueError, match=rf"efficiency.*\(0, 1\].*{tflops}.*{efficiency}"):
            plan(config, recipe, gpus=4, tflops=tflops, efficiency=efficiency)


def test_a_plan_is_of_the_model_the_recipe_names(tiny_embedder, run_folder, tmp_path, capsys):
    save(tiny_embedder, tmp_path / "clip")
    new: dict[str, object] = {"tokenizer": None, "embed_dim": None, "vision": None, "text": None}
    shaped = {
        "vision": {"image_size": 16, "patch_size": 4, "width": 512, "num_heads": 2, "depth": 2},
        "text": None,
        "size": "mini",
    }
    tokenizer = load_tokenizer(run_folder / "tokenizer")
    of_tokenizer = (tokenizer.vocab_size, tokenizer.eot_id, tokenizer.pad_id, tokenizer.context_length)
    for model, config in (
        (new | {"source": str(tmp_path / "clip")}, tiny_embedder.model.config),
        (new | {"size": "B/32"}, named_size("B/32")),
        (shaped, ModelSection(embed_dim=8, vision=shaped["vision"]).architecture(*of_tokenizer)),  # type: ignore[arg-type]
    ):
        print_plan(read_recipe(write_recipe(run_folder, model=model)), 1, "l4")
        with torch.device("meta"):
            size = sum(p.numel() for p in CLIP(config).parameters())
        assert f"{size / 1e6:.1f} M parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("precision", "words", "peak"),
    [
        ("float32", {"gpu": "a100"}, "19.5"),
        ("float64", {"gpu": "l4"}, "30.3"),
        ("auto", {"gpu": "h100"}, "989"),
        ("float16", {"gpu": "l4"}, "121"),
        ("float16", {"gpu": "l4", "tflops": 7.5}, "7.5"),
        ("float32", {"tflops": 7.5}, "7.5"),
    ],
)
def test_the_peak_is_that_of_the_datasheet_for_the_precision_unless_told(run_folder, capsys, precision, words, peak):
    print_plan(read_recipe(write_recipe(run_folder, run={"precision": precision})), 1, **words)
    out = capsys.readouterr().out
    assert f"TFLOP / ({peak} TFLOP/s x 0.4)" in out
    assert (" GiB of " in out) == ("gpu" in words)


def test_the_plan_is_arithmetic_that_a_reader_can_repeat(run_folder):
    recipe = read_recipe(write_recipe(run_folder, run={"batch_size": 64, "steps": 1000, "precision": "bfloat16"}))
    config = named_size("B/16")
    lines = plan(config, recipe, gpus=8, tflops=312, efficiency=0.4, gib=80)
    cost = step_cost(config, recipe, 8)
    seconds = sum(cost.flops.values()) / (312e12 * 0.4)
    text = "\n".join(lines)
    assert f"= {seconds:.3g} s a step" in text
    assert f"{8 * seconds * 1000 / 3600:.1f} GPU-hours" in text
    assert "Measured here: nothing of this" in text
    with pytest.raises(ValueError, match=r"efficiency in \(0, 1\], got 312 and 2"):
        plan(config, recipe, gpus=8, tflops=312, efficiency=2)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    return main(["train", *words])


def test_a_dry_run_for_gpus_that_are_not_here_trains_nothing(run_folder, tmp_path, monkeypatch, capsys):
    recipe = write_recipe(run_folder, model={"size": "B/16", "vision": None, "text": None, "embed_dim": None},
                          data={"train": "nowhere"}, run={"batch_size": 4096, "precision": "auto"})  # fmt: skip
    assert run(monkeypatch, str(recipe), "--dry-run", "--gpus", "8", "--gpu", "a100", "--caption-tokens", "12") == 0
    out = capsys.readouterr().out
    assert "TFLOP / (312 TFLOP/s x 0.4)" in out
    assert "512 on each of 8 GPUs" in out
    assert "12 tokens\n" in out
    assert run(monkeypatch, str(recipe), "--dry-run", "--gpus", "8", "--tflops", "100", "--efficiency", "0.5") == 0
    assert "TFLOP / (100 TFLOP/s x 0.5)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "8"], "vlm: error: Which GPUs? Name one of a100, h100, h200, l4 (--gpu a100)"),
        (["--gpus", "3", "--gpu", "a100"], "vlm: error: batch_size 16 cannot be cut into"),
        (["--gpus", "0", "--gpu", "a100"], "vlm: error: batch_size 16 cannot be cut into"),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_line_and_code_1(run_folder, monkeypatch, capsys, words, message):
    assert run(monkeypatch, str(write_recipe(run_folder)), "--dry-run", *words) == 1
    err = capsys.readouterr().err
    assert err.startswith(message) and err.count("\n") == 1
