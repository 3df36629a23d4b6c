"""LoRA (Hu et al. 2022) by `peft`: a frozen matrix W (n, m) becomes W + alpha / rank B A, and A and B are trained.

A (rank, m) starts at random and B (n, rank) at zero, so training starts from exactly the source.  `merge_adapters`
adds the product to W; the model then has its usual names and speed, without peft.
"""

from collections.abc import Iterable

from torch import nn

from vlm.models.clip import CLIP


def add_adapters(clip: CLIP, blocks: Iterable[nn.Module], rank: int, alpha: int) -> None:
    """Put an adapter on every linear layer of some blocks (qkv, proj, fc1, fc2) and freeze everything else.

    Args:
        clip: changed in place.
        blocks: of its encoders.
        rank: of the adapters.
        alpha: their product is scaled by alpha / rank.
    """
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and other runs do not need it

    chosen = {layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)}
    names = [name for name, layer in clip.named_modules() if layer in chosen]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=names), clip)


def merge_adapters(clip: CLIP) -> None:
    """Add every adapter to its matrix and remove it."""
    from peft.tuners.lora import Linear

    for name, layer in list(clip.named_modules()):
        if isinstance(layer, Linear):
            layer.merge()
            clip.set_submodule(name, layer.get_base_layer())
