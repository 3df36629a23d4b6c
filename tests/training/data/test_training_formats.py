"""One command trains on any format; what it writes down is the same for the same content."""

import json
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data_formats import CAPTIONED, LABELLED, sample_images, texts_beside_images
from tests.support.tiny_run import write_recipe
from tests.training.data.test_tars import damaged_tars
from vlm.cli import main


def run(monkeypatch, recipe: Path, out: Path, *more: str) -> int:
    arguments = ["train", str(recipe), "--out", str(out), "--device", "cpu", *more]
    return main(arguments)


def recipe_for(run_folder: Path, source: Path, steps: int = 20, **data: Any) -> Path:
    settings = {"train": str(source), "train_splits": [], "validation": str(source), "validation_split": ""}
    return write_recipe(
        run_folder, data=settings | data, run={"steps": steps, "batch_size": 8, "eval_every": 10, "save_every": 10}
    )


def test_two_formats_train_to_the_same_numbers(tmp_path, run_folder, monkeypatch):
    written = []
    for write in (CAPTIONED[0], CAPTIONED[-1]):  # parquet, tars
        folder = tmp_path / write.__name__
        folder.mkdir()
        assert run(monkeypatch, recipe_for(run_folder, write(folder), steps=4), tmp_path / f"{write.__name__}-run") == 0
        written.append((tmp_path / f"{write.__name__}-run" / "metrics.jsonl").read_bytes())
    assert written[0] == written[1]


@pytest.mark.long
@pytest.mark.parametrize("formats", [CAPTIONED, LABELLED], ids=["captions", "classes"])
def test_every_format_trains_20_steps_to_the_same_numbers(formats, tmp_path, run_folder, monkeypatch):
    written = {}
    for write in formats:
        folder = tmp_path / write.__name__
        folder.mkdir()
        assert run(monkeypatch, recipe_for(run_folder, write(folder)), tmp_path / "run") == 0
        written[write.__name__] = (tmp_path / "run" / "metrics.jsonl").read_bytes()
        shutil.rmtree(tmp_path / "run")
    first = next(iter(written.values()))
    assert len([line for line in first.splitlines() if b"loss" in line]) == 20
    assert all(metrics == first for metrics in written.values()), list(written)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_damaged_tars_train_on_and_are_listed_to_the_sample(tmp_path, run_folder, monkeypatch, capsys):
    (tmp_path / "tars").mkdir()
    expected = damaged_tars(tmp_path / "tars", tmp_path / "unpickled")
    sound = tmp_path / "sound"
    sound.mkdir()
    places: dict[str, Any] = {"validation": str(texts_beside_images(sound))}
    lists = []
    for workers, steps in ((0, (20,)), (2, (7, 20))):  # at once; stopped after 7 steps and resumed
        out = tmp_path / f"run-{workers}"
        for last in steps:
            recipe = recipe_for(run_folder, tmp_path / "tars", last, max_broken=0.5, workers=workers, **places)
            assert run(monkeypatch, recipe, out, "--resume", "auto") == 0
        lists.append((out / "quarantine.jsonl").read_text(encoding="utf-8"))
    assert lists[0] == lists[1]
    entries = [json.loads(line) for line in lists[0].splitlines()]
    assert {entry["uid"]: entry["reason"] for entry in entries} == expected
    assert len(entries) == len(expected)
    assert f"broken={len(expected)}" in capsys.readouterr().err
    assert not (tmp_path / "unpickled").exists()
    strict = recipe_for(run_folder, tmp_path / "tars", **places)
    assert run(monkeypatch, strict, tmp_path / "strict") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("vlm: error: ")
    assert "samples are broken, more than max_broken = 0.01 allows" in error


def anonymous(pid: int | str) -> int:
    """KiB of memory that no file backs, of a process."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def peak_of_loading(source: str, tokenizer_folder: str, answer) -> None:
    """Two workers over 60 steps: the most anonymous memory of all three processes together."""
    import threading

    from vlm.config import PreprocessConfig
    from vlm.images.preprocess import Preprocess
    from vlm.tokenizers.load import load_tokenizer
    from vlm.training.data.pair_stream import PairStream
    from vlm.training.data.pairs import open_pairs
    from vlm.training.data.stream import batches
    from vlm.training.recipe.augmentation import AugmentConfig

    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            own = multiprocessing.current_process().pid
            children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
            peak[0] = max(peak[0], sum(anonymous(pid) for pid in [str(own), *children]))
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()
    pairs = open_pairs(source, Preprocess(PreprocessConfig(image_size=16)), cache="none")
    tokenizer = load_tokenizer(Path(tokenizer_folder))
    stream = PairStream(pairs, tokenizer, AugmentConfig(), seed=0, batch_size=64, num_patches=16)
    for _ in batches(stream, 0, 60, 2):
        pass
    done.set()
    answer.put((len(pairs), peak[0]))


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("kind", ["csv", "tar"])
def test_ten_times_the_rows_need_no_more_memory(kind, tmp_path, run_folder):
    import io
    import tarfile

    peaks = {}
    for count in (10_000, 100_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        data = sample_images(1)[0][1]
        if kind == "csv":
            (folder / "one.png").write_bytes(data)
            for number in range(count):
                (folder / f"{number}.png").symlink_to("one.png")
            rows = "".join(f"{number}.png,image number {number} of many\n" for number in range(count))
            (folder / "data.csv").write_text("image,caption\n" + rows)
        else:
            with tarfile.open(folder / "0.tar", "w") as tar:
                for number in range(count):
                    for name, part in ((f"{number}.png", data), (f"{number}.txt", b"image %d of many" % number)):
                        member = tarfile.TarInfo(name)
                        member.size = len(part)
                        tar.addfile(member, io.BytesIO(part))
        context = multiprocessing.get_context("spawn")
        answer = context.Queue()
        source = folder / "data.csv" if kind == "csv" else folder
        process = context.Process(target=peak_of_loading, args=(str(source), str(run_folder / "tokenizer"), answer))
        process.start()
        found, peaks[count] = answer.get(timeout=600)
        process.join()
        assert found == count
    print(kind, peaks)
    assert peaks[100_000] <= 1.1 * peaks[10_000], peaks
    assert np.diff(list(peaks.values()))[0] < 2**16  # KiB
