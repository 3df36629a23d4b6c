"""Opens the tokenizer of a model folder."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from vlm.bundled import BUNDLED
from vlm.config import Json
from vlm.errors import CheckpointError
from vlm.tokenizers.clip_bpe import CLIPTokenizer
from vlm.tokenizers.protocol import CONFIG_FILE, Tokenizer, TokenizerConfig
from vlm.tokenizers.sentencepiece import MODEL_FILE, SentencePieceTokenizer
from vlm.user_folders import expanded

_KINDS: dict[str, Callable[[Path, TokenizerConfig], Tokenizer]] = {
    "sentencepiece": lambda folder, config: SentencePieceTokenizer(
        folder / MODEL_FILE, config.context_length, pad_to_context=config.pad_to_context
    ),
    "clip_bpe": lambda _, config: CLIPTokenizer(config.context_length, pad_to_context=config.pad_to_context),
    "tokenizers": lambda folder, config: _json_tokenizer(folder, config),
}


def _json_tokenizer(folder: Path, config: TokenizerConfig) -> Tokenizer:
    from vlm.tokenizers.huggingface import JSON_FILE, JsonTokenizer  # the tokenizers package is an optional extra

    return JsonTokenizer(folder / JSON_FILE, config)


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Open the tokenizer of a model folder.

    Args:
        source: a folder that `Tokenizer.save` or `vlm.save` wrote, or `mini`, the bundled model.

    Raises:
        CheckpointError: the files are missing or damaged, or disagree.
    """
    folder = BUNDLED.get(str(source)) or expanded(source)
    path = folder / CONFIG_FILE
    try:
        values: Json = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer: cannot read {CONFIG_FILE} ({error.strerror}). Name a folder that vlm.save "
            f"or vlm tokenizer wrote, or {', '.join(BUNDLED)}."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}. Copy the model folder again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; wanted an object. Copy the model folder again.")
    try:
        config = TokenizerConfig.from_dict(values)
    except (TypeError, ValueError) as error:  # a setting is missing; unknown, or of the wrong type
        raise CheckpointError(f"{path}: {error}") from error
    if config.kind not in _KINDS:
        raise CheckpointError(f"{path}: kind is '{config.kind}'; it must be one of {', '.join(_KINDS)}.")
    tokenizer = _KINDS[config.kind](folder, config)
    for name in (field.name for field in fields(config)):
        said, found = getattr(config, name), getattr(tokenizer.config, name)
        if said != found:
            raise CheckpointError(
                f"{path} says {name} {said}, the model has {found}. Take both files from one model folder."
            )
    return tokenizer
