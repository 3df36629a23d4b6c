"""Which model folder a source names, and what its config.json says."""

import json
from pathlib import Path
from typing import Any

from vlm.atomic import set_aside
from vlm.checkpoint.manifest import verify
from vlm.config import Json
from vlm.errors import OtherKind

BUNDLED = {"mini": Path(__file__).parents[1] / "assets" / "mini"}
FORMAT = "vlm-1"


def own_folder(source: str | Path) -> Path | None:
    """The folder of a model in our format, None for a foreign one.  `./mini` is a folder, `mini` the bundled model."""
    if str(source) in BUNDLED:
        return BUNDLED[str(source)]
    if str(source).startswith("hf:"):
        from vlm.interop.hub import downloads as hub

        folder = hub.fetch(str(source).removeprefix("hf:"))
    elif str(source).startswith("openclip:"):
        return None
    else:
        folder = Path(source).expanduser().absolute()
        folder = folder if folder.exists() else set_aside(folder)
        if not folder.exists():
            known = ", ".join(f"'{name}'" for name in BUNDLED)
            raise ValueError(
                f"There is no model '{source}': not {known}, not a path. Remote models begin with openclip: or hf:."
            )
    if (folder / "manifest.json").is_file():
        return folder
    config = folder / "config.json"
    if config.is_file() and f'"format": "{FORMAT}"' in config.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{folder / 'manifest.json'} is missing. Copy the model folder again, whole.")
    return None


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """config.json of a folder whose every file has been compared with its checksum."""
    verify(folder)
    config: Json = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{folder / 'config.json'} is not of format {FORMAT!r}, the one this version of vlm reads.")
    if config.get("kind") != kind:
        opener = {"clip": "vlm.load", "vit_classifier": "vlm.load_classifier"}.get(
            str(config.get("kind")), "a newer vlm"
        )
        raise OtherKind(
            f"{folder} holds a model of kind {config.get('kind')!r}, wanted {kind!r}. Open it with {opener}."
        )
    missing = {"model", "preprocess", "tokenizer", *(["labels"] if kind == "vit_classifier" else [])} - config.keys()
    if missing:
        raise ValueError(
            f"{folder / 'config.json'} lacks {', '.join(sorted(missing))}. Save the model again with vlm.save."
        )
    return config
