"""Opens the tokenizer of a model folder."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from vlm.config import Json
from vlm.tokenizers.clip_bpe import CLIPTokenizer
from vlm.tokenizers.protocol import CONFIG_FILE, Tokenizer, TokenizerConfig
from vlm.tokenizers.sentencepiece import MODEL_FILE, SentencePieceTokenizer

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


def load_tokenizer(folder: Path) -> Tokenizer:
    """Open what `Tokenizer.save` wrote; raises ValueError where the files are missing, damaged or disagree."""
    path = folder / CONFIG_FILE
    try:
        values: Json = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{folder} holds no tokenizer: cannot read {CONFIG_FILE} ({error.strerror}).") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; wanted an object.")
    try:
        config = TokenizerConfig.from_dict(values)
    except (TypeError, ValueError) as error:  # a setting is missing; unknown, or of the wrong type
        raise ValueError(f"{path}: {error}") from error
    if config.kind not in _KINDS:
        raise ValueError(f"{path}: kind is '{config.kind}'; it must be one of {', '.join(_KINDS)}.")
    tokenizer = _KINDS[config.kind](folder, config)
    for name in (field.name for field in fields(config)):
        said, found = getattr(config, name), getattr(tokenizer.config, name)
        if said != found:
            raise ValueError(f"{path} says {name} {said}, the model has {found}. The files do not belong together.")
    return tokenizer
