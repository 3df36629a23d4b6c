"""Estimates FLOPs, memory and hours of a run from its sizes.

A FLOP is a multiplication or an addition of a matrix product; all else (norms, GELU, softmax) is not counted.  Those of
the encoders are counted by torch.utils.flop_counter on the meta device, where nothing is computed; attention counts as
its two products, forward and backward.  Letters: D, F, h, E as everywhere; B the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlm.checkpoint.load import load
from vlm.config import CLIPConfig, TextConfig, VisionConfig, named_size
from vlm.errors import InputError
from vlm.loss import CPU_TILE
from vlm.models.clip import CLIP
from vlm.models.packing import Packing
from vlm.tokenizers.load import load_tokenizer
from vlm.training.engine.optim import parameter_groups
from vlm.training.engine.throughput import GPUS, Work
from vlm.training.recipe.config import Recipe

GIB = 2**30


class Passes(NamedTuple):
    """FLOPs of one row, there and back."""

    forward: float
    backward: float  # of weights and of activations

    @property
    def both(self) -> float:
        return self.forward + self.backward


@cache
def image_flops(config: CLIPConfig, kept: int | None = None) -> Passes:
    """FLOPs of one image of which `kept` patches are computed (None: all), the projection into E included."""
    clip, vision = _on_meta(config), config.vision
    images = torch.empty(1, vision.in_channels, *vision.image_shape, device="meta")
    keep = None if kept is None else torch.empty(1, kept, dtype=torch.long, device="meta")
    return _counted(lambda: clip.encode_image(images, keep))


@cache
def text_flops(config: CLIPConfig, tokens: int | None = None) -> Passes:
    """FLOPs of one text of that many tokens (None: a full row), the projection into E included."""
    clip, text = _on_meta(config), config.text
    tokens = text.context_length if tokens is None or text.pad_to_context else tokens
    ids = torch.empty(1, tokens, dtype=torch.long, device="meta")
    packing = None if text.pad_to_context else Packing.of(torch.tensor([tokens])).to(ids.device)
    return _counted(lambda: clip.encode_text(ids, packing))


def _on_meta(config: CLIPConfig) -> CLIP:
    with torch.device("meta"):
        return CLIP(config)


def _counted(forward: Callable[[], torch.Tensor]) -> Passes:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = forward()
        there = counter.get_total_flops()
        out.sum().backward()
    return Passes(there, counter.get_total_flops() - there)


def loss_flops(batch: int, embed_dim: int) -> float:
    """Value and gradients of the tiled loss, all processes: the similarities twice, and each side's gradient once."""
    return 8 * batch**2 * embed_dim


def muon_flops(rows: int, columns: int, iterations: int = 5) -> float:
    """Newton-Schulz of one matrix, two products of (n, m) and one of (n, n) each time, n the shorter side."""
    n, m = sorted((rows, columns))
    return iterations * (4 * n * n * m + 2 * n**3)


def block_bytes(width: int, mlp_dim: int, heads: int, tokens: int, *, half: bool, packed: bool = False) -> float:
    """Bytes that one block stores of one row for the backward pass.

    What enters the two norms, their statistics, and the softmax's denominators stay float32; what enters the four
    linear layers, q, k, v, the attention's output and what enters GELU are float16 or bfloat16 with autocast.  Rows
    packed back to back (texts) keep the attention's output twice.
    """
    wide = tokens * (2 * width + 4 + heads)
    narrow = tokens * ((6 + packed) * width + 2 * mlp_dim)
    return 4 * wide + (2 if half else 4) * narrow


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one optimizer step on each GPU."""

    parameters: int
    trained: int
    vision: Passes  # of one image, on average over the run
    text: Passes  # of one caption
    tokens: int  # of that caption
    rows: int  # images of each GPU
    flops: dict[str, float]  # by what needs them
    memory: dict[str, float]  # bytes, at the fullest moment, by what fills it
    traffic: float  # bytes that leave each GPU


def step_cost(config: CLIPConfig, recipe: Recipe, gpus: int, caption_tokens: int | None = None) -> Cost:
    """`caption_tokens`: of a caption, on average; None: full rows, the most it can be."""
    run, data = recipe.run, recipe.data
    model = _on_meta(config)
    half = run.precision in ("bfloat16", "float16", "auto")
    rows, captions = run.rows_of_a_process(gpus), data.captions_per_image
    patches = data.coarse(config.vision).num_patches
    kept = patches - int(patches * data.patch_dropout)
    fullest = config.vision.num_patches if data.dense_share else kept
    tokens = config.text.context_length if caption_tokens is None else min(caption_tokens, config.text.context_length)
    sparse, dense = (image_flops(config, count) for count in (kept, None))
    vision = Passes(*((1 - data.dense_share) * a + data.dense_share * b for a, b in zip(sparse, dense, strict=True)))
    text = text_flops(config, tokens)
    if recipe.model.lock_vision:
        model.vision.requires_grad_(False)
        model.vision_proj.requires_grad_(False)
        vision = Passes(vision.forward, 0)
    again = (run.accumulate > 1) + run.checkpoint_activations  # forward passes more
    pieces = [piece for p in parameter_groups(model)[0] for piece in _square(p.shape[0], p.shape[1])]
    muon = recipe.optim.matrices == "muon"
    flops = {
        "images": rows * (vision.both + (0 if recipe.model.lock_vision else again) * vision.forward),
        "captions": rows * captions * (text.both + again * text.forward),
        "loss": captions * loss_flops(run.batch_size, config.embed_dim) / gpus,
        "optimizer": sum(muon_flops(*piece) for piece in pieces) if muon else 0.0,
    }

    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    matrices = sum(n * m for n, m in pieces) if muon else 0
    size = 8 if run.precision == "float64" else 4
    cut = gpus if run.shard else 1
    kept_rows = rows / run.accumulate
    keeps = (
        kept_rows * _row_bytes(recipe, config, fullest + config.vision.num_prefix_tokens, tokens, half=half) * size / 4
    )
    embeds = size * config.embed_dim * run.batch_size * (1 + 2 * captions) + 3 * size * CPU_TILE**2
    memory = {
        "weights": size * parameters / cut + (2 * parameters / cut if half else 0),
        "gradients": size * trained / cut * (2 if gpus > 1 and not run.shard else 1),  # DDP sends them in buckets
        "optimizer": size * (2 * trained - matrices) / cut,
        "average of weights": size * trained / cut if run.ema_decay else 0,
        # the updates of Muon exist when activations are gone
        "activations": max(keeps + embeds, 2 * size * matrices),
    }
    traffic = 2 * (gpus - 1) / gpus * 4 * trained + 2 * (gpus - 1) * 4 * rows * captions * config.embed_dim
    return Cost(
        parameters=parameters,
        trained=trained,
        vision=vision,
        text=text,
        tokens=tokens,
        rows=rows,
        flops=flops,
        memory=memory,
        traffic=traffic,
    )


def step_work(config: CLIPConfig, recipe: Recipe, gpus: int, caption_tokens: int | None = None) -> Work:
    """Returns the operations of one step of one process, for the utilisation in a run's log.

    Args:
        config: of the model.
        recipe: of the run.
        gpus: processes that share a batch.
        caption_tokens: of a caption, on average; None: full rows.
    """
    cost = step_cost(config, recipe, gpus, caption_tokens)
    captions = cost.rows * recipe.data.captions_per_image
    image_tokens = recipe.data.coarse(config.vision).num_tokens
    return Work(
        flops=cost.rows * cost.vision.both + captions * cost.text.both,
        tokens=cost.rows * image_tokens + captions * cost.tokens,
    )


def _square(rows: int, columns: int) -> list[tuple[int, int]]:
    """A fused q/k/v weight is three matrices to Muon."""
    return [(columns, columns)] * 3 if rows == 3 * columns else [(rows, columns)]


def _row_bytes(recipe: Recipe, config: CLIPConfig, image_tokens: int, caption_tokens: int, *, half: bool) -> float:
    """Bytes that both encoders store of an image and its captions."""
    total = 0.0
    towers: list[tuple[TextConfig | VisionConfig, int, int, bool]] = [
        (config.text, caption_tokens, recipe.data.captions_per_image, True)
    ]
    if not recipe.model.lock_vision:
        towers.append((config.vision, image_tokens, 1, False))
    for tower, tokens, rows, packed in towers:
        block = block_bytes(tower.width, tower.mlp_dim, tower.num_heads, tokens, half=half, packed=packed)
        enters = 4 * tokens * tower.width
        if recipe.run.checkpoint_activations:
            total += rows * (tower.depth * enters + block)
        else:
            total += rows * tower.depth * block
        total += rows * 2 * enters  # before the first block and behind the last
    return total


def plan(
    config: CLIPConfig,
    recipe: Recipe,
    *,
    gpus: int,
    tflops: float,
    efficiency: float,
    gib: float | None = None,
    caption_tokens: int | None = None,
) -> list[str]:
    """The arithmetic of a whole run, line by line.  `tflops`: a GPU's peak; `efficiency`: the share of it used."""
    if tflops <= 0 or not 0 < efficiency <= 1:
        raise InputError(f"wanted tflops above 0 and efficiency in (0, 1], got {tflops} and {efficiency}.")
    cost = step_cost(config, recipe, gpus, caption_tokens)
    steps, work, total = recipe.run.steps, sum(cost.flops.values()), sum(cost.memory.values())
    seconds = work / (tflops * 1e12 * efficiency)
    hours = steps * seconds / 3600
    of = f" of {gib:.0f}{'' if total <= gib * GIB else ': too much'}" if gib else ""
    memory = " + ".join(f"{name} {size / GIB:.2f}" for name, size in cost.memory.items() if size)
    most = " at most" if caption_tokens is None else ""
    return [
        f"model       {cost.parameters / 1e6:.1f} M parameters, {cost.trained / 1e6:.1f} M of them trained",
        f"image     {_giga(cost.vision.forward)} forward + {_giga(cost.vision.backward)} backward GFLOP",
        f"caption     {_giga(cost.text.forward)} + {_giga(cost.text.backward)} GFLOP, {cost.tokens} tokens{most}",
        f"a step      {recipe.run.batch_size} images, {cost.rows} on each of {gpus} GPUs: "
        + " + ".join(f"{name} {flops / 1e12:.3g}" for name, flops in cost.flops.items() if flops)
        + f" = {work / 1e12:.4g} TFLOP each",
        f"time        {work / 1e12:.4g} TFLOP / ({tflops:g} TFLOP/s x {efficiency:g}) = {seconds:.3g} s a step, "
        f"{recipe.run.batch_size / seconds:.0f} images/s",
        f"all steps   {steps} x {seconds:.3g} s = {hours:.2f} h, {gpus * hours:.1f} GPU-hours",
        f"memory      {memory} = {total / GIB:.1f} GiB{of}, each GPU",
        f"traffic     {cost.traffic / 1e9:.2f} GB sent by each GPU and step; its time is not counted, it hides behind "
        "the backward pass if the network lets it",
        f"assumed     {efficiency:.0%} of the peak. Measured here: nothing of this. Not counted: waiting for data, "
        "validation, what the driver and the allocator keep (1 to 2 GiB)",
    ]


def print_plan(
    recipe: Recipe,
    gpus: int,
    gpu: str | None = None,
    tflops: float | None = None,
    efficiency: float = 0.4,
    caption_tokens: int | None = None,
) -> None:
    """`plan` of a recipe on GPUs of a kind in `GPUS`, or of `tflops` each; `tflops` counts more."""
    kind = GPUS[gpu] if gpu else None
    if tflops is None and kind is None:
        raise InputError(f"Which GPUs? Name one of {', '.join(GPUS)} (--gpu a100), or their peak (--tflops 312).")
    if tflops is None and kind is not None:
        tflops = kind.single_tflops if recipe.run.precision in ("float32", "float64") else kind.half_tflops
    lines = plan(
        _architecture(recipe),
        recipe,
        gpus=gpus,
        tflops=tflops or 0,
        efficiency=efficiency,
        gib=kind.gib if kind else None,
        caption_tokens=caption_tokens,
    )
    print("\n".join(lines))


def _architecture(recipe: Recipe) -> CLIPConfig:
    section = recipe.model
    if section.start is not None:
        return load(section.start, device="cpu").model.config
    if section.tokenizer is None:
        text = named_size(section.size or "mini").text
        return section.architecture(text.vocab_size, text.eot_id, text.pad_id, text.context_length)
    tokenizer = load_tokenizer(Path(section.tokenizer))
    return section.architecture(tokenizer.vocab_size, tokenizer.eot_id, tokenizer.pad_id, tokenizer.context_length)


def _giga(flops: float) -> str:
    return f"{flops / 1e9:.4g}"
