"""Rename tables read and write the same tensors, and say in one line whatever does not fit."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlm.interop.formats.tables import (
    BATCH_AXIS,
    JOIN_QKV,
    SCALAR,
    SCALAR_1D,
    SPLIT_Q_KV,
    TOKEN_AXES,
    TRANSPOSE,
    Reshape,
    State,
    Table,
    expand,
    fold_layer_scale,
    layers,
    mlp_ratio,
    read,
    shape,
    square,
    with_prefix,
    write,
)


class Two(nn.Module):
    """Two layers of a Linear (2 -> 3) and a norm in front."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2)
        self.blocks = nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3)])


TABLE: Table = (
    ("ln.g", "norm.weight"),
    ("ln.b", "norm.bias"),
    *(expand((("h.{i}.w", "blocks.{i}.weight", TRANSPOSE), ("h.{i}.b", "blocks.{i}.bias")), 2)),
)


def theirs() -> State:
    state = {"ln.g": torch.randn(2), "ln.b": torch.randn(2)}
    for layer in range(2):
        state |= {f"h.{layer}.w": torch.randn(2, 3), f"h.{layer}.b": torch.randn(3)}
    return state


def test_a_table_reads_every_tensor_into_its_place_and_writes_it_back() -> None:
    state = theirs()
    ours = read(state, TABLE, Two())
    assert list(ours) == list(Two().state_dict())
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in ours.values())
    for layer in range(2):
        assert torch.equal(ours[f"blocks.{layer}.weight"], state[f"h.{layer}.w"].T)
    back = write(ours, TABLE)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) and back[name].is_contiguous() for name, tensor in state.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_and_old_buffers_are_passed_over(dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in theirs().items()}
    buffers = {"mask": torch.ones(2, dtype=torch.bool), "h.0.ids": torch.arange(4)}
    ours = read(state | buffers, TABLE, Two(), ignore=("mask", r"h\.\d+\.ids"))
    assert torch.equal(ours["norm.weight"], state["ln.g"].float())
    with pytest.raises(ValueError, match=r"2 tensors.*float32, float16.*bfloat16.*torch.bool, h.0.ids"):
        read(state | buffers, TABLE, Two(), ignore=("mas", "ask"))  # a pattern stands for a whole name


def test_all_that_is_unknown_missing_or_wrong_is_listed_at_once() -> None:
    state, model = theirs(), Two()
    with pytest.raises(ValueError, match=r"2.*8 tensors.*one, two"):
        read(state | {"one": torch.zeros(1), "two": torch.zeros(1)}, TABLE, model)
    less = {name: tensor for name, tensor in state.items() if name not in ("ln.g", "h.1.b")}
    with pytest.raises(ValueError, match=r"2.*6 tensors.*norm.weight, blocks.1.bias"):
        read(less, TABLE, model)
    longer = (*TABLE, ("x", "x"), ("y", "y"))
    with pytest.raises(ValueError, match=r"2 tensors.*x, y"):
        read(state | {"x": torch.zeros(1), "y": torch.zeros(1)}, longer, model)
    wrong = {"ln.b": torch.zeros(4), "h.1.w": torch.zeros(2, 2)}
    line = (
        "2 tensors have the wrong shape (our names): norm.bias (4,), wanted (2,), blocks.1.weight (2, 2), wanted (3, 2)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(line)}"):
        read(state | wrong, TABLE, model)
    with pytest.raises(ValueError, match=r"2.*tensors.*one, two"):
        write(read(state, TABLE, model) | {"one": torch.zeros(1), "two": torch.zeros(1)}, TABLE)


@pytest.mark.parametrize(
    "reshape",
    [JOIN_QKV, SCALAR, Reshape(lambda t: [t[2]], lambda t: t)],
    ids=["rows of other lengths", "no scalar", "one tensor too few"],
)
def test_tensors_that_no_reshape_takes_are_named_with_their_shapes(reshape: Reshape) -> None:
    state = {"a": torch.zeros(2, 5), "b": torch.zeros(3, 7)}
    with pytest.raises(ValueError, match=re.escape("Wrong shape: a (2, 5), b (3, 7). Is the file whole")):
        read(state, ((("a", "b"), "weight", reshape),), nn.LayerNorm(2))


def test_a_row_of_several_names_counts_only_whole() -> None:
    model, row = nn.Linear(5, 6, bias=False), (("q", "k", "v"), "weight", JOIN_QKV)
    with pytest.raises(ValueError, match=r"2.*2 tensors"):
        read({"q": torch.zeros(2, 5), "v": torch.zeros(2, 5)}, (row,), model)
    with pytest.raises(ValueError, match=r"1.*tensors.*format"):
        write({"kv": torch.zeros(4, 5)}, (("qkv", ("q", "kv"), SPLIT_Q_KV),))


@pytest.mark.parametrize(
    ("reshape", "before", "after"),
    [
        (TRANSPOSE, [(2, 3)], [(3, 2)]),
        (BATCH_AXIS, [(5, 3)], [(1, 5, 3)]),
        (TOKEN_AXES, [(3,)], [(1, 1, 3)]),
        (SCALAR, [()], [()]),
        (SCALAR_1D, [(1,)], [()]),
        (JOIN_QKV, [(2, 5), (2, 5), (2, 5)], [(6, 5)]),
        (SPLIT_Q_KV, [(6, 5)], [(2, 5), (4, 5)]),
    ],
)
def test_a_reshape_and_its_way_back_change_no_number(
    reshape: Reshape, before: list[tuple[int, ...]], after: list[tuple[int, ...]]
) -> None:
    given = [torch.randn(size) for size in before]
    ours = reshape.read(given)
    assert [tuple(tensor.shape) for tensor in ours] == after
    back = reshape.write(ours)
    assert [tuple(tensor.shape) for tensor in back] == before
    assert all(map(torch.equal, back, given))


def test_q_k_and_v_keep_their_order() -> None:
    q, k, v = (torch.full((2, 3), float(number)) for number in range(3))
    assert torch.equal(JOIN_QKV.read([q, k, v])[0], torch.cat([q, k, v]))
    first, rest = SPLIT_Q_KV.read([torch.cat([q, k, v])])
    assert torch.equal(first, q)
    assert torch.equal(rest, torch.cat([k, v]))


def test_a_row_with_a_layer_is_written_once_per_layer_and_prefixes_go_before_every_name() -> None:
    table: Table = (
        ("a", "x"),
        (("q.{i}", "k.{i}", "v.{i}"), "qkv.{i}", JOIN_QKV),
        ("p.{i}", ("c.{i}", "d.{i}"), SCALAR),
    )
    rows = expand(with_prefix(table, "their.", "our."), 2)
    assert [(theirs, ours) for theirs, ours, *_ in rows] == [
        ("their.a", "our.x"),
        *((tuple(f"their.{n}.{i}" for n in "qkv"), f"our.qkv.{i}") for i in range(2)),
        *((f"their.p.{i}", (f"our.c.{i}", f"our.d.{i}")) for i in range(2)),
    ]
    assert [how for *_, how in rows[1:]] == [JOIN_QKV, JOIN_QKV, SCALAR, SCALAR]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folded_layer_scale_is_a_layer_followed_by_its_scale(dtype: torch.dtype) -> None:
    linears = [nn.Linear(3, 4, bias=layer != 1) for layer in range(3)]  # the one in the middle has no bias
    state: dict[str, Tensor] = {"other.ls.gamma": torch.ones(4)}
    for layer, linear in enumerate(linears):
        gamma = torch.randn(4).to(dtype)
        state |= {f"blocks.{layer}.fc.{name}": tensor.detach() for name, tensor in linear.state_dict().items()}
        state[f"blocks.{layer}.ls.gamma"] = gamma
    folded = fold_layer_scale(state, r"blocks\.\d+\.", (("ls.gamma", "fc"),))
    assert folded.keys() == state.keys() - {f"blocks.{layer}.ls.gamma" for layer in range(3)}
    x = torch.randn(5, 3)
    for layer, linear in enumerate(linears):
        weight, bias = folded[f"blocks.{layer}.fc.weight"], folded.get(f"blocks.{layer}.fc.bias")
        expected = linear(x) * state[f"blocks.{layer}.ls.gamma"]
        torch.testing.assert_close(nn.functional.linear(x, weight, bias), expected)


def test_a_shape_is_that_of_a_tensor_with_so_many_axes_or_one_line() -> None:
    state = {name: torch.zeros(2, 3) for name in "abcdefg"} | {"none": torch.zeros(0, 3)}
    assert shape(state, "b", 2) == (2, 3)
    with pytest.raises(ValueError, match=r"file.*8 tensors.*\.\."):
        shape(state, "x", 2)
    for name, axes, found in (("b", 3, "(2, 3)"), ("b", 1, "(2, 3)"), ("none", 2, "(0, 3)")):
        line = re.escape(f"{name} has shape {found}; wanted {axes} axes.")
        with pytest.raises(ValueError, match=f"^{line}$"):
            shape(state, name, axes)


def test_layers_are_counted_from_0_without_a_gap() -> None:
    state: dict[str, Any] = dict.fromkeys(("h.2.w", "h.0.w", "h.0.b", "h.1.w", "other", "x.h.7.w"))
    assert layers(state, r"h\.(\d+)\.") == 3
    del state["h.1.w"]
    state["h.11.w"] = None
    with pytest.raises(ValueError, match=r"12.*\[0, 2, 11\].*file.*whole\?"):
        layers(state, r"h\.(\d+)\.")
    with pytest.raises(ValueError, match=r"nothing.*6 tensors"):
        layers(state, r"blocks\.(\d+)\.")


def test_only_square_numbers_of_patches_have_a_side() -> None:
    sides = {side * side: side for side in range(1, 20)}
    for patches in range(-2, 400):
        if patches in sides:
            assert square(patches, "pos") == sides[patches]
        else:
            with pytest.raises(ValueError, match=f"{patches}.*positions.*square"):
                square(patches, "pos")


def test_a_ratio_gives_back_every_size_of_mlp() -> None:
    """As OpenCLIP and timm compute it: `int(width * mlp_ratio)`."""
    for width in (32, 48, 192, 1152, 1664):
        for mlp_dim in range(1, 4 * width, 7):
            assert int(width * mlp_ratio(mlp_dim, width)) == mlp_dim
    assert mlp_ratio(3072, 768) == 4
