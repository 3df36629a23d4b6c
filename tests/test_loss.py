"""The tiled losses against their dense definitions."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import vlm.loss
from benchmarks.operations import count
from vlm.errors import InputError
from vlm.loss import CPU_TILE, clip_loss, siglip_loss, tile_for, tile_side


def dense_clip(x: Tensor, y: Tensor, logit_scale: Tensor, groups: Tensor | None = None) -> Tensor:
    logits, same = logit_scale.exp() * x @ y.T, same_group(len(x), groups).to(x.dtype)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def dense_siglip(x: Tensor, y: Tensor, logit_scale: Tensor, logit_bias: Tensor, groups: Tensor | None = None) -> Tensor:
    logits, same = logit_scale.exp() * x @ y.T + logit_bias, same_group(len(x), groups)
    return -F.logsigmoid(torch.where(same, logits, -logits)).sum() / len(x)


def same_group(n: int, groups: Tensor | None) -> Tensor:
    if groups is None:
        return torch.eye(n, dtype=torch.bool)
    if groups.ndim == 2:  # keys: those of each row as a set, without the fill
        own = [set(row) - {-1} for row in groups.tolist()]
        return torch.tensor([[i == j or not own[i].isdisjoint(own[j]) for j in range(n)] for i in range(n)])
    return groups[:, None] == groups[None, :]


def draw_groups(n: int, how: str) -> Tensor | None:
    """Nothing, groups, or keys of which some rows share some: chains, repeats and rows without any."""
    if how == "keys":
        return torch.randint(-1, n, (n, 3))
    return torch.randint(0, n // 3 + 1, (n,)) if how == "groups" else None


every_grouping = pytest.mark.parametrize("how", ["nothing", "groups", "keys"])
LOSSES = {"clip": (clip_loss, dense_clip), "siglip": (siglip_loss, dense_siglip)}
both_losses = pytest.mark.parametrize("name", LOSSES)


def example(name: str, n: int, scale: float, dtype=torch.float64, noise: float = 0.3, dim: int = 24) -> list[Tensor]:
    """Embeddings whose pairs are somewhat alike, log scale, and for siglip the bias."""
    torch.manual_seed(n)
    images = torch.randn(n, dim, dtype=torch.float64)
    texts = images + noise * dim**0.5 * torch.randn(n, dim, dtype=torch.float64)
    inputs = [F.normalize(images, dim=1), F.normalize(texts, dim=1), torch.tensor(math.log(scale)), torch.tensor(-10.0)]
    return [t.to(dtype).requires_grad_() for t in (inputs if name == "siglip" else inputs[:3])]


def copies(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [t.detach().to(dtype).requires_grad_() for t in inputs]


def gradients(inputs: list[Tensor]) -> list[Tensor]:
    found = [t.grad for t in inputs if t.grad is not None]
    assert len(found) == len(inputs)
    return found


def assert_close(ours: Tensor, truth: Tensor, tolerance: float) -> None:
    """Largest difference, relative to the largest number of the truth or 1."""
    ours, truth = ours.detach(), truth.detach()
    assert ours.shape == truth.shape
    assert float((ours - truth).abs().max()) <= tolerance * max(1.0, float(truth.abs().max()))


@both_losses
@pytest.mark.parametrize(("n", "tile"), [(1, 1024), (7, 1), (7, 3), (64, 64), (64, 13), (1000, 300), (1000, 1024)])
@pytest.mark.parametrize("scale", [14.0, 100.0])
@every_grouping
def test_tiled_loss_and_gradients_are_the_dense_definitions(name, n, tile, scale, how):
    tiled, dense = LOSSES[name]
    inputs = example(name, n, scale)
    reference = copies(inputs, torch.float64)
    groups = draw_groups(n, how)
    ours, truth = tiled(*inputs, groups, tile=tile), dense(*reference, groups)
    (3 * ours).backward()
    (3 * truth).backward()
    assert_close(ours, truth, 1e-12)
    for g, t in zip(gradients(inputs), gradients(reference), strict=True):
        assert_close(g, t, 1e-10)


@both_losses
@every_grouping
def test_the_formulas_of_a_gpu_give_the_dense_definitions_too(name, how, monkeypatch):
    monkeypatch.setattr(vlm.loss, "_on_cpu", lambda z: False)
    for n, scale in ((7, 14.0), (64, 100.0)):
        inputs = example(name, n, scale)
        reference = copies(inputs, torch.float64)
        groups = draw_groups(n, how)
        ours, truth = LOSSES[name][0](*inputs, groups, tile=13), LOSSES[name][1](*reference, groups)
        ours.backward()
        truth.backward()
        assert_close(ours, truth, 1e-12)
        for g, t in zip(gradients(inputs), gradients(reference), strict=True):
            assert_close(g, t, 1e-10)


@both_losses
@pytest.mark.parametrize("grouped", [False, True])
def test_a_gpu_launches_few_kernels_at_32768_pairs_and_never_waits(name, grouped):
    """On the meta device, where any operation that needs a number on the host raises."""
    n, scalars = 32768, 2 if name == "siglip" else 1
    embeds = [torch.empty(n, 512, device="meta", requires_grad=True) for _ in range(2)]
    inputs = [*embeds, *(torch.empty((), device="meta", requires_grad=True) for _ in range(scalars))]
    groups = torch.empty(n, dtype=torch.int64, device="meta") if grouped else None
    seen = count(lambda: LOSSES[name][0](*inputs, groups).backward())
    assert seen.kernels.total() <= 700
    assert not seen.synchronisations
    assert seen.largest <= 4 * 8192**2


@pytest.mark.parametrize(
    ("gib", "rows", "columns", "side"),
    [(0.01, 32768, 32768, 1024), (8, 32768, 32768, 8192), (80, 32768, 32768, 32768), (8, 512, 65536, 32768)],
)
def test_a_tile_takes_a_quarter_of_the_free_memory_at_most(gib, rows, columns, side):
    assert tile_for(int(gib * 2**30), rows, columns) == side
    copies_of_a_tile = 4 * 4 * min(side, rows) * min(side, columns)
    assert copies_of_a_tile <= gib * 2**30 / 4 or side == 1024


def test_a_cpu_has_its_own_tile():
    assert tile_side(torch.device("cpu"), 32768, 32768) == CPU_TILE


@both_losses
def test_temperature_and_bias_may_be_numbers(name):
    inputs = example(name, 12, 20.0)
    numbers = [t.item() for t in inputs[2:]]
    value = LOSSES[name][0](*inputs[:2], *numbers)
    assert value.item() == pytest.approx(LOSSES[name][0](*inputs).item(), rel=1e-12)
    value.backward()
    assert inputs[0].grad is not None


def test_chance_loss_is_log_n():
    same = F.normalize(torch.ones(50, 8, dtype=torch.float64), dim=1)
    assert clip_loss(same, same, torch.tensor(3.0), tile=7).item() == pytest.approx(math.log(50), abs=1e-12)


def test_siglip_at_zero_logits_is_n_log_two():
    x, y = torch.eye(6, dtype=torch.float64)[:3], torch.eye(6, dtype=torch.float64)[3:]
    assert siglip_loss(x, y, torch.tensor(3.0), torch.tensor(0.0)).item() == pytest.approx(3 * math.log(2), abs=1e-12)


@both_losses
@pytest.mark.parametrize(
    "keys", [[[0, 1], [1, 0], [2, -1], [-1, 2], [5, 7], [8, -1]], [[3], [3], [4], [4], [-1], [-1]]]
)
def test_keys_that_divide_the_batch_give_the_loss_of_groups_bit_for_bit(name, keys):
    inputs, loss = example(name, 6, 20.0), LOSSES[name][0]
    assert torch.equal(loss(*inputs, torch.tensor(keys)), loss(*inputs, torch.tensor([0, 0, 1, 1, 2, 3])))


@both_losses
def test_one_group_per_row_is_no_groups(name):
    inputs = example(name, 20, 50.0)
    loss = LOSSES[name][0]
    assert loss(*inputs, torch.arange(20).flip(0) - 7).item() == pytest.approx(loss(*inputs).item(), rel=1e-13)


def test_float32_keeps_losses_that_the_dense_form_rounds_to_zero():
    n, scale = 32, 50.0
    x = torch.eye(n).requires_grad_()  # own pair at `scale`, all others at 0
    log_scale = torch.tensor(math.log(scale))
    loss = clip_loss(x, torch.eye(n), log_scale)
    loss.backward()
    assert x.grad is not None
    truth = math.log1p((n - 1) * math.exp(-scale))  # 6e-21
    assert dense_clip(torch.eye(n), torch.eye(n), log_scale).item() < truth / 2
    assert loss.item() == pytest.approx(truth, rel=1e-4)
    assert x.grad[0, 0].item() == pytest.approx(-truth * scale / n, rel=1e-4)
    assert x.grad[0, 1].item() == pytest.approx(math.exp(-scale) * scale / n, rel=1e-4)


@pytest.mark.parametrize("z", [-70.0, -12.0, -1.0, 0.0, 0.3, 15.0, 90.0])
def test_siglip_in_float32_is_right_from_tiny_to_large_logits(z):
    unit = torch.ones(1, 1)
    value = siglip_loss(unit, unit, torch.tensor(0.0), torch.tensor(-z - 1.0))  # the pair's own logit is -z
    truth = max(z, 0) + math.log1p(math.exp(-abs(z)))
    assert value.item() == pytest.approx(truth, rel=1e-6)


@both_losses
def test_pairs_that_point_apart_give_finite_float32_gradients(name):
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])  # own pair at -100, others at +100
    inputs = [x, -x, torch.tensor(math.log(100.0)), torch.tensor(-10.0)][: 4 if name == "siglip" else 3]
    inputs = [t.clone().requires_grad_() for t in inputs]
    reference = copies(inputs, torch.float64)
    tiled, dense = LOSSES[name]
    ours, truth = tiled(*inputs), dense(*reference)
    ours.backward()
    truth.backward()
    assert ours.item() == pytest.approx(truth.item(), rel=1e-6)
    for g, t in zip(gradients(inputs), gradients(reference), strict=True):
        assert_close(g, t, 1e-5)


@both_losses
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_computed_in_float32(name, dtype):
    low = [*copies(example(name, 30, 100.0)[:2], dtype), *copies(example(name, 30, 100.0)[2:], torch.float32)]
    wide = copies(low, torch.float32)
    ours, truth = LOSSES[name][0](*low), LOSSES[name][0](*wide)
    ours.backward()
    truth.backward()
    assert torch.equal(ours, truth)
    for g, t, given in zip(gradients(low), gradients(wide), low, strict=True):
        assert g.dtype == given.dtype
        assert torch.equal(g, t.to(given.dtype))


@both_losses
def test_autocast_changes_nothing(name):
    outside, inside = example(name, 30, 100.0, torch.float32), example(name, 30, 100.0, torch.float32)
    LOSSES[name][0](*outside).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        LOSSES[name][0](*inside).backward()
    for g, t in zip(gradients(inside), gradients(outside), strict=True):
        assert torch.equal(g, t)


@both_losses
def test_a_loss_without_gradients_has_the_same_value_and_no_graph(name):
    inputs = example(name, 30, 20.0)
    with torch.no_grad():
        value = LOSSES[name][0](*inputs)
    assert not value.requires_grad
    assert torch.equal(value, LOSSES[name][0](*inputs))


@both_losses
def test_a_locked_tower_leaves_the_other_gradients_alone(name):
    free, locked = example(name, 30, 20.0), example(name, 30, 20.0)
    locked[0].requires_grad_(False)
    for inputs in (free, locked):
        LOSSES[name][0](*inputs).backward()
    assert locked[0].grad is None
    for g, t in zip(gradients(locked[1:]), gradients(free[1:]), strict=True):
        assert torch.equal(g, t)


class _LargestTensor(TorchFunctionMode):
    """Notes the number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@both_losses
@every_grouping
def test_no_tensor_grows_with_the_square_of_the_batch(name, how):
    n, tile, dim = 500, 50, 8
    inputs = example(name, n, 20.0, dim=dim)
    groups = draw_groups(n, how)
    with _LargestTensor() as largest:
        LOSSES[name][0](*inputs, groups, tile=tile).backward()
    assert largest.elements == max(n * dim, tile * tile)
    with _LargestTensor() as largest:
        LOSSES[name][1](*inputs, groups).backward()
    assert largest.elements >= n * n  # the instrument sees what it should


@both_losses
def test_inputs_of_two_precisions_are_computed_in_the_higher_one(name):
    """The value as if both were of it; each gradient in the precision of what was given."""
    for first, second in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        made = example(name, 20, 20.0)
        given = [made[0].detach().to(first), made[1].detach().to(second), *(t.detach() for t in made[2:])]
        mixed, wide = copies_of_each(given), copies(given, torch.float64)
        ours, truth = LOSSES[name][0](*mixed), LOSSES[name][0](*wide)
        assert ours.dtype == torch.float64 and torch.equal(ours, truth)
        ours.backward()
        assert [t.dtype for t in gradients(mixed)] == [t.dtype for t in given]


def copies_of_each(inputs: list[Tensor]) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in inputs]


class Threads:
    """`Collectives` that are threads of this process: each waits for all others."""

    def __init__(self, rank: int, barrier: threading.Barrier, table: list[Tensor]):
        self.rank, self.barrier, self.table = rank, barrier, table

    def all_gather(self, rows: Tensor) -> Tensor:
        self.table[self.rank] = rows
        self.barrier.wait(20)
        found = torch.cat(self.table)
        self.barrier.wait(20)
        return found

    def reduce_scatter(self, rows: Tensor) -> Tensor:
        n = len(rows) // len(self.table)
        self.table[self.rank] = rows
        self.barrier.wait(20)
        found = torch.stack(self.table).sum(0)[self.rank * n : self.rank * n + n]
        self.barrier.wait(20)
        return found


@both_losses
@every_grouping
@pytest.mark.parametrize(("size", "tile"), [(3, 4), (2, 1024)])
def test_processes_get_the_loss_of_the_whole_batch_and_gradients_to_be_averaged(name, how, size, tile):
    n = 5  # rows of each
    tiled, dense = LOSSES[name]
    whole = example(name, size * n, 20.0)
    groups = draw_groups(size * n, how)
    truth = dense(*whole, groups)
    truth.backward()
    barrier, table = threading.Barrier(size), [torch.empty(0)] * size

    def run(rank: int) -> tuple[Tensor, list[Tensor]]:
        own = slice(rank * n, rank * n + n)
        inputs = copies_of_each([*(t.detach()[own] for t in whole[:2]), *(t.detach() for t in whole[2:])])
        processes = Threads(rank, barrier, table)
        value = tiled(*inputs, None if groups is None else groups[own], processes=processes, tile=tile)
        value.backward()
        return value, gradients(inputs)

    with ThreadPoolExecutor(size) as pool:
        values, found = zip(*pool.map(run, range(size)), strict=True)
    for value in values:
        assert_close(value, truth, 1e-12)
    rows, shared = zip(*found, strict=True), gradients(whole)
    for number, (parts, wanted) in enumerate(zip(rows, shared, strict=True)):
        averaged = torch.cat(parts) / size if number < 2 else torch.stack(parts).mean(0)
        assert_close(averaged, wanted, 1e-10)


@both_losses
def test_second_derivatives_are_refused_rather_than_wrong(name):
    inputs = example(name, 5, 20.0)
    with pytest.raises(RuntimeError, match="Leave out create_graph=True"):
        torch.autograd.grad(LOSSES[name][0](*inputs), inputs, create_graph=True)


@pytest.mark.parametrize("wrong", [(4, 4, 3, 4), (2, 3, 4, 2, 3, 4), (4, 4)])
def test_shapes_that_do_not_fit_are_named(wrong):
    first, second = torch.zeros(wrong[: len(wrong) // 2]), torch.zeros(wrong[len(wrong) // 2 :])
    with pytest.raises(InputError) as error:
        clip_loss(first, second, 0.0)
    assert str(tuple(first.shape)) in str(error.value) and str(tuple(second.shape)) in str(error.value)


def test_groups_of_another_length_are_named():
    with pytest.raises(InputError, match=r"\(3,\).*\(4,\)"):
        siglip_loss(torch.eye(4), torch.eye(4), 0.0, 0.0, torch.arange(3))
    with pytest.raises(InputError, match=r"\(3, 2\).*\(4, G\)"):
        clip_loss(torch.eye(4), torch.eye(4), 0.0, torch.zeros(3, 2))
