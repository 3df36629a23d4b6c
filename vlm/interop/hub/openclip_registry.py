"""OpenCLIP's registry entry of NAME/TAG: config, preprocessing and location of the weights."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.errors import CheckpointError, HubError, InputError, MissingPackageError
from vlm.interop.formats.foreign import one_line
from vlm.interop.hub.address import HubAddress
from vlm.user_folders import expanded

_SAFE = "open_clip_model.safetensors"
_PICKLED = "open_clip_pytorch_model.bin"


@dataclass(frozen=True)
class RegisteredModel:
    """One set of weights."""

    name: str
    model: dict[str, Any]  # model_cfg
    preprocess: dict[str, Any] | None  # preprocess_cfg; None where the registry does not know the file
    address: HubAddress | None  # of the weights; None where they are a local file or lie elsewhere
    candidates: tuple[str, ...]  # names of the file of weights, the first that exists is read
    local: Path | None  # weights at hand
    url: str | None  # of weights that are on no hub
    tokenizer: str | None  # repository of the tokenizer; None is CLIP's own


def registered(name_and_tag: str) -> RegisteredModel:
    """Look up "NAME/TAG", or "NAME/FILE" for weights at hand.

    Raises:
        InputError: there is no such model or tag.
        MissingPackageError: OpenCLIP is not installed.
    """
    open_clip = import_open_clip()
    name, _, tag = name_and_tag.partition("/")
    model: dict[str, Any] | None = open_clip.get_model_config(name)
    if model is None:
        raise InputError(f"OpenCLIP has no model '{name}'. {_near(name, open_clip.list_models())}")
    tokenizer: str | None = model.get("text_cfg", {}).get("hf_tokenizer_name")
    local = expanded(tag)
    if tag and local.is_file():
        return RegisteredModel(name, model, None, None, (), local, None, tokenizer)
    known: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise InputError(
            f"OpenCLIP has no weights '{tag}' for {name}, and no such file is here. Known: {', '.join(tags) or 'none'}."
        )
    if not model.get("vision_cfg", {}).get("timm_model_name"):
        model["quick_gelu"] = bool(known.get("quick_gelu"))  # what these weights were trained with, whatever NAME says
    preprocess = {
        setting: known[setting] for setting in ("mean", "std", "interpolation", "resize_mode") if setting in known
    }
    repository, _, file = str(known.get("hf_hub") or "").rpartition("/")
    address = HubAddress(repository) if repository else None
    url = None if address is not None else str(known.get("url") or "") or None
    return RegisteredModel(name, model, preprocess, address, _candidates(file), None, url, tokenizer)


def _candidates(file: str) -> tuple[str, ...]:
    """open_clip.pretrained.download_pretrained_from_hf: a safe file first."""
    if not file or file == _PICKLED:
        return (_SAFE, _PICKLED)
    safe = file[:-4] + ".safetensors" if file.endswith((".bin", ".pth")) else file
    return (safe, file) if safe != file else (file,)


def fetch_url(known: RegisteredModel) -> Path:
    """Weights that are on no hub, by OpenCLIP's own downloader."""
    try:
        return Path(import_open_clip().download_pretrained({"url": known.url}))
    except Exception as error:  # the registry raises what its HTTP libraries raise
        raise HubError(
            f"The weights of {known.name} cannot be downloaded from {known.url} ({one_line(error)}). Try again."
        ) from error


def all_models() -> list[tuple[str, dict[str, Any]]]:
    """All of OpenCLIP's model configs; none where it is not installed."""
    try:
        open_clip = import_open_clip()
    except MissingPackageError:
        return []
    return [(name, open_clip.get_model_config(name)) for name in open_clip.list_models()]


def import_open_clip() -> Any:
    """The package.

    Raises:
        MissingPackageError: it is not installed, or one of its own packages is not.
    """
    try:
        import open_clip
    except ImportError as error:
        raise MissingPackageError(
            f"OpenCLIP's models need open_clip ({one_line(error)}). Run: pip install open_clip_torch, or install the "
            "extra interop."
        ) from error
    return open_clip


def weights_in(files: dict[str, int | None], known: RegisteredModel) -> str:
    """The file of weights among those of the repository."""
    for name in known.candidates:
        if name in files:
            return name
    address = known.address.name if known.address else known.name
    raise CheckpointError(f"{address} has none of {', '.join(known.candidates)}, where OpenCLIP keeps its weights.")


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    return f"Near: {', '.join(near)}."
