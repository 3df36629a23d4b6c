"""Protocol of all tokenizers: texts -> ids (B, T), and settings in a model folder."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlm.config import StrictConfig
from vlm.errors import ConfigError, InputError

CONFIG_FILE = "tokenizer_config.json"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(StrictConfig):
    """The content of tokenizer_config.json; the text encoder's config must agree with it."""

    kind: str  # one of those `load_tokenizer` knows
    context_length: int  # largest T
    vocab_size: int  # V
    eot_id: int  # ends every row
    pad_id: int  # fills the shorter rows of a batch
    pad_to_context: bool = False  # every batch has T = context_length
    clean: str = "none"  # for kind "tokenizers": how a text is normalised first, see `vlm/tokenizers/huggingface.py`

    def __post_init__(self) -> None:
        if self.context_length < 3:
            raise ConfigError(
                f"context_length is {self.context_length}; a row holds a begin, a word and an end: give 3 or more."
            )


class Tokenizer(ABC):
    """Texts -> ids.  Every row holds exactly one end-of-text, its last id, whatever the text says."""

    def __init__(self, config: TokenizerConfig):
        self.config = config
        self.context_length = config.context_length
        self.vocab_size = config.vocab_size
        self.eot_id = config.eot_id
        self.pad_id = config.pad_id
        self.pad_to_context = config.pad_to_context
        self.truncated = 0  # number of texts cut to context_length so far

    def encode(self, text: str) -> list[int]:
        """The ids of one text, at most `context_length`: a longer text is cut before its end-of-text."""
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"a text must be a string, got {type(text).__name__} {str(text)[:60]!r}.")
        ids = self._pieces(text)
        if len(ids) >= self.context_length:
            self.truncated += 1
        return [*ids[: self.context_length - 1], self.eot_id]

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """One text or several -> ids (B, T), int64; T is the longest row of this batch.  May raise `InputError`."""
        rows = [self.encode(text) for text in ([texts] if isinstance(texts, str) else texts)]
        if not rows:
            raise InputError("There are no texts to encode: the list is empty. Give at least one.")
        length = self.context_length if self.pad_to_context else max(map(len, rows))
        padded = np.array([row + [self.pad_id] * (length - len(row)) for row in rows], dtype=np.int64)
        return torch.from_numpy(padded)  # (B, T); torch reads nested lists four times as slowly

    def decode(self, ids: Iterable[int]) -> str:
        """The normalised text of one row of ids, up to the end-of-text.  May raise `InputError`."""
        row = list(takewhile(lambda id: id != self.eot_id, map(int, ids)))
        if bad := [id for id in row if not 0 <= id < self.vocab_size]:
            raise InputError(
                f"id {bad[0]} is outside the vocabulary of {self.vocab_size} ids. Use the model's own ids."
            )
        return self._text(row)

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(json.dumps(self.config.to_dict(), indent=2) + "\n", encoding="utf-8")

    @abstractmethod
    def _pieces(self, text: str) -> list[int]:
        """The ids without end-of-text.  May stop once there are `context_length` of them."""

    @abstractmethod
    def _text(self, ids: list[int]) -> str: ...
