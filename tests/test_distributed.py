"""Real processes on one CPU (gloo), against one process that holds all rows and the dense definitions."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from test_loss import LOSSES, assert_close, gradients
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.accumulate import accumulate
from training.distributed import Processes, init_from_env, leave

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


def check_losses(peers: Processes) -> None:
    own = torch.tensor(peers.share(ROWS))
    for name in LOSSES:
        for groups in (None, GROUPS):
            truth, reference = whole_batch(name, groups)
            model, images, texts = towers_and_rows()
            model.logit_bias.requires_grad_(name == "siglip")
            ddp = DistributedDataParallel(model)
            loss = partial(LOSSES[name][0], **model.temperature(name), peers=peers, tile=5)
            loss = loss(*ddp(images[own], texts[own]), groups=None if groups is None else groups[own])
            loss.backward()
            assert_close(loss, truth, 1e-12)
            for ours, theirs in zip(gradients(used(model, name)), gradients(used(reference, name)), strict=True):
                assert_close(ours, theirs, 1e-10)


def check_accumulation(peers: Processes) -> None:
    own = torch.tensor(peers.share(ROWS))
    for name in LOSSES:
        truth, reference = whole_batch(name, GROUPS)
        model, images, texts = towers_and_rows()
        model.logit_bias.requires_grad_(name == "siglip")
        ddp = DistributedDataParallel(model)
        loss = partial(LOSSES[name][0], **model.temperature(name), groups=GROUPS[own], peers=peers)
        shared = [*model.temperature(name).values()]

        def embed(model: nn.Module, rows: Tensor, images: Tensor = images, texts: Tensor = texts) -> tuple[Tensor, ...]:
            return model(images[rows], texts[rows])

        for _ in range(2):  # it is the next forward pass at which DDP tells of a parameter it had waited for in vain
            model.zero_grad()
            assert_close(accumulate(ddp, own.chunk(3), embed, loss, shared), truth, 1e-12)
            for ours, theirs in zip(gradients(used(model, name)), gradients(used(reference, name)), strict=True):
                assert_close(ours, theirs, 1e-10)


def check_map(peers: Processes) -> None:
    for count in (1, 3, 10, 12):
        squares = peers.map(lambda numbers: torch.tensor([[i, i * i] for i in numbers]).reshape(-1, 2), count)
        assert squares.tolist() == [[i, i * i] for i in range(count)]


CHECKS = {"losses": check_losses, "accumulation": check_accumulation, "map": check_map}


def run_checks(rank: int, size: int, port: int, report: Callable[[str], None]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{size}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    peers = init_from_env("cpu")
    assert (peers.rank, peers.size) == (rank, size)
    for name, check in CHECKS.items():
        check(peers)
        report(f"{rank} {name}")
    leave()


@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_give_the_loss_and_gradients_of_one(size):
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
    assert sorted(done.get() for _ in range(size * len(CHECKS))) == sorted(
        f"{rank} {name}" for rank in range(size) for name in CHECKS
    )


def test_one_process_is_the_same_code(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    peers = init_from_env("cpu")
    assert (peers.rank, peers.size, peers.device.type) == (0, 1, "cpu")
    check_map(peers)
    for name in LOSSES:
        truth, _ = whole_batch(name, GROUPS)
        model, images, texts = towers_and_rows()
        loss = partial(LOSSES[name][0], **model.temperature(name), groups=GROUPS, peers=peers)
        assert_close(loss(*model(images, texts)), truth, 1e-12)


@pytest.mark.parametrize(("count", "size"), [(0, 3), (2, 3), (10, 4), (12, 4)])
def test_shares_are_even_and_follow_one_another(count, size):
    shares = [Processes(rank=rank, size=size, device=torch.device("cpu")).share(count) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
