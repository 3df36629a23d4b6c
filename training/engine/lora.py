"""LoRA (Hu et al. 2022) by `peft`: a frozen matrix W (n, m) becomes W + alpha / rank B A, and A and B are trained.

A (rank, m) starts at random and B (n, rank) at zero, so training starts from exactly the source.  `merge_adapters`
adds the product to W; the model then has its usual names and speed, without peft.
"""

from collections.abc import Iterable

from torch import nn


def add_adapters(model: nn.Module, blocks: Iterable[nn.Module], rank: int, alpha: int) -> None:
    """Put an adapter on every linear layer of some blocks (qkv, proj, fc1, fc2) and freeze everything else.

    Args:
        model: changed in place.
        blocks: of the model.
        rank: of the adapters.
        alpha: their product is scaled by alpha / rank.
    """
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and other runs do not need it

    chosen = {layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)}
    names = [name for name, layer in model.named_modules() if layer in chosen]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=names), model)


def merge_adapters(model: nn.Module) -> None:
    """Add every adapter to its matrix and remove it."""
    from peft.tuners.lora import Linear

    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
