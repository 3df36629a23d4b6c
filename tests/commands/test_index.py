import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm.checkpoint.load import load
from vlm.cli import main
from vlm.embedder import Embedder
from vlm.index.embedding_index import EmbeddingIndex


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> list[dict[str, object]]:
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_vectors_go_out_and_in_on_the_command_line(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "out"
    (row,) = run(capsys, "index", image_folder, "--index", first, "--to-embeddings", out)
    assert row == dict.fromkeys(("imported", "recognised", "unchanged", "moved", "forgotten", "excluded"), 0) | {
        "folder": str(image_folder), "embedded": 6, "images": 6, "written": 6,
        "vanished": [], "skipped": [], "others": {}, "left_out": [], "recall_at_10": None,
    }  # fmt: skip
    (again,) = run(capsys, "index", "--index", second, "--from-embeddings", out)
    assert (again["imported"], again["embedded"], again["images"]) == (row["written"], 0, row["images"])
    assert (again["folder"], again["written"], again["forgotten"]) == (None, 0, 0)
    answers = [run(capsys, "search", "a dog", "--index", index) for index in (first, second)]
    assert answers[0] == answers[1]


def test_an_approximate_index_is_built_measured_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    embedder = load("mini")
    vectors = np.random.default_rng(0).standard_normal((700, embedder.embed_dim)).astype(np.float16)
    for part in ("img_emb", "metadata"):
        (tmp_path / "in" / part).mkdir(parents=True)
    np.save(tmp_path / "in/img_emb/img_emb_0.npy", vectors)
    names = pa.table({"image_path": [f"/nowhere/{n}.png" for n in range(len(vectors))]})
    pq.write_table(names, tmp_path / "in/metadata/metadata_0.parquet")
    place = "--index", str(tmp_path / "index")
    assert main(["index", *place, "--from-embeddings", str(tmp_path / "in"), "--ann", "--json"]) == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert {*row["recall_at_10"]} == {"images", "texts"}
    assert "recall@10" in said.err
    exact = [hit["path"] for hit in run(capsys, "search", "a dog", *place, "--exact")]
    near = [hit["path"] for hit in run(capsys, "search", "a dog", *place)]
    with EmbeddingIndex.open(tmp_path / "index", embedder) as opened:
        assert exact == [str(hit.path) for hit in opened.search("a dog", exact=True)]
    assert len({*exact} & {*near}) >= 8


def test_index_without_anything_to_do_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["index", "--index", str(tmp_path / "index")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("FOLDER", "--prune", "--roots", "--ann", "--from-embeddings"))


@pytest.mark.parametrize(("words", "decoding"), [((), "exact"), (("--fast-decode",), "scaled")])
def test_fast_decoding_is_asked_for_and_not_the_default(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], decoding: str
):
    seen: list[str] = []
    opened = EmbeddingIndex.open

    def noting(place: Path, embedder: Embedder, **named: str) -> EmbeddingIndex:
        seen.append(embedder.preprocess.decoding)
        return opened(place, embedder, **named)

    monkeypatch.setattr(EmbeddingIndex, "open", noting)
    assert main(["index", str(image_folder), "--index", str(tmp_path / "index"), *words]) == 0
    assert seen == [decoding]


def test_what_is_skipped_is_listed_by_reason_and_what_is_gone_is_forgotten_when_asked(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    index = str(tmp_path / "index")
    for name, data in (("a0.png", b"no image"), ("b0.png", b""), ("c0.png", b"no image"), ("d0.png", b"")):
        (image_folder / name).write_bytes(data)
    assert main(["index", str(image_folder), "--index", index]) == 0
    output = capsys.readouterr()
    first = "0 moved, 0 vanished, 0 forgotten, 0 imported, 0 written; 6 in the index\n"
    assert output.out == f"6 embedded, 0 recognised, 0 unchanged, {first}"
    said = output.err[output.err.index("vlm: skipped 4 of 10 images\n") :].splitlines()[1:]
    assert [(Path(line.split(": ")[0]).name, line.split(": ")[1]) for line in said] == [
        ("b0.png", "empty file"),
        ("d0.png", "empty file"),
        ("a0.png", "not an image"),
        ("c0.png", "not an image"),
    ]
    (image_folder / "b.png").unlink()
    (row,) = run(capsys, "index", image_folder, "--index", index)
    assert (row["vanished"], row["forgotten"], row["images"]) == ([str(image_folder / "b.png")], 0, 5)
    assert row["unchanged"] == 5 + 4  # those that cannot be read are known too
    (row,) = run(capsys, "index", "--index", index, "--prune")
    assert (row["folder"], row["forgotten"], row["images"]) == (None, 1, 5)
