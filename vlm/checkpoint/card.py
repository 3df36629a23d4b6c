"""A short model card, for models saved without one."""

from typing import Any

from torch import nn


def short_card(name: str, config: dict[str, Any], model: nn.Module) -> str:
    """Write a card from what the model itself says.

    Args:
        name: of the model.
        config: as in config.json.
        model: the weights.
    """
    clip = config["kind"] == "clip"
    task = "zero-shot-image-classification" if clip else "image-classification"
    opener = "load" if clip else "load_classifier"
    what = "A CLIP model" if clip else f"A ViT classifier of {len(config['labels'])} classes"
    size = sum(weight.numel() for weight in model.parameters())
    return f"""---
library_name: vlm
pipeline_tag: {task}
---

# {name}

{what}, {size / 1e6:.1f} million parameters.

```python
import vlm

model = vlm.{opener}("{name}")
```

This card says nothing about data, recipe and accuracy. To record them, use `vlm.save(model, folder, card=...)`.
"""
