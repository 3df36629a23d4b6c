"""Gradients of a batch in m chunks against those of the whole batch, beside OpenCLIP's accumulation.

    python -m benchmarks.accumulation > benchmarks/accumulation.md

float64, no dropout, one CPU thread.  OpenCLIP's loop (open_clip_train/train.py, train_one_epoch, accum_freq > 1) is
followed line by line on the same model.
"""

import datetime
import math
from functools import partial
from importlib.metadata import version

import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn

from training.accumulate import accumulate
from vlm.clip import CLIP
from vlm.config import CLIPConfig, TextConfig, VisionConfig
from vlm.loss import clip_loss

SAMPLES = 16


def main() -> None:
    torch.set_num_threads(1)
    reference = model()
    (whole,) = chunks(1)
    ClipLoss()(*embed(reference, whole), reference.logit_scale.exp()).backward()
    print("# Accumulation in m chunks: what becomes of the gradients of the whole batch\n")
    print(f"{datetime.date.today()}, torch {torch.__version__}, open_clip_torch {version('open_clip_torch')}, float64;")
    print("`python -m benchmarks.accumulation`\n")
    print("| m | who | logit_scale: gradient / whole batch's | other weights: largest relative error of a tensor |")
    print("|---:|---|---:|---:|")
    for m in (1, 2, 4, 8):
        for who, step in (("`training.accumulate`", ours), ("OpenCLIP", theirs)):
            tried = model()
            step(tried, chunks(m))
            scale, error = compare(tried, reference)
            print(f"| {m} | {who} | {scale:.6f} | {error:.1e} |")


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
        assert p.grad is not None and truth is not None
        if name == "logit_scale":
            scale = (p.grad / truth).item()
        else:
            error = max(error, ((p.grad - truth).norm() / truth.norm()).item())
    return scale, error


if __name__ == "__main__":
    main()
