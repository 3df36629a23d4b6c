"""big_vision's .npz files (SigLIP, and ViTs of big_vision and vision_transformer), read only.

Kernels are transposed, blocks may be stacked along a first axis, `t` is the log temperature.  The heads are an axis of
the query kernel; JAX's GELU is the tanh form, its LayerNorm epsilon 1e-6.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from vlm.config import CLIPConfig, TextConfig, VisionConfig
from vlm.interop.formats.foreign import ForeignClassifier, Hints, skeleton
from vlm.interop.formats.tables import (
    SCALAR,
    TRANSPOSE,
    Reshape,
    State,
    Table,
    expand,
    layers,
    read,
    shape,
    square,
    with_prefix,
)
from vlm.models.clip import CLIP


def _one_way(change: Callable[[list[Tensor]], Tensor]) -> Reshape:
    return Reshape(lambda tensors: [change(tensors)], lambda tensors: tensors)


_CONV = _one_way(lambda t: t[0].permute(3, 2, 0, 1))  # (P, P, C, D) -> (D, C, P, P)
_IN = _one_way(lambda t: torch.cat([kernel.flatten(1).T for kernel in t]))  # each (D, h, Dh) -> (3 D, D), or 2 D, or D
_IN_BIAS = _one_way(lambda t: torch.cat([bias.flatten() for bias in t]))  # each (h, Dh)
_OUT = _one_way(lambda t: t[0].flatten(0, 1).T)  # (h, Dh, D) -> (D, D)
_FIRST = _one_way(lambda t: t[0][0])  # (1, T, D) -> (T, D)


def _norm(theirs: str, ours: str) -> Table:
    return ((f"{theirs}/scale", f"{ours}.weight"), (f"{theirs}/bias", f"{ours}.bias"))


def _dense(theirs: str, ours: str) -> Table:
    return ((f"{theirs}/kernel", f"{ours}.weight", TRANSPOSE), (f"{theirs}/bias", f"{ours}.bias"))


def _heads(theirs: str, names: tuple[str, ...], ours: str) -> Table:
    return (
        (tuple(f"{theirs}/{name}/kernel" for name in names), f"{ours}.weight", _IN),
        (tuple(f"{theirs}/{name}/bias" for name in names), f"{ours}.bias", _IN_BIAS),
    )


_MHA = "MultiHeadDotProductAttention_0"
_BLOCK: Table = (
    *_norm("LayerNorm_0", "norm1"),
    *_heads(_MHA, ("query", "key", "value"), "attn.qkv"),
    (f"{_MHA}/out/kernel", "attn.proj.weight", _OUT),
    (f"{_MHA}/out/bias", "attn.proj.bias"),
    *_norm("LayerNorm_1", "norm2"),
    *_dense("MlpBlock_0/Dense_0", "mlp.fc1"),
    *_dense("MlpBlock_0/Dense_1", "mlp.fc2"),
)
_VISION: Table = (
    ("embedding/kernel", "vision.patch_embed.proj.weight", _CONV),
    ("embedding/bias", "vision.patch_embed.proj.bias"),
    ("pos_embedding", "vision.pos_embed"),
    ("cls", "vision.cls_token"),
    *with_prefix(_BLOCK, "Transformer/encoderblock_{i}/", "vision.blocks.{i}."),
    *_norm("Transformer/encoder_norm", "vision.norm"),
    ("MAPHead_0/probe", "vision.pool.latent"),
    *_heads(f"MAPHead_0/{_MHA}", ("query",), "vision.pool.q"),
    *_heads(f"MAPHead_0/{_MHA}", ("key", "value"), "vision.pool.kv"),
    (f"MAPHead_0/{_MHA}/out/kernel", "vision.pool.proj.weight", _OUT),
    (f"MAPHead_0/{_MHA}/out/bias", "vision.pool.proj.bias"),
    *_norm("MAPHead_0/LayerNorm_0", "vision.pool.norm"),
    *_dense("MAPHead_0/MlpBlock_0/Dense_0", "vision.pool.mlp.fc1"),
    *_dense("MAPHead_0/MlpBlock_0/Dense_1", "vision.pool.mlp.fc2"),
)
_TEXT: Table = (
    ("txt/Embed_0/embedding", "text.token_embed.weight"),
    ("txt/pos_embedding", "text.pos_embed", _FIRST),
    *with_prefix(_BLOCK, "txt/Encoder_0/encoderblock_{i}/", "text.blocks.{i}."),
    *_norm("txt/Encoder_0/encoder_norm", "text.norm"),
    *_dense("txt/head", "text_proj"),
)
_TOP: Table = (*_dense("img/head", "vision_proj"), ("t", "logit_scale", SCALAR), ("b", "logit_bias", SCALAR))


_OLDER = re.compile(r"(encoderblock_\d+/)(?:(MultiHeadDotProductAttention)_1|(LayerNorm)_2|(MlpBlock)_3)/")
_NEWER = {"MultiHeadDotProductAttention": 0, "LayerNorm": 1, "MlpBlock": 0}


def standard_names(state: State) -> State:
    """Renames weights to big_vision's current names: no `params/`, one tensor per block, its numbering of layers."""
    renamed: State = {}
    for name, tensor in state.items():
        name = name.removeprefix("params/").replace("Transformer/posembed_input/pos_embedding", "pos_embedding")
        name = _OLDER.sub(lambda m: f"{m[1]}{m[m.lastindex or 0]}_{_NEWER[m[m.lastindex or 0]]}/", name)
        if "encoderblock/" in name:
            renamed |= {name.replace("encoderblock/", f"encoderblock_{i}/"): part for i, part in enumerate(tensor)}
        else:
            renamed[name] = tensor
    return renamed


def read_clip(state: State, hints: Hints) -> tuple[CLIPConfig, State]:
    """A SigLIP: `img/`, `txt/`, `t` and `b`."""
    state = standard_names(state)
    vocab, width = shape(state, "txt/Embed_0/embedding", 2)
    text = TextConfig(
        vocab_size=vocab,
        context_length=shape(state, "txt/pos_embedding", 3)[1],
        width=width,
        depth=layers(state, r"txt/Encoder_0/encoderblock_(\d+)/"),
        num_heads=shape(state, f"txt/Encoder_0/encoderblock_0/{_MHA}/query/kernel", 3)[1],
        mlp_dim=shape(state, "txt/Encoder_0/encoderblock_0/MlpBlock_0/Dense_0/kernel", 2)[1],
        activation=hints.activation or "gelu_tanh",
        norm_eps=hints.norm_eps or 1e-6,
        causal=False,
        pool="last",
        eot_id=1,
        pad_id=0 if vocab == 256000 else 1,  # SigLIP 2's Gemma pads with 0, T5's tokenizers with their end-of-text
        pad_to_context=True,
    )
    image = {name.removeprefix("img/"): tensor for name, tensor in state.items() if name.startswith("img/")}
    vision = _vision(image, hints)
    config = CLIPConfig(
        embed_dim=shape(state, "txt/head/bias", 1)[0] if "txt/head/bias" in state else width,
        vision=vision,
        text=text,
        vision_proj="linear_bias" if "img/head/kernel" in state else "none",
        text_proj="linear_bias" if "txt/head/kernel" in state else "none",
        logit_scale=2.302585092994046,  # log 10, and -10: Zhai et al. 2023, section 3.2
        logit_bias=-10.0 if "b" in state else None,
    )
    with torch.device("meta"):
        model = CLIP(config)
    table = expand(with_prefix(_VISION, "img/", ""), vision.depth) + expand(_TEXT, text.depth) + _TOP
    return config, read(state, table, model)


def read_classifier(state: State, hints: Hints) -> ForeignClassifier:
    """A ViT, with its head if it has one."""
    state = {name.removeprefix("img/"): tensor for name, tensor in standard_names(state).items()}
    config = _vision(state, hints)
    num_classes = shape(state, "head/kernel", 2)[1] if "head/kernel" in state else 0
    model = skeleton(config, num_classes)
    ours = read(state, expand(_VISION, config.depth) + _dense("head", "head"), model)
    return ForeignClassifier(config, num_classes, None, ours, None)


def _vision(state: State, hints: Hints) -> VisionConfig:
    patch, _, channels, width = shape(state, "embedding/kernel", 4)
    class_token = "cls" in state
    return VisionConfig(
        image_size=patch * square(shape(state, "pos_embedding", 3)[1] - class_token, "pos_embedding"),
        patch_size=patch,
        in_channels=channels,
        width=width,
        depth=layers(state, r"Transformer/encoderblock_(\d+)/"),
        num_heads=shape(state, f"Transformer/encoderblock_0/{_MHA}/query/kernel", 3)[1],
        mlp_dim=shape(state, "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel", 2)[1],
        activation=hints.activation or "gelu_tanh",
        norm_eps=hints.norm_eps or 1e-6,
        pool="attention" if "MAPHead_0/probe" in state else "class" if class_token else "mean",
        class_token=class_token,
    )
