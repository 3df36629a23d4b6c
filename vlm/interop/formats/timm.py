"""timm's Vision Transformers, both ways: our parameter names are theirs, the encoder one module deeper.

What the weights do not say follows from the architecture's name (timm/models/vision_transformer.py): LayerNorm epsilon
1e-5 in `_clip_` models and 1e-6 elsewhere, GELU unless the name says otherwise, the heads of its size.
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from vlm.config import Activation, Json, PreprocessConfig, VisionConfig
from vlm.errors import CheckpointError, InputError
from vlm.interop.formats.foreign import HEADS, ForeignClassifier, Hints, skeleton, whole_patches, write_json
from vlm.interop.formats.tables import (
    State,
    Table,
    expand,
    fold_layer_scale,
    layers,
    mlp_ratio,
    read,
    shape,
    square,
    write,
)

_STEM = (
    "cls_token",
    "reg_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "norm_pre.weight",
    "norm_pre.bias",
)
_BLOCK = tuple(
    f"blocks.{{i}}.{layer}.{part}"
    for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for part in ("weight", "bias")
)
_POOL = (
    "latent",
    *(f"{layer}.{p}" for layer in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2") for p in ("weight", "bias")),
)
_HEAD: Table = (("head.weight", "head.weight"), ("head.bias", "head.bias"))

# Heads by size, for plain ViTs only: relative positions, registers, hybrids, rotary positions and their like stay out.
_SIZES = {
    "tiny": 3, "xsmall": 4, "small": 6, "medium": 8, "betwixt": 10, "base": 12, "base_plus": 14, "large": 16,
    "huge": 16, "giant": 16, "giantopt": 16, "gigantic": 16, "so400m": 16,
}  # fmt: skip
_PLAIN = re.compile(
    r"(?:vit|deit|deit3)_([a-z0-9]+)(?:_distilled)?_patch\d+((?:_(?:plus|clip|siglip|quickgelu|gap|reg4|dinov2))*)"
    r"(?:_\d+)?(?:\..*)?"
)
_TANH = re.compile(
    r"vit_(giantopt_|so400m_patch16_|base_patch32_siglip_|large_patch16_siglip_(gap_)?512).*"
)  # SigLIP 2's sizes
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
    "gelu_tanh": "gelu_tanh",
}
_POOLS = {"token": "class", "avg": "mean", "map": "attention"}


_POOL_AND_TOKEN = "attention pooling beside a class token: timm's leaves the token out, ours reads it."


@dataclasses.dataclass(frozen=True)
class Named:
    """Settings encoded in an architecture's name."""

    num_heads: int
    activation: Activation
    norm_eps: float
    global_pool: str
    patches_alone: bool = False  # the class token has no position embedding: timm's no_embed_class


def named(name: str) -> Named:
    """Reads a timm architecture name; refuses what is not a plain ViT."""
    match = _PLAIN.fullmatch(name)
    kinds = match[2].split("_")[1:] if match else []
    size = "" if match is None else match[1] + ("_plus" if "plus" in kinds else "")
    if size not in _SIZES:
        raise CheckpointError(
            f"timm's '{name}' is no plain ViT that is known here. Known: vit_base_patch16_224 and its like."
        )
    return Named(
        num_heads=16 if name.startswith("vit_base_patch16_gap_224") else _SIZES[size],  # the one exception
        activation="quick_gelu" if "quickgelu" in kinds else "gelu_tanh" if _TANH.fullmatch(name) else "gelu",
        norm_eps=1e-5 if "clip" in kinds else 1e-6,
        global_pool="avg" if "gap" in kinds else "map" if "siglip" in kinds else "token",
        patches_alone=name.startswith("deit3_") or "reg4" in kinds,
    )


def encoder_table(config: VisionConfig) -> Table:
    """(timm's name, ours) of the image tower; the last norm is `fc_norm` where it comes after the pooling."""
    norm = "fc_norm" if config.norm_after_pool else "norm"
    return expand(
        tuple((name, f"vision.{name}") for name in _STEM + _BLOCK)
        + tuple((f"{norm}.{part}", f"vision.norm.{part}") for part in ("weight", "bias"))
        + tuple((f"attn_pool.{name}", f"vision.pool.{name}") for name in _POOL),
        config.depth,
    )


def fold_scales(state: State, prefix: str = "") -> State:
    """Folds LayerScale (`ls1`, `ls2`) into the linear layers."""
    return fold_layer_scale(
        state, re.escape(prefix) + r"blocks\.\d+\.", (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2"))
    )


def one_position_for_each_token(state: State, *, patches_alone: bool) -> State:
    """Position embeddings for the class token and the patches, whichever tokens the model gives one.

    DeiT III and DINOv2 with registers have none for the class token: it gets zeros.  DeiT's distillation token is a
    register with its position added.
    """
    if "pos_embed" not in state or "cls_token" not in state or state["pos_embed"].ndim != 3:
        return state
    positions, class_token = state["pos_embed"], state["cls_token"]
    changed = dict(state)
    if "dist_token" in state and "reg_token" not in state:
        changed["reg_token"] = changed.pop("dist_token") + positions[:, 1:2]
        changed["pos_embed"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
    elif patches_alone:
        changed["pos_embed"] = torch.cat([torch.zeros_like(class_token), positions], dim=1)
    return changed


def encoder_config(state: State, name: Named, image_size: int | tuple[int, int] | None = None) -> VisionConfig:
    """Sizes from the weights, the rest from the name."""
    width, channels, patch, across = shape(state, "patch_embed.proj.weight", 4)
    if patch != across:
        raise CheckpointError(f"patches are {patch} x {across} pixels; only square patches are known here.")
    if name.global_pool not in _POOLS:
        raise CheckpointError(f"global_pool is '{name.global_pool}'; only {', '.join(_POOLS)} are known here.")
    if (
        "blocks.0.mlp.fc2.weight" in state
        and shape(state, "blocks.0.mlp.fc2.weight", 2)[1] != (shape(state, "blocks.0.mlp.fc1.weight", 2)[0])
    ):
        raise CheckpointError(
            "This ViT has SwiGLU layers (as the giant size of DINOv2), for which this library has none. Use the small, "
            "base or large one."
        )
    class_token = "cls_token" in state
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    if class_token and name.global_pool == "map":
        raise CheckpointError(_POOL_AND_TOKEN)
    if image_size is None:
        image_size = patch * square(shape(state, "pos_embed", 3)[1] - class_token, "pos_embed")
    return VisionConfig(
        image_size=whole_patches(image_size, patch),
        patch_size=patch,
        in_channels=channels,
        width=width,
        depth=layers(state, r"blocks\.(\d+)\."),
        num_heads=name.num_heads,
        mlp_dim=shape(state, "blocks.0.mlp.fc1.weight", 2)[0],
        activation=name.activation,
        norm_eps=name.norm_eps,
        pool=_POOLS[name.global_pool],  # type: ignore[arg-type]
        class_token=class_token,
        registers=registers,
        pre_norm="norm_pre.weight" in state,
        norm_after_pool="fc_norm.weight" in state,
        patch_bias="patch_embed.proj.bias" in state,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
    )


def read_classifier(state: State, info: dict[str, Any] | None, hints: Hints) -> ForeignClassifier:
    """A timm model; `info` is its config.json, None for bare weights."""
    state = fold_scales(state)
    if info is None:
        name, image_size, preprocess, labels = _named_by_weights(state, hints), None, None, None
    else:
        name, image_size = _named_by_config(info, hints)
        preprocess, labels = _preprocess(info), _labels(info)
    state = one_position_for_each_token(state, patches_alone=name.patches_alone)
    config = encoder_config(state, name, image_size)
    if "head_dist.weight" in state:  # DeiT's second head reads the distillation token: this ViT becomes a backbone
        state = {part: tensor for part, tensor in state.items() if not part.startswith(("head.", "head_dist."))}
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    model = skeleton(config, num_classes)
    ours = read(state, encoder_table(config) + _HEAD, model)
    return ForeignClassifier(
        config, num_classes, labels if labels and len(labels) == num_classes else None, ours, preprocess
    )


def _named_by_weights(state: State, hints: Hints) -> Named:
    """Bare weights: published models with these names are timm's or of its kind (DeiT, MAE, DINO: eps 1e-6, GELU)."""
    width = shape(state, "patch_embed.proj.weight", 4)[0]
    clip, siglip = "norm_pre.weight" in state, "attn_pool.latent" in state
    candidates: tuple[Activation, ...] = (
        ("gelu", "quick_gelu") if clip else ("gelu", "gelu_tanh") if siglip else ("gelu",)
    )
    pool = "map" if siglip else "avg" if "fc_norm.weight" in state or "cls_token" not in state else "token"
    return Named(
        num_heads=hints.need_heads(width, HEADS, "timm ViT"),
        activation=hints.need_activation(candidates, "timm ViT"),
        norm_eps=hints.norm_eps or (1e-5 if clip else 1e-6),
        global_pool=pool,
        patches_alone="pos_embed" in state
        and math.isqrt(state["pos_embed"].shape[1]) ** 2 == state["pos_embed"].shape[1],
    )


_ARGUMENTS = {
    "img_size", "patch_size", "embed_dim", "depth", "mlp_ratio", "in_chans", "num_classes", "class_token", "pre_norm",
    "fc_norm", "qkv_bias", "init_values", "num_heads", "act_layer", "global_pool", "drop_path_rate", "drop_rate",
    "proj_drop_rate", "no_embed_class", "reg_tokens", "dynamic_img_size",
}  # fmt: skip


def _named_by_config(info: dict[str, Any], hints: Hints) -> tuple[Named, int | tuple[int, int] | None]:
    name = named(str(info.get("architecture")))
    arguments: dict[str, Any] = info.get("model_args") or {}
    unknown = [argument for argument in arguments if argument not in _ARGUMENTS]
    if unknown:
        raise CheckpointError(f"timm model_args not known here: {', '.join(unknown)}.")
    activation = arguments.get("act_layer", name.activation)
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"timm act_layer is {activation!r}; known here: {', '.join(_ACTIVATIONS)}.")
    changed = dataclasses.replace(
        name,
        num_heads=hints.num_heads or arguments.get("num_heads", name.num_heads),
        activation=hints.activation or _ACTIVATIONS[activation],
        norm_eps=hints.norm_eps or name.norm_eps,
        global_pool=info.get("global_pool") or arguments.get("global_pool", name.global_pool),
        patches_alone=bool(arguments.get("no_embed_class", name.patches_alone)),
    )
    side: list[int] | int | None = arguments.get("img_size") or _pretrained(info).get("input_size", [])[1:] or None
    return changed, _side(side) if isinstance(side, list) else side


def _pretrained(info: dict[str, Any]) -> dict[str, Any]:
    return info["pretrained_cfg"] or {} if "pretrained_cfg" in info else info  # flat: timm's first uploads


def _preprocess(info: dict[str, Any]) -> PreprocessConfig | None:
    given = _pretrained(info)
    if not {"input_size", "mean", "std"} <= set(given):
        return None
    mode = given.get("crop_mode") or "center"
    resize = {"center": "crop", "squash": "squash"}
    if mode not in resize:
        raise CheckpointError(f"timm crop_mode is '{mode}'; known here: {', '.join(resize)}.")
    return PreprocessConfig.from_dict(
        {
            "image_size": _side(given["input_size"][1:]),
            "resize": resize[mode],
            "interpolation": given.get("interpolation") or "bicubic",
            "crop_pct": given.get("crop_pct") or 0.875,  # timm/data/constants.py, DEFAULT_CROP_PCT
            "mean": given["mean"],
            "std": given["std"],
        }
    )


def _side(shape: list[int]) -> int | tuple[int, int]:
    height, width = shape
    return height if height == width else (height, width)


def _labels(info: dict[str, Any]) -> tuple[str, ...] | None:
    names: Json = _pretrained(info).get("label_names") or info.get("label_names") or info.get("labels")
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def write_vision(
    folder: Path,
    config: VisionConfig,
    state: State,
    labels: tuple[str, ...] | None,
    preprocess: PreprocessConfig | None,
) -> None:
    """A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`: the ViT, and its head if it has one."""
    architecture = {1e-5: "vit_base_patch32_clip_224", 1e-6: "vit_base_patch16_224"}.get(config.norm_eps)
    if architecture is None:
        raise InputError(f"timm keeps norm_eps 1e-5 or 1e-6; this model has {config.norm_eps}.")
    if config.pool == "attention" and config.class_token:
        raise InputError(_POOL_AND_TOKEN)
    if config.registers or not config.final_norm:
        raise InputError(
            "a ViT with registers, or without its last norm, is not written for timm. Save it with vlm.save."
        )
    if config.pre_norm and config.patch_bias:
        raise InputError("timm's ViT has no patch bias where it has a norm before the blocks; this model has both.")
    theirs = write(state, encoder_table(config) + _HEAD)
    if not config.pre_norm and not config.patch_bias:
        theirs["patch_embed.proj.bias"] = torch.zeros(config.width)  # timm has no ViT without both
    num_classes = len(state["head.bias"]) if "head.bias" in state else 0
    global_pool = {ours: name for name, ours in _POOLS.items()}[config.pool]
    arguments = {
        "img_size": list(config.image_shape),
        "patch_size": config.patch_size,
        "in_chans": config.in_channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": mlp_ratio(config.mlp_dim, config.width),
        "act_layer": config.activation,
        "qkv_bias": config.qkv_bias,
        "class_token": config.class_token,
        "pre_norm": config.pre_norm,
        "fc_norm": config.norm_after_pool,
        "global_pool": global_pool,
    }
    info: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": num_classes,
        "num_features": config.width,
        "global_pool": global_pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [config.in_channels, *config.image_shape],
            "num_classes": num_classes,
            **_data_config(preprocess),
        },
    }
    if labels:
        info["label_names"] = list(labels)
    write_json(folder / "config.json", info)
    safetensors.torch.save_file(theirs, folder / "model.safetensors")


def _crop_pct(preprocess: PreprocessConfig) -> float:
    """timm's fraction: its `floor(image_size / crop_pct)` is the side that the image is resized to."""
    if preprocess.resize_side is None:
        return preprocess.crop_pct
    side, resized = preprocess.image_shape[0], preprocess.resize_shape[0]
    fraction = side / resized
    return fraction if math.floor(side / fraction) == resized else math.nextafter(fraction, 0)


def _data_config(preprocess: PreprocessConfig | None) -> dict[str, Any]:
    if preprocess is None:
        return {}
    if preprocess.resize == "pad":
        raise InputError(
            "timm pads with the mean colour, this model's preprocessing with grey. Use resize 'crop' or 'squash'."
        )
    return {
        "crop_mode": {"crop": "center", "squash": "squash"}[preprocess.resize],
        "crop_pct": _crop_pct(preprocess),
        "interpolation": preprocess.interpolation,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }
