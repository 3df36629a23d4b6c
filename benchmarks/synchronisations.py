"""How often the host would wait for a GPU: in each encoder, and in a training step between two logged ones.

    python -m benchmarks.synchronisations            a minute on one CPU thread; no GPU is needed

Operations for which the host waits (`.item()`, `nonzero`, masks as indices, copies to the CPU) are counted with a
dispatch mode, see benchmarks/operations.py: the encoders on the CPU and on the meta device, where such an operation
raises; training steps on the CPU, forward, backward, optimizer, average and log.  Beside them the commit before this
count existed needed 4 in a text encoder of 12 layers for each layer, and 3 in every step.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.operations import Operations, count
from vlm.config import CLIPConfig, TextConfig, VisionConfig
from vlm.loss import clip_loss
from vlm.models.clip import CLIP
from vlm.training.data.pair_stream import PairBatch
from vlm.training.engine.distributed import SINGLE_PROCESS
from vlm.training.engine.loop import fit
from vlm.training.recipe.config import Recipe

BATCH, LOG_EVERY, STEPS = 8, 10, 20
EOT = 2


def small_clip(depth: int = 12, pool: str = "class") -> CLIP:
    """12 layers, as B/32 has them; narrow, since only operations are counted."""
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": depth, "num_heads": 2, "mlp_dim": 64}
    vision = VisionConfig.from_dict({"image_size": 32, "patch_size": 8, "pool": pool, **sizes})
    text = TextConfig.from_dict({"vocab_size": 100, "context_length": 16, "eot_id": EOT, **sizes})
    return CLIP(CLIPConfig(embed_dim=16, vision=vision, text=text))


def batch(step: int) -> PairBatch:
    """Images and captions of 3 to 16 tokens."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator)
    ids = torch.randint(3, 100, (BATCH, 1, 16), generator=generator)
    ids[torch.arange(BATCH), 0, torch.randint(2, 16, (BATCH,), generator=generator)] = EOT
    return PairBatch(images, ids, torch.arange(BATCH), None, [f"{step}/{i}" for i in range(BATCH)])


class Batches:
    """A `Stream` of these batches."""

    def __getitem__(self, step: int) -> PairBatch:
        return batch(step)


def encoders() -> dict[str, tuple[Counter[str], str]]:
    """What each encoder asks, forward and backward, on the CPU; and whether it runs on the meta device."""
    found: dict[str, tuple[Counter[str], str]] = {}
    for pool in ("class", "mean", "attention"):
        model, images = small_clip(pool=pool), batch(0).images / 255
        on_cpu = count(lambda model=model, images=images: model.encode_image(images).sum().backward()).synchronisations
        found[f"image encoder, pool {pool}"] = on_cpu, on_meta(lambda m, b: m.encode_image(b.images / 255), pool)
    model, ids = small_clip(), batch(0).ids[:, 0]
    packing = model.text.packing(ids)
    assert packing is not None
    packed = count(lambda: model.encode_text(ids, packing).sum().backward()).synchronisations
    found["text encoder, packed"] = (
        packed,
        on_meta(lambda m, b: m.encode_text(b.ids[:, 0], packing.to(torch.device("meta"))), "class"),
    )
    padded = count(lambda: model.text._padded(ids).sum().backward()).synchronisations
    found["text encoder, padded rows"] = padded, on_meta(lambda m, b: m.encode_text(b.ids[:, 0]), "class")
    return found


def on_meta(encode: Callable[[CLIP, PairBatch], Tensor], pool: str) -> str:
    """ "runs" where nothing needs a number on the host."""
    model, some = small_clip(pool=pool).to("meta"), batch(0)
    some = some._replace(images=some.images.to("meta"), ids=some.ids.to("meta"))
    encode(model, some).sum().backward()
    return "runs"


def steps(precision: str, matrices: str) -> list[int]:
    """Synchronisations of each step of a run that logs every LOG_EVERY."""
    model = small_clip(depth=2)
    counts: list[int] = []

    def backward(model: nn.Module, batch: PairBatch, scale: Tensor | float) -> Tensor:
        assert isinstance(model, CLIP)
        ids = batch.ids[:, 0]
        images, texts = model(batch.images / 255, ids, None, model.text.packing(ids))
        loss = clip_loss(images, texts, model.logit_scale, batch.groups)
        (scale * loss).backward()
        return loss.detach()

    seen = Operations()

    class Counted(Batches):
        """Notes the count whenever the next batch is asked for."""

        def __getitem__(self, step: int) -> PairBatch:
            counts.append(seen.synchronisations.total())
            return super().__getitem__(step)

    run = {"steps": STEPS, "batch_size": BATCH, "log_every": LOG_EVERY, "save_every": 1000, "eval_every": 1000}
    sections = {
        "task": "clip",
        "run": run | {"precision": precision, "ema_decay": 0.9},
        "data": {"train": "none", "validation": "none", "workers": 0},
        "optim": {"matrices": matrices},
    }
    recipe = Recipe.from_dict(sections)
    with tempfile.TemporaryDirectory() as folder, seen:
        out, chance = Path(folder), 2.0
        options = {"processes": SINGLE_PROCESS, "chance_loss": chance, "resume": False}
        fit(model, backward, Counted(), lambda _: {}, recipe, out, **options)  # type: ignore[arg-type]
        assert json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["step"] == LOG_EVERY
    return [after - before for before, after in pairwise(counts)]


def main() -> None:
    print("| forward and backward | synchronisations, CPU | meta device |\n|---|---:|---|")
    for name, (found, meta) in encoders().items():
        print(f"| {name} | {found.total()} | {meta} |")
    print("\n| training step | most between two logged steps | of a logged step |\n|---|---:|---:|")
    for precision in ("float32", "bfloat16", "float16"):
        for matrices in ("adamw", "muon"):
            found = steps(precision, matrices)
            print(f"| {precision}, {matrices} | {max(found[: LOG_EVERY - 1])} | {found[LOG_EVERY - 1]} |")


if __name__ == "__main__":
    main()
