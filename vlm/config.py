"""Every number that shapes a model: frozen, strict, checked at construction.

Letters (the book's, *Vision Transformer 入門* chapter 2): D width, h heads, L depth, F MLP hidden, P patch side,
T text tokens, V vocabulary, E joint space.
"""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from vlm.errors import ConfigError

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
Projection = Literal["linear", "linear_bias", "none"]
Problem = Literal["single_label", "multi_label", "regression"]  # what a classifier answers
Json = dict[str, Any] | list[Any] | str | float | None  # what json.loads returns


class StrictConfig:
    """`from_dict` / `to_dict` for frozen dataclasses: unknown names and wrong types are errors, never ignored."""

    NEWER: ClassVar[tuple[str, ...]] = ()  # settings that older versions lack

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain JSON or TOML values; raises `ConfigError` naming every offender."""
        kinds = typing.get_type_hints(cls)
        names = {field.name: kinds[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = [name for name in values if name not in names]
        if unknown:
            raise ConfigError(" ".join(_unknown_setting(cls.__name__, name, list(names)) for name in unknown))
        return cls(**{name: _convert(cls.__name__, name, value, names[name]) for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON.  Settings of `NEWER` are left out at their defaults."""
        values: dict[str, Any] = dataclasses.asdict(self)  # type: ignore[call-overload]
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name in self.NEWER and value == field.default:
                del values[field.name]
            elif isinstance(value, StrictConfig):
                values[field.name] = value.to_dict()
        return values


def _suggest(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _unknown_setting(owner: str, name: str, known: list[str]) -> str:
    return f"{owner} has no setting '{name}'.{_suggest(name, known) or ' It has: ' + ', '.join(known) + '.'}"


def _convert(owner: str, name: str, value: Json | tuple[Any, ...] | StrictConfig, kind: Any) -> Any:
    """JSON and TOML know lists, not tuples, and may write 1 for 1.0; everything else must already fit."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        for option in args:
            try:
                return _convert(owner, name, value, option)
            except ConfigError:
                continue
    elif origin is Literal or kind is Any:
        return value  # __post_init__ names the choices
    elif origin is tuple and isinstance(value, (list, tuple)):
        items = args[:1] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        if len(items) == len(value):
            return tuple(_convert(owner, name, item, want) for item, want in zip(value, items, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {key: _convert(owner, f"{name}.{key}", item, args[1]) for key, item in value.items()}
    elif isinstance(kind, type) and issubclass(kind, StrictConfig) and isinstance(value, (dict, kind)):
        return kind.from_dict(value) if isinstance(value, dict) else value
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and isinstance(value, kind) and (kind is bool) == isinstance(value, bool):
        return value
    wanted = kind.__name__ if isinstance(kind, type) else str(kind)
    raise ConfigError(f"{owner}.{name} is {value!r}; wanted {wanted}.")


def check_positive(config: Any, *names: str) -> None:
    """ConfigError where one of these settings is 0 or less."""
    for name in names:
        if getattr(config, name) <= 0:
            raise ConfigError(f"{name} must be positive, got {getattr(config, name)}.")


def check_fraction(config: Any, *names: str) -> None:
    """ConfigError where one of these settings is not in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"{name} must be in [0, 1), got {getattr(config, name)}.")


def check_share(config: Any, *names: str) -> None:
    """ConfigError where one of these settings is not in [0, 1]."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name} must be in [0, 1], got {getattr(config, name)}.")


def check_not_negative(config: Any, *names: str) -> None:
    """ConfigError where one of these settings is below 0."""
    for name in names:
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} must be 0 or more, got {getattr(config, name)}.")


def check_choice(config: Any, name: str, choices: typing.Sequence[str]) -> None:
    """ConfigError where this setting is none of `choices`, with the nearest of them."""
    value = getattr(config, name)
    if value not in choices:
        raise ConfigError(
            f"{name} is {value!r}; it must be one of {', '.join(choices)}.{_suggest(str(value), choices)}"
        )


def _check_patches(side: int, patch_size: int) -> None:
    if side <= 0:
        raise ConfigError(f"image_size must be positive, got {side}.")
    if left_over := side % patch_size:
        nearest = [near for near in (side - left_over, side - left_over + patch_size) if near]
        raise ConfigError(
            f"image_size {side} is not a multiple of patch_size {patch_size}: {left_over} pixel{'s' * (left_over > 1)} "
            f"would be left over on each side. Nearest: {' and '.join(map(str, nearest))}."
        )


def _check_heads(width: int, num_heads: int) -> None:
    if width % num_heads:
        raise ConfigError(
            f"width {width} is not a multiple of num_heads {num_heads}: each head needs width / num_heads."
        )


def _height_and_width(side: int | tuple[int, int]) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side


@dataclass(frozen=True, kw_only=True)
class VisionConfig(StrictConfig):
    """A ViT (Dosovitskiy et al. 2021).  The switches are those that published checkpoints need, each used once."""

    NEWER = ("registers", "final_norm")

    image_size: int | tuple[int, int] = 224  # pixels, one side or (height, width)
    patch_size: int = 16  # P, pixels
    in_channels: int = 3  # C
    width: int = 768  # D; the defaults are ViT-B/16, ViT paper table 1
    depth: int = 12  # L
    num_heads: int = 12  # h
    mlp_dim: int = 3072  # F
    activation: Activation = "gelu"  # OpenAI's CLIP weights need "quick_gelu", SigLIP "gelu_tanh"
    norm_eps: float = 1e-6  # big_vision and timm; CLIP 1e-5, Hugging Face ViT 1e-12
    pool: Literal["class", "mean", "attention"] = "class"  # attention: MAP head, Zhai et al. 2022
    class_token: bool = True
    registers: int = 0  # tokens behind the class token that no position belongs to: DINOv2 (Darcet et al. 2024), DeiT
    pre_norm: bool = False  # a LayerNorm before the first block: CLIP's ln_pre
    norm_after_pool: bool = False  # mean pooling then LayerNorm: CLIPA, timm's fc_norm
    final_norm: bool = True  # transformers' CLIPForImageClassification pools without it
    patch_bias: bool = True  # CLIP has none
    qkv_bias: bool = True  # the book has none
    dropout: float = 0.0  # after attention's projection and inside the MLP
    drop_path: float = 0.0  # stochastic depth of the last block, rising linearly from 0 (Huang et al. 2016)

    def __post_init__(self) -> None:
        check_positive(self, "patch_size", "in_channels", "width", "depth", "num_heads", "mlp_dim")
        for side in self.image_shape:
            _check_patches(side, self.patch_size)
        _check_heads(self.width, self.num_heads)
        check_choice(self, "activation", typing.get_args(Activation))
        check_choice(self, "pool", ("class", "mean", "attention"))
        check_fraction(self, "dropout", "drop_path")
        if self.pool == "class" and not self.class_token:
            raise ConfigError("pool 'class' reads the class token; class_token is false. Use 'mean' or 'attention'.")
        if self.norm_after_pool and self.pool != "mean":
            raise ConfigError(f"norm_after_pool goes with pool 'mean' only; pool is '{self.pool}'.")
        check_not_negative(self, "registers")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return _height_and_width(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across, (H/P, W/P)."""
        height, width = self.image_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def num_patches(self) -> int:
        """Np."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """N: the patches, and the tokens before them."""
        return self.num_patches + self.num_prefix_tokens

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: the class token if there is one, and the registers."""
        return self.class_token + self.registers


@dataclass(frozen=True, kw_only=True)
class TextConfig(StrictConfig):
    """A text Transformer; the defaults are CLIP's (Radford et al. 2021, section 2.4)."""

    vocab_size: int = 49408  # V
    context_length: int = 77  # T at most
    width: int = 512  # D
    depth: int = 12  # L
    num_heads: int = 8  # h
    mlp_dim: int = 2048  # F
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    causal: bool = True
    pool: Literal["eot", "last", "mean"] = "eot"  # end-of-text token; position T-1 (SigLIP); mean of the real tokens
    eot_id: int = 49407  # the id that ends every row
    pad_id: int = 0
    pad_to_context: bool = False  # SigLIP and CLIPA were trained on rows padded to T, and read the padding
    norm_after_pool: bool = False  # for "mean": pooled first, then LayerNorm
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self, "vocab_size", "context_length", "width", "depth", "num_heads", "mlp_dim")
        _check_heads(self.width, self.num_heads)
        check_choice(self, "activation", typing.get_args(Activation))
        check_choice(self, "pool", ("eot", "last", "mean"))
        check_fraction(self, "dropout")
        for name in ("eot_id", "pad_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ConfigError(f"{name} {getattr(self, name)} is outside the vocabulary of {self.vocab_size} ids.")
        if self.pool == "last" and not self.pad_to_context:
            raise ConfigError(
                "pool 'last' reads position T-1, so rows must be full: set pad_to_context = true, or pool 'eot'."
            )


@dataclass(frozen=True, kw_only=True)
class CLIPConfig(StrictConfig):
    """Two encoders and a joint space."""

    embed_dim: int = 512  # E
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    vision_proj: Projection = "linear"  # SigLIP has none on the image side ...
    text_proj: Projection = "linear"  # ... and a bias on the text side
    logit_scale: float = 2.6592600369327779  # initial log(1 / 0.07), Radford et al. 2021; SigLIP log(10)
    logit_bias: float | None = None  # initial bias of the sigmoid loss, SigLIP -10

    def __post_init__(self) -> None:
        check_positive(self, "embed_dim")
        for name, width in (("vision_proj", self.vision.width), ("text_proj", self.text.width)):
            check_choice(self, name, typing.get_args(Projection))
            if getattr(self, name) == "none" and width != self.embed_dim:
                raise ConfigError(
                    f"{name} 'none' needs width {width} to equal embed_dim {self.embed_dim}. Use 'linear'."
                )


@dataclass(frozen=True, kw_only=True)
class CosineHeadConfig(StrictConfig):
    """A classifier's head that compares unit vectors, as CLIP does."""

    embed_dim: int = 512  # E
    proj: Projection = "linear"  # of the image side: CLIPConfig.vision_proj

    def __post_init__(self) -> None:
        check_positive(self, "embed_dim")
        check_choice(self, "proj", typing.get_args(Projection))


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(StrictConfig):
    """Settings of preprocessing, image -> pixels (C, H, W).  They are stored with the weights.

    The image is resized to `resize_shape` and then cut or padded to `image_shape`.
    """

    NEWER = ("resize_side", "to_srgb", "bits", "exact")

    image_size: int | tuple[int, int] = 224  # pixels, one side or (height, width)
    resize: Literal["crop", "pad", "squash"] = "crop"  # the side that becomes resize_side: shortest, longest, both
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    resize_side: int | tuple[int, int] | None = None  # pixels, one side or (height, width), None: image_size
    crop_pct: float = 1.0  # timm's and older folders' spelling: resize_side = floor(image_size / crop_pct)
    # half pixels: torchvision, OpenCLIP, timm even; Hugging Face down; first: cut from the top left (SigLIP 384 / 14)
    crop_rounding: Literal["even", "down", "first"] = "even"
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP, in units of 0..1, one per channel
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    fill: int = 255  # grey level of the padding, 0..255
    bits: Literal[8, 16] = 8  # of a channel's levels; 16 keeps those of 16-bit images
    to_srgb: bool = False  # convert images with an embedded colour profile to sRGB; False: as other libraries do
    exact: bool = False  # bit for bit as other libraries; False: torch shrinks large images, 1 level apart at most

    def __post_init__(self) -> None:
        check_choice(self, "resize", ("crop", "pad", "squash"))
        check_choice(self, "interpolation", ("bicubic", "bilinear", "lanczos", "nearest"))
        check_choice(self, "crop_rounding", ("even", "down", "first"))
        if self.bits not in (8, 16):
            raise ConfigError(f"bits is {self.bits}; wanted 8 or 16.")
        if min(self.image_shape) <= 0:
            raise ConfigError(f"image_size must be positive, got {self.image_size}. Give pixels, such as 224.")
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct must be in (0, 1], got {self.crop_pct}.")
        if self.resize_side is not None and self.crop_pct != 1:
            raise ConfigError(
                f"resize_side {self.resize_side} and crop_pct {self.crop_pct} both set the side before the crop. "
                "Give resize_side alone."
            )
        if any(side < wanted for side, wanted in zip(self.resize_shape, self.image_shape, strict=True)):
            raise ConfigError(
                f"resize_side {self.resize_side} is smaller than image_size {self.image_size}: nothing would be left "
                "to crop. Give at least image_size."
            )
        if not self.mean or len(self.mean) != len(self.std):
            raise ConfigError(f"mean has {len(self.mean)} values and std {len(self.std)}. Give one per channel.")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive, got {self.std}.")
        if not 0 <= self.fill <= 255:
            raise ConfigError(f"fill is a grey level 0..255, got {self.fill}.")

    def identity(self) -> dict[str, Any]:
        """`to_dict`, the same for settings that give the same pixels but for 1 level: what a fingerprint covers.

        Earlier versions spelt every resize side as `crop_pct`.  Where that fraction gave the right side, it stands in
        for `resize_side`, so that the fingerprints of models loaded by them stay valid.
        """
        values = dataclasses.replace(self, exact=False).to_dict()
        if isinstance(self.resize_side, int) and isinstance(self.image_size, int):
            exact = self.image_size / self.resize_side
            spellings = (exact, math.nextafter(exact, 0)) if self.crop_rounding == "first" else (exact,)
            for fraction in spellings:
                if math.floor(self.image_size / fraction) == self.resize_side:
                    del values["resize_side"]
                    return values | {"crop_pct": fraction}
        return values

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return _height_and_width(self.image_size)

    @property
    def resize_shape(self) -> tuple[int, int]:
        """(height, width) that the image is resized to before it is cut, in pixels."""
        if self.resize_side is not None:
            return _height_and_width(self.resize_side)
        height, width = self.image_shape
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)

    @property
    def channels(self) -> int:
        """C: 1 is grey, 3 is RGB, 4 is RGB and opacity; other numbers are bands of an array."""
        return len(self.mean)


# Named sizes: (D, L, h, F) of the image tower and (D, L, h, F) of the text tower, and E.
# S, B, L, H: ViT paper table 1 and Touvron et al. 2021 (S); text towers and E: Radford et al. 2021 table 20 (B, L),
# OpenCLIP's model_configs (S, H).  mini is ours: 2 CPU cores train it in about an hour.
_TOWERS: dict[str, tuple[tuple[int, int, int, int], tuple[int, int, int, int], int]] = {
    "mini": ((192, 6, 3, 768), (192, 2, 3, 768), 192),
    "S": ((384, 12, 6, 1536), (384, 12, 6, 1536), 384),
    "B": ((768, 12, 12, 3072), (512, 12, 8, 2048), 512),
    "L": ((1024, 24, 16, 4096), (768, 12, 12, 3072), 768),
    "H": ((1280, 32, 16, 5120), (1024, 24, 16, 4096), 1024),
}
_PATCHES = {"S/32": 32, "S/16": 16, "B/32": 32, "B/16": 16, "L/14": 14, "H/14": 14}
SIZES = ("mini", *_PATCHES)


def named_size(name: str) -> CLIPConfig:
    """The CLIP architecture called `mini`, `S/16`, `B/32`, `B/16`, `L/14` ... with CLIP's ln_pre and no patch bias."""
    if name not in SIZES:
        raise ConfigError(f"There is no size '{name}'.{_suggest(name, SIZES)} Sizes: {', '.join(SIZES)}.")
    (width, depth, heads, mlp), (text_width, text_depth, text_heads, text_mlp), embed_dim = _TOWERS[name.split("/")[0]]
    mini = name == "mini"
    vision = VisionConfig(
        image_size=96 if mini else 224,
        patch_size=12 if mini else _PATCHES[name],
        width=width,
        depth=depth,
        num_heads=heads,
        mlp_dim=mlp,
        norm_eps=1e-5,
        pre_norm=True,
        patch_bias=False,
    )
    text = TextConfig(width=text_width, depth=text_depth, num_heads=text_heads, mlp_dim=text_mlp)
    if mini:
        text = dataclasses.replace(text, vocab_size=8192, context_length=32, eot_id=2)
    return CLIPConfig(embed_dim=embed_dim, vision=vision, text=text)
