"""Hugging Face's `ViTForImageClassification` and `ViTModel`, both ways; read as transformers 4 and as 5 name it."""

import re
from typing import Any

import torch

from vlm.config import Json, VisionConfig
from vlm.errors import CheckpointError, InputError
from vlm.interop.formats.foreign import HEADS, ForeignClassifier, Hints, skeleton, whole_patches
from vlm.interop.formats.huggingface import ACTIVATIONS, NAMES, join_qkv, pair
from vlm.interop.formats.tables import (
    State,
    Table,
    expand,
    fold_layer_scale,
    layers,
    read,
    shape,
    square,
    with_prefix,
    write,
)

_STEM: Table = (
    ("embeddings.cls_token", "vision.cls_token"),
    ("embeddings.register_tokens", "vision.reg_token"),
    ("embeddings.position_embeddings", "vision.pos_embed"),
    *pair("embeddings.patch_embeddings.projection", "vision.patch_embed.proj"),
    *pair("layernorm", "vision.norm"),
)
_ON_DISK: Table = with_prefix(  # transformers 4's names, which transformers 5 writes too
    (
        *pair("layernorm_before", "norm1"),
        *join_qkv("attention.attention.{}", ("query", "key", "value"), "attn.qkv"),
        *pair("attention.output.dense", "attn.proj"),
        *pair("layernorm_after", "norm2"),
        *pair("intermediate.dense", "mlp.fc1"),
        *pair("output.dense", "mlp.fc2"),
    ),
    "encoder.layer.{i}.",
    "vision.blocks.{i}.",
)
_IN_MEMORY: Table = with_prefix(  # `state_dict()` in transformers 5
    (
        *pair("layernorm_before", "norm1"),
        *join_qkv("attention.{}", ("q_proj", "k_proj", "v_proj"), "attn.qkv"),
        *pair("attention.o_proj", "attn.proj"),
        *pair("layernorm_after", "norm2"),
        *pair("mlp.fc1", "mlp.fc1"),
        *pair("mlp.fc2", "mlp.fc2"),
    ),
    "layers.{i}.",
    "vision.blocks.{i}.",
)
_HEAD: Table = pair("classifier", "head")
_DINO: Table = with_prefix(
    (
        *pair("norm1", "norm1"),
        *join_qkv("attention.attention.{}", ("query", "key", "value"), "attn.qkv"),
        *pair("attention.output.dense", "attn.proj"),
        *pair("norm2", "norm2"),
        *pair("mlp.fc1", "mlp.fc1"),
        *pair("mlp.fc2", "mlp.fc2"),
    ),
    "encoder.layer.{i}.",
    "vision.blocks.{i}.",
)
_UNUSED = (  # ViTModel's tanh pooler, masked pretraining, MAE's decoder
    r"pooler\.dense\.(weight|bias)",
    r"embeddings\.mask_token",
    r"decoder\..+",
)
_PREFIXES = ("vit.", "deit.", "dinov2.", "dinov2_with_registers.")
_EPS = {"dinov2": 1e-6, "dinov2_with_registers": 1e-6}  # configuration_*.py; the others 1e-12


def read_classifier(state: State, info: dict[str, Any] | None, hints: Hints) -> ForeignClassifier:
    """`info` is config.json, None for bare weights: then GELU and eps 1e-12, as all published ones have it."""
    state = _standard(state)
    given = info or {}
    config = _config(state, given, info is not None, hints)
    num_classes = shape(state, "classifier.weight", 2)[0] if "classifier.weight" in state else 0
    model = skeleton(config, num_classes)
    blocks = _IN_MEMORY if _is_in_memory(state) else _DINO if _is_dino(state) else _ON_DISK
    ours = read(state, expand(_STEM + blocks + _HEAD, config.depth), model, ignore=_UNUSED)
    return ForeignClassifier(config, num_classes, _labels(given, num_classes), ours, None)


def _standard(state: State) -> State:
    """Standardises names: no model prefix, LayerScale folded, DeiT's distillation token as a register."""
    prefix = next((p for p in _PREFIXES if any(name.startswith(f"{p}embeddings.") for name in state)), "")
    state = {_dino_on_disk(name.removeprefix(prefix)): tensor for name, tensor in state.items()}
    state = fold_layer_scale(
        state,
        r"encoder\.layer\.\d+\.",
        (("layer_scale1.lambda1", "attention.output.dense"), ("layer_scale2.lambda1", "mlp.fc2")),
    )
    if any(".weights_in." in name for name in state):
        raise CheckpointError(
            "This DINOv2 has SwiGLU layers (the giant size), for which this library has none. Use the small, base or "
            "large one."
        )
    if "embeddings.distillation_token" in state:
        positions = state["embeddings.position_embeddings"]
        state["embeddings.register_tokens"] = state.pop("embeddings.distillation_token") + positions[:, 1:2]
        state["embeddings.position_embeddings"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
    if "cls_classifier.weight" in state:  # two heads, one for each token: this ViT becomes a backbone
        state = {name: tensor for name, tensor in state.items() if "classifier." not in name}
    head = state.get("classifier.weight")
    if head is not None and head.ndim == 2 and head.shape[1] == 2 * state["embeddings.cls_token"].shape[-1]:
        # DINOv2's head reads the class token and the mean of the patches: without it, a backbone
        state = {name: tensor for name, tensor in state.items() if "classifier." not in name}
    return state


def _dino_on_disk(name: str) -> str:
    """The name in a file, of a name in `state_dict()` of DINOv2 in transformers 5."""
    match = re.fullmatch(r"((?:encoder\.)?layer\.\d+\.attention\.)([qkvo])_proj\.(weight|bias)", name)
    if match is None:
        return re.sub(r"^layer\.", "encoder.layer.", name)
    block, kind, part = match[1], match[2], match[3]
    layer = "output.dense" if kind == "o" else f"attention.{ {'q': 'query', 'k': 'key', 'v': 'value'}[kind] }"
    return f"{block.removeprefix('encoder.').replace('layer.', 'encoder.layer.', 1)}{layer}.{part}"


def _is_dino(state: State) -> bool:
    return "encoder.layer.0.norm1.weight" in state


def _is_in_memory(state: State) -> bool:
    return any(name.startswith("layers.") for name in state)


def _config(state: State, given: dict[str, Any], known: bool, hints: Hints) -> VisionConfig:
    width, channels, patch, _ = shape(state, "embeddings.patch_embeddings.projection.weight", 4)
    activation = given.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"config.json: hidden_act is {activation!r}; known here: {', '.join(ACTIVATIONS)}.")
    prefix, fc1 = ("layers", "mlp.fc1") if _is_in_memory(state) else ("encoder.layer", "intermediate.dense")
    fc1 = "mlp.fc1" if _is_dino(state) else fc1
    kind = str(given.get("model_type"))
    qkv_bias = f"{prefix}.0.attention.{'q_proj' if _is_in_memory(state) else 'attention.query'}.bias" in state
    side = (
        given.get("image_size", 224)
        if known
        else patch * square(shape(state, "embeddings.position_embeddings", 3)[1] - 1, "position_embeddings")
    )
    heads = given.get("num_attention_heads", 12) if known else None
    settings: dict[str, Any] = {
        "image_size": whole_patches(side, patch),
        "patch_size": patch,
        "in_channels": channels,
        "width": width,
        "depth": layers(state, prefix.replace(".", r"\.") + r"\.(\d+)\."),
        "num_heads": hints.num_heads or heads or hints.need_heads(width, HEADS, "Hugging Face ViT without config.json"),
        "mlp_dim": shape(state, f"{prefix}.0.{fc1}.weight", 2)[0],
        "activation": hints.activation or ACTIVATIONS[activation],
        "norm_eps": hints.norm_eps or given.get("layer_norm_eps", _EPS.get(kind, 1e-12)),
        "qkv_bias": qkv_bias,
        "registers": state["embeddings.register_tokens"].shape[1] if "embeddings.register_tokens" in state else 0,
    }
    return VisionConfig.from_dict(settings)


def _labels(given: dict[str, Any], num_classes: int) -> tuple[str, ...] | None:
    names: Json = given.get("id2label")
    if not isinstance(names, dict) or sorted(names) != sorted(str(number) for number in range(num_classes)):
        return None
    return tuple(str(names[str(number)]) for number in range(num_classes))


def write_classifier(
    config: VisionConfig, state: State, labels: tuple[str, ...], side: int
) -> tuple[dict[str, Any], State]:
    """(config.json, tensors) of a `ViTForImageClassification`; `InputError` names everything it cannot express."""
    outside = {
        f"pool '{config.pool}'": config.pool != "class",
        "registers": config.registers > 0,
        "a norm before the blocks": config.pre_norm,
        "no patch bias": not config.patch_bias,
        "an image that is not square": config.image_shape[0] != config.image_shape[1],
    }
    if problems := [reason for reason, holds in outside.items() if holds]:
        raise InputError(
            f"Hugging Face's ViT cannot express this model: {'; '.join(problems)}. Export it to timm: transformers' "
            "AutoModelForImageClassification and pipeline open that folder too."
        )
    info = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "dtype": "float32",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": NAMES[config.activation],
        "layer_norm_eps": config.norm_eps,
        "image_size": side,
        "patch_size": config.patch_size,
        "num_channels": config.in_channels,
        "qkv_bias": config.qkv_bias,
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    theirs = write(state, expand(_STEM + _ON_DISK + _HEAD, config.depth))
    return info, {name if name.startswith("classifier.") else f"vit.{name}": tensor for name, tensor in theirs.items()}
