"""Downloads, only of what the user names, through open_clip's and huggingface_hub's own registries and caches."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.errors import CheckpointError
from vlm.interop.formats.foreign import one_line
from vlm.interop.tensor_files import SUFFIXES

_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_SMALL = ("*.json", "*.txt", "*.model", "*.gz", "README.md")  # configs, tokenizers, and a folder of ours
_WEIGHTS = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")


def fetch(repo: str) -> Path:
    """ "org/name" or "org/name@revision" on the hub -> its folder in the cache, with one form of weights."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    name, revision = _name_and_revision(repo)
    try:
        found = huggingface_hub.HfApi().model_info(name, revision=revision)  # `list_repo_files` tries for 23 s offline
        patterns = [*_SMALL, *_weights([file.rfilename for file in found.siblings or []])]
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HfHubHTTPError as error:
        raise CheckpointError(
            f"The hub has no {repo} for you ({one_line(error)}). Is the name right, and is it public?"
        ) from error
    except Exception as error:  # out of reach: the hub's HTTP library has errors of its own
        return _cached(name, revision, error)


def _cached(name: str, revision: str | None, cause: Exception) -> Path:
    """What an earlier `fetch` brought; that the repository holds more, huggingface_hub 2 takes for a torn download."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, local_files_only=True, allow_patterns=list(_SMALL)
        )
        return Path(folder)
    except Exception:
        raise CheckpointError(
            f"The hub cannot be reached, and {name} is not in the cache. Go online once, or give a local folder."
        ) from cause


def _weights(files: list[str]) -> list[str]:
    """One form of the weights: safe before pickled, whole before in shards."""
    for name in _WEIGHTS:
        if name in files:
            return [name]
    shards = [name for name in files if re.fullmatch(r"(pytorch_)?model-\d+-of-\d+\.(safetensors|bin)", name)]
    safe = [name for name in shards if name.endswith(".safetensors")]
    return safe or shards or [name for name in files if name.endswith(SUFFIXES) and "/" not in name][:1]


@dataclass(frozen=True)
class About:
    """A remote model before it is here."""

    size: int | None  # bytes of what would be downloaded; None where the registry does not say
    folder: Path | None  # where in huggingface_hub's cache it comes to lie


def _name_and_revision(repo: str) -> tuple[str, str | None]:
    match = _REPO.fullmatch(repo)
    if match is None:
        raise CheckpointError(f"'{repo}' is no hub name; wanted hf:org/name, or hf:org/name@revision.")
    return match["repo"], match["revision"]


def about(source: str) -> About:
    """What loading "hf:..." or "openclip:..." would bring.  Asks the hub for its list of files, no more."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import filter_repo_objects

    if source.startswith("hf:"):
        name, revision = _name_and_revision(source.removeprefix("hf:"))
    else:
        model, _, tag = source.removeprefix("openclip:").partition("/")
        known = _open_clip().get_pretrained_cfg(model, tag)
        if not known:
            raise CheckpointError(f"OpenCLIP has no weights '{tag}' for '{model}'. Wanted openclip:NAME/TAG.")
        name, revision = "/".join(known.get("hf_hub", "").split("/")[:2]), None
        if not name:
            return About(None, None)
    try:
        files = {file.rfilename: file.size or 0 for file in
                 HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []}  # fmt: skip
    except Exception as error:  # the hub's HTTP library has errors of its own
        raise CheckpointError(
            f"The hub does not answer for {name} ({one_line(error)}). Is this machine online?"
        ) from error
    wanted = filter_repo_objects(files, allow_patterns=[*_SMALL, *_weights(list(files))])
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    return About(sum(files[file] for file in wanted), folder)


def bring(source: str) -> None:
    """Download what `about` tells of, or find it in the cache."""
    if source.startswith("hf:"):
        fetch(source.removeprefix("hf:"))
    else:
        openclip(source.removeprefix("openclip:"))


@dataclass(frozen=True)
class OpenCLIPSource:
    """What OpenCLIP's registry knows of NAME/TAG."""

    weights: Path
    model: dict[str, Any]  # model_cfg
    preprocess: dict[str, Any] | None  # preprocess_cfg, None where the registry does not know the file
    tokenizer: Path | None  # folder where its files may be


def openclip(name_and_tag: str) -> OpenCLIPSource:
    """ "NAME/TAG" of OpenCLIP's registry, or "NAME/FILE" for weights at hand."""
    open_clip = _open_clip()
    name, _, tag = name_and_tag.partition("/")
    model = open_clip.get_model_config(name)
    if model is None:
        raise CheckpointError(f"OpenCLIP has no model '{name}'. {_near(name, open_clip.list_models())}")
    if Path(tag).expanduser().is_file():
        return OpenCLIPSource(Path(tag).expanduser(), model, None, Path(tag).expanduser().parent)
    known = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise CheckpointError(
            f"OpenCLIP has no weights '{tag}' for {name}, and no such file is here. Known: {', '.join(tags) or 'none'}."
        )
    try:
        weights = Path(open_clip.download_pretrained(known))
    except Exception as error:  # the registry raises what its HTTP libraries raise
        raise CheckpointError(
            f"The weights of {name_and_tag} cannot be downloaded ({one_line(error)}), and are not in the cache."
        ) from error
    if not model.get("vision_cfg", {}).get("timm_model_name"):
        model["quick_gelu"] = bool(known.get("quick_gelu"))  # what these weights were trained with, whatever NAME says
    preprocess = {
        setting: known[setting] for setting in ("mean", "std", "interpolation", "resize_mode") if setting in known
    }
    named = model.get("text_cfg", {}).get("hf_tokenizer_name")
    return OpenCLIPSource(weights, model, preprocess, fetch(named) if named else None)


def openclip_models() -> list[tuple[str, dict[str, Any]]]:
    """All of OpenCLIP's model configs; none where it is not installed."""
    try:
        open_clip = _open_clip()
    except CheckpointError:
        return []
    return [(name, open_clip.get_model_config(name)) for name in open_clip.list_models()]


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise CheckpointError("openclip: models need OpenCLIP's registry. Run: pip install open_clip_torch") from error
    return open_clip


def _near(name: str, known: list[str]) -> str:
    import difflib

    return f"Near: {', '.join(difflib.get_close_matches(name, known, n=3, cutoff=0.4)) or ', '.join(known[:3])}."
