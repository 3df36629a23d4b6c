"""Tokenizers travel: the same ids in `tokenizers`, transformers and OpenCLIP as here."""

import dataclasses
import json
import re
import string
import unicodedata
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2

from tests.support.foreign_models import captions, sentencepiece_model
from vlm.interop.tokenizer_files import (
    ends_with_padding,
    from_clip,
    from_sentencepiece,
    read_tokenizer,
    write_tokenizer,
)
from vlm.tokenizers.clip_bpe import CLIPTokenizer
from vlm.tokenizers.huggingface import JsonTokenizer
from vlm.tokenizers.load import load_tokenizer
from vlm.tokenizers.protocol import TokenizerConfig
from vlm.tokenizers.sentencepiece import SentencePieceTokenizer


@pytest.fixture(scope="module")
def ours() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(sentencepiece_model(), 24)


def test_sentencepiece_gives_the_same_ids_as_tokenizer_json(ours: SentencePieceTokenizer) -> None:
    theirs: Any = from_sentencepiece(ours.to_bytes())
    for caption in captions():
        assert theirs.encode(caption).ids[:-1] == ours._pieces(caption), caption
        assert theirs.encode(caption).ids[-1] == ours.eot_id


def test_every_character_has_the_same_ids_as_in_tokenizer_json(ours: SentencePieceTokenizer) -> None:
    theirs: Any = from_sentencepiece(ours.to_bytes())
    marks = ["", "\u0301", "\u3099", "\uff9e", "\ufe0f", "\u0308"]
    places = [
        *range(0x20, 0x300),
        *range(0x3000, 0x3100),
        *range(0x4E00, 0x4E40),
        *range(0xFF00, 0xFFEF),
        *range(0x1F300, 0x1F340),
    ]
    for number, place in enumerate(places):
        text = f"a{chr(place)}{marks[number % len(marks)]}b"
        if _half_composed(text):  # NFKC composes and orders what SentencePiece leaves as it is; nobody writes it
            continue
        assert theirs.encode(text).ids[:-1] == ours._pieces(text), ascii(text)


def _half_composed(text: str) -> bool:
    """Several marks in a row, or a mark behind a letter that has one already."""
    marks = [unicodedata.combining(letter) > 0 for letter in unicodedata.normalize("NFKD", text)]
    return any(map(bool.__and__, marks, marks[1:]))


def test_transformers_reads_our_folder_and_gives_our_ids(ours: SentencePieceTokenizer, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ours)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path)
    batch = theirs(captions(), padding="max_length", truncation=True, max_length=24)["input_ids"]
    for caption, row in zip(captions(), batch, strict=True):
        ids = ours.encode(caption)
        assert row == ids + [ours.pad_id] * (24 - len(ids)), caption


def test_ids_1_and_2_change_places_in_the_files_too(ours: SentencePieceTokenizer, tmp_path: Path) -> None:
    order = [0, 2, 1, *range(3, ours.vocab_size)]
    write_tokenizer(tmp_path, ours, order)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == 1
    for caption in captions():
        assert [order[id] for id in theirs(caption, truncation=True, max_length=24)["input_ids"]] == ours.encode(
            caption
        )


def test_a_folder_of_hugging_face_comes_back_as_a_tokenizer_with_the_same_ids(
    ours: SentencePieceTokenizer, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path, ours)
    back = read_tokenizer(tmp_path, 24, ours.vocab_size)
    assert back is not None
    assert (back.eot_id, back.pad_id) == (ours.eot_id, ours.pad_id)
    assert all(back.encode(caption) == ours.encode(caption) for caption in captions())
    back.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert all(again.encode(caption) == ours.encode(caption) for caption in captions())
    assert again.decode(again.encode("a red apple")) == "a red apple"


def test_end_of_text_is_the_symbol_that_the_model_names(ours: SentencePieceTokenizer) -> None:
    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.ParseFromString(ours.to_bytes())
    next(piece for piece in proto.pieces if piece.piece == "</s>").piece = proto.trainer_spec.eos_piece = "<end>"
    assert from_sentencepiece(proto.SerializeToString()).encode("a red apple").tokens[-1] == "<end>"
    assert from_sentencepiece(ours.to_bytes()).encode("a red apple").tokens[-1] == "</s>"
    proto.trainer_spec.eos_piece = "<none>"
    with pytest.raises(ValueError, match=r"symbol.*ends.*text"):
        from_sentencepiece(proto.SerializeToString())


def test_symbols_spelt_in_a_text_never_end_it(ours: SentencePieceTokenizer, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ours)
    back = read_tokenizer(tmp_path, 24, ours.vocab_size)
    assert back is not None
    assert back.encode("a </s> b <pad> c").count(back.eot_id) == 1


def test_symbols_spelt_in_a_text_are_read_as_its_letters() -> None:
    config = TokenizerConfig(kind="tokenizers", context_length=77, vocab_size=49408, eot_id=49407, pad_id=0)
    back, ours = JsonTokenizer(from_clip().to_str().encode(), config), CLIPTokenizer()
    for text in ("a <|endoftext|> b", "<|startoftext|>"):
        assert back.encode(text) == ours.encode(text)
    assert back.encode("a\udcff b") == ours.encode("a? b")  # of a file name that nobody can decode


def test_limits_and_padding_of_the_file_are_not_those_of_the_model(ours: SentencePieceTokenizer) -> None:
    file: Any = from_sentencepiece(ours.to_bytes())
    file.enable_truncation(4)
    file.enable_padding(length=30, pad_id=5)
    config = TokenizerConfig(
        kind="tokenizers", context_length=24, vocab_size=ours.vocab_size, eot_id=ours.eot_id, pad_id=ours.pad_id
    )
    back = JsonTokenizer(file.to_str().encode(), config)
    assert back(captions()).tolist() == ours(captions()).tolist()


def test_clips_own_encoding_has_clips_ids_in_tokenizer_json_and_transformers(tmp_path: Path) -> None:
    ours = CLIPTokenizer()
    write_tokenizer(tmp_path, ours)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = [
        caption for caption in captions() if not set(caption) & set("&—ｶ～…<")
    ]  # ftfy repairs these, tokenizer.json cannot
    assert len(plain) > 6
    for caption in plain:
        ids = open_clip.tokenize([caption])[0].tolist()
        assert theirs(caption)["input_ids"] == ids[: ids.index(49407) + 1], caption
    assert from_clip().get_vocab_size() == 49408


@pytest.mark.parametrize("clean", ["whitespace", "lower", "canonicalize"])
def test_texts_are_cleaned_as_openclips_tokenizers_clean_them(
    ours: SentencePieceTokenizer, tmp_path: Path, clean: str
) -> None:
    write_tokenizer(tmp_path, ours)
    theirs: Any = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=24, clean=clean)
    back = read_tokenizer(tmp_path, 24, ours.vocab_size, clean=clean, pad_to_context=True)
    assert back is not None
    assert back(captions()).tolist() == theirs(captions()).tolist()


def test_siglips_cleaning_travels_into_the_file(ours: SentencePieceTokenizer, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(ours.to_bytes())
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "</s>", "pad_token": "</s>"}')
    siglip = read_tokenizer(tmp_path, 24, ours.vocab_size, clean="siglip", pad_to_context=True)
    assert isinstance(siglip, JsonTokenizer)
    bare = str.maketrans("", "", string.punctuation)
    for caption in captions():
        assert siglip.encode(caption) == ours.encode(" ".join(caption.lower().translate(bare).split()))
    (tmp_path / "out").mkdir()
    write_tokenizer(tmp_path / "out", siglip)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for caption in captions():
        assert theirs(caption, truncation=True, max_length=24)["input_ids"] == siglip.encode(caption), caption


def test_clipa_ends_in_padding(tmp_path: Path) -> None:
    words = tokenizers.models.WordLevel({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "red": 4, "apple": 5}, "[UNK]")
    bert = tokenizers.Tokenizer(words)
    bert.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    bert.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    bert.save(str(tmp_path / "tokenizer.json"))
    symbols = '"pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]", "unk_token": "[UNK]"'
    (tmp_path / "tokenizer_config.json").write_text(f'{{"tokenizer_class": "PreTrainedTokenizerFast", {symbols}}}')
    theirs: Any = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=6, strip_sep_token=True)
    ours = read_tokenizer(tmp_path, 6, 6, clean="whitespace", pad_to_context=True, without_end=True)
    assert ours is not None
    texts = ["red apple", "apple", "red red red red red red red"]
    assert ours(texts).tolist() == theirs(texts).tolist()


def test_clipa_goes_to_openclip_and_cuts_long_texts_as_it_did(tmp_path: Path) -> None:
    letters = "abcdefgh"
    names = {name: id for id, name in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *letters])}
    bert = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, "[UNK]"))
    bert.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    bert.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    bert.save(str(tmp_path / "tokenizer.json"))
    symbols = '"pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]", "unk_token": "[UNK]"'
    (tmp_path / "tokenizer_config.json").write_text(f'{{"tokenizer_class": "PreTrainedTokenizerFast", {symbols}}}')
    ours = read_tokenizer(tmp_path, 6, 12, clean="whitespace", pad_to_context=True, without_end=True)
    assert ours is not None and ends_with_padding(ours)
    (tmp_path / "out").mkdir()
    write_tokenizer(tmp_path / "out", ours, cleaned=True, strip_end=True)
    theirs: Any = open_clip.tokenizer.HFTokenizer(str(tmp_path / "out"), context_length=6, strip_sep_token=True)
    texts = ["a", "a b c d", " ".join(letters), ""]
    assert theirs(texts).tolist() == ours(texts).tolist()


@pytest.mark.parametrize("files", [("vocab.json", "merges.txt"), ("tokenizer.json",)])
def test_a_vocabulary_without_a_config_is_read(tmp_path: Path, files: tuple[str, ...]) -> None:
    from_clip().save(str(tmp_path / "tokenizer.json"))
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    for name in {"tokenizer.json", "vocab.json", "merges.txt"} - set(files):
        (tmp_path / name).unlink()
    ours = read_tokenizer(tmp_path, 77, 49408)
    assert ours is not None and (ours.eot_id, ours.pad_id) == (49407, 49407)
    for caption in ("a red apple", "Two DOGS!", ""):
        assert ours.encode(caption) == CLIPTokenizer().encode(caption)


def test_damaged_tokenizers_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "tokenizer.json")) + " is not a tokenizer.json"):
        read_tokenizer(tmp_path, 8, 100)
    config = TokenizerConfig(kind="tokenizers", context_length=8, vocab_size=100, eot_id=1, pad_id=0)
    with pytest.raises(ValueError, match=r"bytes.*tokenizer.json"):
        JsonTokenizer(b"{}", config)
    with pytest.raises(ValueError, match=r"tokenizer .*gone\.json.*directory"):
        JsonTokenizer(tmp_path / "gone.json", config)
    words = from_clip().to_str().encode()
    with pytest.raises(ValueError, match=r"tokenizer.*49408.*model's 49407"):
        JsonTokenizer(words, dataclasses.replace(config, vocab_size=49407))
    fits = dataclasses.replace(config, vocab_size=49408)
    assert JsonTokenizer(words, fits).vocab_size == 49408
    with pytest.raises(ValueError, match=r"'upper'.*none, lower, whitespace, canonicalize"):
        JsonTokenizer(words, dataclasses.replace(fits, clean="upper"))
    assert read_tokenizer(tmp_path / "nothing", 8, 100) is None
