"""Recognises the library that wrote a weight file by the names of its tensors, ignoring wrappers' prefixes."""

import re
from pathlib import Path
from typing import Any

from vlm.errors import CheckpointError
from vlm.interop.formats.foreign import read_json
from vlm.interop.formats.tables import State
from vlm.interop.selection import NATIVE_CLIPS, NATIVE_VITS

_LAYOUTS = {  # a name that only this layout has
    "openclip": r"(module\.|_orig_mod\.)*visual\.(conv1\.weight|trunk\..+)",
    "huggingface": r"(vision_model\.)?embeddings\.patch_embedding\.weight",
    "huggingface_vit": r"((vit|deit|dinov2|dinov2_with_registers)\.)?embeddings\.patch_embeddings\.projection\.weight",
    "timm": r"patch_embed\.proj\.weight",
    "torchvision": r"conv_proj\.weight",
    "vit_book": r"input_layer\.patch_emb_layer\.weight",
    "big_vision": r"(params/)?(img/)?embedding/kernel",
}
_BESIDE = {
    "openclip": "open_clip_config.json",
    "huggingface": "config.json",
    "huggingface_vit": "config.json",
    "timm": "config.json",
}
_KINDS = {  # model_type
    "huggingface": (*NATIVE_CLIPS, "clip_vision_model", "siglip_vision_model"),
    "huggingface_vit": NATIVE_VITS,
    "timm": (None,),
}


def recognise(state: State, path: Path) -> tuple[str, State]:
    """The layout of tensors, and the tensors without what wrappers have put before every name.

    DistributedDataParallel puts "module." there, torch.compile "_orig_mod.", training frameworks "model." and others.

    Args:
        state: names and tensors.
        path: where they come from, for the message.

    Raises:
        CheckpointError: no layout known here has such names.
    """
    for prefix in _common_prefixes(list(state)):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in state.items()} if prefix else state
        for layout, mark in _LAYOUTS.items():
            if any(re.fullmatch(mark, name) for name in stripped):
                return layout, stripped
    names = ", ".join(list(state)[:5])
    raise CheckpointError(
        f"{path} holds {len(state)} tensors of no layout known here ({names} ...). Known: {', '.join(_LAYOUTS)}. Is it "
        "the right file?"
    )


def _common_prefixes(names: list[str]) -> list[str]:
    """ "", then what all names begin with, one dotted part at a time."""
    parts = names[0].split(".")[:-1] if names else []
    prefixes = [""]
    for count in range(1, len(parts) + 1):
        prefix = ".".join(parts[:count]) + "."
        if not all(name.startswith(prefix) for name in names):
            break
        prefixes.append(prefix)
    return prefixes


def config_beside(layout: str, folder: Path | None) -> dict[str, Any] | None:
    """The config of this layout in a folder, None where there is none."""
    if folder is None or layout not in _BESIDE or not (folder / _BESIDE[layout]).is_file():
        return None
    return read_json(folder / _BESIDE[layout])


def check_config(layout: str, info: dict[str, Any] | None, where: str) -> None:
    """A config.json may belong to other weights in the same folder, or to a model that only shares the names.

    Raises:
        CheckpointError: the config is of another kind than the weights.
    """
    if info is None or layout not in _KINDS:
        return
    kind, wanted = info.get("model_type"), _KINDS[layout]
    if kind not in wanted or (layout == "timm" and "architecture" not in info):
        raise CheckpointError(
            f"{where}: config.json is of model_type {kind!r}, the weights are of the layout '{layout}', whose "
            f"model_type is {' or '.join(map(str, wanted))}. Give the config that belongs to the weights."
        )
