"""OpenCLIP's `CLIP` and `CustomTextCLIP`, both ways (open_clip/model.py, transformer.py, timm_model.py)."""

import re
from collections.abc import Iterable
from typing import Any

import torch

from vlm.config import CLIPConfig
from vlm.errors import CheckpointError
from vlm.interop.formats import timm
from vlm.interop.formats.foreign import HEADS, Hints
from vlm.interop.formats.openclip_config import ModelCfg, to_config, trunk_projection
from vlm.interop.formats.openclip_writing import from_config
from vlm.interop.formats.tables import (
    BATCH_AXIS,
    SCALAR,
    TOKEN_AXES,
    TRANSPOSE,
    State,
    Table,
    expand,
    fold_layer_scale,
    layers,
    mlp_ratio,
    read,
    shape,
    square,
    with_prefix,
    write,
)
from vlm.models.clip import CLIP

_BLOCK: Table = (
    ("ln_1.weight", "norm1.weight"),
    ("ln_1.bias", "norm1.bias"),
    ("attn.in_proj_weight", "attn.qkv.weight"),
    ("attn.in_proj_bias", "attn.qkv.bias"),
    ("attn.out_proj.weight", "attn.proj.weight"),
    ("attn.out_proj.bias", "attn.proj.bias"),
    ("ln_2.weight", "norm2.weight"),
    ("ln_2.bias", "norm2.bias"),
    ("mlp.c_fc.weight", "mlp.fc1.weight"),
    ("mlp.c_fc.bias", "mlp.fc1.bias"),
    ("mlp.c_proj.weight", "mlp.fc2.weight"),
    ("mlp.c_proj.bias", "mlp.fc2.bias"),
)
_VISION: Table = (
    ("visual.class_embedding", "vision.cls_token", TOKEN_AXES),
    ("visual.positional_embedding", "vision.pos_embed", BATCH_AXIS),
    ("visual.conv1.weight", "vision.patch_embed.proj.weight"),  # no bias
    ("visual.ln_pre.weight", "vision.norm_pre.weight"),
    ("visual.ln_pre.bias", "vision.norm_pre.bias"),
    *with_prefix(_BLOCK, "visual.transformer.resblocks.{i}.", "vision.blocks.{i}."),
    ("visual.ln_post.weight", "vision.norm.weight"),
    ("visual.ln_post.bias", "vision.norm.bias"),
    ("visual.proj", "vision_proj.weight", TRANSPOSE),  # features @ proj
)
_TRUNK_PROJECTIONS: dict[str, Table] = {
    "head": (("visual.trunk.head.weight", "vision_proj.weight"), ("visual.trunk.head.bias", "vision_proj.bias")),
    "linear": (("visual.head.proj.weight", "vision_proj.weight"), ("visual.head.proj.bias", "vision_proj.bias")),
    "none": (),
}
_TEXT: Table = (
    ("text.token_embedding.weight", "text.token_embed.weight"),
    ("text.positional_embedding", "text.pos_embed"),
    *with_prefix(_BLOCK, "text.transformer.resblocks.{i}.", "text.blocks.{i}."),
    ("text.ln_final.weight", "text.norm.weight"),
    ("text.ln_final.bias", "text.norm.bias"),
)
_MATRIX: Table = (("text.text_projection", "text_proj.weight", TRANSPOSE),)
_LINEAR: Table = (("text.text_projection.weight", "text_proj.weight"), ("text.text_projection.bias", "text_proj.bias"))
_SCALARS: Table = (("logit_scale", "logit_scale", SCALAR), ("logit_bias", "logit_bias", SCALAR))

_AT_ROOT = (
    "positional_embedding",
    "token_embedding.",
    "transformer.",
    "ln_final.",
    "text_projection",
)  # `CLIP` keeps its text here


def read_model(state: State, model: ModelCfg) -> tuple[CLIPConfig, State]:
    """(our config, our weights) of an OpenCLIP model."""
    state = fold_scales(standard_names(state))
    config = to_config(model, state)
    _check_depth(
        config, state, "visual.trunk.blocks" if model.vision_cfg.timm_model_name else "visual.transformer.resblocks"
    )
    with torch.device("meta"):
        ours = CLIP(config)
    return config, read(state, table(config, trunk_projection(model.vision_cfg)), ours, ignore=_NO_WEIGHTS)


def _check_depth(config: CLIPConfig, state: State, blocks: str) -> None:
    """Checks the depth before anything is built: a config may say a billion layers."""
    for tower, prefix in ((config.vision, blocks), (config.text, "text.transformer.resblocks")):
        found = layers(state, re.escape(prefix) + r"\.(\d+)\.")
        if found != tower.depth:
            raise CheckpointError(
                f"the config says {tower.depth} layers, the file holds {found} ({prefix}). They do not belong together."
            )


_NO_WEIGHTS = (r"(text\.)?attn_mask", "input_resolution", "context_length", "vocab_size")  # buffers of old files


def standard_names(state: State) -> State:
    """Removes wrappers' prefixes and moves the text encoder under `text.`."""
    renamed: State = {}
    for name, tensor in state.items():
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        renamed[f"text.{name}" if name.startswith(_AT_ROOT) else name] = tensor
    return renamed


_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


def fold_scales(state: State) -> State:
    """Folds LayerScale, which some small models use, into the linear layers."""
    state = fold_layer_scale(
        state,
        r"(visual|text)\.transformer\.resblocks\.\d+\.",
        (("ls_1.gamma", "attn.out_proj"), ("ls_2.gamma", "mlp.c_proj")),
    )
    return timm.fold_scales(state, "visual.trunk.")


def table(config: CLIPConfig, trunk: str | None = None) -> Table:
    """(OpenCLIP's name, ours), text under `text.`; `trunk` as `trunk_projection` gives it."""
    vision = expand(_VISION, config.vision.depth)
    if trunk is not None:
        vision = with_prefix(timm.encoder_table(config.vision), "visual.trunk.", "") + _TRUNK_PROJECTIONS[trunk]
    projection = _LINEAR if config.text_proj == "linear_bias" else _MATRIX
    return vision + expand(_TEXT, config.text.depth) + projection + _SCALARS


def guess(state: State, models: Iterable[tuple[str, ModelCfg]], hints: Hints) -> ModelCfg:
    """The config of bare weights: the one known model they fit, or sizes from the weights and the rest from `hints`."""
    state = fold_scales(standard_names(state))
    fitting = [(name, model) for name, model in models if _fits(state, model)]
    if hints.activation is not None:
        fitting = [
            (name, model) for name, model in fitting if to_config(model, state).text.activation == hints.activation
        ]
    if len({to_config(model, state) for _, model in fitting}) == 1:
        return fitting[0][1]
    if fitting:
        names = ", ".join(f"{name} ({to_config(model, state).vision.activation})" for name, model in fitting)
        raise CheckpointError(
            f"These OpenCLIP weights fit more than one model: {names}. The weights cannot tell which: say activation "
            f"(--activation), or name the model: openclip:NAME/FILE."
        )
    return _from_sizes(state, hints)


def _fits(state: State, model: ModelCfg) -> bool:
    """The quick comparisons first: most models differ in their text tower."""
    text = model.text_cfg
    if model.outside() or tuple(state["text.token_embedding.weight"].shape) != (text.vocab_size, text.width):
        return False
    try:
        read_model(state, model)
    except ValueError:
        return False
    return True


def _from_sizes(state: State, hints: Hints) -> ModelCfg:
    if "visual.conv1.weight" not in state or "visual.ln_pre.weight" not in state:
        raise CheckpointError(
            "These OpenCLIP weights fit no known model, and their pooling and mask are not in them. Put their "
            "open_clip_config.json beside them, or name the model: openclip:NAME/FILE."
        )
    where = "OpenCLIP weights of no known model"
    width, _, patch, _ = shape(state, "visual.conv1.weight", 4)
    tokens = shape(state, "visual.positional_embedding", 2)[0]
    vocab, text_width = shape(state, "text.token_embedding.weight", 2)
    text_activation = hints.need_activation(("gelu", "quick_gelu"), where)
    norm = {"norm_kwargs": {"eps": hints.norm_eps}} if hints.norm_eps else {}
    act = {"act_kwargs": {"approximate": "tanh"}} if text_activation == "gelu_tanh" else {}
    return ModelCfg.from_dict(
        {
            "embed_dim": shape(state, "visual.proj", 2)[1],
            "quick_gelu": text_activation == "quick_gelu",
            "vision_cfg": {
                "image_size": patch * square(tokens - 1, "visual.positional_embedding"),
                "patch_size": patch,
                "width": width,
                "head_width": width // hints.need_heads(width, HEADS, where),
                "layers": layers(state, r"visual\.transformer\.resblocks\.(\d+)\."),
                "mlp_ratio": mlp_ratio(shape(state, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0], width),
                **norm,
                **act,
            },
            "text_cfg": {
                "vocab_size": vocab,
                "context_length": shape(state, "text.positional_embedding", 2)[0],
                "width": text_width,
                "heads": max(1, text_width // 64),  # OpenAI's and OpenCLIP's rule for text towers
                "layers": layers(state, r"text\.transformer\.resblocks\.(\d+)\."),
                "mlp_ratio": mlp_ratio(shape(state, "text.transformer.resblocks.0.mlp.c_fc.weight", 2)[0], text_width),
                **norm,
                **act,
            },
        }
    )


def write_model(config: CLIPConfig, state: State) -> tuple[dict[str, Any], State]:
    """(`model_cfg`, tensors) for OpenCLIP; raises `InputError` that names everything OpenCLIP cannot express."""
    model = from_config(config)
    theirs = write(state, table(config, trunk_projection(ModelCfg.from_dict(model).vision_cfg)))
    if not model["custom_text"]:  # `CLIP`, not `CustomTextCLIP`: text at the root
        theirs = {name.removeprefix("text."): tensor for name, tensor in theirs.items()}
    return model, theirs
