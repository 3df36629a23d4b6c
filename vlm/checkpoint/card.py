"""The model card of a model that came without one."""

from typing import Any

from torch import nn


def short_card(name: str, config: dict[str, Any], model: nn.Module) -> str:
    """Says only what is certain; `config` as in config.json."""
    clip = config["kind"] == "clip"
    task = "zero-shot-image-classification" if clip else "image-classification"
    opener = "load" if clip else "load_classifier"
    what = "A CLIP model" if clip else f"A ViT that tells {len(config['labels'])} classes apart"
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

Data, recipe and measured accuracy are not recorded here: `vlm.save(model, folder, card=...)` writes them.
"""
