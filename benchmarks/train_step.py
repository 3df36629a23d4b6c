"""One training step, from a batch in memory to new weights: the trainer of this library beside OpenCLIP's.

    python -m benchmarks.train_step > benchmarks/train_step.md      (--quick: 2 rounds; --device cuda: on a GPU)

Each library has a process of its own, which holds the same weights and gets the same batches: images of noise, real
English captions. The two take turns, a step each. Ours is `Training.step` of training/engine/loop.py. OpenCLIP's
follows `train_one_epoch` and `main` of open_clip_train line by line: model, `ClipLoss`, AdamW, --grad-clip-norm 1,
ids padded to 77. Both: float32, AdamW, the same learning rate. Before the first step their gradients are compared.
"""

import argparse
import dataclasses
import json
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LR, BETAS, EPS, WEIGHT_DECAY, CLIP_NORM = 1e-5, (0.9, 0.98), 1e-8, 0.1, 1.0
BATCHES = 4  # different ones, over and over
CONTEXT = 77


@dataclass(frozen=True)
class Case:
    name: str
    size: str  # of vlm.named_size
    batch_size: int
    keywords: int  # behind each name; chosen so that a caption has 15 ids
    patch_dropout: float = 0.0


CASES = (
    Case("ViT-B/32, batch 16", "B/32", 16, 5),
    Case("`mini`, batch 32", "mini", 32, 3),
    Case("`mini`, batch 32, patch dropout 50 %", "mini", 32, 3, 0.5),
)


class Worker(NamedTuple):
    """What a process of its own can be asked for."""

    gradients: Callable[[Path], None]  # of the first batch, into a file
    step: Callable[[int], float]  # seconds
    peak: Callable[[], float]  # MiB so far


def main() -> None:
    from benchmarks.machine import about
    from benchmarks.side_by_side import QUICK_ROUNDS, ROUNDS, ratios

    parser = argparse.ArgumentParser(description="A training step beside OpenCLIP's.")
    parser.add_argument("--quick", action="store_true", help="2 rounds")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    print(f"# A training step, context {CONTEXT}, float32\n")
    command = "python -m benchmarks.train_step" + " --quick" * options.quick
    print(about(command, ["torch", "open_clip_torch"], options.threads))
    print(f"{rounds} rounds, in turns. Memory: the highest resident size of the process, libraries included.\n")
    print(
        "| step | ids a caption, mean | OpenCLIP, ms: median, best | vlm, ms: median, best | ratio, median of rounds ",
        end="",
    )
    print("| smallest to largest | best / best | peak memory, MiB: OpenCLIP, vlm | share | gradients apart |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            mean = write_case(case, Path(folder))
            found = measure(case, Path(folder), rounds, options.device, options.threads)
        theirs, ours = found["OpenCLIP"], found["vlm"]
        apart = f"{found['apart']:.0e}" if case.patch_dropout == 0 else "other patches"
        beside = ratios(theirs[0], ours[0])
        cells = [
            case.name,
            f"{mean:.1f}",
            *(f"{_median(taken) * 1e3:.0f}, {min(taken) * 1e3:.0f}" for taken, _ in (theirs, ours)),
            f"{_median(beside):.2f}",
            f"{beside[0]:.2f} to {beside[-1]:.2f}",
            f"{min(theirs[0]) / min(ours[0]):.2f}",
            f"{theirs[1]:.0f}, {ours[1]:.0f}",
            f"{ours[1] / theirs[1]:.2f}",
            apart,
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def write_case(case: Case, folder: Path) -> float:
    """The same weights for both, and batches; returns the mean number of ids of a caption."""
    from benchmarks.side_by_side import english_captions
    from vlm.config import named_size
    from vlm.interop.formats.openclip import write_model
    from vlm.models.clip import CLIP
    from vlm.tokenizers.clip_bpe import CLIPTokenizer
    from vlm.tokenizers.load import load_tokenizer

    config = named_size(case.size)
    tokenizer = CLIPTokenizer()
    if case.size == "mini":
        tokenizer = load_tokenizer(Path(__file__).parents[1] / "vlm/assets/mini")
        text = dataclasses.replace(config.text, vocab_size=tokenizer.vocab_size, context_length=CONTEXT)
        config = dataclasses.replace(config, text=text)
    torch.manual_seed(0)
    model = CLIP(config)
    model_cfg, theirs = write_model(config, model.state_dict())
    model_cfg["vision_cfg"]["patch_dropout"] = case.patch_dropout
    (folder / "ours.json").write_text(json.dumps(config.to_dict()))
    (folder / "theirs.json").write_text(json.dumps(model_cfg))
    save_file(model.state_dict(), folder / "ours.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, folder / "theirs.safetensors")
    captions = english_captions(case.keywords)
    order = torch.randperm(len(captions)).tolist()
    batches: dict[str, Tensor] = {}
    lengths: list[int] = []
    for number in range(BATCHES):
        chosen = [captions[at] for at in order[number * case.batch_size : (number + 1) * case.batch_size]]
        ids = tokenizer(chosen)
        lengths += model.text.lengths(ids).tolist()
        batches[f"images.{number}"] = torch.randn(case.batch_size, 3, *config.vision.image_shape)
        batches[f"ids.{number}"] = ids
    save_file(batches, folder / "batches.safetensors")
    return sum(lengths) / len(lengths)


def measure(case: Case, folder: Path, rounds: int, device: str, threads: int) -> dict[str, Any]:
    """(seconds of each step, peak MiB) of "OpenCLIP" and "vlm"; "apart": the largest difference of a gradient."""
    found: dict[str, Any] = {"OpenCLIP": ([], 0.0), "vlm": ([], 0.0)}
    with (
        worker(start_openclip, case, folder, device, threads) as theirs,
        worker(start_vlm, case, folder, device, threads) as ours,
    ):
        both = (("OpenCLIP", theirs), ("vlm", ours))
        theirs.gradients(folder / "theirs.gradients")
        ours.gradients(folder / "ours.gradients")
        if case.patch_dropout == 0:
            found["apart"] = compare(folder)
        for step in range(rounds + 1):
            for name, one in both:
                seconds = one.step(step)
                if step:  # the first allocates
                    found[name][0].append(seconds)
        for name, one in both:
            found[name] = (found[name][0], one.peak())
    return found


def compare(folder: Path) -> float:
    """The largest difference of a weight's gradients, as a share of that weight's largest."""
    from vlm.config import CLIPConfig
    from vlm.interop.formats.openclip import read_model
    from vlm.interop.formats.openclip_config import ModelCfg
    from vlm.models.clip import CLIP

    cfg = json.loads((folder / "theirs.json").read_text())
    _, theirs = read_model(load_file(folder / "theirs.gradients"), ModelCfg.from_dict(cfg))
    ours = load_file(folder / "ours.gradients")
    assert (
        theirs.keys()
        == ours.keys()
        == CLIP(CLIPConfig.from_dict(json.loads((folder / "ours.json").read_text()))).state_dict().keys()
    )
    return max(float((ours[name] - g).abs().max() / g.abs().max()) for name, g in theirs.items())


@contextmanager
def worker(
    start: Callable[[Case, Path, str], Worker], case: Case, folder: Path, device: str, threads: int
) -> Iterator[Worker]:
    """A process that answers; what it is asked for is a field of `Worker`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(start, case, folder, device, threads, there))
    process.start()
    there.close()

    def ask(what: str) -> Callable[..., Any]:
        def answer(*arguments: Any) -> Any:
            here.send((what, arguments))
            return here.recv()

        return answer

    try:
        yield Worker(*(ask(field) for field in Worker._fields))
    finally:
        here.close()
        process.join()


def _serve(
    start: Callable[[Case, Path, str], Worker], case: Case, folder: Path, device: str, threads: int, pipe: Connection
) -> None:
    torch.set_num_threads(threads)
    able = start(case, folder, device)
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(getattr(able, what)(*arguments))


def start_vlm(case: Case, folder: Path, device: str) -> Worker:
    os.environ.setdefault("LRU_CACHE_CAPACITY", "128")  # as vlm train does
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    from vlm.config import CLIPConfig
    from vlm.loss import clip_loss
    from vlm.models.clip import CLIP
    from vlm.training.data.pair_stream import PairBatch
    from vlm.training.engine.distributed import Processes
    from vlm.training.engine.step import Training
    from vlm.training.recipe.config import Recipe
    from vlm.training.recipe.sections import OptimSection, RunSection

    config = CLIPConfig.from_dict(json.loads((folder / "ours.json").read_text()))
    model = CLIP(config)
    model.load_state_dict(load_file(folder / "ours.safetensors"))
    model.to(device)
    data = load_file(folder / "batches.safetensors")
    kept = round(config.vision.num_patches * (1 - case.patch_dropout))

    def batch(number: int) -> PairBatch:
        images, ids = data[f"images.{number}"], data[f"ids.{number}"]
        keep = None
        if case.patch_dropout:
            keep = torch.rand(len(images), config.vision.num_patches).argsort(1)[:, :kept]
        return PairBatch(images, ids, torch.arange(len(images)), keep, [""] * len(images)).to(torch.device(device))

    def backward(model: Any, batch: PairBatch, scale: float) -> Tensor:
        images, texts = model(batch.images, batch.ids, batch.keep)
        loss = clip_loss(images, texts, model.logit_scale)
        loss.backward()
        return loss.detach()

    optim = OptimSection(matrices="adamw", lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, warmup_steps=1, final_lr=1.0)
    recipe = Recipe(optim=dataclasses.replace(optim, clip_norm=CLIP_NORM), run=RunSection(batch_size=case.batch_size))
    training = Training(model, backward, recipe, Processes(rank=0, size=1, device=torch.device(device)))

    def gradients(path: Path) -> None:
        model.zero_grad()
        backward(model, batch(0), 1.0)
        save_gradients(model, path)

    def step(number: int) -> float:
        start = time.perf_counter()
        training.step(number, batch(number % BATCHES))
        return _elapsed(start, device)

    return Worker(gradients, step, _peak)


def start_openclip(case: Case, folder: Path, device: str) -> Worker:
    import open_clip

    cfg = json.loads((folder / "theirs.json").read_text())
    cfg.pop("custom_text")
    model: Any = open_clip.model.CLIP(**cfg)
    model.load_state_dict(load_file(folder / "theirs.safetensors"), strict=False)  # attn_mask is a buffer
    model.output_dict = True  # main.py, as create_model_and_transforms is called there
    model.to(device).train()
    data = load_file(folder / "batches.safetensors")
    texts = [
        torch.nn.functional.pad(data[f"ids.{n}"], (0, CONTEXT - data[f"ids.{n}"].shape[1])) for n in range(BATCHES)
    ]
    loss = open_clip.ClipLoss()
    plain = [p for n, p in model.named_parameters() if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n]
    known = {id(p) for p in plain}
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": WEIGHT_DECAY}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)

    def backward(number: int) -> Tensor:
        images, text = data[f"images.{number}"].to(device), texts[number].to(device)
        optimizer.zero_grad()
        losses: dict[str, Tensor] = loss(**model(images, text), output_dict=True)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        return total

    def gradients(path: Path) -> None:
        backward(0)
        save_gradients(model, path)

    def step(number: int) -> float:
        start = time.perf_counter()
        backward(number % BATCHES)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM, norm_type=2.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return _elapsed(start, device)

    return Worker(gradients, step, _peak)


def save_gradients(model: torch.nn.Module, path: Path) -> None:
    """And forgets them."""
    save_file({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}, path)
    model.zero_grad()


def _elapsed(start: float, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak() -> float:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # ru_maxrss would include what the parent once had
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
