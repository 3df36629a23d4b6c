"""Tokenizers, both ways: Hugging Face's tokenizer files, and ours as such files."""

import gzip
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from vlm.config import Json
from vlm.errors import CheckpointError, InputError
from vlm.interop.formats.foreign import check_not_pointer, read_json, write_json
from vlm.tokenizers.clip_bpe import BYTE_LETTERS, CLIP_BPE_FILE, CLIPTokenizer
from vlm.tokenizers.huggingface import JSON_FILE, JsonTokenizer
from vlm.tokenizers.protocol import Tokenizer, TokenizerConfig
from vlm.tokenizers.sentencepiece import SentencePieceTokenizer

_CONFIG_FILES = ("special_tokens_map.json", "tokenizer_config.json")
_PUNCTUATION = r"[!-/:-@\[-`{-~]"  # Python's string.punctuation


def read_tokenizer(
    folder: Path,
    context_length: int,
    vocab_size: int,
    *,
    clean: str = "none",
    pad_to_context: bool = False,
    without_end: bool = False,
) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None where there is none.

    `without_end`: CLIPA's way, the symbol at the end is replaced by padding.
    """
    given: dict[str, Any] = {}
    for name in _CONFIG_FILES:
        given |= read_json(folder / name) if (folder / name).is_file() else {}
    if (folder / JSON_FILE).is_file():
        vocabulary = _open(folder / JSON_FILE)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary = _from_merges(folder, given)
    elif (folder / "spiece.model").is_file():
        vocabulary = from_sentencepiece((folder / "spiece.model").read_bytes())
    else:
        return None
    eot_id = _symbol_id(vocabulary, given, ("eos_token", "sep_token"), folder)
    pad_id = _symbol_id(vocabulary, given, ("pad_token", "eos_token"), folder)
    if without_end:
        begin = str(given.get("cls_token", "[CLS]"))
        vocabulary.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A",
            special_tokens=[(begin, _symbol_id(vocabulary, {"cls_token": begin}, ("cls_token",), folder))],
        )
        eot_id = pad_id
    config = TokenizerConfig(
        kind="tokenizers",
        context_length=context_length,
        vocab_size=vocab_size,
        eot_id=eot_id,
        pad_id=pad_id,
        pad_to_context=pad_to_context,
        clean=clean,
    )
    return JsonTokenizer(vocabulary.to_str().encode(), config)


def _from_merges(folder: Path, given: dict[str, Any]) -> tokenizers.Tokenizer:
    """vocab.json and merges.txt alone: CLIP's byte-pair encoding with a vocabulary of its own."""
    names: dict[str, Any] = read_json(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    pairs = [(parts[0], parts[1]) for line in lines if len(parts := line.split()) == 2 and not line.startswith("#v")]
    begin, end = _CLIP_SYMBOLS
    if begin not in names or end not in names:
        raise CheckpointError(
            f"{folder / 'vocab.json'} has no {begin} and {end}: it is not CLIP's. Get tokenizer.json."
        )
    given.setdefault("eos_token", end)
    given.setdefault("pad_token", end)
    return _clip_vocabulary(models.BPE(names, pairs, end_of_word_suffix="</w>", unk_token=end), names)


def _open(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        check_not_pointer(path)
        raise CheckpointError(
            f"{path} is not a tokenizer.json, or is damaged ({' '.join(str(error).split())})."
        ) from error


def _symbol_id(vocabulary: tokenizers.Tokenizer, given: dict[str, Any], names: tuple[str, ...], folder: Path) -> int:
    for name in names:
        symbol: Json = given.get(name)
        symbol = symbol.get("content") if isinstance(symbol, dict) else symbol
        id = vocabulary.token_to_id(symbol) if isinstance(symbol, str) else None
        if id is not None:
            return id
    usual = [symbol for symbol in _USUAL.get(names[0], ()) if vocabulary.token_to_id(symbol) is not None]
    if not given and len(usual) == 1:  # tokenizer.json alone
        return int(cast(int, vocabulary.token_to_id(usual[0])))
    if not given and names[0] == "pad_token":
        return _symbol_id(vocabulary, given, ("eos_token",), folder)
    raise CheckpointError(
        f"{folder}: no file says which symbol is the {names[0]}. Get tokenizer_config.json and special_tokens_map.json."
    )


_USUAL = {"eos_token": ("<|endoftext|>", "</s>", "[SEP]", "<eos>"), "pad_token": ("<pad>", "[PAD]")}


def from_sentencepiece(model: bytes, order: list[int] | None = None) -> tokenizers.Tokenizer:
    """A unigram SentencePiece model for the `tokenizers` library: the same ids, end-of-text at the end.

    `order`: the old id of each new one, None keeps them.  Two marks on one letter may be normalised in another order
    than SentencePiece does; a text that spells out a byte symbol, "<0x41>", is read as that byte.
    """
    from sentencepiece import sentencepiece_model_pb2  # needs protobuf

    proto = cast(Any, sentencepiece_model_pb2).ModelProto()  # a class that is made at import
    proto.ParseFromString(model)
    if proto.trainer_spec.model_type != 1:
        raise CheckpointError(
            "this SentencePiece model is not of type unigram; only such are written as tokenizer.json."
        )
    pieces = [proto.pieces[id] for id in order or range(len(proto.pieces))]
    names = [piece.piece for piece in pieces]
    unknown = next((id for id, piece in enumerate(pieces) if piece.type == 2), None)
    controls = [piece.piece for piece in pieces if piece.type == 3]
    vocabulary = tokenizers.Tokenizer(
        models.Unigram([(p.piece, p.score) for p in pieces], unknown, byte_fallback=proto.trainer_spec.byte_fallback)
    )
    spec = proto.normalizer_spec
    steps = _charsmap(spec.precompiled_charsmap) if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    vocabulary.normalizer = normalizers.Sequence(steps)
    prepend = "always" if spec.add_dummy_prefix else "never"
    vocabulary.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend)
    vocabulary.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme=prepend)]
    )
    end = proto.trainer_spec.eos_piece
    if end not in controls:
        raise CheckpointError(
            f"this SentencePiece model has no symbol that ends a text ({end}). Train it with eos_id >= 0."
        )
    vocabulary.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, names.index(end))]
    )
    vocabulary.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in controls])
    return vocabulary


def _charsmap(charsmap: bytes) -> list[normalizers.Normalizer]:
    """SentencePiece's own table, and what it needs here.

    `Precompiled` reads it grapheme by grapheme, so it misses pairs that become one letter (ｶ and ﾞ) and drops marks that
    should stay: NFKC makes the pairs first, U+0001, which the table removes, parts the rest.  U+FF5E is the one
    character that the table keeps and NFKC does not.
    """
    table = normalizers.Precompiled(charsmap)
    if table.normalize_str("\u0001") or table.normalize_str("Ａ") not in (
        "A",
        "a",
    ):  # not one of SentencePiece's NFKC tables
        return [table]
    return [
        normalizers.Replace("\uff5e", "\u0002"),
        normalizers.NFKC(),
        normalizers.Replace("\u0002", "\uff5e"),
        normalizers.Replace(Regex(r"(?=\p{M})"), "\u0001"),
        table,
    ]


def from_clip() -> tokenizers.Tokenizer:
    """CLIP's byte-pair encoding for the `tokenizers` library, as transformers' CLIPTokenizer builds it."""
    merges = [tuple(line.split()) for line in gzip.decompress(CLIP_BPE_FILE.read_bytes()).decode().split("\n")[1:48895]]
    letters = list(BYTE_LETTERS)
    names = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), *_CLIP_SYMBOLS]
    end, ids = _CLIP_SYMBOLS[1], {name: id for id, name in enumerate(names)}
    return _clip_vocabulary(models.BPE(ids, merges, end_of_word_suffix="</w>", unk_token=end), ids)  # type: ignore[arg-type]


def _clip_vocabulary(model: models.BPE, ids: dict[str, int]) -> tokenizers.Tokenizer:
    """CLIP's normalisation, words and symbols around a byte-pair encoding."""
    begin, end = _CLIP_SYMBOLS
    vocabulary = tokenizers.Tokenizer(model)
    vocabulary.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    vocabulary.decoder = decoders.ByteLevel()
    vocabulary.post_processor = processors.RobertaProcessing((end, ids[end]), (begin, ids[begin]), False, False)
    vocabulary.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in _CLIP_SYMBOLS])
    return vocabulary


_CLIP_SYMBOLS = ("<|startoftext|>", "<|endoftext|>")


def ends_with_padding(tokenizer: Tokenizer) -> bool:
    """Returns True if a tokenizer ends a text with padding, as CLIPA's does (`read_tokenizer`, `without_end`)."""
    if not isinstance(tokenizer, JsonTokenizer) or tokenizer.eot_id != tokenizer.pad_id:
        return False
    ids = tokenizers.Tokenizer.from_str(tokenizer.to_str()).encode("a").ids
    return not ids or ids[-1] != tokenizer.eot_id


def write_tokenizer(
    folder: Path,
    tokenizer: Tokenizer,
    order: list[int] | None = None,
    *,
    cleaned: bool = False,
    strip_end: bool = False,
) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(folder)` reads.

    Args:
        folder: where to.
        tokenizer: of ours.
        order: as in `from_sentencepiece`.
        cleaned: the reader does `clean` itself (OpenCLIP); otherwise it goes into the file.
        strip_end: the reader replaces the symbol that ends a text by padding (OpenCLIP's strip_sep_token).

    Raises:
        InputError: the tokenizer has no such form.
    """
    match tokenizer:
        case SentencePieceTokenizer():
            vocabulary, kind = from_sentencepiece(tokenizer.to_bytes(), order), "PreTrainedTokenizerFast"
        case CLIPTokenizer():
            vocabulary, kind = from_clip(), "CLIPTokenizer"
        case JsonTokenizer():
            vocabulary, kind = tokenizers.Tokenizer.from_str(tokenizer.to_str()), "PreTrainedTokenizerFast"
            if not cleaned:
                vocabulary.normalizer = _cleaning(tokenizer.config.clean, vocabulary.normalizer)
        case _:
            raise InputError(f"{type(tokenizer).__name__} has no form as a tokenizer.json.")
    if strip_end:
        _end_texts(vocabulary)
    eot_id, pad_id = ((order.index(id) if order else id) for id in (tokenizer.eot_id, tokenizer.pad_id))
    symbols: dict[str, Any] = {"eos_token": vocabulary.id_to_token(eot_id), "pad_token": vocabulary.id_to_token(pad_id)}
    if kind == "CLIPTokenizer":  # as OpenAI's; padding with "!", id 0, would make every ! of a text a symbol
        begin, end = _CLIP_SYMBOLS
        symbols = {"bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": end}
    if strip_end:
        symbols["sep_token"] = _SEP
    vocabulary.save(str(folder / JSON_FILE))
    write_json(folder / "special_tokens_map.json", symbols)
    settings = {
        "tokenizer_class": kind,
        "model_max_length": tokenizer.context_length,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", settings | symbols)


_SEP = "[SEP]"  # BERT's, and so CLIPA's


def _end_texts(vocabulary: tokenizers.Tokenizer) -> None:
    """Begins and ends texts as BERT does, so that long ones are cut before the end."""
    sep, begin = vocabulary.token_to_id(_SEP), vocabulary.encode("").ids
    if sep is None or len(begin) != 1:
        raise InputError(f"OpenCLIP cannot cut long texts as this tokenizer does: it has no {_SEP}. Export to onnx.")
    first = vocabulary.id_to_token(begin[0])
    vocabulary.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {_SEP}", special_tokens=[(first, begin[0]), (_SEP, sep)]
    )


def _cleaning(clean: str, then: normalizers.Normalizer | None) -> normalizers.Normalizer:
    """Converts `JsonTokenizer`'s cleaning to normalizers; ftfy's repairs have no such form."""
    steps: list[normalizers.Normalizer] = []
    if clean == "canonicalize":
        steps += [normalizers.Replace("_", " ")]
    if clean in ("canonicalize", "siglip"):
        steps += [normalizers.Replace(Regex(_PUNCTUATION), "")]
    if clean in ("canonicalize", "siglip", "siglip2", "lower"):
        steps += [normalizers.Lowercase()]
    if clean in ("canonicalize", "siglip", "lower", "whitespace"):
        steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    return normalizers.Sequence([*steps, *([then] if then is not None else [])])
