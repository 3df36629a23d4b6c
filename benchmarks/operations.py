"""Counts what a piece of code asks of torch: operations, bytes of their results, and points where the host waits.

On a GPU every operation that is not a view is at least one kernel launch, and the host waits for the device where it
needs a number to go on: `.item()`, `nonzero`, indexing by a mask, a copy to the CPU.  These operations reach torch's
dispatcher on every device, so they can be counted on a CPU and, without any memory, on the meta device.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_NEED_A_NUMBER = {
    "aten::_local_scalar_dense",  # item(), int(), float(), bool()
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::equal",
    "aten::bincount",
}
_BY_INDEX = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_COPIES = {"aten::_to_copy", "aten::copy_"}


class Operations(TorchDispatchMode):
    """Inside `with Operations() as seen:`, `seen` counts.

    kernels: operations that are no views, by name.
    synchronisations: operations for which the host waits, by name.
    bytes: of all results that are no views.
    largest: bytes of the largest of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.synchronisations: Counter[str] = Counter()
        self.bytes = self.largest = 0
        self._lists = _Lists(self.synchronisations)

    def __enter__(self) -> Self:
        self._lists.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._lists.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if _host_waits(name, args, kwargs or {}, out):
            self.synchronisations[name] += 1
        if not func.is_view and name != "aten::detach":
            self.kernels[name] += 1
            for result in tree_leaves(out):
                if isinstance(result, Tensor) and not name.endswith("_"):
                    size = result.numel() * result.element_size()
                    self.bytes, self.largest = self.bytes + size, max(self.largest, size)
        return out


class _Lists(TorchFunctionMode):
    """Counts `tolist`, which reads a CPU's memory without the dispatcher and copies from any other device."""

    def __init__(self, counts: Counter[str]):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            self.counts["tolist"] += 1
        return func(*args, **(kwargs or {}))


def _host_waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> bool:
    if name in _NEED_A_NUMBER:
        return True
    if name in _BY_INDEX:
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if name == "aten::repeat_interleave":
        return kwargs.get("output_size") is None
    if name in _COPIES:
        source = args[0] if name == "aten::_to_copy" else args[1]
        blocking = not (kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2]))
        return isinstance(source, Tensor) and source.device != out.device and blocking
    return False


def count(function: Callable[[], object]) -> Operations:
    """What one call of `function` asks."""
    with Operations() as seen:
        function()
    return seen
