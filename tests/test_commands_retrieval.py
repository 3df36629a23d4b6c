import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm.checkpoint import load
from vlm.cli import main
from vlm.embedder import Embedder
from vlm.retrieval import EmbeddingIndex


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> list[dict[str, object]]:
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_vectors_go_out_and_in_on_the_command_line(
    picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "out"
    (row,) = run(capsys, "index", picture_folder, "--index", first, "--to-embeddings", out)
    assert row["written"] == row["pictures"] == row["embedded"] != 0
    (again,) = run(capsys, "index", "--index", second, "--from-embeddings", out)
    assert (again["imported"], again["embedded"], again["pictures"]) == (row["written"], 0, row["pictures"])
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
    assert {*row["recall_at_10"]} == {"pictures", "texts"}
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
    assert "give FOLDER, --prune, --ann, --from-embeddings or --to-embeddings" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "decoding"), [((), "exact"), (("--fast-decode",), "scaled")])
def test_fast_decoding_is_asked_for_and_not_the_default(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], decoding: str
):
    seen: list[str] = []
    opened = EmbeddingIndex.open

    def noting(place: Path, embedder: Embedder) -> EmbeddingIndex:
        seen.append(embedder.preprocess.decoding)
        return opened(place, embedder)

    monkeypatch.setattr(EmbeddingIndex, "open", noting)
    assert main(["index", str(picture_folder), "--index", str(tmp_path / "index"), *words]) == 0
    assert seen == [decoding]
