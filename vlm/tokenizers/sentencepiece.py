"""SentencePiece models (Kudo and Richardson 2018): texts in any language -> ids."""

from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from vlm.tokenizers.protocol import Tokenizer, TokenizerConfig

MODEL_FILE = "tokenizer.model"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (Kudo & Richardson 2018); `training.train_tokenizer` makes one from captions.

    Symbols such as </s> are never read out of a text: there they are four characters.
    """

    def __init__(self, model: Path | bytes, context_length: int, *, pad_to_context: bool = False):
        self._model = _sentencepiece(model)
        super().__init__(
            TokenizerConfig(
                kind="sentencepiece",
                context_length=context_length,
                vocab_size=self._model.get_piece_size(),
                eot_id=self._model.eos_id(),
                pad_id=self._model.pad_id(),
                pad_to_context=pad_to_context,
            )
        )

    def save(self, folder: Path) -> None:
        """The settings and the SentencePiece model."""
        super().save(folder)
        (folder / MODEL_FILE).write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The SentencePiece model file."""
        return self._model.serialized_model_proto()

    def byte_share(self, texts: Iterable[str]) -> float:
        """The share of ids that stand for a single byte of a character the vocabulary lacks, 0..1."""
        ids = [id for text in texts for id in self._pieces(text)]
        return sum(map(self._model.is_byte, ids)) / max(len(ids), 1)

    def _pieces(self, text: str) -> list[int]:
        return self._model.encode(_without_lone_surrogates(text))

    def _text(self, ids: list[int]) -> str:
        return self._model.decode(ids)


def _sentencepiece(model: Path | bytes) -> sentencepiece.SentencePieceProcessor:
    name = "these bytes" if isinstance(model, bytes) else str(model)
    try:
        content = model if isinstance(model, bytes) else model.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the tokenizer model {name}: {error.strerror}.") from error
    processor = sentencepiece.SentencePieceProcessor()
    try:
        intact = bool(content) and processor.load_from_serialized_proto(content)
    except RuntimeError:
        intact = False
    if not intact:
        raise ValueError(f"{name} ({len(content)} bytes) is not a SentencePiece model, or is damaged.")
    if processor.eos_id() < 0 or processor.pad_id() < 0:
        raise ValueError(f"{name} has no end-of-text or no padding symbol. Train it with eos_id and pad_id.")
    return processor


def _without_lone_surrogates(text: str) -> str:
    """Half a UTF-16 pair (undecodable file names have them) becomes U+FFFD; ftfy does the same."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
