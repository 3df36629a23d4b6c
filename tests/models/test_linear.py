"""Both matrix products against the definition; and where the faster one is not to be taken."""

import pytest
import torch
from torch import Tensor, nn

from vlm.models import linear as module
from vlm.models.linear import FEWEST_ROWS, Linear, linear


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A processor on which MKL holds back; the shapes of what is computed as a convolution."""
    seen: list[tuple[int, ...]] = []
    inner = module._as_convolution

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(tuple(x.shape))
        return inner(x, weight, bias)

    monkeypatch.setattr(module, "mkl_holds_back", lambda: True)
    monkeypatch.setattr(module, "_as_convolution", noted)
    return seen


def layer_of(inputs: int, outputs: int, *, bias: bool = True) -> Linear:
    torch.manual_seed(0)
    return Linear(inputs, outputs, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(200, 24), (3, 50, 24), (1, 2, 70, 24), (128, 1), (1, 128, 24)])
def test_a_convolution_gives_the_sums_and_the_gradients_of_the_definition(convolutions, shape, bias) -> None:
    layer, x = layer_of(shape[-1], 40, bias=bias), torch.randn(shape, requires_grad=True)
    exact, x_exact = layer_of(shape[-1], 40, bias=bias).double(), x.detach().double().requires_grad_()
    found = layer(x)
    assert convolutions == [shape]
    wanted = x_exact @ exact.weight.T + (exact.bias if bias else 0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    weight = torch.randn(found.shape)
    got = torch.autograd.grad((found * weight).sum(), [x, *layer.parameters()])
    for ours, theirs in zip(
        got, torch.autograd.grad((wanted * weight).sum(), [x_exact, *exact.parameters()]), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)


def test_rows_that_lie_apart_in_memory_are_read_in_their_order(convolutions) -> None:
    layer, x = layer_of(24, 40), torch.randn(24, 8, 30).permute(2, 1, 0)  # (30, 8, 24), nothing contiguous
    torch.testing.assert_close(layer(x), nn.functional.linear(x.contiguous(), layer.weight, layer.bias))
    assert convolutions == [(30, 8, 24)]


@pytest.mark.parametrize(
    "x",
    [torch.randn(FEWEST_ROWS - 1, 24), torch.randn(200, 24, dtype=torch.float64), torch.randn(0, 24), torch.randn(24)],
    ids=["few rows", "float64", "no rows", "one row"],
)
def test_elsewhere_it_is_torchs_linear_to_the_bit(convolutions, x: Tensor) -> None:
    layer = layer_of(24, 40).to(x.dtype)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=0, atol=0)
    assert not convolutions


def test_on_other_devices_and_processors_it_is_torchs_linear(convolutions, monkeypatch) -> None:
    assert layer_of(24, 40).to("meta")(torch.empty(200, 24, device="meta")).shape == (200, 40)
    monkeypatch.setattr(module, "mkl_holds_back", lambda: False)
    layer_of(24, 40)(torch.randn(200, 24))
    assert not convolutions


def test_autocast_still_computes_in_bfloat16(convolutions) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer_of(24, 40)(torch.randn(200, 24)).dtype == torch.bfloat16
    assert not convolutions


def test_other_formats_get_a_linear_layer(convolutions) -> None:
    program = torch.export.export(layer_of(24, 40), (torch.randn(200, 24),))
    assert {str(node.target) for node in program.graph.nodes if node.op == "call_function"} == {"aten.linear.default"}


@pytest.mark.parametrize(
    ("able", "held_back"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, True),
        ({"cpu_name": "AMD EPYC 7763", "avx512_f": False}, False),
        ({"cpu_name": "Intel(R) Xeon(R)", "avx512_f": True}, False),
        ({"cpu_name": "", "avx512_f": True}, False),
        ({"cpu_name": "AMD EPYC"}, False),
        ({}, False),  # PyTorch does not know every processor
    ],
)
def test_only_wide_processors_of_another_maker_are_held_back(monkeypatch, able: dict[str, object], held_back) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    for mkl, onednn in ((True, True), (True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda there=mkl: there)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda there=onednn: there)
        assert module.mkl_holds_back.__wrapped__() == (held_back and mkl and onednn)


def test_the_function_and_the_layer_are_one(convolutions) -> None:
    layer, x = layer_of(24, 40), torch.randn(200, 24)
    assert torch.equal(linear(x, layer.weight, layer.bias), layer(x))


def test_captions_of_all_lengths_meet_few_numbers_of_rows(convolutions, monkeypatch) -> None:
    """oneDNN keeps code for each: numbers that do not fill 16 images become multiples of 64."""
    met: set[int] = set()
    conv2d = torch.nn.functional.conv2d
    monkeypatch.setattr(module.F, "conv2d", lambda x, *rest: met.add(x.shape[0] * x.shape[-1]) or conv2d(x, *rest))
    layer = layer_of(24, 40)
    for rows in range(FEWEST_ROWS, 640):
        assert layer(torch.ones(rows, 24)).shape == (rows, 40)
    assert met == {*range(FEWEST_ROWS, 640, 16), 640}
