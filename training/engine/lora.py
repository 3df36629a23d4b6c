"""LoRA (Hu et al. 2022) by `peft`: beside a frozen matrix W (n, m) a small one learns, W + alpha / rank B A.

A (rank, m) starts at random and B (n, rank) at zero, so training starts from exactly the source.  `merge_adapters`
adds the product to W, and the model is again one like any other: same names, same speed, no peft needed.
"""

from collections.abc import Iterable

from torch import nn

from vlm.models.clip import CLIP


def add_adapters(clip: CLIP, blocks: Iterable[nn.Module], rank: int, alpha: int) -> None:
    """On every linear layer of `blocks`: qkv, proj, fc1, fc2.  From now on nothing but the adapters learns."""
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and other runs do not need it

    chosen = {layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)}
    names = [name for name, layer in clip.named_modules() if layer in chosen]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=names), clip)


def merge_adapters(clip: CLIP) -> None:
    """Every adapter becomes part of the matrix it sits on."""
    from peft.tuners.lora import Linear

    for name, layer in list(clip.named_modules()):
        if isinstance(layer, Linear):
            layer.merge()
            clip.set_submodule(name, layer.get_base_layer())
