"""Python code that comes with a model of the hub: which files, and who wrote them.  None of it is run here."""

from pathlib import Path
from typing import Any

from vlm.errors import InputError
from vlm.interop.formats.foreign import read_json
from vlm.interop.formats.huggingface_processor import is_known
from vlm.interop.selection import EXTERNAL_CLIPS, code_repositories


def find_own_code(folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Find the classes that transformers does not have and would take from code that comes with the model.

    Args:
        folder: of the model.
        info: its config.json.

    Returns:
        {class of transformers: "module.Class", or a list of them}; empty where the model needs no code of its own.
    """
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    found: dict[str, Any] = {}
    if info.get("model_type") not in EXTERNAL_CLIPS:
        found |= _auto_map(info)
    path = folder / "tokenizer_config.json"
    if path.is_file():
        given = read_json(path)
        if tokenizer_class_from_name(str(given.get("tokenizer_class"))) is None:
            found |= _auto_map(given)
    path = folder / "preprocessor_config.json"
    if path.is_file() and not is_known(given := read_json(path)):
        found |= _auto_map(given)
    return found


def describe_own_code(code: dict[str, Any], folder: Path, source: str) -> str:
    """Name the files of code and who wrote them: "own.py, written by org"."""
    others = code_repositories({"auto_map": code})
    here = sorted(path.name for path in folder.glob("*.py"))
    parts = [f"{', '.join(here)}, written by {_owner(source)}"] if here else []
    parts += [f"the code of {name}, written by {name.split('/')[0]}" for name in others]
    return " and ".join(parts) or f"not downloaded, written by {_owner(source)}"


def check_trusted(code: dict[str, Any], folder: Path, source: str, *, trust_remote_code: bool) -> None:
    """Refuse a model that needs code of its own where the user has not said that it may run.

    Raises:
        InputError: says whose code it is and how to let it run.
    """
    if code and not trust_remote_code:
        raise InputError(
            f"{source} needs Python code of its own ({describe_own_code(code, folder, source)}). Read it, and if you "
            "trust it, say --trust-remote-code (in Python trust_remote_code=True)."
        )


def _auto_map(config: dict[str, Any]) -> dict[str, Any]:
    given: Any = config.get("auto_map")
    return dict(given) if isinstance(given, dict) else {}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _owner(source: str) -> str:
    return source.removeprefix("hf:").split("/")[0] if source.startswith("hf:") else "whoever wrote this folder"
