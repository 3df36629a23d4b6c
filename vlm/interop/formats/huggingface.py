"""Hugging Face's `CLIPModel` and `SiglipModel` (SigLIP 2 at fixed size too), both ways."""

import dataclasses
from typing import Any, cast

import torch

from vlm.config import Activation, CLIPConfig, TextConfig, VisionConfig
from vlm.errors import CheckpointError, InputError
from vlm.interop.formats.foreign import HEADS, ForeignClassifier, Hints, skeleton, whole_patches
from vlm.interop.formats.tables import (
    BATCH_AXIS,
    JOIN_QKV,
    SCALAR,
    SCALAR_1D,
    SPLIT_Q_KV,
    TOKEN_AXES,
    State,
    Table,
    expand,
    layers,
    read,
    shape,
    square,
    with_prefix,
    write,
)
from vlm.models.clip import CLIP


def pair(theirs: str, ours: str) -> Table:
    """A weight and its bias under both names."""
    return ((f"{theirs}.weight", f"{ours}.weight"), (f"{theirs}.bias", f"{ours}.bias"))


def join_qkv(pattern: str, names: tuple[str, str, str], ours: str) -> Table:
    """q, k and v are one tensor of ours."""
    return tuple(
        (tuple(f"{pattern.format(n)}.{part}" for n in names), f"{ours}.{part}", JOIN_QKV) for part in ("weight", "bias")
    )


_BLOCK: Table = (  # CLIP's and SigLIP's, in both towers
    *pair("layer_norm1", "norm1"),
    *join_qkv("self_attn.{}", ("q_proj", "k_proj", "v_proj"), "attn.qkv"),
    *pair("self_attn.out_proj", "attn.proj"),
    *pair("layer_norm2", "norm2"),
    *pair("mlp.fc1", "mlp.fc1"),
    *pair("mlp.fc2", "mlp.fc2"),
)
_TOWERS: Table = (
    ("vision_model.embeddings.patch_embedding.weight", "vision.patch_embed.proj.weight"),
    ("vision_model.embeddings.patch_embedding.bias", "vision.patch_embed.proj.bias"),  # SigLIP only
    ("vision_model.embeddings.position_embedding.weight", "vision.pos_embed", BATCH_AXIS),
    *with_prefix(_BLOCK, "vision_model.encoder.layers.{i}.", "vision.blocks.{i}."),
    *pair("vision_model.post_layernorm", "vision.norm"),
)
_TEXT: Table = (
    ("text_model.embeddings.token_embedding.weight", "text.token_embed.weight"),
    ("text_model.embeddings.position_embedding.weight", "text.pos_embed"),
    *with_prefix(_BLOCK, "text_model.encoder.layers.{i}.", "text.blocks.{i}."),
    *pair("text_model.final_layer_norm", "text.norm"),
)
_CLIP: Table = (
    ("vision_model.embeddings.class_embedding", "vision.cls_token", TOKEN_AXES),
    *pair("vision_model.pre_layrnorm", "vision.norm_pre"),  # spelt like that
    ("visual_projection.weight", "vision_proj.weight"),
    ("text_projection.weight", "text_proj.weight"),
    ("logit_scale", "logit_scale", SCALAR),
)
_SIGLIP: Table = (
    ("vision_model.head.probe", "vision.pool.latent"),
    ("vision_model.head.attention.in_proj_weight", ("vision.pool.q.weight", "vision.pool.kv.weight"), SPLIT_Q_KV),
    ("vision_model.head.attention.in_proj_bias", ("vision.pool.q.bias", "vision.pool.kv.bias"), SPLIT_Q_KV),
    *pair("vision_model.head.attention.out_proj", "vision.pool.proj"),
    *pair("vision_model.head.layernorm", "vision.pool.norm"),
    *pair("vision_model.head.mlp.fc1", "vision.pool.mlp.fc1"),
    *pair("vision_model.head.mlp.fc2", "vision.pool.mlp.fc2"),
    *pair("text_model.head", "text_proj"),
    ("logit_scale", "logit_scale", SCALAR_1D),
    ("logit_bias", "logit_bias", SCALAR_1D),
)
_NO_WEIGHTS = (r"(text_model|vision_model)\.embeddings\.position_ids",)  # buffers, written before transformers 4.31

ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
NAMES = {ours: theirs for theirs, ours in ACTIVATIONS.items()}


def clip_table(config: CLIPConfig) -> Table:
    """(Hugging Face's name, ours) of `CLIPModel`, or of `SiglipModel` where the model pools by attention."""
    heads = _SIGLIP if config.vision.pool == "attention" else _CLIP
    vision, text = config.vision.depth, config.text.depth
    return expand(_TOWERS, vision) + expand(_TEXT, text) + heads


def read_clip(state: State, info: dict[str, Any] | None, hints: Hints) -> tuple[CLIPConfig, State]:
    """`info` is config.json, None for bare weights."""
    siglip = "vision_model.head.probe" in state if info is None else info.get("model_type") == "siglip"
    metaclip = info is not None and info.get("model_type") == "metaclip_2"
    vision, text = _towers(info)
    if siglip:
        config = _siglip(state, info is not None, vision, text, hints)
    else:
        config = _clip(state, info is not None, vision, text, hints, literal_end=metaclip)
    with torch.device("meta"):
        model = CLIP(config)
    return config, read(state, clip_table(config), model, ignore=_NO_WEIGHTS)


def read_image_encoder(state: State, info: dict[str, Any] | None, hints: Hints) -> ForeignClassifier:
    """The image encoder of transformers' CLIP or SigLIP alone: with a head for classes, or without.

    `CLIPForImageClassification` and `SiglipForImageClassification` average the patches, CLIP's before the last norm.
    """
    if not any(name.startswith("vision_model.") for name in state):  # as transformers 5 writes them
        state = {f"vision_model.{name}": tensor for name, tensor in state.items()}
    siglip = "vision_model.embeddings.class_embedding" not in state
    given = info or {}
    vision = given if str(given.get("model_type")).endswith("_vision_model") else _towers(info)[0]
    default = "gelu_pytorch_tanh" if siglip else "quick_gelu" if info is not None else None
    config = _vision(state, vision, hints, default, 1e-6 if siglip else 1e-5, class_token=not siglip)
    ignore = [*_NO_WEIGHTS, r"visual_projection\.weight"]
    num_classes = shape(state, "classifier.weight", 2)[0] if "classifier.weight" in state else 0
    if num_classes:
        config = dataclasses.replace(config, pool="mean", final_norm=siglip)
        ignore += [r"vision_model\.head\..+"] if siglip else [r"vision_model\.post_layernorm\..+"]
    rows = _TOWERS + (_SIGLIP if siglip else _CLIP) + pair("classifier", "head")
    table = expand(tuple(row for row in rows if _is_of_images(row[0])), config.depth)
    names = cast("dict[str, Any] | None", given.get("id2label"))
    keys = [str(number) for number in range(num_classes)]
    labels = tuple(str(names[key]) for key in keys) if isinstance(names, dict) and names.keys() == set(keys) else None
    ours = read(state, table, skeleton(config, num_classes), ignore=ignore)
    return ForeignClassifier(config, num_classes, labels if num_classes else None, ours, None)


def _is_of_images(theirs: Any) -> bool:
    first = theirs if isinstance(theirs, str) else theirs[0]
    return first.startswith(("vision_model.", "classifier."))


def _towers(info: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(vision_config, text_config); files of before 2022 keep the last word in `..._config_dict`."""
    info = info or {}
    vision = _part(info, "vision_config") | _part(info, "vision_config_dict")
    return vision, _part(info, "text_config") | _part(info, "text_config_dict")


def _part(info: dict[str, Any], name: str) -> dict[str, Any]:
    value: Any = info.get(name) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"config.json: {name} is {value!r}; wanted an object. Get the file again.")
    return value  # pyright: ignore[reportUnknownVariableType]


def _clip(
    state: State, known: bool, vision: dict[str, Any], text: dict[str, Any], hints: Hints, *, literal_end: bool
) -> CLIPConfig:
    """transformers' defaults (configuration_clip.py) apply where config.json is silent, and only where there is one.

    `literal_end`: the end-of-text id is what the config says, 2 included (MetaCLIP 2).
    """
    default = "quick_gelu" if known else None
    text_config = _text(state, text, hints, default, 1e-5, known)
    # 2 was written for every model before transformers 4.31, and means: the highest id (modeling_clip.py)
    eos = text.get("eos_token_id", text_config.vocab_size - 1 if not known else 49407)
    eot_id = _highest_id(text, text_config.vocab_size) if eos == 2 and not literal_end else eos
    if not isinstance(eot_id, int) or not 0 <= eot_id < text_config.vocab_size:
        raise CheckpointError(
            f"config.json: text_config.eos_token_id is {eos}, outside the vocabulary of {text_config.vocab_size} ids."
        )
    return CLIPConfig(
        embed_dim=shape(state, "visual_projection.weight", 2)[0],
        vision=_vision(state, vision, hints, default, 1e-5, class_token=True),
        text=TextConfig.from_dict(text_config.to_dict() | {"eot_id": eot_id, "pad_id": 0}),
    )


def _highest_id(text: dict[str, Any], vocab_size: int) -> int:
    """Returns the highest id of a text, which transformers reads if `eos_token_id` is 2; begin-of-text is one below it.

    The vocabulary may have been padded or extended behind it; without a begin-of-text id, the last id is taken.
    """
    begin = text.get("bos_token_id")
    clip = vocab_size > _CLIP_END and (not isinstance(begin, int) or begin in (0, _CLIP_END - 1))
    return _CLIP_END if clip else vocab_size - 1


_CLIP_END = 49407  # of CLIP's byte-pair encoding


def _siglip(state: State, known: bool, vision: dict[str, Any], text: dict[str, Any], hints: Hints) -> CLIPConfig:
    if vision.get("vision_use_head") is False:
        raise CheckpointError(
            "config.json: vision_use_head is false; a SigLIP without its pooling head has no image vectors."
        )
    text_config = _text(state, text, hints, "gelu_pytorch_tanh", 1e-6, known)
    pad = 0 if text_config.vocab_size == _GEMMA else 1  # what their tokenizers pad with, whatever config.json says
    settings = {"causal": False, "pool": "last", "pad_to_context": True, "eot_id": 1, "pad_id": pad}
    return CLIPConfig(
        embed_dim=shape(state, "text_model.head.weight", 2)[0],
        vision=_vision(state, vision, hints, "gelu_pytorch_tanh", 1e-6, class_token=False),
        text=TextConfig.from_dict(text_config.to_dict() | settings),
        vision_proj="none",
        text_proj="linear_bias",
        logit_scale=2.302585092994046,  # log 10, and -10: Zhai et al. 2023, section 3.2
        logit_bias=-10.0,
    )


_GEMMA = 256000  # SigLIP 2's vocabulary; SigLIP's are T5's (32000) and mT5's (250000)


def _vision(
    state: State, given: dict[str, Any], hints: Hints, act: str | None, eps: float, *, class_token: bool
) -> VisionConfig:
    width, channels, patch, _ = shape(state, "vision_model.embeddings.patch_embedding.weight", 4)
    positions = shape(state, "vision_model.embeddings.position_embedding.weight", 2)[0] - class_token
    settings: dict[str, Any] = {
        "image_size": _image_size(given, patch, positions),
        "patch_size": patch,
        "in_channels": channels,
        "width": width,
        "depth": layers(state, r"vision_model\.encoder\.layers\.(\d+)\."),
        "num_heads": _heads(given, width, hints, 12),
        "mlp_dim": shape(state, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        "activation": _activation(given, hints, act, "vision_config"),
        "norm_eps": hints.norm_eps or given.get("layer_norm_eps", eps),
        "pool": "class" if class_token else "attention",
        "class_token": class_token,
        "pre_norm": class_token,
        "patch_bias": not class_token,
    }
    return VisionConfig.from_dict(settings)


def _text(state: State, given: dict[str, Any], hints: Hints, act: str | None, eps: float, known: bool) -> TextConfig:
    vocab, width = shape(state, "text_model.embeddings.token_embedding.weight", 2)
    default = (12 if act == "gelu_pytorch_tanh" else 8) if known else max(1, width // 64)
    settings: dict[str, Any] = {
        "vocab_size": vocab,
        "context_length": shape(state, "text_model.embeddings.position_embedding.weight", 2)[0],
        "width": width,
        "depth": layers(state, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_heads": given.get("num_attention_heads", default),
        "mlp_dim": shape(state, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        "activation": _activation(given, hints, act, "text_config"),
        "norm_eps": hints.norm_eps or given.get("layer_norm_eps", eps),
        "eot_id": 0,
    }
    return TextConfig.from_dict(settings)


def _heads(given: dict[str, Any], width: int, hints: Hints, default: int) -> int:
    """Returns the number of heads in config.json: the default if not set, the width's usual one without config."""
    if given:
        return hints.num_heads or given.get("num_attention_heads", default)
    return hints.need_heads(width, HEADS, "Hugging Face weights without config.json")


def _activation(given: dict[str, Any], hints: Hints, default: str | None, where: str) -> Activation:
    if hints.activation is not None:
        return hints.activation
    name = given.get("hidden_act", default)
    if name is None:
        return hints.need_activation(("quick_gelu", "gelu"), "Hugging Face CLIP weights without config.json")
    if name not in ACTIVATIONS:
        raise CheckpointError(f"config.json: {where}.hidden_act is {name!r}; known here: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def _image_size(given: dict[str, Any], patch: int, positions: int) -> int | tuple[int, int]:
    side = given.get("image_size")
    if side is None:
        return patch * square(positions, "the position embedding")
    return whole_patches(side, patch)


def write_clip(config: CLIPConfig, state: State, side: int) -> tuple[dict[str, Any], State]:
    """(config.json, tensors) of a `CLIPModel` or `SiglipModel`; `InputError` names everything it cannot express.

    `side`: the image's size in pixels, a little more than `config.vision.image_size` where patches do not fill it.
    """
    siglip = config.vision.pool == "attention"
    if problems := _inexpressible(config, siglip):
        name = "SiglipModel" if siglip else "CLIPModel"
        raise InputError(f"Hugging Face's {name} cannot express this model: {'; '.join(problems)}.")
    vision, text = config.vision, config.text
    info: dict[str, Any] = {
        "architectures": ["SiglipModel" if siglip else "CLIPModel"],
        "model_type": "siglip" if siglip else "clip",
        "dtype": "float32",
        "vision_config": {
            "model_type": "siglip_vision_model" if siglip else "clip_vision_model",
            "image_size": side,
            "patch_size": vision.patch_size,
            "num_channels": vision.in_channels,
            **_tower(vision),
        },
        "text_config": {
            "model_type": "siglip_text_model" if siglip else "clip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "bos_token_id": None,
            "eos_token_id": text.eot_id,
            "pad_token_id": text.pad_id,
            **_tower(text),
        },
    }
    if siglip:
        info["text_config"]["projection_size"] = config.embed_dim
    else:
        info |= {"projection_dim": config.embed_dim, "logit_scale_init_value": config.logit_scale}
        info["vision_config"]["projection_dim"] = info["text_config"]["projection_dim"] = config.embed_dim
    return info, write(state, clip_table(config))


def _tower(tower: VisionConfig | TextConfig) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.num_heads,
        "intermediate_size": tower.mlp_dim,
        "hidden_act": NAMES[tower.activation],
        "layer_norm_eps": tower.norm_eps,
    }


def _inexpressible(config: CLIPConfig, siglip: bool) -> list[str]:
    vision, text = config.vision, config.text
    outside = {
        "an image that is not square": vision.image_shape[0] != vision.image_shape[1],
        "no q/k/v bias": not vision.qkv_bias,
    }
    if siglip:
        outside |= {
            "a class token": vision.class_token,
            "a norm before the blocks": vision.pre_norm,
            "no patch bias": not vision.patch_bias,
            f"vision_proj '{config.vision_proj}'": config.vision_proj != "none",
            f"text_proj '{config.text_proj}'": config.text_proj != "linear_bias",
            "a causal text tower": text.causal,
            f"text pool '{text.pool}'": text.pool != "last",
            "no logit_bias": config.logit_bias is None,
        }
    else:
        outside |= {
            f"image pool '{vision.pool}'": vision.pool != "class",
            "no norm before the blocks": not vision.pre_norm,
            "a patch bias": vision.patch_bias,
            f"vision_proj '{config.vision_proj}'": config.vision_proj != "linear",
            f"text_proj '{config.text_proj}'": config.text_proj != "linear",
            "a text tower without causal mask": not text.causal,
            f"text pool '{text.pool}'": text.pool != "eot",
            "a logit_bias": config.logit_bias is not None,
        }
    return [reason for reason, holds in outside.items() if holds]


def without_end_2(config: CLIPConfig, state: State) -> tuple[CLIPConfig, State, list[int] | None]:
    """The same model with ids 1 and 2 exchanged if its end-of-text is 2, which `CLIPModel` reads as "the highest id".

    Third: the old id of each new one, None where nothing changed.
    """
    text = config.text
    if text.pool != "eot" or text.eot_id != 2:
        return config, state, None
    order = [0, 2, 1, *range(3, text.vocab_size)]
    pad_id = order.index(text.pad_id)
    config = dataclasses.replace(config, text=dataclasses.replace(text, eot_id=1, pad_id=pad_id))
    return config, state | {"text.token_embed.weight": state["text.token_embed.weight"][order]}, order
