"""External models and the tokenizers of their libraries."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.errors import InputError
from vlm.images.preprocess import Preprocess
from vlm.models.external import ExternalModel
from vlm.tokenizers.protocol import Tokenizer, TokenizerConfig


@dataclass(frozen=True)
class ExternalClip:
    """A dual encoder that its own library computes; the parts of an `Embedder`."""

    model: ExternalModel
    tokenizer: Tokenizer | None
    preprocess: Preprocess | None


class ExternalTokenizer(Tokenizer):
    """The tokenizer of another library: texts -> ids (B, T) as that library makes them."""

    def __init__(
        self,
        tokenize: Callable[[list[str]], Tensor],
        *,
        context_length: int,
        vocab_size: int,
        eot_id: int,
        pad_id: int,
        decode: Callable[[list[int]], str],
    ):
        """Wrap a tokenizer.

        Args:
            tokenize: texts -> ids (B, T), padded.
            context_length: T at most.
            vocab_size: number of ids.
            eot_id: the id that ends a text.
            pad_id: the id of padding.
            decode: ids -> text.
        """
        super().__init__(
            TokenizerConfig(
                kind="external",
                context_length=context_length,
                vocab_size=vocab_size,
                eot_id=eot_id,
                pad_id=pad_id,
            )
        )
        self._tokenize, self._decode = tokenize, decode

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """ids (B, T), int64."""
        rows = [texts] if isinstance(texts, str) else list(texts)
        if not rows:
            raise InputError("no texts to encode: the list is empty. Give at least one.")
        return self._tokenize(rows).to(torch.int64)

    def encode(self, text: str) -> list[int]:
        """The row of one text, padding included."""
        return [int(id) for id in self(text)[0]]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of one row."""
        return self._decode([int(id) for id in ids])

    def save(self, folder: Path) -> None:
        """Not possible: the tokenizer belongs to its library."""
        raise InputError(f"{folder}: the tokenizer of an external model is not saved. Load the model from its source.")

    def _pieces(self, text: str) -> list[int]:
        return self.encode(text)

    def _text(self, ids: list[int]) -> str:
        return self._decode(ids)


def files_identity(folder: Path | None, names: Iterable[str]) -> dict[str, str]:
    """sha256 of the files that determine a tokenizer, by name."""
    if folder is None:
        return {}
    found = sorted(name for name in names if (folder / name).is_file())
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in found}


def plain(value: Any) -> Any:
    """A config of another library as plain JSON values, in a fixed order."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in sorted(value.items(), key=lambda pair: str(pair[0]))}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType, reportUnknownLambdaType]
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]  # pyright: ignore[reportUnknownVariableType]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
