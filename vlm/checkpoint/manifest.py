"""manifest.json: the sha256 of every file of a model folder, and of itself."""

import hashlib
import json
from pathlib import Path

from vlm.errors import CheckpointError


def verify(folder: Path) -> None:
    """Raise `CheckpointError`, naming the file, where any byte of a model folder is not as `save` wrote it."""
    files = listed_files(folder)
    for name in ("config.json", "model.safetensors"):
        if name not in files:
            raise CheckpointError(f"{folder / 'manifest.json'} does not list {name}: this is no model folder.")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing. Copy the model folder again, whole.")
        if sha256(path) != expected:
            raise CheckpointError(
                f"{path} is not what was saved: its sha256 differs from manifest.json. Copy the folder again."
            )


def listed_files(folder: Path) -> dict[str, str]:
    """{file: sha256} from manifest.json, whose own checksum is compared too."""
    path = folder / "manifest.json"
    try:
        text = path.read_bytes().decode("utf-8")
        files: dict[str, str] = dict(json.loads(text)["files"])
        if text == manifest_text(files):
            return files
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise CheckpointError(f"{path} is not what was saved: its own checksum is wrong. Copy the model folder again.")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_text(files: dict[str, str]) -> str:
    """The content of manifest.json for these checksums."""
    body = json.dumps(files, sort_keys=True)
    return (
        json.dumps({"files": files, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1, sort_keys=True)
        + "\n"
    )
