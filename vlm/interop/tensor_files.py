"""Tensors out of files, without running anything that is in them."""

import argparse
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vlm.config import Json
from vlm.errors import CheckpointError
from vlm.interop.formats.foreign import check_not_pointer, one_line, read_json
from vlm.interop.formats.tables import State
from vlm.interop.selection import SUFFIXES

_PICKLED = (".pt", ".pth", ".bin")


def read_tensors(path: Path) -> State:
    """{name: tensor} of a .safetensors, .pt, .pth, .bin or .npz file, or of the shards an index.json lists."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file. Name a file of weights, or a folder that holds one.")
    check_not_pointer(path)
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in _PICKLED or path.name.endswith(".pth.tar"):
        return _read_pickled(path)
    raise CheckpointError(f"{path.name} is no weight file known here: wanted a name ending in {', '.join(SUFFIXES)}.")


def _read_shards(index: Path) -> State:
    names: Json = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index} has no weight_map.")
    shards = sorted({str(shard) for shard in names.values()})
    if outside := [shard for shard in shards if Path(shard).name != shard or Path(shard).suffix not in SUFFIXES]:
        raise CheckpointError(f"{index} names files outside its folder, or no weight files: {', '.join(outside)}.")
    state: State = {}
    for shard in shards:
        state |= read_tensors(index.parent / shard)
    if missing := [name for name in names if name not in state]:
        raise CheckpointError(f"{index} lists tensors that its files do not hold: {', '.join(missing)}.")
    return state


def _read_safetensors(path: Path) -> State:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({one_line(error)}). Get it again.") from error


def _read_npz(path: Path) -> State:
    state: State = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for name in arrays.files:
                state[name] = torch.from_numpy(np.ascontiguousarray(arrays[name]))
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise CheckpointError(
            f"{path} is not a whole .npz file of plain arrays ({one_line(error)}). Pickled arrays are never opened."
        ) from error
    return state


def _read_pickled(path: Path) -> State:
    if _is_torchscript(path):
        raise CheckpointError(
            f"{path} is a TorchScript archive, a program: it is not run. OpenAI's weights are on the hub as "
            "safetensors: load openclip:ViT-B-32-quickgelu/openai, hf:openai/clip-vit-base-patch32 or their like."
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's and MAE's arguments: a plain record
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises almost anything here; nothing of the file has been run
        raise CheckpointError(
            f"{path} is not a file of plain tensors ({_reason(error)}). Code is never run: get it as safetensors."
        ) from error
    return _tensors(path, content)


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def _tensors(path: Path, content: dict[Any, Any] | list[Any] | Tensor) -> State:
    """The state dict of a checkpoint: alone, or beside an optimizer and a step number; timm's average of weights first.

    timm reads the average where there is one (`timm.models.load_state_dict`, use_ema).
    """
    for key in ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds a {type(content).__name__}; wanted a state dict, names and tensors.")
    wrong = [str(name) for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(
            f"{path} holds more than names and tensors: {', '.join(wrong)}. Save model.state_dict() alone."
        )
    return dict(content)


def _reason(error: BaseException) -> str:
    return "its pickle asks for code" if isinstance(error, pickle.UnpicklingError) else one_line(error)
