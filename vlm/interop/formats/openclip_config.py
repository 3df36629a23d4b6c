"""OpenCLIP's `model_cfg` and `preprocess_cfg` in our terms, and ours in theirs (open_clip/model.py, transform.py)."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from vlm.config import (
    Activation,
    CLIPConfig,
    PreprocessConfig,
    Projection,
    StrictConfig,
    TextConfig,
    VisionConfig,
    check_positive,
)
from vlm.errors import CheckpointError
from vlm.interop.formats import timm
from vlm.interop.formats.tables import State


@dataclass(frozen=True, kw_only=True)
class _TowerCfg(StrictConfig):
    """Settings that both OpenCLIP towers share, with their defaults."""

    width: int = 768
    layers: int | tuple[int, ...] = 12
    mlp_ratio: float = 4.0
    ls_init_value: float | None = None  # folded into the weights
    output_tokens: bool = False
    act_kwargs: dict[str, str] | None = None
    norm_kwargs: dict[str, float] | None = None
    block_type: str | None = None
    qk_norm: bool = False
    scaled_cosine_attn: bool = False
    scale_heads: bool = False
    scale_attn_inner: bool = False
    scale_attn: bool = False
    scale_fc: bool = False

    def activation(self, quick_gelu: bool) -> Activation:
        if quick_gelu:
            return "quick_gelu"
        return "gelu_tanh" if (self.act_kwargs or {}).get("approximate") == "tanh" else "gelu"

    @property
    def norm_eps(self) -> float:
        return (self.norm_kwargs or {}).get("eps", 1e-5)  # torch.nn.LayerNorm

    @property
    def mlp_dim(self) -> int:
        if not 0 < self.width * self.mlp_ratio < _MOST:
            raise CheckpointError(f"mlp_ratio is {self.mlp_ratio} and width {self.width}: that is no size of an MLP.")
        return int(self.width * self.mlp_ratio)


_MOST = 1 << 20  # channels; the largest published layer has 2**15


@dataclass(frozen=True, kw_only=True)
class VisionCfg(_TowerCfg):
    """`vision_cfg`."""

    head_width: int = 64
    patch_size: int | None = 16  # null for ResNets
    image_size: int | tuple[int, int] = 224
    patch_dropout: float = 0.0
    attentional_pool: bool | str = False
    attn_pooler_queries: int = 256
    attn_pooler_heads: int = 8
    no_ln_pre: bool = False
    pos_embed_type: str = "learnable"  # a tensor of the file in any case
    final_ln_after_pool: bool = False
    pool_type: str = "tok"
    timm_model_name: str | None = None
    timm_model_pretrained: bool = False
    timm_pool: str = "avg"
    timm_proj: str | None = "linear"
    timm_proj_bias: bool = False
    timm_drop: float = 0.0
    timm_drop_path: float | None = None

    def __post_init__(self) -> None:
        check_positive(self, "head_width")


@dataclass(frozen=True, kw_only=True)
class TextCfg(_TowerCfg):
    """`text_cfg`."""

    width: int = 512
    heads: int = 8
    context_length: int = 77
    vocab_size: int = 49408
    hf_tokenizer_name: str | None = None
    tokenizer_mode: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None
    embed_cls: bool = False
    pad_id: int = 0
    eos_id: int = 2  # read where pool_type is "eos"
    no_causal_mask: bool = False
    final_ln_after_pool: bool = False
    pool_type: str = "argmax"
    proj_bias: bool = False
    proj_type: str = "linear"
    hf_model_name: str | None = None
    hf_model_pretrained: bool = True
    hf_proj_type: str = "mlp"
    hf_pooler_type: str = "mean_pooler"


@dataclass(frozen=True, kw_only=True)
class ModelCfg(StrictConfig):
    """`model_cfg` of open_clip_config.json, or one of OpenCLIP's model_configs."""

    embed_dim: int
    vision_cfg: VisionCfg
    text_cfg: TextCfg
    quick_gelu: bool = False
    custom_text: bool = False
    init_logit_scale: float = 2.6592600369327779
    init_logit_bias: float | None = None
    nonscalar_logit_scale: bool = False
    multimodal_cfg: dict[str, Any] | None = None

    @property
    def is_plain_clip(self) -> bool:
        """Not CLIPA and not SigLIP, whose preprocessing no default of OpenCLIP's fits."""
        return not self.vision_cfg.timm_model_name and not self.vision_cfg.no_ln_pre

    def outside(self) -> list[str]:
        """Why this model is not one of ours: everything it says that this library has no part for."""
        found = ["multimodal_cfg: a captioning decoder (CoCa)"] if self.multimodal_cfg is not None else []
        for tower, config in (("vision_cfg", self.vision_cfg), ("text_cfg", self.text_cfg)):
            for name in _ONLY_DEFAULT:
                default = next((f.default for f in dataclasses.fields(config) if f.name == name), None)
                if (value := getattr(config, name, default)) != default:
                    found.append(f"{tower}.{name} is {value!r}")
        if not isinstance(self.vision_cfg.layers, int):
            found.append("vision_cfg.layers is a list: a ResNet")
        if self.vision_cfg.timm_model_name:
            try:
                timm.named(self.vision_cfg.timm_model_name)
            except ValueError as error:
                found.append(f"vision_cfg.timm_model_name: {error}")
            if self.vision_cfg.timm_proj not in (None, "none", "linear"):
                found.append(f"vision_cfg.timm_proj is {self.vision_cfg.timm_proj!r}")
        if self.text_cfg.pool_type not in _TEXT_POOLS:
            found.append(f"text_cfg.pool_type is {self.text_cfg.pool_type!r}")
        if self.vision_cfg.pool_type not in _POOLS:
            found.append(f"vision_cfg.pool_type is {self.vision_cfg.pool_type!r}")
        return found


_ONLY_DEFAULT = (
    "hf_model_name", "embed_cls", "attentional_pool", "output_tokens", "block_type", "qk_norm", "scaled_cosine_attn",
    "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc", "tokenizer_mode",
)  # fmt: skip
_POOLS = {"tok": "class", "avg": "mean"}
_TEXT_POOLS = {"argmax": "eot", "eos": "eot", "last": "last"}


def section(info: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a config that must be an object.

    Raises:
        CheckpointError: it is missing, or something else.
    """
    value: Any = info.get(name)
    if not isinstance(value, dict):
        raise CheckpointError(f"open_clip_config.json: {name} is {value!r}; wanted an object. Get the file again.")
    return value  # pyright: ignore[reportUnknownVariableType]


def is_native(model_cfg: dict[str, Any]) -> bool:
    """Returns True if this library has layers for everything in a `model_cfg`."""
    try:
        return not ModelCfg.from_dict(model_cfg).outside()
    except ValueError:  # a setting of a newer OpenCLIP, or a damaged one
        return False


def to_config(model: ModelCfg, state: State) -> CLIPConfig:
    """OpenCLIP's config in our terms; `state` (standard names) has the last word on sizes."""
    if outside := model.outside():
        raise CheckpointError(f"This OpenCLIP model has parts that this library does not: {'; '.join(outside)}.")
    vision, text = model.vision_cfg, model.text_cfg
    bias = model.init_logit_bias
    return CLIPConfig(
        embed_dim=model.embed_dim,
        vision=_trunk(vision, state) if vision.timm_model_name else _vision(vision, model.quick_gelu),
        text=_text(text, model.quick_gelu),
        vision_proj=_vision_projection(vision),
        text_proj="none" if text.proj_type == "none" else "linear_bias" if text.proj_bias else "linear",
        logit_scale=model.init_logit_scale,
        logit_bias=0.0 if bias is None and "logit_bias" in state else bias,
    )


def _vision(vision: VisionCfg, quick_gelu: bool) -> VisionConfig:
    assert isinstance(vision.layers, int)  # `outside` has seen to it
    assert vision.patch_size is not None
    return VisionConfig(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        width=vision.width,
        depth=vision.layers,
        num_heads=vision.width // vision.head_width,
        mlp_dim=vision.mlp_dim,
        activation=vision.activation(quick_gelu),
        norm_eps=vision.norm_eps,
        pool=_POOLS[vision.pool_type],  # type: ignore[arg-type]
        pre_norm=not vision.no_ln_pre,
        norm_after_pool=vision.final_ln_after_pool and vision.pool_type == "avg",  # one token: either order is the same
        patch_bias=False,
    )


def _trunk(vision: VisionCfg, state: State) -> VisionConfig:
    """A timm tower: always GELU unless its name says otherwise, whatever `quick_gelu` says."""
    prefix = "visual.trunk."
    trunk = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    named = timm.named(vision.timm_model_name or "")
    named = dataclasses.replace(named, global_pool=vision.timm_pool or named.global_pool)
    return timm.encoder_config(trunk, named, vision.image_size)


def trunk_projection(vision: VisionCfg) -> str | None:
    """Returns the projection after a timm tower, None for OpenCLIP's own towers."""
    return (vision.timm_proj or "head") if vision.timm_model_name else None


def _vision_projection(vision: VisionCfg) -> Projection:
    match trunk_projection(vision):
        case "none":
            return "none"
        case "head":
            return "linear_bias"
        case "linear" if vision.timm_proj_bias:
            return "linear_bias"
        case _:
            return "linear"


def _text(text: TextCfg, quick_gelu: bool) -> TextConfig:
    assert isinstance(text.layers, int)
    eot_id = text.eos_id if text.pool_type == "eos" else text.vocab_size - 1  # "argmax": the highest id is end-of-text
    return TextConfig(
        vocab_size=text.vocab_size,
        context_length=text.context_length,
        width=text.width,
        depth=text.layers,
        num_heads=text.heads,
        mlp_dim=text.mlp_dim,
        activation=text.activation(quick_gelu),
        norm_eps=text.norm_eps,
        causal=not text.no_causal_mask,
        pool=_TEXT_POOLS[text.pool_type],  # type: ignore[arg-type]
        eot_id=1 if text.pool_type == "last" else eot_id,
        pad_id=_pad_id(text),
        pad_to_context=text.no_causal_mask or text.pool_type == "last",  # OpenCLIP pads every row, and does not mask it
    )


CLEANING = (
    "whitespace",
    "lower",
    "canonicalize",
)  # what OpenCLIP's tokenizers can do to a text before (open_clip/tokenizer.py)


def _pad_id(text: TextCfg) -> int:
    """OpenCLIP's `pad_id` is not what its tokenizers pad with: SigLIP's pads with T5's end-of-text, 1."""
    siglip = re.search(r"siglip(?!2)", (text.hf_tokenizer_name or "").lower())
    return 1 if siglip and text.pad_id == 0 else text.pad_id


def to_preprocess(given: dict[str, Any], image_size: int | tuple[int, int]) -> PreprocessConfig:
    """`preprocess_cfg`, with OpenCLIP's defaults (open_clip/transform.py, PreprocessCfg)."""
    unknown = [name for name in given if name not in _PREPROCESS]
    if unknown:
        raise CheckpointError(f"OpenCLIP preprocess_cfg has settings not known here: {', '.join(unknown)}.")
    resize = {"shortest": "crop", "longest": "pad", "squash": "squash"}
    mode = given.get("resize_mode") or "shortest"
    if mode not in resize:
        raise CheckpointError(f"OpenCLIP resize_mode is '{mode}'; known here: {', '.join(resize)}.")
    interpolation = given.get("interpolation") or "bicubic"
    if mode == "shortest" and isinstance(image_size, tuple) and image_size[0] != image_size[1]:
        interpolation = "bicubic"  # OpenCLIP does not pass its setting on for these
    settings = {
        "image_size": image_size,
        "resize": resize[mode],
        "interpolation": "bicubic" if interpolation == "random" else interpolation,
        "fill": given.get("fill_color") or 0,
    }
    return PreprocessConfig.from_dict(settings | {name: given[name] for name in ("mean", "std") if name in given})


_PREPROCESS = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
