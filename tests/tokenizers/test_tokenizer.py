import io
import json
import pickle
import random
import re
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import torch

from vlm.bundled import BUNDLED
from vlm.tokenizers.clip_bpe import CLIPTokenizer
from vlm.tokenizers.huggingface import JsonTokenizer
from vlm.tokenizers.load import load_tokenizer
from vlm.tokenizers.protocol import Tokenizer, TokenizerConfig
from vlm.tokenizers.sentencepiece import SentencePieceTokenizer
from vlm.training.tasks.tokenizer import train_tokenizer

CAPTIONS = [f"{first} {second}" for first in ("a Red", "a big", "two") for second in ("apple", "dog", "face")]
CAPTIONS += [first + second for first in ("", "赤い", "大きな") for second in ("りんご", "犬", "顔", "犬の顔")]
ODD = [
    "",
    " ",
    "犬",
    "A Dog's  life",
    "😀👨‍👩‍👧❤️",
    "鼠と鯨",
    "&amp;amp; &eacute; <b>",
    "schÃ¶n âœ” l’été",
    "ＡＢＣ ﾘﾝｺﾞ",
    "\x00\ud800\n\t",
]


@pytest.fixture(scope="module")
def pieces() -> SentencePieceTokenizer:
    return train_tokenizer(CAPTIONS, vocab_size=290, context_length=32)


@pytest.fixture(scope="module")
def bpe() -> CLIPTokenizer:
    return CLIPTokenizer()


@pytest.fixture(params=["pieces", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def mixed_texts(count: int) -> list[str]:
    """Letters, kana, kanji, emoji, entities, mojibake and any code point, glued at random."""
    rng = random.Random(0)
    words = [
        "dog",
        "Dog's",
        "WE'LL",
        "犬",
        "りんご",
        "カタカナ、",
        "「鍵」",
        "😀",
        "👨‍👩‍👧",
        "🇯🇵",
        "&amp;",
        "&amp;lt;",
        "&#x3042;",
        "&nbsp;",
    ]
    words += [
        "schÃ¶n",
        "â€œq",
        "ﬁ",
        "ＬＯＵＤ",
        "ﾘﾝｺﾞ",
        "e\u0301",
        "か\u3099",
        "ſ",
        "İ",
        "ΣΑΣ",
        "½",
        "٣",
        "\u200b",
        "\x1c",
        "\x1b[31m",
        "\ufeff",
    ]

    def word() -> str:
        code = rng.choice([rng.randrange(32, 0x250), rng.randrange(0x2000, 0xD800), rng.randrange(0xE000, 0x20000)])
        return rng.choice([rng.choice(words), chr(code)])

    return ["".join(word() + rng.choice(["", " ", "  ", ","]) for _ in range(rng.randint(1, 12))) for _ in range(count)]


def test_clip_ids_are_those_of_open_clip(bpe: CLIPTokenizer) -> None:
    open_clip_tokenizer = pytest.importorskip("open_clip.tokenizer")
    texts = CAPTIONS + ODD + mixed_texts(1500) + ["long words " * 60, "犬" * 500]
    ours = bpe(texts)  # as wide as the longest: 77
    theirs = open_clip_tokenizer.tokenize(texts)
    assert [text for text, same in zip(texts, (ours == theirs).all(1).tolist(), strict=True) if not same] == []


def test_a_clip_word_that_is_one_id_is_what_merging_ends_in() -> None:
    from vlm.tokenizers.clip_bpe import _clip_wholes  # pyright: ignore[reportPrivateUsage]

    merging = CLIPTokenizer()
    merging._wholes = {}  # pyright: ignore[reportPrivateUsage]
    wholes = {raw.decode(): [id] for raw, id in _clip_wholes().items() if raw.decode(errors="ignore").encode() == raw}
    del wholes[""], wholes[" "]  # the byte of the space, that no word has
    assert len(wholes) > 30_000
    assert {word: merging._word(word) for word in wholes} == wholes  # pyright: ignore[reportPrivateUsage]


def test_a_short_cut_of_the_clip_cleaning_changes_nothing() -> None:
    import html

    import ftfy

    from vlm.tokenizers.clip_bpe import _CLEAN  # pyright: ignore[reportPrivateUsage]

    alphabet = [chr(code) for code in [*range(0xD800), *range(0xE000, 0x110000)] if _CLEAN.fullmatch(chr(code))]
    ascii_only = [char for char in alphabet if char.isascii()]
    beyond_kanji = [char for char in alphabet if not char.isalnum()]  # emoji and what joins them
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choice(rng.choice([alphabet, ascii_only, beyond_kanji])) for _ in range(30))
        assert html.unescape(html.unescape(ftfy.fix_text(text))) == text


def test_every_row_ends_in_its_only_end_of_text_and_fits(tokenizer: Tokenizer) -> None:
    control = ["</s>", "<pad><unk>", "<0x41>", "<end_of_text>", "<start_of_text>", "<|endoftext|>"]
    for text in CAPTIONS + ODD + control + [" ".join(CAPTIONS * 20)]:
        row = tokenizer.encode(text)
        assert row.index(tokenizer.eot_id) == len(row) - 1 < tokenizer.context_length
        assert 0 <= min(row) <= max(row) < tokenizer.vocab_size


def test_control_symbols_written_in_a_text_stay_text(tokenizer: Tokenizer) -> None:
    for symbol in ("</s>", "<pad>", "<unk>", "<0x41>", "<end_of_text>", "<start_of_text>"):
        assert tokenizer.decode(tokenizer.encode(symbol)).replace(" ", "") == symbol.lower()


def test_no_character_is_lost(pieces: SentencePieceTokenizer) -> None:
    for text in ("鼠と鯨", "𩸽 🦖", "ÅÉ Ø ½", "ＡＢＣ ﾘﾝｺﾞ", "Привет मित्र", "👨‍👩‍👧❤️"):
        assert pieces.decode(pieces.encode(text)) == unicodedata.normalize("NFKC", text).casefold()


def test_clip_decodes_what_it_encoded(bpe: CLIPTokenizer) -> None:
    for text in ("a red apple", "赤いりんご 犬", "😀 👨‍👩‍👧"):
        assert bpe.decode(bpe.encode(text)) == text


def with_context(tokenizer: Tokenizer, length: int, folder: Path) -> Tokenizer:
    tokenizer.save(folder)
    config = tokenizer.config.to_dict() | {"context_length": length}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def test_long_texts_are_cut_before_the_end_and_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "a red apple, 犬 and smiling face"
    whole = with_context(tokenizer, 1000, tmp_path).encode(text)
    for length in (3, len(whole) - 1, len(whole), len(whole) + 1):
        cut = with_context(tokenizer, length, tmp_path)
        assert cut.encode(text) == [*whole[: length - 1][: len(whole) - 1], tokenizer.eot_id]
        assert cut.truncated == (length < len(whole))


def test_a_batch_is_its_rows_padded_to_the_longest(tokenizer: Tokenizer) -> None:
    texts = ["犬", "a red apple and a dog", ""]
    ids = tokenizer(texts)
    rows = [tokenizer.encode(text) for text in texts]
    assert ids.dtype == torch.int64
    assert ids.shape[1] == max(map(len, rows))
    for row, want in zip(ids.tolist(), rows, strict=True):
        assert row == want + [tokenizer.pad_id] * (len(row) - len(want))
    assert tokenizer("犬").tolist() == [rows[0]]


def test_pad_to_context_only_lengthens_the_rows() -> None:
    trimmed, full = CLIPTokenizer(20), CLIPTokenizer(20, pad_to_context=True)
    ids = trimmed(["a dog", "a red apple"])
    assert torch.equal(full(["a dog", "a red apple"]), torch.nn.functional.pad(ids, (0, 20 - ids.shape[1])))


def test_a_small_word_cache_forgets_nothing(monkeypatch: pytest.MonkeyPatch, bpe: CLIPTokenizer) -> None:
    monkeypatch.setattr("vlm.tokenizers.clip_bpe._CACHE_SIZE", 2)
    forgetful = CLIPTokenizer()
    for text in CAPTIONS * 2:
        assert forgetful.encode(text) == bpe.encode(text)


def test_what_comes_again_is_not_read_again_and_the_cache_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm.tokenizers.clip_bpe import _LONGEST_CACHED  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr("vlm.tokenizers.clip_bpe._CACHE_SIZE", 3)
    bpe, read, words = CLIPTokenizer(), list[str](), list[str]()
    inner_read, inner_word = bpe._read, bpe._word  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(bpe, "_read", lambda text: read.append(text) or inner_read(text))
    monkeypatch.setattr(bpe, "_word", lambda word: words.append(word) or inner_word(word))
    bpe(["a dog", "a cat", "dog", "a dog", "a cat"])  # three texts, three words
    assert (read, words) == (["a dog", "a cat", "dog"], ["a", "dog", "cat"])
    for text in [*CAPTIONS, "x" * _LONGEST_CACHED, "x" * (_LONGEST_CACHED + 1)]:
        bpe.encode(text)
        for cache in (bpe._texts, bpe._words):  # pyright: ignore[reportPrivateUsage]
            assert 1 <= len(cache) <= 3
            assert max(map(len, cache)) <= _LONGEST_CACHED
    assert "x" * _LONGEST_CACHED in bpe._texts  # pyright: ignore[reportPrivateUsage]


def test_a_run_of_more_than_1000_letters_is_more_than_one_word() -> None:
    letters = "abcdefghij" * 250
    bpe = CLIPTokenizer(3000)
    apart = bpe.encode(" ".join([letters[:1000], letters[1000:2000], letters[2000:]]))
    assert bpe.encode(letters) == apart
    assert bpe.encode(letters[:1000]) != bpe.encode(letters[:500] + " " + letters[500:1000])


def test_the_share_of_bytes_is_that_of_pieces_written_as_bytes(pieces: SentencePieceTokenizer) -> None:
    processor = sentencepiece.SentencePieceProcessor()
    processor.load_from_serialized_proto(pieces.to_bytes())
    texts = ["鼠と鯨", "a red apple", "x"]
    found = [piece for text in texts for piece in processor.encode(text, out_type=str)]
    share = sum(re.fullmatch("<0x[0-9A-F]{2}>", piece) is not None for piece in found) / len(found)
    assert 0 < pieces.byte_share(texts) == share < 1
    assert pieces.byte_share(["a red apple"]) == pieces.byte_share([]) == 0


def sentencepiece_with(**ids: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(CAPTIONS * 4),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        bos_id=-1,
        minloglevel=2,
        **ids,  # pyright: ignore[reportArgumentType]
    )
    return model.getvalue()


def test_a_sentencepiece_model_needs_an_end_and_a_padding_with_any_ids() -> None:
    for eos, pad, unk in ((0, 1, 2), (2, 0, 1)):
        tokenizer = SentencePieceTokenizer(sentencepiece_with(eos_id=eos, pad_id=pad, unk_id=unk), 32)
        assert (tokenizer.eot_id, tokenizer.pad_id, tokenizer.encode("a dog")[-1]) == (eos, pad, eos)
    for eos, pad in ((-1, 1), (1, -1)):
        with pytest.raises(ValueError, match=r"end-of-text.*padding symbol"):
            SentencePieceTokenizer(sentencepiece_with(eos_id=eos, pad_id=pad, unk_id=0), 32)


def test_a_tokenizer_json_comes_back_the_same_and_settings_with_a_default_may_be_absent(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<end>": 0, "<pad>": 1, "a": 2, "dog": 3}, "<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    config = TokenizerConfig(kind="tokenizers", context_length=8, vocab_size=4, eot_id=0, pad_id=1)
    ours = JsonTokenizer(words.to_str().encode(), config)
    ours.save(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    values = config.to_dict()
    file.write_text(json.dumps({name: values[name] for name in values if name not in ("pad_to_context", "clean")}))
    assert (
        load_tokenizer(tmp_path)(["a dog", "dog"]).tolist() == ours(["a dog", "dog"]).tolist() == [[2, 3, 0], [3, 0, 1]]
    )


def test_a_saved_tokenizer_comes_back_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new" / "a")
    (tmp_path / "new" / "a").rename(tmp_path / "a")
    loaded = load_tokenizer(tmp_path / "a")
    assert type(loaded) is type(tokenizer)
    assert loaded.config == tokenizer.config
    assert torch.equal(loaded(CAPTIONS + ODD), tokenizer(CAPTIONS + ODD))
    loaded.save(tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_a_tokenizer_can_move_to_a_worker_process(tokenizer: Tokenizer) -> None:
    moved = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(moved(CAPTIONS), tokenizer(CAPTIONS))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "There are no texts to encode: the list is empty. Give at least one."),
        (["a", 3, "b"], "a text must be a string, got int '3'."),
        ([None], "a text must be a string, got NoneType 'None'."),
        ([b"a" * 99], f"""a text must be a string, got bytes "b'{"a" * 58}"."""),  # its first 60 characters
    ],
)
def test_bad_texts_are_one_clear_line(tokenizer: Tokenizer, texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tokenizer(texts)


def test_bad_sizes_and_ids_are_refused(bpe: CLIPTokenizer) -> None:
    with pytest.raises(ValueError, match="context_length is 2"):
        CLIPTokenizer(2)
    assert [bpe.decode([0]), bpe.decode([bpe.vocab_size - 2])] == ["!", ""]
    for ids, first in (([5, 49408, -7], 49408), ([-1], -1), ([5, -2, 49409], -2)):
        with pytest.raises(ValueError, match=f"{first}.*vocabulary.*49408"):
            bpe.decode(ids)
    assert bpe.decode([0, bpe.eot_id, 49408]) == "!"  # nobody reads on behind the end


def test_missing_and_damaged_files_are_named(pieces: SentencePieceTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds.*tokenizer.*tokenizer_config\.json"):
        load_tokenizer(tmp_path)
    pieces.save(tmp_path)
    model, config = tmp_path / "tokenizer.model", tmp_path / "tokenizer_config.json"
    values = json.loads(config.read_text())
    wrong = [
        ({"kind": "bert"}, "kind is 'bert'; it must be one of sentencepiece, clip_bpe"),
        ({"context_lenght": 9}, r"no setting 'context_lenght'\. Did you mean 'context_length'"),
        ({"eot_id": 7}, "says eot_id 7, the model has 2"),
        ({"vocab_size": "290"}, "vocab_size"),
        ({"context_length": 2}, "context_length is 2"),
    ]
    for change, message in wrong:
        config.write_text(json.dumps(values | change))
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path)
    for text, message in (("{", "is not JSON"), ("[]", "holds a list"), ('{"kind": "clip_bpe"}', "missing")):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path)
    config.write_text(json.dumps(values))
    for content in (b"", b"not a model", model.read_bytes()[:500]):
        model.write_bytes(content)
        with pytest.raises(ValueError, match=rf"tokenizer\.model \({len(content)}.*SentencePiece"):
            load_tokenizer(tmp_path)
    model.unlink()
    with pytest.raises(ValueError, match=r"tokenizer model .*No"):
        load_tokenizer(tmp_path)


def test_the_tokenizer_of_the_bundled_model_opens_by_its_name() -> None:
    assert load_tokenizer("mini").encode("犬 and cat") == load_tokenizer(BUNDLED["mini"]).encode("犬 and cat")
