"""Averages of two models' weights."""

from pathlib import Path

import pytest
import torch
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # pyright: ignore[reportMissingTypeStubs, reportAttributeAccessIssue, reportUnknownVariableType]

from vlm.checkpoint.load import load
from vlm.checkpoint.save import save
from vlm.embedder import Embedder
from vlm.errors import CheckpointError, InputError
from vlm.models.clip import CLIP
from vlm.tokenizers.sentencepiece import SentencePieceTokenizer
from vlm.training.measure.average import average


@pytest.fixture
def two(tiny_embedder: Embedder, tmp_path: Path) -> tuple[str, str]:
    other = CLIP(tiny_embedder.model.config)
    save(tiny_embedder, tmp_path / "start")
    save(Embedder(other, *tiny_embedder.parts()), tmp_path / "end")
    return str(tmp_path / "start"), str(tmp_path / "end")


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_each_weight_is_the_average_of_two(two: tuple[str, str], share: float, tmp_path: Path):
    average({two[0]: 1 - share, two[1]: share}, tmp_path / "out")
    before, after, made = (load(path).model.state_dict() for path in (*two, str(tmp_path / "out")))
    for name, weight in made.items():
        torch.testing.assert_close(weight, torch.lerp(before[name], after[name], share), msg=name)


def test_what_cannot_be_averaged_is_an_error(two: tuple[str, str], tmp_path: Path):
    with pytest.raises(InputError, match="add up to 1"):
        average({two[0]: 0.5, two[1]: 0.6}, tmp_path / "out")
    with pytest.raises(CheckpointError, match="different architectures"):
        average({two[0]: 0.5, "mini": 0.5}, tmp_path / "out")
    other, pieces = load(two[1]), ModelProto()
    assert isinstance(other.tokenizer, SentencePieceTokenizer)
    pieces.ParseFromString(other.tokenizer.to_bytes())
    pieces.pieces[-1].piece, pieces.pieces[-2].piece = pieces.pieces[-2].piece, pieces.pieces[-1].piece
    swapped = SentencePieceTokenizer(pieces.SerializeToString(), other.tokenizer.context_length)
    save(Embedder(other.model, swapped, other.preprocess), tmp_path / "third")
    with pytest.raises(CheckpointError, match="tokenizers"):
        average({two[0]: 0.5, str(tmp_path / "third"): 0.5}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
