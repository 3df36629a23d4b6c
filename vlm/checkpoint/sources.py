"""Resolves a source to a model folder and reads its config.json."""

import json
import re
from pathlib import Path
from typing import Any

from vlm.atomic import set_aside
from vlm.bundled import BUNDLED
from vlm.checkpoint.manifest import verify
from vlm.config import Json
from vlm.errors import CheckpointError, OtherKind
from vlm.interop.names.catalog import catalog
from vlm.interop.selection import OUR_FORMAT, Purpose
from vlm.interop.sources import Files, plan
from vlm.user_folders import expanded

FORMAT = OUR_FORMAT


def locate(source: str | Path, purpose: Purpose) -> Path | Files | None:
    """Find what a source names.

    Args:
        source: `mini`, a short name's source, a folder, a file, "openclip:..." or "hf:...".  `./mini` is a folder.
        purpose: "clip" or "vit", which of a repository's models is meant.

    Returns:
        The folder of a model in our format; the files of a model on the hub, downloaded; None for any other, which
        `vlm/interop` opens.

    Raises:
        CheckpointError: there is no such model, or its folder is not whole.
        HubError: a model on the hub cannot be had.
    """
    name = str(source)
    if name in BUNDLED:
        return BUNDLED[name]
    if name.startswith("hf:"):
        files = plan(name, purpose).fetch()
        return files.folder if files.family == "vlm" else files
    if name.startswith("openclip:"):
        return None
    folder = expanded(source).absolute()
    folder = folder if folder.exists() else set_aside(folder)
    if not folder.exists():
        hub = f" Did you mean hf:{name}?" if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) else ""
        raise CheckpointError(
            f"There is no model '{name}': it is no short name ({', '.join(catalog())}) and no path.{hub} Models on the "
            "hub begin with hf: or openclip:."
        )
    return folder if folder.is_dir() and is_own(folder) else None


def is_own(folder: Path) -> bool:
    """Returns True if `save` wrote this folder: its config.json or its manifest.json has our form.

    Raises:
        CheckpointError: the config is ours and manifest.json is missing.
    """
    config, manifest = folder / "config.json", folder / "manifest.json"
    ours = config.is_file() and f'"format": "{OUR_FORMAT}"' in config.read_text(encoding="utf-8", errors="replace")
    if manifest.is_file():
        text = manifest.read_text(encoding="utf-8", errors="replace")
        return ours or ('"files"' in text and '"sha256"' in text)
    if ours:
        raise CheckpointError(f"{manifest} is missing. Copy the model folder again, whole.")
    return False


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """config.json of a folder whose every file has been compared with its checksum."""
    verify(folder)
    config: Json = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / 'config.json'} is not of format {FORMAT!r}, the one this version of vlm reads."
        )
    if config.get("kind") != kind:
        opener = {"clip": "vlm.load", "vit_classifier": "vlm.load_classifier"}.get(
            str(config.get("kind")), "a newer vlm"
        )
        raise OtherKind(
            f"{folder} holds a model of kind {config.get('kind')!r}, wanted {kind!r}. Open it with {opener}."
        )
    missing = {"model", "preprocess", "tokenizer", *(["labels"] if kind == "vit_classifier" else [])} - config.keys()
    if missing:
        raise CheckpointError(
            f"{folder / 'config.json'} lacks {', '.join(sorted(missing))}. Save the model again with vlm.save."
        )
    return config
