"""SentencePiece models (Kudo and Richardson 2018): texts in any language -> ids."""

from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from vlm.errors import CheckpointError
from vlm.tokenizers.protocol import Tokenizer, TokenizerConfig

MODEL_FILE = "tokenizer.model"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018); `vlm tokenizer` trains one from captions.

    A symbol such as </s> in a text is four characters, never the symbol.

    Args:
        model: the model file, or its bytes.
        context_length: largest T.
        pad_to_context: every batch has T = context_length.

    Raises:
        CheckpointError: the model is damaged, or has no end-of-text or padding symbol.
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
        """Write the settings and the SentencePiece model."""
        super().save(folder)
        (folder / MODEL_FILE).write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The SentencePiece model file."""
        return self._model.serialized_model_proto()

    def byte_share(self, texts: Iterable[str]) -> float:
        """The share of ids that are single bytes of characters outside the vocabulary, 0..1."""
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
        raise CheckpointError(
            f"cannot read the tokenizer model {name}: {error.strerror}. Check the path, or copy the model folder again."
        ) from error
    processor = sentencepiece.SentencePieceProcessor()
    try:
        intact = bool(content) and processor.load_from_serialized_proto(content)
    except RuntimeError:
        intact = False
    if not intact:
        raise CheckpointError(
            f"{name} ({len(content)} bytes) is not a SentencePiece model, or is damaged. Copy the model folder again."
        )
    if processor.eos_id() < 0 or processor.pad_id() < 0:
        raise CheckpointError(f"{name} has no end-of-text or no padding symbol. Train it with eos_id and pad_id.")
    return processor


def _without_lone_surrogates(text: str) -> str:
    """Replace each half of a UTF-16 pair, as in undecodable file names, by U+FFFD; ftfy does the same."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
