"""Tokenizers of Hugging Face's `tokenizers` library, in a tokenizer.json."""

import html
import string
from collections.abc import Callable
from pathlib import Path

import tokenizers

from vlm.errors import CheckpointError, ConfigError
from vlm.tokenizers.protocol import Tokenizer, TokenizerConfig

JSON_FILE = "tokenizer.json"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class JsonTokenizer(Tokenizer):
    """A tokenizer.json with its special symbols; a symbol spelt in a text is text.

    Args:
        model: the file, or its bytes.
        config: its `clean` normalises a text first, as the source library does: OpenCLIP's three ways
            (open_clip/tokenizer.py, clean=...), or transformers' for SigLIP and SigLIP 2.

    Raises:
        CheckpointError: the file is damaged, or has more ids than the config.
        ConfigError: there is no such `clean`.
    """

    def __init__(self, model: Path | bytes, config: TokenizerConfig):
        super().__init__(config)
        self._model = _open(model)
        self._model.encode_special_tokens = True
        self._model.no_padding()
        self._model.no_truncation()
        if config.clean not in _CLEANING:
            raise ConfigError(f"clean is '{config.clean}'; it must be one of {', '.join(_CLEANING)}.")
        self._clean = _CLEANING[config.clean]
        if self._model.get_vocab_size() > config.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {self._model.get_vocab_size()} ids, more than the model's {config.vocab_size}. "
                "Take both from one model."
            )

    def save(self, folder: Path) -> None:
        """Write the settings and tokenizer.json."""
        super().save(folder)
        (folder / JSON_FILE).write_text(self._model.to_str(), encoding="utf-8")

    def to_str(self) -> str:
        """The text of tokenizer.json."""
        return self._model.to_str()

    def _pieces(self, text: str) -> list[int]:
        ids = self._model.encode(self._clean(text.encode("utf-8", "replace").decode())).ids
        return [id for id in ids if id not in (self.eot_id, self.pad_id)]

    def _text(self, ids: list[int]) -> str:
        return self._model.decode(ids)


def _open(model: Path | bytes) -> tokenizers.Tokenizer:
    name = "these bytes" if isinstance(model, bytes) else str(model)
    try:
        content = model if isinstance(model, bytes) else model.read_bytes()
        return tokenizers.Tokenizer.from_buffer(content)
    except OSError as error:
        raise CheckpointError(
            f"cannot read the tokenizer {name}: {error.strerror}. Check the path, or copy the model folder again."
        ) from error
    except Exception as error:  # the library raises a bare Exception
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{name} is not a tokenizer.json, or is damaged ({reason}). Copy it again.") from error


def _whitespace(text: str) -> str:
    import ftfy  # slow to import

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _canonical(text: str) -> str:
    return " ".join(_whitespace(text).replace("_", " ").translate(_PUNCTUATION).lower().split())


def _siglip(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION).split())


_CLEANING: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "lower": lambda text: _whitespace(text).lower(),
    "whitespace": _whitespace,
    "canonicalize": _canonical,
    "siglip": _siglip,  # and the next, as transformers' tokenizers do
    "siglip2": str.lower,
}
