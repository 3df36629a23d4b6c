"""Real processes on one CPU (gloo), against one process that holds all rows and the dense definitions."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.test_loss import LOSSES, assert_close, gradients
from vlm.config import CLIPConfig, TextConfig, VisionConfig
from vlm.loss import clip_loss
from vlm.models.clip import CLIP
from vlm.training.data.pair_stream import PairBatch
from vlm.training.engine.accumulate import accumulate
from vlm.training.engine.distributed import Processes, init_from_env, leave, place_from_env
from vlm.training.engine.parallel import average_whole, prepare, whole_weights
from vlm.training.engine.state import newest, save_state
from vlm.training.engine.step import Training
from vlm.training.recipe.config import Recipe
from vlm.training.recipe.sections import RunSection

ROWS, DIM = 24, 6
GROUPS = torch.arange(ROWS) * 5 % 9  # of 2 or 3 rows, on different processes


class Towers(nn.Module):
    """As little of a CLIP as can be: two projections, a temperature, a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.text = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.logit_scale, self.logit_bias = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.tensor(-5.0))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        image_embeds, text_embeds = self.vision(images), self.text(texts)
        return F.normalize(image_embeds, dim=1), F.normalize(text_embeds, dim=1)

    def temperature(self, name: str) -> dict[str, Tensor]:
        """What the loss of that name needs besides embeddings."""
        bias: dict[str, Tensor] = {"logit_bias": self.logit_bias} if name == "siglip" else {}
        return {"logit_scale": self.logit_scale} | bias


def towers_and_rows() -> tuple[Towers, Tensor, Tensor]:
    torch.manual_seed(0)
    images, texts = torch.randn(2, ROWS, DIM, dtype=torch.float64)
    return Towers().double().eval(), images, texts


def whole_batch(name: str, groups: Tensor | None) -> tuple[Tensor, Towers]:
    """Loss and gradients of one process, by the dense definition."""
    model, images, texts = towers_and_rows()
    loss = LOSSES[name][1](*model(images, texts), **model.temperature(name), groups=groups)
    loss.backward()
    return loss, model


def used(model: nn.Module, name: str) -> list[Tensor]:
    return [p for key, p in model.named_parameters() if name == "siglip" or "logit_bias" not in key]


def check_losses(processes: Processes) -> None:
    own = torch.tensor(processes.share(ROWS))
    for name in LOSSES:
        for groups in (None, GROUPS):
            truth, reference = whole_batch(name, groups)
            model, images, texts = towers_and_rows()
            model.logit_bias.requires_grad_(name == "siglip")
            ddp = DistributedDataParallel(model)
            loss = partial(LOSSES[name][0], **model.temperature(name), processes=processes, tile=5)
            loss = loss(*ddp(images[own], texts[own]), groups=None if groups is None else groups[own])
            loss.backward()
            assert_close(loss, truth, 1e-12)
            for ours, theirs in zip(gradients(used(model, name)), gradients(used(reference, name)), strict=True):
                assert_close(ours, theirs, 1e-10)


def check_accumulation(processes: Processes) -> None:
    own = torch.tensor(processes.share(ROWS))
    for name in LOSSES:
        truth, reference = whole_batch(name, GROUPS)
        model, images, texts = towers_and_rows()
        model.logit_bias.requires_grad_(name == "siglip")
        ddp = DistributedDataParallel(model)
        loss = partial(LOSSES[name][0], **model.temperature(name), groups=GROUPS[own], processes=processes)
        shared = [*model.temperature(name).values()]

        def embed(model: nn.Module, rows: Tensor, images: Tensor = images, texts: Tensor = texts) -> tuple[Tensor, ...]:
            return model(images[rows], texts[rows])

        for _ in range(2):  # it is the next forward pass at which DDP tells of a parameter it had waited for in vain
            model.zero_grad()
            assert_close(accumulate(ddp, own.chunk(3), embed, loss, shared), truth, 1e-12)
            for ours, theirs in zip(gradients(used(model, name)), gradients(used(reference, name)), strict=True):
                assert_close(ours, theirs, 1e-10)


def check_map(processes: Processes) -> None:
    for count in (1, 3, 10, 12):
        squares = processes.map(lambda numbers: torch.tensor([[i, i * i] for i in numbers]).reshape(-1, 2), count)
        assert squares.tolist() == [[i, i * i] for i in range(count)]


def small_clip() -> CLIP:
    torch.manual_seed(0)
    sizes: Any = {"width": 16, "num_heads": 2, "mlp_dim": 32}
    vision = VisionConfig(image_size=8, patch_size=4, depth=2, **sizes)
    text = TextConfig(vocab_size=20, context_length=4, depth=1, eot_id=2, **sizes)
    return CLIP(CLIPConfig(embed_dim=8, vision=vision, text=text)).double()


def small_batch(rows: range) -> PairBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (ROWS, 3, 8, 8), dtype=torch.uint8, generator=generator)
    ids = torch.randint(3, 20, (ROWS, 1, 4), generator=generator)
    ids[..., -1] = 2
    return PairBatch(images[rows], ids[rows], GROUPS[rows], None, [f"{i}" for i in rows])


def trained(processes: Processes, *, shard: bool) -> tuple[Training, list[float]]:
    """After two steps of a whole recipe, and the norms of their gradients."""
    run = {"batch_size": ROWS, "precision": "float64", "shard": shard, "ema_decay": 0.5, "steps": 9}
    optim = {"matrices": "adamw", "warmup_steps": 0, "clip_norm": 0.1}
    clip = small_clip()

    def backward(model: nn.Module, batch: PairBatch, scale: Tensor | float) -> Tensor:
        images, texts = model(batch.images.double() / 255, batch.ids[:, 0])
        loss = clip_loss(images, texts, clip.logit_scale, batch.groups, processes=processes)
        loss.backward()
        return loss.detach()

    training = Training(clip, backward, Recipe.from_dict({"run": run, "optim": optim}), processes)
    return training, [norm_of(training, processes, step) for step in range(2)]


def norm_of(training: Training, processes: Processes, step: int) -> float:
    """The gradient norm of a step."""
    return training.step(step, small_batch(processes.share(ROWS)))[1].item()


def embeds(training: Training, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """As validation asks for them."""
    clip = training.weights
    assert isinstance(clip, CLIP)
    with torch.no_grad():
        return clip.encode_image(pixels), clip.encode_text(ids)


def check_training(processes: Processes) -> None:
    """Weights, norms and what validation sees, by DDP and by FSDP2; a checkpoint of either opens in the other."""
    whole = small_batch(range(ROWS))
    pixels, ids = whole.images.double() / 255, whole.ids[:, 0]
    truth, norms = trained(Processes(rank=0, size=1, device=processes.device), shard=False)
    weights = {name: weight.clone() for name, weight in truth.weights.state_dict().items()}
    expected = embeds(truth, pixels, ids)
    norms.append(truth.step(2, whole)[1].item())
    for shard in (False, True):
        ours, found = trained(processes, shard=shard)
        assert found == pytest.approx(norms[:2], rel=1e-9)
        for name, weight in whole_weights(ours.weights).items():
            assert_close(weight, weights[name], 1e-9)
        for embed, wanted in zip(embeds(ours, pixels, ids), expected, strict=True):
            assert_close(embed, wanted, 1e-9)
        folder = Path(os.environ["CHECKPOINTS"]) / f"{shard}"
        path = save_state(folder, 2, ours.state(), 1, processes)
        dist.barrier()
        assert newest(folder, processes, pytest.fail) == path
        again, _ = trained(processes, shard=not shard)
        with torch.no_grad():
            for p in again.weights.parameters():
                p.zero_()
        assert again.restore(path, str) == 2
        for name, weight in whole_weights(again.weights).items():
            assert_close(weight, weights[name], 1e-9)
        assert norm_of(again, processes, 2) == pytest.approx(norms[2], rel=1e-9)


def check_sharded_accumulation(processes: Processes) -> None:
    """FSDP2 with chunks that are exchanged once, in float64 exactly and with the bfloat16 policy roughly."""
    truth = small_clip()
    whole = small_batch(range(ROWS))

    def gradients_by_name(model: CLIP, rows: PairBatch, chunks: int, members: Processes) -> dict[str, Tensor]:
        def embed(called: nn.Module, chunk: PairBatch) -> tuple[Tensor, ...]:
            pixels = (chunk.images.double() / 255).to(model.logit_scale.dtype)
            return called(pixels, chunk.ids[:, 0])

        def loss(images: Tensor, texts: Tensor) -> Tensor:
            return clip_loss(images, texts, model.logit_scale, rows.groups, processes=members)

        accumulate(model, rows.chunks(chunks), embed, loss, [model.logit_scale])
        if members.size > 1:
            average_whole(model.parameters(), members)
        return {name: whole_gradient(p) for name, p in model.named_parameters() if p.grad is not None}

    single = Processes(rank=0, size=1, device=processes.device)
    expected = gradients_by_name(truth, whole, 1, single)
    cases: list[tuple[Literal["float64", "bfloat16"], torch.dtype, float]] = [
        ("float64", torch.float64, 1e-9),
        ("bfloat16", torch.float32, 0.05),
    ]
    for precision, dtype, tolerance in cases:
        model = small_clip().to(dtype)
        prepare(model, RunSection(precision=precision, shard=True), processes)
        found = gradients_by_name(model, small_batch(processes.share(ROWS)), 3, processes)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            scale = float(expected[name].norm()) + 1e-3
            assert float((gradient.double() - expected[name]).norm()) <= tolerance * scale, (precision, name)


def whole_gradient(p: Tensor) -> Tensor:
    """Unsharded."""
    assert p.grad is not None
    return p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad


def checks(size: int) -> dict[str, Callable[[Processes], None]]:
    """Whole steps take seconds: two processes are enough for them."""
    always = {"losses": check_losses, "accumulation": check_accumulation, "map": check_map}
    return always | (
        {"training": check_training, "sharded accumulation": check_sharded_accumulation} if size == 2 else {}
    )


def run_checks(rank: int, size: int, port: int, report: Callable[[str], None]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{size}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    processes = init_from_env("cpu")
    assert (processes.rank, processes.size) == (rank, size)
    for name, check in checks(size).items():
        check(processes)
        report(f"{rank} {name}")
    leave()


@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_give_the_loss_and_gradients_of_one(size, tmp_path, monkeypatch):
    monkeypatch.setenv("CHECKPOINTS", str(tmp_path))
    context = multiprocessing.get_context("forkserver")  # imports torch once for all
    context.set_forkserver_preload(["torch", "torch.distributed"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = context.SimpleQueue()
    processes = [context.Process(target=run_checks, args=(rank, size, port, done.put)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * size
    assert sorted(done.get() for _ in range(size * len(checks(size)))) == sorted(
        f"{rank} {name}" for rank in range(size) for name in checks(size)
    )


def test_one_process_is_the_same_code(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    processes = init_from_env("cpu")
    assert (processes.rank, processes.size, processes.device.type) == (0, 1, "cpu")
    check_map(processes)
    for name in LOSSES:
        truth, _ = whole_batch(name, GROUPS)
        model, images, texts = towers_and_rows()
        loss = partial(LOSSES[name][0], **model.temperature(name), groups=GROUPS, processes=processes)
        assert_close(loss(*model(images, texts)), truth, 1e-12)


def test_torchrun_says_which_process_this_is(monkeypatch):
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert place_from_env() == (5, 8, 1)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    assert place_from_env() == (0, 1, 0)


def test_the_device_is_a_gpu_where_there_is_one_unless_named(monkeypatch):
    for able in (False, True):
        chosen: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda able=able: able)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        assert init_from_env().device == (torch.device("cuda", 0) if able else torch.device("cpu"))
        assert init_from_env("cpu").device == torch.device("cpu")
        assert chosen == [torch.device("cuda", 0)] * able
        if not able:
            with pytest.raises(ValueError, match=r"device cuda.*device"):
                init_from_env("cuda")


@pytest.mark.parametrize(("count", "size"), [(0, 3), (2, 3), (10, 4), (12, 4)])
def test_shares_are_even_and_follow_one_another(count, size):
    shares = [Processes(rank=rank, size=size, device=torch.device("cpu")).share(count) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
