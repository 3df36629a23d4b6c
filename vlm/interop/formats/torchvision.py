"""torchvision's `vit_b_16` and its like, read only (torchvision/models/vision_transformer.py: eps 1e-6, GELU)."""

from vlm.config import VisionConfig
from vlm.interop.formats.foreign import HEADS, ForeignClassifier, Hints, skeleton
from vlm.interop.formats.huggingface import pair
from vlm.interop.formats.tables import State, Table, expand, layers, read, shape, square

_LAYER = "encoder.layers.encoder_layer_{i}"
_TABLE: Table = (
    ("class_token", "vision.cls_token"),
    ("encoder.pos_embedding", "vision.pos_embed"),
    *pair("conv_proj", "vision.patch_embed.proj"),
    *pair(f"{_LAYER}.ln_1", "vision.blocks.{i}.norm1"),
    (f"{_LAYER}.self_attention.in_proj_weight", "vision.blocks.{i}.attn.qkv.weight"),
    (f"{_LAYER}.self_attention.in_proj_bias", "vision.blocks.{i}.attn.qkv.bias"),
    *pair(f"{_LAYER}.self_attention.out_proj", "vision.blocks.{i}.attn.proj"),
    *pair(f"{_LAYER}.ln_2", "vision.blocks.{i}.norm2"),
    *pair(f"{_LAYER}.mlp.0", "vision.blocks.{i}.mlp.fc1"),
    *pair(f"{_LAYER}.mlp.3", "vision.blocks.{i}.mlp.fc2"),
    *pair("encoder.ln", "vision.norm"),
    *pair("heads.head", "head"),
)


def read_classifier(state: State, hints: Hints) -> ForeignClassifier:
    """The weights alone say everything but the heads, which follow from the width."""
    # torchvision 0.12 named the MLP's layers linear_1 and linear_2
    state = {
        name.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3."): t for name, t in state.items()
    }
    width, channels, patch, _ = shape(state, "conv_proj.weight", 4)
    config = VisionConfig(
        image_size=patch * square(shape(state, "encoder.pos_embedding", 3)[1] - 1, "encoder.pos_embedding"),
        patch_size=patch,
        in_channels=channels,
        width=width,
        depth=layers(state, r"encoder\.layers\.encoder_layer_(\d+)\."),
        num_heads=hints.need_heads(width, HEADS, "torchvision ViT"),
        mlp_dim=shape(state, "encoder.layers.encoder_layer_0.mlp.0.weight", 2)[0],
        activation=hints.activation or "gelu",
        norm_eps=hints.norm_eps or 1e-6,
    )
    num_classes = shape(state, "heads.head.weight", 2)[0]
    model = skeleton(config, num_classes)
    return ForeignClassifier(config, num_classes, None, read(state, expand(_TABLE, config.depth), model), None)
