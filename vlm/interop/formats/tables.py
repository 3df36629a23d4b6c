"""Rename tables that read both ways: (theirs, ours), and a reshape where the two sides keep a tensor differently.

`{i}` stands for a layer.  A side may be several tensors: ("q.weight", "k.weight", "v.weight") joins to one of ours.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlm.errors import CheckpointError, InputError

Names = str | tuple[str, ...]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Reshape:
    """Reshape of tensors when reading (theirs -> ours) and writing (ours -> theirs)."""

    read: Callable[[list[Tensor]], list[Tensor]]
    write: Callable[[list[Tensor]], list[Tensor]]


Table = tuple[tuple[Names, Names] | tuple[Names, Names, Reshape], ...]

SAME = Reshape(lambda t: t, lambda t: t)
TRANSPOSE = Reshape(lambda t: [t[0].T], lambda t: [t[0].T])  # x @ W of theirs is a Linear of ours
BATCH_AXIS = Reshape(lambda t: [t[0][None]], lambda t: [t[0][0]])  # (N, D) and (1, N, D)
TOKEN_AXES = Reshape(lambda t: [t[0][None, None]], lambda t: [t[0][0, 0]])  # (D,) and (1, 1, D)
SCALAR = Reshape(lambda t: [t[0].reshape(())], lambda t: [t[0]])  # [1] or 0-D, always 0-D here
SCALAR_1D = Reshape(lambda t: [t[0].reshape(())], lambda t: [t[0].reshape(1)])
JOIN_QKV = Reshape(lambda t: [torch.cat(t)], lambda t: list(t[0].chunk(3)))  # q, k, v rows, one below the other
SPLIT_Q_KV = Reshape(lambda t: list(t[0].tensor_split([len(t[0]) // 3])), lambda t: [torch.cat(t)])  # qkv to q and kv


def expand(table: Table, depth: int) -> Table:
    """Writes each `{i}` row once per layer."""
    rows: list[tuple[Names, Names, Reshape]] = []
    for theirs, ours, *how in table:
        layers = range(depth) if "{i}" in _tuple(ours)[0] else range(1)
        rows += [(_fill(theirs, i), _fill(ours, i), how[0] if how else SAME) for i in layers]
    return tuple(rows)


def with_prefix(table: Table, theirs: str, ours: str) -> Table:
    """The same table, one module deeper on either side."""
    return tuple((_add(theirs, row[0]), _add(ours, row[1]), *row[2:]) for row in table)  # type: ignore[misc]


def read(state: State, table: Table, model: nn.Module, *, ignore: Iterable[str] = ()) -> State:
    """Their tensors under our names, float32, in `model`'s shapes.

    `model` may live on torch's meta device: only its names and shapes count.  `ignore`: patterns of names that carry no
    weights (old buffers).  Raises `CheckpointError` listing all that are unknown, missing or of a wrong shape or type.
    """
    left = {name: tensor for name, tensor in state.items() if not any(re.fullmatch(p, name) for p in ignore)}
    _check_types(left)
    wanted = model.state_dict()
    ours: State = {}
    for theirs, names, *how in table:
        sources = _tuple(theirs)
        if all(source in left for source in sources):
            tensors = [left.pop(source) for source in sources]
            try:
                reshaped = (how[0] if how else SAME).read(tensors)
            except (RuntimeError, IndexError) as error:
                shapes = ", ".join(f"{s} {tuple(t.shape)}" for s, t in zip(sources, tensors, strict=True))
                raise CheckpointError(
                    f"Wrong shape: {shapes}. Is the file whole, and does it belong to this config?"
                ) from error
            ours |= dict(zip(_tuple(names), reshaped, strict=True))
    if left:
        raise CheckpointError(
            f"{len(left)} of {len(state)} tensors have names this format does not use: {_listing(left)}. "
            "Is this the right format for this file?"
        )
    missing = [name for name in wanted if name not in ours]
    extra = [name for name in ours if name not in wanted]
    wrong = [
        f"{n} {tuple(t.shape)}, wanted {tuple(wanted[n].shape)}"
        for n, t in ours.items()
        if n in wanted and t.shape != wanted[n].shape
    ]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(wanted)} tensors are missing (our names): {_listing(missing)}. Is the file whole?"
        )
    if extra:
        raise CheckpointError(f"{len(extra)} tensors do not belong to this config (our names): {_listing(extra)}.")
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors have the wrong shape (our names): {_listing(wrong)}. Is the config the file's?"
        )
    return {name: ours[name].to(torch.float32).contiguous() for name in wanted}


def write(state: State, table: Table) -> State:
    """Our tensors under their names; raises `InputError` that lists ours that the table does not know."""
    left, theirs = dict(state), State()
    for names, ours, *how in table:
        if all(name in left for name in _tuple(ours)):
            tensors = (how[0] if how else SAME).write([left.pop(name) for name in _tuple(ours)])
            theirs |= {name: tensor.contiguous() for name, tensor in zip(_tuple(names), tensors, strict=True)}
    if left:
        raise InputError(f"{len(left)} of our tensors have no place in this format: {_listing(left)}.")
    return theirs


def fold_layer_scale(state: State, block: str, branches: Iterable[tuple[str, str]]) -> State:
    """LayerScale (Touvron et al. 2021) put into the linear layer before: gamma (W x + b) = (gamma W) x + gamma b.

    `block`: a pattern for a block's prefix; `branches`: (gamma, linear layer) names behind it.
    """
    folded = dict(state)
    for gamma_name, linear in branches:
        for name in [n for n in state if re.fullmatch(block + re.escape(gamma_name), n)]:
            gamma, prefix = folded.pop(name).float(), name.removesuffix(gamma_name)
            for part in ("weight", "bias"):
                whole = f"{prefix}{linear}.{part}"
                if whole in folded:
                    tensor = folded[whole].float()
                    folded[whole] = tensor * (gamma[:, None] if tensor.ndim == 2 else gamma)
    return folded


def shape(state: State, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there, with that many axes."""
    if name not in state:
        raise CheckpointError(
            f"{name} is not in the file. It holds {len(state)} tensors: {_listing(list(state)[:5])} ..."
        )
    if state[name].ndim != axes or 0 in state[name].shape:
        raise CheckpointError(f"{name} has shape {tuple(state[name].shape)}; wanted {axes} axes.")
    return tuple(state[name].shape)


def square(patches: int, name: str) -> int:
    """The side of a square grid."""
    side = math.isqrt(max(patches, 1))
    if side * side != patches:
        raise CheckpointError(
            f"{name} holds {patches} patch positions, which is no square: its config must lie beside it."
        )
    return side


def layers(state: State, pattern: str) -> int:
    """Number of layers: `pattern` has one group, the layer's number."""
    found = {int(match[1]) for name in state if (match := re.match(pattern, name))}
    if not found:
        raise CheckpointError(f"No layer is in the file: nothing is called {pattern}. It holds {len(state)} tensors.")
    if max(found) >= len(found):
        raise CheckpointError(f"Of {max(found) + 1} layers only {sorted(found)} are in the file. Is the file whole?")
    return len(found)


def mlp_ratio(mlp_dim: int, width: int) -> float:
    """The ratio whose `int(width * ratio)` is `mlp_dim`, as OpenCLIP and timm compute it."""
    ratio = mlp_dim / width
    return ratio if int(width * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def _check_types(state: State) -> None:
    wrong = [
        f"{n} {t.dtype}" for n, t in state.items() if t.dtype not in (torch.float32, torch.float16, torch.bfloat16)
    ]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors are not float32, float16 or bfloat16: {_listing(wrong)}. No other is read."
        )


def _listing(names: Iterable[str]) -> str:
    return ", ".join(names)


def _tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _fill(names: Names, layer: int) -> Names:
    filled = tuple(name.replace("{i}", str(layer)) for name in _tuple(names))
    return filled[0] if isinstance(names, str) else filled


def _add(prefix: str, names: Names) -> Names:
    return prefix + names if isinstance(names, str) else tuple(prefix + name for name in names)
