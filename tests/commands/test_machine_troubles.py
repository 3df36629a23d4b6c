"""Each trouble of a machine in each family of commands: one line, exit code 1, nothing lost, and it goes on later."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import vlm
from tests.support.command_words import CommandWords, one_line
from tests.support.machine import (
    files_no_longer_than,
    kill_who_decodes,
    no_memory,
    public_folder,
    small_disk,
    without_privileges,
)
from tests.support.tiny_run import write_recipe
from vlm.cli import main
from vlm.training.engine.run_folder import locked

ROOT = Path(__file__).parents[2]


def warm(place: CommandWords, capsys: pytest.CaptureFixture[str]) -> None:
    """datasets keeps a cache of a parquet file; write it before the disk is full."""
    assert place.run("evaluate") == 0
    capsys.readouterr()


# ---- the disk is full


def add_images(place: CommandWords) -> None:
    for number in range(140):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(place.images / f"{number}.png")


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "vectors")


def test_a_full_disk_leaves_an_index_as_it_was(
    place: CommandWords, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert place.run("index") == 0
    capsys.readouterr()
    assert place.run("find") == 0
    before = capsys.readouterr().out
    add_images(place)
    words = [*place.words("index"), "--workers", "1"]
    with monkeypatch.context() as patch:  # a limit of RLIMIT_FSIZE would close the database's own files first
        patch.setattr("vlm.index.vector_store.write_rows", no_space)
        one_line(main(words), capsys, "space", "vectors")
    assert place.run("find") == 0
    assert capsys.readouterr().out == before
    assert place.run("index") == 0
    assert "146 in the index" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["train", "train vit"])
def test_a_full_disk_leaves_the_checkpoints_of_a_run(
    task: str, place: CommandWords, capsys: pytest.CaptureFixture[str]
):
    words = place.words(task)
    recipe = Path(words[1])  # a worker's shared memory is a file too, and would be too long
    recipe.write_text(recipe.read_text().replace("workers = 1", "workers = 0"))
    warm(place, capsys)
    with files_no_longer_than(9000):
        one_line(main(words), capsys, "no space left", "Free space")
    assert not list((place.folder / "run" / "checkpoints").glob("step-*"))
    assert main([*words, "--resume", "auto"]) == 0
    assert list((place.folder / "run" / "checkpoints").glob("step-*"))


def test_a_full_disk_leaves_whole_shards(place: CommandWords, capsys: pytest.CaptureFixture[str]):
    words = [*place.words("embed"), "--workers", "0"]
    warm(place, capsys)
    with files_no_longer_than(300):
        one_line(main(words), capsys, "no space left", "Free space")
    assert not list((place.folder / "shards").glob("part-*"))
    assert place.run("embed") == 0
    assert sum(pq.read_metadata(path).num_rows for path in (place.folder / "shards").glob("part-*")) == 60


@pytest.mark.parametrize("command", ["convert", "check"])
def test_a_full_disk_leaves_no_half_model_or_report(
    command: str, place: CommandWords, capsys: pytest.CaptureFixture[str]
):
    words = [*place.words(command), *(["--workers", "0"] if command == "check" else [])]
    warm(place, capsys)
    with files_no_longer_than(2000):
        one_line(main(words), capsys, "no space left", "Free space")
    if command == "convert":
        with pytest.raises(ValueError, match="out"):
            vlm.load(place.folder / "out")
    shutil.rmtree(place.folder / "out", ignore_errors=True)
    assert place.run(command) == 0


@pytest.mark.long
@pytest.mark.parametrize("command", ["index", "train", "embed"])
def test_a_file_system_without_space_is_one_line(command: str, place: CommandWords, capsys: pytest.CaptureFixture[str]):
    with small_disk(place.folder / "small", "4k" if command == "embed" else "16k") as small:
        words = place.words(command)
        place_of_out = words.index("--index" if command == "index" else "--out") + 1
        words[place_of_out] = str(small / "out")
        one_line(main(words), capsys, *(["full", str(small)] if command == "index" else ["space", "Free space"]))


# ---- no memory


@pytest.mark.parametrize("command", ["classify", "search", "index", "train", "train vit", "evaluate", "embed", "look"])
def test_no_memory_is_one_line(
    command: str, place: CommandWords, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = place.words(command)
    with monkeypatch.context() as patch:
        patch.setattr("vlm.models.vision.VisionTransformer.forward", no_memory)
        patch.setattr("vlm.inspect.drawing.draw_all", no_memory, raising=False)
        patch.setattr("vlm.inspect.figures.draw_all", no_memory, raising=False)
        one_line(main(words), capsys, "out of memory", "smaller")
    capsys.readouterr()
    shutil.rmtree(place.folder / "run", ignore_errors=True)
    assert main(words) == 0


@pytest.mark.parametrize("command", ["serve", "classify"])
def test_no_memory_for_the_model_is_one_line(
    command: str, place: CommandWords, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert place.run("index") == 0
    monkeypatch.setattr("vlm.models.clip.CLIP.__init__", no_memory)
    capsys.readouterr()
    one_line(place.run(command), capsys, "out of memory", "smaller")


# ---- a worker is killed


@pytest.mark.parametrize("command", ["train", "train vit", "embed", "index"])
def test_a_killed_worker_is_one_line_and_the_command_goes_on_later(
    command: str, place: CommandWords, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = [*place.words(command), *(["--workers", "2"] if command == "index" else [])]
    if command == "index":  # a process starts where there is a batch for it
        add_images(place)
    with monkeypatch.context() as patch:
        kill_who_decodes(patch)
        one_line(main(words), capsys, "memory", "worker")
    assert main([*words, *(["--resume", "auto"] if "train" in command else [])]) == 0


# ---- a damaged database


def zero(file: Path, first: int, last: int) -> None:
    data = bytearray(file.read_bytes())
    data[first:last] = bytes(len(data[first:last]))
    file.write_bytes(data)


@pytest.mark.parametrize("command", ["find", "index", "serve"])
@pytest.mark.parametrize("part", [(0, 100), (100, 4096), (4096, 1 << 30)], ids=["header", "first page", "the rest"])
def test_a_damaged_database_is_one_line_that_says_how_to_go_on(
    command: str, part: tuple[int, int], place: CommandWords, capsys: pytest.CaptureFixture[str]
):
    assert place.run("index") == 0
    (database,) = [path for path in (place.folder / "i").rglob("*") if path.suffix in (".sqlite", ".db", ".sqlite3")]
    zero(database, *part)
    capsys.readouterr()
    one_line(place.run(command), capsys, "vlm index")
    shutil.rmtree(place.folder / "i")
    assert place.run("index") == 0 and place.run("find") == 0


# ---- two processes


def test_a_second_run_in_a_folder_is_one_line_and_touches_nothing(
    place: CommandWords, capsys: pytest.CaptureFixture[str]
):
    words = place.words("train")
    with locked(place.folder / "run"):
        (place.folder / "run" / "metrics.jsonl").write_text("the first run's")
        for more in ([], ["--resume", "auto"]):
            one_line(main([*words, *more]), capsys, "another process", "--out")
        assert [path.read_text() for path in (place.folder / "run").iterdir()] == ["the first run's"]
    assert main(words) == 0


@pytest.mark.long
def test_of_two_processes_in_a_run_folder_one_trains_and_one_says_so(place: CommandWords):
    command = [sys.executable, "-m", "vlm", *place.words("train")]
    pair = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [process.communicate(timeout=120)[1] for process in pair]
    codes = sorted(process.returncode for process in pair)
    assert codes == [0, 1], ends
    refused = ends[[process.returncode for process in pair].index(1)]
    assert "Traceback" not in refused and ("in use" in refused or "earlier run" in refused)
    vlm.load(place.folder / "run")


# ---- no access


@pytest.mark.parametrize("command", ["index", "train", "embed", "convert", "check", "look"])
def test_a_folder_that_may_not_be_written_is_one_line(
    command: str, place: CommandWords, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = place.words(command)
    assert main(words) == 0  # and what is imported late is imported
    capsys.readouterr()
    option = {"index": "--index", "convert": None}.get(command, "--out")
    where = words.index(option) + 1 if option else 2
    with public_folder() as public:
        shutil.copytree(place.folder / "model", public / "model")
        shutil.copytree(place.images, public / "images")
        shutil.copytree(place.run_folder, public / "data")
        _open_to_all(public)
        (public / "closed").mkdir(mode=0o555)
        words[where] = str(public / "closed" / "out")
        moved = {place.folder / "model": "model", place.images: "images", place.run_folder: "data"}
        for before, name in moved.items():
            words = [word.replace(str(before), str(public / name)) for word in words]
        if command == "train":
            recipe = Path(words[1]).read_text().replace(str(place.run_folder), str(public / "data"))
            Path(words[1]).write_text(recipe)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", public / "cache")
        (public / "cache").mkdir(mode=0o777)
        (public / "cache").chmod(0o777)
        with without_privileges():
            code = main(words)
        one_line(code, capsys, str(public / "closed"), "ermission")
        assert list((public / "closed").iterdir()) == []


@pytest.mark.parametrize("closed", ["model", "i"])
def test_a_model_or_an_index_that_may_not_be_read_is_one_line(
    closed: str, place: CommandWords, capsys: pytest.CaptureFixture[str]
):
    assert place.run("index") == 0 and place.run("find") == 0
    capsys.readouterr()
    with public_folder() as public:
        for name in ("model", "i"):
            shutil.copytree(place.folder / name, public / name)
        _open_to_all(public)
        for path in (public / closed).rglob("*"):
            if path.is_file():
                path.chmod(0)
        words = ["search", "a", "--index", str(public / "i"), "--model", str(public / "model")]
        with without_privileges():
            code = main(words)
        one_line(code, capsys, str(public / closed), "ermission")


def _open_to_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


# ---- signals and pipes


@pytest.mark.long
def test_ctrl_c_in_a_training_run_saves_and_ends_with_75(place: CommandWords):
    recipe = write_recipe(place.run_folder, run={"steps": 100_000, "eval_every": 100_000}, data={"workers": 1})
    command = [sys.executable, "-m", "vlm", "train", str(recipe), "--out", str(place.folder / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for _ in range(600):
        metrics = place.folder / "run" / "metrics.jsonl"
        if metrics.exists() and metrics.read_bytes():  # steps are made: the loop reads the signal
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and "Traceback" not in err, err
    assert list((place.folder / "run" / "checkpoints").glob("step-*"))


@pytest.mark.long
@pytest.mark.parametrize("command", ["find", "classify", "evaluate"])
def test_a_closed_pipe_is_silence(command: str, place: CommandWords):
    assert place.run("index") == 0
    words = " ".join([f"'{sys.executable}'", "-m", "vlm", *(f"'{word}'" for word in place.words(command))])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} | true"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr and "roken" not in done.stderr, done.stderr
    assert done.returncode in (0, 141)
