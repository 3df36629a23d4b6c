"""Our configs as OpenCLIP's `model_cfg` and `preprocess_cfg` (open_clip/model.py, transform.py)."""

from typing import Any

from vlm.config import CLIPConfig, PreprocessConfig, TextConfig, VisionConfig
from vlm.errors import InputError
from vlm.interop.formats import timm
from vlm.interop.formats.tables import mlp_ratio

# timm's SigLIP towers, by (width, depth, mlp_dim): the size in the name, and the (patch, side) that exist.
_SIGLIP_TRUNKS: dict[tuple[int, int, int], tuple[str, set[tuple[int, int]]]] = {
    (768, 12, 3072): ("base", {(32, 256), (16, 224), (16, 256), (16, 384), (16, 512)}),
    (1024, 24, 4096): ("large", {(16, 256), (16, 384), (16, 512)}),
    (1152, 27, 4304): ("so400m", {(14, 224), (14, 378), (16, 256), (16, 384), (16, 512)}),
    (1536, 40, 6144): ("giantopt", {(16, 256), (16, 384)}),
}


def from_config(config: CLIPConfig) -> dict[str, Any]:
    """`model_cfg`; raises `InputError` that names everything OpenCLIP cannot express."""
    trunk = _siglip_trunk(config.vision) if config.vision.pool == "attention" else None
    if problems := _inexpressible(config, trunk):
        raise InputError(f"OpenCLIP cannot express this model: {'; '.join(problems)}.")
    model: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.text.activation == "quick_gelu",
        "custom_text": trunk is not None,
        "init_logit_scale": config.logit_scale,
        "vision_cfg": _trunk_cfg(config, trunk) if trunk else _vision_cfg(config.vision),
        "text_cfg": _text_cfg(config),
    }
    return model if config.logit_bias is None else model | {"init_logit_bias": config.logit_bias}


def _siglip_trunk(vision: VisionConfig) -> str | None:
    """timm's name of this very tower, None if there is none."""
    size, sides = _SIGLIP_TRUNKS.get((vision.width, vision.depth, vision.mlp_dim), ("", set()))
    side = (vision.patch_size, vision.image_shape[0])
    if side not in sides or vision.image_shape[0] != vision.image_shape[1]:
        return None
    name = f"vit_{size}_patch{side[0]}_siglip_{side[1]}"
    known = timm.named(name)
    same = (known.num_heads, known.activation, known.norm_eps) == (vision.num_heads, vision.activation, vision.norm_eps)
    return name if same else None


def _inexpressible(config: CLIPConfig, trunk: str | None) -> list[str]:
    vision, text = config.vision, config.text
    outside = {
        "text pool 'mean'": text.pool == "mean",
        "a text tower without mask that does not read its padding": not text.causal and not text.pad_to_context,
    }
    if vision.pool == "attention":
        outside["attention pooling in a tower that is none of timm's SigLIP ViTs"] = trunk is None
    else:
        outside |= {
            "a patch bias": vision.patch_bias,
            "no q/k/v bias": not vision.qkv_bias,
            "no class token": not vision.class_token,
            f"{vision.in_channels} channels": vision.in_channels != 3,
            f"vision_proj '{config.vision_proj}'": config.vision_proj != "linear",
            "different activations, one of them quick_gelu": (vision.activation == "quick_gelu")
            != (text.activation == "quick_gelu"),
        }
    return [reason for reason, holds in outside.items() if holds]


def _tower_cfg(tower: VisionConfig | TextConfig) -> dict[str, Any]:
    cfg: dict[str, Any] = {
        "width": tower.width,
        "layers": tower.depth,
        "mlp_ratio": mlp_ratio(tower.mlp_dim, tower.width),
    }
    if tower.norm_eps != 1e-5:
        cfg["norm_kwargs"] = {"eps": tower.norm_eps}
    if tower.activation == "gelu_tanh":
        cfg["act_kwargs"] = {"approximate": "tanh"}
    return cfg


def _vision_cfg(vision: VisionConfig) -> dict[str, Any]:
    return _tower_cfg(vision) | {
        "image_size": vision.image_size if isinstance(vision.image_size, int) else list(vision.image_size),
        "patch_size": vision.patch_size,
        "head_width": vision.width // vision.num_heads,
        "no_ln_pre": not vision.pre_norm,
        "pool_type": {"class": "tok", "mean": "avg"}[vision.pool],
        "final_ln_after_pool": vision.norm_after_pool,
    }


def _trunk_cfg(config: CLIPConfig, trunk: str) -> dict[str, Any]:
    projection = {"none": "none", "linear": "linear", "linear_bias": None}[config.vision_proj]
    return {
        "image_size": config.vision.image_shape[0],
        "timm_model_name": trunk,
        "timm_pool": "map",
        "timm_proj": projection,
    }


def _text_cfg(config: CLIPConfig) -> dict[str, Any]:
    text = config.text
    highest = text.eot_id == text.vocab_size - 1
    pool = (
        {"pool_type": "last"}
        if text.pool == "last"
        else {"pool_type": "argmax"}
        if highest
        else {"pool_type": "eos", "eos_id": text.eot_id}
    )
    return (
        _tower_cfg(text)
        | pool
        | {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "heads": text.num_heads,
            "no_causal_mask": not text.causal,
            "pad_id": text.pad_id,
            "proj_type": "none" if config.text_proj == "none" else "linear",
            "proj_bias": config.text_proj == "linear_bias",
        }
    )


def write_preprocess(preprocess: PreprocessConfig) -> dict[str, Any]:
    """`preprocess_cfg`."""
    if preprocess.resize_shape != preprocess.image_shape:
        raise InputError(
            f"OpenCLIP resizes to the crop's size; this model's preprocessing resizes to {preprocess.resize_shape}."
        )
    if preprocess.interpolation not in ("bicubic", "bilinear"):
        raise InputError(
            f"OpenCLIP resizes bicubic or bilinear; this model's preprocessing is {preprocess.interpolation}."
        )
    return {
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "resize_mode": {"crop": "shortest", "pad": "longest", "squash": "squash"}[preprocess.resize],
        "fill_color": preprocess.fill,
    }
