"""Tokenizer files: which symbols they name, how SentencePiece's settings travel, what transformers reads of ours."""

import json
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2

from tests.support.foreign_models import captions, sentencepiece_model
from vlm.interop.tokenizer_files import from_clip, from_sentencepiece, read_tokenizer, write_tokenizer
from vlm.tokenizers.clip_bpe import CLIPTokenizer
from vlm.tokenizers.huggingface import JsonTokenizer
from vlm.tokenizers.sentencepiece import SentencePieceTokenizer


def words(folder: Path, *, to: str = "tokenizer.json") -> None:
    """A tokenizer of five words, each its own id."""
    names = ["<pad>", "</s>", "[SEP]", "[CLS]", "red"]
    model = tokenizers.models.WordLevel({name: id for id, name in enumerate(names)}, "red")
    tokenizers.Tokenizer(model).save(str(folder / to))


@pytest.mark.parametrize(
    ("maps", "config", "ids"),
    [
        ({"eos_token": "</s>", "pad_token": "<pad>"}, None, (1, 0)),
        (None, {"eos_token": {"content": "</s>"}, "pad_token": {"content": "[CLS]"}}, (1, 3)),
        ({"eos_token": "</s>", "pad_token": "<pad>"}, {"eos_token": "[SEP]"}, (2, 0)),  # the config has the last word
        ({"sep_token": "[SEP]", "pad_token": "<pad>"}, None, (2, 0)),
        ({"sep_token": "[SEP]", "eos_token": "</s>"}, {}, (1, 1)),  # padded with end-of-text
        ({"eos_token": "gone", "sep_token": "[SEP]", "pad_token": "<pad>"}, None, (2, 0)),
        ({"eos_token": None, "sep_token": "[SEP]", "pad_token": 7}, {"eos_token": "</s>"}, (1, 1)),
    ],
)
def test_symbols_are_those_that_the_files_name(
    tmp_path: Path, maps: dict[str, Any] | None, config: dict[str, Any] | None, ids: tuple[int, int]
) -> None:
    words(tmp_path)
    for name, content in (("special_tokens_map.json", maps), ("tokenizer_config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    found = read_tokenizer(tmp_path, 8, 5)
    assert found is not None
    assert (found.eot_id, found.pad_id, found.context_length, found.vocab_size) == (*ids, 8, 5)
    assert found(["red", "red red"]).tolist() == [found.encode("red"), found.encode("red red")]


@pytest.mark.parametrize(("given", "symbol"), [({}, "eos_token"), ({"sep_token": "[SEP]"}, "pad_token")])
def test_a_symbol_that_no_file_names_is_asked_for(tmp_path: Path, given: dict[str, str], symbol: str) -> None:
    words(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}.*symbol.*{symbol}"):
        read_tokenizer(tmp_path, 8, 5)


def test_clipas_begin_is_the_symbol_that_the_files_name(tmp_path: Path) -> None:
    words(tmp_path)
    said = {"eos_token": "</s>", "pad_token": "<pad>", "cls_token": "</s>"}
    for given, begin in ((said, 1), ({k: v for k, v in said.items() if k != "cls_token"}, 3)):  # BERT's own: [CLS]
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(given))
        found = read_tokenizer(tmp_path, 8, 5, without_end=True)
        assert found is not None
        assert (found.encode("red")[:2], found.eot_id) == ([begin, 4], 0)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(said | {"cls_token": "gone"}))
    with pytest.raises(ValueError, match=r"file.*symbol.*cls_token"):
        read_tokenizer(tmp_path, 8, 5, without_end=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"normalization_rule_name": "identity"},
        {"normalization_rule_name": "nmt_nfkc"},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": False},
        {"unk_id": 0, "pad_id": 1, "eos_id": 3, "bos_id": 2},
    ],
)
def test_sentencepieces_settings_travel(settings: dict[str, Any]) -> None:
    ours = SentencePieceTokenizer(sentencepiece_model(**settings), 90)
    theirs: Any = from_sentencepiece(ours.to_bytes())
    assert theirs.token_to_id("</s>") == ours.eot_id
    for caption in [*captions(), "Two   spaces  each  ", "  a red apple"]:
        if caption[:1] == " " and "remove_extra_whitespaces" in settings:  # the first is not doubled
            continue
        if "x" * 9 in caption or "<s>" in caption:  # ties; a symbol
            continue
        assert theirs.encode(caption).ids == [*ours._pieces(caption), ours.eot_id], caption
    assert theirs.decode(theirs.encode("a red apple").ids) == "a red apple"


def test_without_byte_fallback_an_unknown_letter_is_the_unknown_symbol() -> None:
    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.ParseFromString(sentencepiece_model())
    proto.trainer_spec.byte_fallback = False
    kept = [piece for piece in proto.pieces if piece.type != piece.BYTE]
    del proto.pieces[:]
    proto.pieces.extend(kept)
    ours = SentencePieceTokenizer(proto.SerializeToString(), 24)
    found: Any = from_sentencepiece(ours.to_bytes())
    assert found.encode("a ☃ b").ids[:-1] == ours._pieces("a ☃ b")
    assert found.encode("a ☃ b").ids.count(found.token_to_id("<unk>")) == 1


def test_a_model_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SentencePiece.*unigram.*written"):
        from_sentencepiece(sentencepiece_model(model_type="bpe"))


def test_clips_encoding_is_openclips_and_built_as_transformers_builds_it(tmp_path: Path) -> None:
    ours = from_clip()
    plain = [caption for caption in captions() if not set(caption) & set("&—ｶ～…<")]  # ftfy repairs these
    assert len(plain) > 6
    for caption in plain:
        ids = open_clip.tokenize([caption])[0].tolist()
        assert ours.encode(caption).ids == ids[: ids.index(49407) + 1], caption
    write_tokenizer(tmp_path, CLIPTokenizer())
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path)
    built, written = json.loads(theirs.backend_tokenizer.to_str()), json.loads(ours.to_str())
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        assert written[part] == built[part], part


@pytest.mark.parametrize("clip", [False, True])
def test_transformers_reads_every_setting_of_ours(tmp_path: Path, clip: bool) -> None:
    ours = CLIPTokenizer() if clip else SentencePieceTokenizer(sentencepiece_model(), 24)
    write_tokenizer(tmp_path, ours)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.model_max_length, theirs.padding_side, theirs.eos_token_id) == (
        ours.context_length,
        "right",
        ours.eot_id,
    )
    assert theirs.pad_token_id == (ours.eot_id if clip else ours.pad_id)
    assert list(theirs("a red apple")) == ["input_ids", "attention_mask"]
    assert theirs.decode(theirs("red apple !")["input_ids"], skip_special_tokens=True).strip() == "red apple !"
    if clip:
        assert (theirs.bos_token_id, theirs.unk_token_id) == (49406, 49407)
    symbols = json.loads((tmp_path / "special_tokens_map.json").read_text())
    assert {name: getattr(theirs, name) for name in symbols} == symbols


@pytest.mark.parametrize("clean", ["none", "whitespace", "lower", "canonicalize", "siglip", "siglip2"])
def test_cleaning_travels_into_the_file_unless_the_reader_cleans(tmp_path: Path, clean: str) -> None:
    sentencepiece = SentencePieceTokenizer(sentencepiece_model(normalization_rule_name="identity"), 90)
    write_tokenizer(tmp_path, sentencepiece)
    ours = read_tokenizer(tmp_path, 90, sentencepiece.vocab_size, clean=clean)
    assert isinstance(ours, JsonTokenizer)
    texts = ["a  RED Apple", " Two_dogs, and\ta cat's toy!! ", "a-b_c", "[x] {y}~", "日本語  と English。", ""]
    for folder, cleaned in ((tmp_path / "cleaning", False), (tmp_path / "plain", True)):
        folder.mkdir()
        write_tokenizer(folder, ours, cleaned=cleaned)
        theirs: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        expected: Any = sentencepiece if cleaned else ours
        for text in texts:
            assert theirs.encode(text).ids == expected.encode(text), (clean, text)


def test_a_tokenizer_without_such_a_form_is_refused(tmp_path: Path) -> None:
    other: Any = object()
    with pytest.raises(ValueError, match=r"object.*form.*tokenizer\.json"):
        write_tokenizer(tmp_path, other)
