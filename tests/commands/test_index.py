"""The command `vlm index`: what it counts, remembers and refuses, and what it does when the machine is in trouble."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.commands.conftest import Command
from tests.support.odd_images import noise
from tests.support.rights import read_only, small_disk
from vlm.checkpoint.load import load
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.embedder import Embedder
from vlm.images.open import ImageSource, OpenedImage
from vlm.images.preprocess import Preprocess
from vlm.index.embedding_index import EmbeddingIndex, stored_models


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


COLOURS = ("a red", "a blue", "a black", "a white", "a green", "a yellow", "a small")
THINGS = ("dog", "cat", "car", "house", "tree", "fish", "bird", "heart", "star", "key")


def test_an_approximate_index_is_built_measured_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    embedder = load("mini")
    texts = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]  # 70 clusters of 10 vectors
    noise = np.random.default_rng(0).standard_normal((10, len(texts), embedder.embed_dim))
    vectors = (embedder.embed_texts(texts).numpy() + 0.03 * noise).reshape(700, -1).astype(np.float16)
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


# ---- roots, rules, what is remembered --------------------------------------------------------------------------------


def test_the_index_remembers_its_model(vlm_command: Command, image_folder: Path, tmp_path: Path):
    """--model is given once; then index and search use it, from any folder."""
    place = tmp_path / "photos.index"
    assert vlm_command("index", image_folder, "--index", place)[0] == 0
    code, out, _ = vlm_command("search", "犬", "--index", place, "--json", "--no-model")
    assert code == 0 and len(json.loads(out)) == 6
    assert (
        json.loads(vlm_command("index", image_folder, "--index", place, "--json", "--no-model")[1])[0]["unchanged"] == 6
    )
    assert [Path(model.source or "") for model in stored_models(place)] == [tmp_path / "model"]


def test_roots_are_listed_moved_and_forgotten(vlm_command: Command, image_folder: Path, tmp_path: Path):
    place, moved = ["--index", tmp_path / "photos.index"], tmp_path / "moved"
    vlm_command("index", image_folder, *place)

    def roots() -> list[tuple[str, int, str]]:
        rows = json.loads(vlm_command("index", *place, "--roots", "--json", "--no-model")[1])
        return [(row["path"], row["images"], row["state"]) for row in rows]

    assert roots() == [(str(image_folder), 6, "present")]
    image_folder.rename(moved)
    assert roots() == [(str(image_folder), 6, "gone")]
    code, out, err = vlm_command("search", "犬", *place)
    assert code == 0 and len(out.splitlines()) == 6
    assert "gone" in err and "--move" in err and "--forget" in err and err.count("\n") == 1
    code, _, err = vlm_command("index", image_folder, *place)
    assert code == 1 and err.count("\n") == 1 and "6 images" in err
    code, out, _ = vlm_command("index", *place, "--move", image_folder, moved, "--no-model")
    assert (code, out.splitlines()[0]) == (0, "6 moved, 0 forgotten")
    assert roots() == [(str(moved), 6, "present")]
    assert json.loads(vlm_command("index", moved, *place, "--json")[1])[0]["unchanged"] == 6
    assert vlm_command("index", *place, "--forget", moved, "--no-model")[1].splitlines()[0] == "0 moved, 6 forgotten"
    assert roots() == []
    code, _, err = vlm_command("index", *place, "--forget", moved, "--no-model")
    assert code == 1 and err.count("\n") == 1


def test_an_empty_mount_is_exit_code_1_until_it_is_said_to_be_meant(
    vlm_command: Command, image_folder: Path, tmp_path: Path
):
    place = ["--index", tmp_path / "photos.index"]
    vlm_command("index", image_folder, *place)
    for file in [path for path in image_folder.rglob("*.*") if path.is_file()]:
        file.unlink()
    code, out, err = vlm_command("index", image_folder, *place, "--prune")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "6 images" in err and "--allow-empty" in err
    code, out, _ = vlm_command("index", image_folder, *place, "--prune", "--allow-empty")
    assert code == 0 and "6 vanished, 6 forgotten" in out


def test_a_failed_command_leaves_no_index_behind(vlm_command: Command, image_folder: Path, tmp_path: Path):
    place = tmp_path / "photos.index"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for words in (
        ["index", tmp_path / "nowhere", "--index", place],
        ["index", image_folder, "--index", place, "--exclude", "!", "--from-embeddings", tmp_path / "nowhere"],
        ["index", image_folder, "--index", place, "--to-embeddings", tmp_path / "full"],
        ["index", image_folder, "--index", place, "--model", "nonesuch"],
        ["index", "--index", place, "--ann"],
        ["index", "--index", place, "--roots"],
        ["search", "犬", "--index", place],
    ):
        code, out, err = vlm_command(*words)
        assert (code, out, err.count("\n")) == (1, "", 1), (words, err)
        assert not place.exists()


def test_what_is_excluded_and_of_other_kinds_is_counted(vlm_command: Command, image_folder: Path, tmp_path: Path):
    (image_folder / "notes.txt").touch()
    (image_folder / "film.mp4").touch()
    (image_folder / "read me").write_text("words")
    place = ["--index", tmp_path / "photos.index"]
    code, out, err = vlm_command("index", image_folder, *place, "--exclude", "deeper", "--exclude", "*.webp", "--json")
    (row,) = json.loads(out)
    assert (code, row["embedded"], row["excluded"]) == (0, 4, 2)
    assert row["others"] == {".txt": 1, ".mp4": 1, "no suffix": 1}
    line = next(line for line in err.splitlines() if "other kinds" in line)
    assert all(kind in line for kind in ("3 files", "1 .txt", "1 .mp4", "1 no suffix"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--workers", "2", "--prune"], "--workers"),
        (["--force", "--prune"], "--force"),
        (["--retry-skipped", "--ann"], "--retry-skipped"),
        (["--exclude", "x", "--prune"], "--exclude"),
        (["--fast-decode", "--prune"], "--fast-decode"),
        (["--allow-empty", "--prune"], "--allow-empty"),
        (["--watch", "--prune"], "--watch"),
        (["F", "--watch", "--json"], "--watch"),
        (["F", "--roots"], "--roots"),
        (["--roots", "--forget", "F"], "--roots"),
        (["--move", "A", "B", "--prune"], "--move"),
    ],
)
def test_an_option_without_effect_is_wrong_usage(words: list[str], named: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["index", "--index", "i", *words])
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_refused_files_are_retried_and_all_files_are_forced(vlm_command: Command, image_folder: Path, tmp_path: Path):
    (image_folder / "text.png").write_text("no image")
    place = ["--index", tmp_path / "photos.index", "--json"]
    counts = []
    for extra in ([], [], ["--retry-skipped"], ["--force"]):
        (row,) = json.loads(vlm_command("index", image_folder, *place, *extra)[1])
        counts.append((row["embedded"], row["unchanged"], len(row["skipped"])))
    assert counts == [(6, 0, 1), (0, 7, 1), (0, 6, 1), (6, 0, 1)]


# ---- troubles of the machine, as a user sees them --------------------------------------------------------------------


def one_line(code: int, out: str, err: str) -> str:
    """Exit code 1 and one line on stderr, progress bars aside."""
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip() and "image/s" not in line]
    assert (code, out) == (1, "")
    assert [line.startswith("vlm: error: ") for line in lines[-1:]] == [True], err
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def test_a_full_disk_is_one_line_and_another_run_completes_the_index(
    vlm_command: Command, image_folder: Path, tmp_path: Path
):
    with small_disk(tmp_path / "disk", 40) as disk:
        line = one_line(*vlm_command("index", image_folder, "--index", disk / "index"))
        assert "space" in line or "full" in line
        assert [*disk.iterdir()] == []
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert vlm_command("index", image_folder, "--index", disk / "index")[0] == 0
        found = vlm_command("search", "犬", "--index", disk / "index", "--json")[1]
    vlm_command("index", image_folder, "--index", tmp_path / "fresh")
    assert found == vlm_command("search", "犬", "--index", tmp_path / "fresh", "--json")[1]


def test_a_killed_worker_is_one_line_and_another_run_completes_the_index(
    vlm_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(100):
        noise(8, 8, number).save(folder / f"{number:03d}.png")
    inner = Preprocess.pixels_and_size
    ours = os.getpid()

    def killed(self: Preprocess, source: ImageSource | OpenedImage) -> tuple[torch.Tensor, tuple[int, int]]:
        assert isinstance(source, OpenedImage)
        if os.getpid() != ours and source.data == (folder / "070.png").read_bytes():
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(self, source)

    with monkeypatch.context() as patch:
        patch.setattr(Preprocess, "pixels_and_size", killed)
        words = ["index", folder, "--index", tmp_path / "index", "--workers", "2"]
        line = one_line(*vlm_command(*words))
    assert "killed" in line and "workers" in line  # SIGCHLD of the loader may raise its own error first
    (row,) = json.loads(vlm_command(*words, "--json")[1])
    assert row["unchanged"] + row["embedded"] == row["images"] == 100 and row["unchanged"] % 32 == 0
    vlm_command("index", folder, "--index", tmp_path / "fresh")
    searches = [vlm_command("search", "犬", "--index", tmp_path / name, "-k", "100")[1] for name in ("index", "fresh")]
    assert searches[0] == searches[1]


def test_a_damaged_index_is_one_line_of_every_command(vlm_command: Command, image_folder: Path, tmp_path: Path):
    place = tmp_path / "photos.index"
    vlm_command("index", image_folder, "--index", place)
    whole = {path: path.read_bytes() for path in place.iterdir()}
    for path in (place / "index.sqlite", next(place.glob("*.f16"))):
        path.write_bytes(b"damage" * 20)
        for words in (["index", image_folder], ["index", "--prune"], ["search", "犬"], ["search", "--duplicates"]):
            assert str(place) in one_line(*vlm_command(*words, "--index", place))
        assert main(["serve", "--index", str(place), "--port", "0", "--model", str(tmp_path / "model")]) == 1
        path.write_bytes(whole[path])
    assert vlm_command("search", "犬", "--index", place)[0] == 0


def test_a_folder_of_an_index_may_be_read_only(vlm_command: Command, image_folder: Path, tmp_path: Path):
    place = tmp_path / "photos.index"
    vlm_command("index", image_folder, "--index", place)
    expected = vlm_command("search", "犬", "--index", place)
    noise(9, 9).save(image_folder / "new.png")
    with read_only(place):
        assert vlm_command("search", "犬", "--index", place) == expected
        assert "read-only" in one_line(*vlm_command("index", image_folder, "--index", place))
    assert vlm_command("index", image_folder, "--index", place)[0] == 0


def test_changes_are_picked_up_while_watching(
    vlm_command: Command, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def changes(folder: Path) -> Iterator[int]:
        assert folder == image_folder
        noise(9, 9).save(folder / "new.png")
        yield 1
        shutil.move(folder / "new.png", folder / "renamed.png")
        yield 1
        shutil.move(folder, tmp_path / "away")  # a disk that is unmounted for a while
        yield 1
        shutil.move(tmp_path / "away", folder)
        (folder / "renamed.png").unlink()
        yield 1
        raise KeyboardInterrupt

    monkeypatch.setattr("vlm.commands.watching.changes_of", changes)
    code, out, err = vlm_command("index", image_folder, "--index", tmp_path / "i", "--watch")
    assert code == 0
    counts = [re.findall(r"(\d+) (?:embedded|recognised|vanished)", line) for line in out.splitlines()]
    assert counts == [["6", "0", "0"], ["1", "0", "0"], ["0", "1", "1"], ["0", "0", "1"]]
    assert "gone" in err
    assert out.splitlines()[-1].endswith("; 6 in the index")


@pytest.mark.long
def test_a_watched_folder_is_indexed_as_files_are_added_changed_and_deleted(
    tiny_embedder: Embedder, image_folder: Path, tmp_path: Path
):
    """A real process and real changes; in the end the index is that of a new run."""
    pytest.importorskip("watchfiles")
    save(tiny_embedder, tmp_path / "model")
    words = [
        "index",
        image_folder,
        "--index",
        tmp_path / "i",
        "--model",
        tmp_path / "model",
        "--workers",
        "1",
        "--watch",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "vlm", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,  # a job in the background
    )
    assert process.stdout is not None

    def after(change: Callable[[], object]) -> str:
        change()
        return process.stdout.readline() if process.stdout is not None else ""

    try:
        assert "6 embedded" in process.stdout.readline()
        assert "1 embedded" in after(lambda: noise(9, 9, 7).save(image_folder / "deeper" / "new.png"))
        assert "1 embedded" in after(lambda: noise(9, 9, 8).save(image_folder / "deeper" / "new.png"))
        assert "1 vanished" in after((image_folder / "a.png").unlink)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    fresh = tmp_path / "fresh"
    with EmbeddingIndex.open(tmp_path / "i", tiny_embedder) as kept, EmbeddingIndex.open(fresh, tiny_embedder) as new:
        new.add_folder(image_folder, workers=1)
        for query in ("a dog", "犬"):
            found, expected = ({hit.path: hit.score for hit in index.search(query, 99)} for index in (kept, new))
            assert found == pytest.approx(expected)
