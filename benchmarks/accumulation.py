"""A batch in chunks: its gradients, beside OpenCLIP's accumulation, and its memory (Linux, one CPU thread).

    python -m benchmarks.accumulation > benchmarks/accumulation.md

OpenCLIP's loop (open_clip_train/train.py, train_one_epoch, accum_freq > 1) is followed line by line on the same model.
Memory is the highest resident size of a process of its own, above that with model and batch in place.
"""

import math
import multiprocessing
import resource
from functools import partial

import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn

from benchmarks.machine import about, resident
from vlm.config import CLIPConfig, TextConfig, VisionConfig, named_size
from vlm.loss import clip_loss
from vlm.models.clip import CLIP
from vlm.training.engine.accumulate import accumulate

SAMPLES = 16


def main() -> None:
    torch.set_num_threads(1)
    print("# Accumulation\n")
    print(about("python -m benchmarks.accumulation", ["torch", "open_clip_torch"], 1))
    print(gradients_table())
    print(memory_table())


def gradients_table() -> str:
    lines = [
        "## Gradients of 16 pairs in m chunks, against the whole batch (float64)\n",
        "| m | who | logit_scale: gradient / whole batch's | other weights: largest relative error of a tensor |",
        "|---:|---|---:|---:|",
    ]
    reference = model()
    (whole,) = chunks(1)
    ClipLoss()(*embed(reference, whole), reference.logit_scale.exp()).backward()
    for m in (1, 2, 4, 8):
        for who, step in (("`vlm.training.engine.accumulate`", ours), ("OpenCLIP", theirs)):
            tried = model()
            step(tried, chunks(m))
            scale, error = compare(tried, reference)
            lines.append(f"| {m} | {who} | {scale:.6f} | {error:.1e} |")
    return "\n".join(lines) + "\n"


def memory_table() -> str:
    lines = [
        "## Memory of a step of `mini`, all patches, float32\n",
        "| pairs of a batch | pairs of a chunk | peak, MiB |",
        "|---:|---:|---:|",
    ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "open_clip.loss", "vlm.models.clip"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        for chunk, batches in ((32, (32, 64, 128, 256)), (64, (64, 128, 256)), (256, (256,))):
            lines += [f"| {batch} | {chunk} | {pool.apply(peak_memory, (batch, chunk)):.0f} |" for batch in batches]
    return "\n".join(lines)


def peak_memory(batch: int, chunk: int) -> float:
    """MiB."""
    torch.set_num_threads(1)
    mini = CLIP(named_size("mini"))
    images, ids = torch.randn(batch, 3, 96, 96), torch.full((batch, 32), 2)
    ours(mini, [(images[:2], ids[:2])])  # what is there once, the weights' gradients too, is not counted
    before = resident()
    ours(mini, [*zip(images.split(chunk), ids.split(chunk), strict=True)])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def ours(model: CLIP, parts: list[tuple[Tensor, Tensor]]) -> None:
    accumulate(model, parts, embed, partial(clip_loss, logit_scale=model.logit_scale), [model.logit_scale])


def theirs(model: CLIP, parts: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        cached = [embed(model, part) for part in parts]
    for j, part in enumerate(parts):
        rows = [*cached[:j], embed(model, part), *cached[j + 1 :]]
        images, texts = (torch.cat(pieces) for pieces in zip(*rows, strict=True))
        ClipLoss()(images, texts, model.logit_scale.exp()).backward()


def model() -> CLIP:
    torch.manual_seed(1)
    vision = VisionConfig(image_size=16, patch_size=4, width=32, depth=2, num_heads=2, mlp_dim=64)
    text = TextConfig(vocab_size=50, context_length=8, width=32, depth=2, num_heads=2, mlp_dim=64, eot_id=49)
    return CLIP(CLIPConfig(embed_dim=16, vision=vision, text=text)).double()


def chunks(count: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(2)
    images = torch.randn(SAMPLES, 3, 16, 16, dtype=torch.float64)
    ids = torch.cat([torch.randint(1, 49, (SAMPLES, 7)), torch.full((SAMPLES, 1), 49)], 1)
    return [*zip(images.chunk(count), ids.chunk(count), strict=True)]


def embed(model: nn.Module, chunk: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return model(*chunk)


def compare(tried: CLIP, reference: CLIP) -> tuple[float, float]:
    """(ratio of the gradients of logit_scale, largest relative error of the other gradients)."""
    expected = {name: p.grad for name, p in reference.named_parameters()}
    scale, error = math.nan, 0.0
    for name, p in tried.named_parameters():
        truth = expected[name]
        assert p.grad is not None
        assert truth is not None
        if name == "logit_scale":
            scale = (p.grad / truth).item()
        else:
            error = max(error, ((p.grad - truth).norm() / truth.norm()).item())
    return scale, error


if __name__ == "__main__":
    main()
