import json
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece

from vlm.cli import main
from vlm.tokenizers.load import load_tokenizer
from vlm.training.tasks.tokenizer import describe, read_captions, train_tokenizer

CAPTIONS = [f"{first} {second}" for first in ("a Red", "a big", "two") for second in ("apple", "dog", "face")]
CAPTIONS += [first + second for first in ("", "赤い", "大きな") for second in ("りんご", "犬", "顔", "犬の顔")]


def write_txt(path: Path, captions: list[str] = CAPTIONS) -> Path:
    path.write_text("\n".join(captions), encoding="utf-8")
    return path


def test_every_format_gives_the_same_captions(tmp_path: Path) -> None:
    lists = [CAPTIONS[:4], None, [], CAPTIONS[4:]]
    table = pyarrow.table({"captions_en": lists, "pixels": [1, 2, 3, 4]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"id": n, "keywords": row}) for n, row in enumerate(lists)) + "\n\n", encoding="utf-8"
    )
    (tmp_path / "a.csv").write_text("id,text\n" + "\n".join(f'1,"{c}"' for c in CAPTIONS), encoding="utf-8-sig")
    (tmp_path / "a.tsv").write_text("title\tid\n" + "\n".join(f"{c}\t1" for c in CAPTIONS), encoding="utf-8")
    write_txt(tmp_path / "a.txt")
    for name in ("a.txt", "a.csv", "a.tsv", "a.jsonl", "a.parquet"):
        assert list(read_captions(tmp_path / name)) == CAPTIONS, name


def test_named_columns_replace_the_usual_ones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,alt,note\nx,y,z\n,b,c\n")
    assert list(read_captions(tmp_path / "a.csv", ["alt"])) == ["y", "b"]
    assert list(read_captions(tmp_path / "a.csv", ["note", "text"])) == ["z", "x", "c", ""]


def test_several_usual_columns_are_read_row_by_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("title,id,caption_en,textile,keywords,text\na,1,b,2,c,d\ne,3,f,4,g,h\n")
    assert list(read_captions(tmp_path / "a.csv")) == list("abcdefgh")
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n\n{"title": "a"}\n{"text": ["b", null, "c"], "title": "d"}\n')
    assert list(read_captions(tmp_path / "a.jsonl")) == ["a", "d", "b", "c"]


def test_bad_files_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,name\n1,x\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text"\n')
    (tmp_path / "c.jsonl").write_text('{"text": 5}\n')
    (tmp_path / "d.txt").write_bytes("犬".encode("shift-jis"))
    (tmp_path / "e.parquet").write_bytes(b"no")
    (tmp_path / "f.docx").write_bytes(b"")
    (tmp_path / "f.zip").write_bytes(b"")
    (tmp_path / "h.jsonl").write_text('\n\n{"text": "x"}\n[1]\n')
    (tmp_path / "i.csv").write_text("text\n" + "x" * 200_000)  # more than a field may hold
    (tmp_path / "j.txt").write_bytes("a犬".encode("shift-jis"))
    wrong = {
        "a.csv": "has no column caption*, keyword*, text or title. It has: id, name; use --columns.",
        "b.jsonl": "line 2 is not a JSON object",
        "c.jsonl": "column 'text' holds 5; wanted a string or a list of strings.",
        "d.txt": "is not UTF-8 text (byte 0). Save it as UTF-8.",
        "e.parquet": "is not a parquet file",
        "f.docx": "is not one of .txt, .csv, .tsv, .jsonl, .parquet.",
        "f.zip": "is not one of .txt, .csv, .tsv, .jsonl, .parquet.",
        "g.txt": "does not exist",
        "h.jsonl": "line 4 is not a JSON object",
        "i.csv": "is not a table: field larger than",
        "j.txt": "is not UTF-8 text (byte 1). Save it as UTF-8.",
    }
    for name, message in wrong.items():
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / name)) + ".*" + re.escape(message)) as error:
            list(read_captions(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"column alt.*id, name"):
        list(read_captions(tmp_path / "a.csv", ["alt"]))


def test_the_same_captions_give_the_same_file(tmp_path: Path) -> None:
    captions = write_txt(tmp_path / "a.txt")
    for out in ("x", "y"):
        assert main(["tokenizer", str(captions), "--out", str(tmp_path / out), "--vocab-size", "290"]) == 0
    assert (tmp_path / "x/tokenizer.model").read_bytes() == (tmp_path / "y/tokenizer.model").read_bytes()
    tokenizer = load_tokenizer(tmp_path / "x")
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eot_id, tokenizer.context_length) == (290, 0, 2, 32)
    both = [str(captions), str(write_txt(tmp_path / "b.txt", ["鯨の顔"]))]
    assert main(["tokenizer", *both, "--vocab-size", "290", "--context-length", "9", "--out", str(tmp_path / "z")]) == 0
    assert load_tokenizer(tmp_path / "z").context_length == 9
    assert (tmp_path / "z/tokenizer.model").read_bytes() != (tmp_path / "x/tokenizer.model").read_bytes()


def test_repeating_a_caption_changes_nothing() -> None:
    once, often = (
        train_tokenizer(CAPTIONS, 290, 32),
        train_tokenizer([*CAPTIONS, "a  Red apple", "", "犬", "犬"], 290, 32),
    )
    assert once(CAPTIONS).tolist() == often(CAPTIONS).tolist()


def test_case_and_width_are_folded() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 290, 32)
    assert tokenizer.encode("ＲＥＤ Apple") == tokenizer.encode("red apple")


def test_a_japanese_word_is_the_same_piece_at_the_start_and_in_the_middle(tmp_path: Path) -> None:
    animals, colours, ends = (
        ["いぬ", "ねこ", "うさぎ", "くま"],
        ["", "あかい", "しろい", "dog "],
        ["", "のかお", "のえ"],
    )
    tokenizer = train_tokenizer([c + a + e for c in colours for a in animals for e in ends], 290, 32)
    tokenizer.save(tmp_path)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    pieces = [model.id_to_piece(id) for id in range(model.get_piece_size())]
    assert {"うさぎ", "▁"} < set(pieces)  # without care it is ▁うさぎ
    assert [piece for piece in pieces if re.search(r"▁[ぁ-ヿ一-鿿]", piece)] == []
    alone = tokenizer.encode("うさぎ")[1:]  # behind the ▁
    for text in ("ねこうさぎ", "dog うさぎ"):
        assert tokenizer.encode(text)[-len(alone) :] == alone


def test_impossible_vocabulary_sizes_name_the_possible_ones() -> None:
    with pytest.raises(
        ValueError, match=r"^vocab_size 9000 is more than these captions can fill: at most (\d+)\."
    ) as error:
        train_tokenizer(CAPTIONS, 9000, 32)
    highest = int(str(error.value).split("at most ")[1].split(".")[0])
    assert train_tokenizer(CAPTIONS, highest, 32).vocab_size == highest
    with pytest.raises(ValueError, match=r"vocab_size 100.*small .*\d+") as error:
        train_tokenizer(CAPTIONS, 100, 32)
    lowest = int(str(error.value).split("at least ")[1].rstrip("."))
    assert lowest > 100
    with pytest.raises(ValueError, match=f"vocab_size {lowest - 1}.*small .*{lowest}"):
        train_tokenizer(CAPTIONS, lowest - 1, 32)
    with pytest.raises(ValueError, match="every text is empty"):
        train_tokenizer(["", "  "], 300, 32)


def test_of_a_huge_corpus_a_sample_is_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    def most_pieces(limit: int) -> int:
        monkeypatch.setattr("vlm.training.tasks.tokenizer._LARGEST_CORPUS", limit)
        with pytest.raises(ValueError, match="at most") as error:
            train_tokenizer(CAPTIONS, 9000, 32)
        return int(str(error.value).split("at most ")[1].split(".")[0])

    assert most_pieces(4) == most_pieces(4) < most_pieces(10**6)
    whole = train_tokenizer(CAPTIONS, 290, 32)
    monkeypatch.setattr("vlm.training.tasks.tokenizer._LARGEST_CORPUS", len(CAPTIONS))
    assert train_tokenizer(CAPTIONS, 290, 32)(CAPTIONS).tolist() == whole(CAPTIONS).tolist()


def test_the_report_counts_bytes_and_cuts() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 290, 8)
    assert tokenizer.byte_share(["鯨"]) == 3 / 4  # the space before it, and three bytes of UTF-8
    assert tokenizer.byte_share(["a dog"]) == 0
    report = describe(tokenizer, ["鯨鯨鯨", "犬"])
    for figure in ("290 pieces", "longest 8", "1 captions", "captions         2\n"):
        assert figure in report
    assert f"spelt in bytes   {tokenizer.byte_share(['鯨鯨鯨', '犬']):.2%} of" in report
    again = describe(tokenizer, ["鯨鯨鯨", "犬", "鯨鯨鯨鯨"])  # those cut before are not counted again
    assert again.splitlines()[-1].split() == ["cut", "at", "8", "2", "captions"]
    assert describe(tokenizer, ["鯨鯨鯨鯨"]).splitlines()[3] == "ids per caption  " + " · ".join(
        [*(f"{p} %: 8" for p in (50, 90, 95, 99)), "longest 8"]
    )


def test_the_command_answers_in_one_line_and_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    captions, out = str(write_txt(tmp_path / "a.txt")), str(tmp_path / "out")
    assert main(["tokenizer", captions, "--out", out, "--vocab-size", "9000"]) == 1
    error = capfd.readouterr().err
    assert error.startswith("vlm: error: vocab_size 9000 is more than these captions can fill")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert main(["tokenizer", captions, "--out", captions, "--vocab-size", "290"]) == 1
    assert capfd.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as usage:
        main(["tokenizer", captions])
    assert usage.value.code == 2


def test_the_report_says_how_long_captions_are() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 290, 64)
    texts = [" ".join(["a dog"] * count) for count in range(1, 8)]
    cuts = np.percentile([len(tokenizer.encode(text)) for text in texts], [50, 90, 95, 99])
    wanted = " · ".join(f"{p} %: {cut:.0f}" for p, cut in zip((50, 90, 95, 99), cuts, strict=True))
    assert wanted in describe(tokenizer, texts)
