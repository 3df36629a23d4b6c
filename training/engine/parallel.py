"""Prepares a model for training: recomputes activations, compiles, spreads it over processes.

None of it changes a parameter's name or what a step computes, only where and when.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vlm.models.clip import CLIP
from vlm.models.layers import Block
from vlm.training.engine.distributed import Processes
from vlm.training.engine.precision import resolve
from vlm.training.recipe.sections import RunSection


def prepare(model: nn.Module, run: RunSection, processes: Processes) -> nn.Module:
    """The module that a step calls.

    Args:
        model: changed in place as the recipe wants.
        run: [run] of the recipe.
        processes: several get DDP, or FSDP2 with run.shard.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        if run.checkpoint_activations:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
        if run.compile:
            block.compile()
    if processes.size == 1:
        return model
    if run.shard:
        return _shard(model, blocks, processes, resolve(run.precision, processes.device))
    return DistributedDataParallel(model, device_ids=[processes.device] if processes.device.type == "cuda" else None)


def _shard(model: nn.Module, blocks: Iterable[nn.Module], processes: Processes, precision: str) -> nn.Module:
    """FSDP2, block by block.  Scalars, the temperature among them, are not sharded.

    In bfloat16 the weights are gathered in bfloat16; gradients are reduced in float32.
    """
    whole = {p for p in model.parameters() if p.ndim == 0}
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    policy = MixedPrecisionPolicy()
    if precision == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, ignored_params=whole, reshard_after_forward=True, mp_policy=policy)
    if isinstance(model, CLIP):  # validation calls these
        register_fsdp_forward_method(model, "encode_image")
        register_fsdp_forward_method(model, "encode_text")
    return model


@contextmanager
def without_sync(model: nn.Module) -> Iterator[None]:
    """Inside, gradients are added up on each process and not exchanged: for all chunks of a batch but the last."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    elif isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    else:
        yield


def average_whole(parameters: Iterable[Tensor], processes: Processes) -> None:
    """Average the gradients of parameters that FSDP2 does not shard over the processes."""
    for p in parameters:
        if not isinstance(p, DTensor) and p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad.div_(processes.size)


def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `limit`; returns the norm before, on the device."""
    having = [p for p in parameters if p.grad is not None]
    kinds = [[p for p in having if isinstance(p, DTensor) is sharded] for sharded in (True, False)]
    norms = [_whole(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds if kind]
    norm = torch.stack(norms).norm()
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return norm


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights on the CPU, unsharded.  With FSDP2 all processes must call this."""
    return {name: _whole(weight).cpu() for name, weight in model.state_dict().items()}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
