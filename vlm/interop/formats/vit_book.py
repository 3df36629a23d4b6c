"""The `Vit` of *Vision Transformer 入門*, chapter 2 (ghmagazine/vit_book), read only.

q, k and v have no bias, and the last LayerNorm sits in the head.  Its heads are in no file: the caller says them.
"""

from vlm.config import VisionConfig
from vlm.interop.formats.foreign import ForeignClassifier, Hints, skeleton
from vlm.interop.formats.huggingface import pair
from vlm.interop.formats.tables import JOIN_QKV, State, Table, expand, layers, read, shape, square

_TABLE: Table = (
    ("input_layer.cls_token", "vision.cls_token"),
    ("input_layer.pos_emb", "vision.pos_embed"),
    *pair("input_layer.patch_emb_layer", "vision.patch_embed.proj"),
    *pair("encoder.{i}.ln1", "vision.blocks.{i}.norm1"),
    (tuple(f"encoder.{{i}}.msa.w_{n}.weight" for n in "qkv"), "vision.blocks.{i}.attn.qkv.weight", JOIN_QKV),
    *pair("encoder.{i}.msa.w_o.0", "vision.blocks.{i}.attn.proj"),
    *pair("encoder.{i}.ln2", "vision.blocks.{i}.norm2"),
    *pair("encoder.{i}.mlp.0", "vision.blocks.{i}.mlp.fc1"),
    *pair("encoder.{i}.mlp.3", "vision.blocks.{i}.mlp.fc2"),
    *pair("mlp_head.0", "vision.norm"),
    *pair("mlp_head.1", "head"),
)


def read_classifier(state: State, hints: Hints) -> ForeignClassifier:
    """`hints.num_heads` must be given: the book uses 3, 4 and 8 for one width."""
    width, channels, patch, _ = shape(state, "input_layer.patch_emb_layer.weight", 4)
    config = VisionConfig(
        image_size=patch * square(shape(state, "input_layer.pos_emb", 3)[1] - 1, "input_layer.pos_emb"),
        patch_size=patch,
        in_channels=channels,
        width=width,
        depth=layers(state, r"encoder\.(\d+)\."),
        num_heads=hints.need_heads(width, {}, "the book's Vit"),
        mlp_dim=shape(state, "encoder.0.mlp.0.weight", 2)[0],
        activation=hints.activation or "gelu",
        norm_eps=hints.norm_eps or 1e-5,
        qkv_bias=False,
    )
    num_classes = shape(state, "mlp_head.1.weight", 2)[0]
    model = skeleton(config, num_classes)
    return ForeignClassifier(config, num_classes, None, read(state, expand(_TABLE, config.depth), model), None)
