import errno
from pathlib import Path

import pytest

from vlm.checkpoint.load import load
from vlm.embedder import Embedder
from vlm.errors import RunFolderError
from vlm.training.engine.loop import Rehearsal
from vlm.training.engine.run_folder import begin_run, check_run, forecast, locked, place
from vlm.training.recipe.sections import RunSection


def test_an_earlier_run_is_gone_on_with_and_not_overwritten(tmp_path: Path):
    check_run(tmp_path, resume=False, push=None)
    (tmp_path / "checkpoints").mkdir()
    check_run(tmp_path, resume=True, push=None)
    with pytest.raises(ValueError, match=r"holds an earlier run's checkpoints\. Add --resume auto to go on"):
        check_run(tmp_path, resume=False, push=None)


def test_a_name_on_the_hub_is_an_organisation_and_a_name(tmp_path: Path):
    for name in ("a/b", "some-body/small.model_2"):
        check_run(tmp_path, resume=False, push=name)
    for name in ("a", "/b", "a/", "a/b/c", "a b/c", ""):
        with pytest.raises(ValueError, match=f"^--push {name} is no name on the hub; wanted org/name.$"):
            check_run(tmp_path, resume=False, push=name)


def test_the_run_folder_holds_the_recipe_it_was_last_started_with(tmp_path: Path):
    out = tmp_path / "a" / "run"
    for text in ("steps = 1", "steps = 2"):
        begin_run(out, text)
        assert (out / "recipe.toml").read_text() == text


def test_a_run_folder_is_locked_until_the_run_ends(tmp_path: Path):
    with locked(tmp_path / "a" / "run"):
        with pytest.raises(RunFolderError, match=r"another process.*--out"), locked(tmp_path / "a" / "run"):
            pass
        with locked(tmp_path / "b"):
            pass
    with locked(tmp_path / "a" / "run"):
        assert list((tmp_path / "a" / "run").iterdir()) == []


def test_a_drive_without_locks_is_told(tmp_path: Path, monkeypatch, caplog):
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path / "run"):
        assert "No locks available" in caplog.text and "second run" in caplog.text


def test_a_forecast_is_the_steps_time_and_memory(tmp_path: Path):
    run = RunSection(steps=3001, batch_size=10)
    memory, speed, steps = forecast(Rehearsal(seconds=2.5, peak_bytes=1.5 * 2**30), run).splitlines()
    assert memory.split(maxsplit=1) == ["memory", "1.50 GiB at most, of one process"]
    assert speed.split(maxsplit=1) == ["speed", "4.0 samples/s, 2.50 s a step"]
    assert steps == "all steps   about 2 h 05 min for 3001, validation not counted"


def test_a_model_takes_its_place_among_the_runs_files_the_manifest_last(
    tiny_embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "README.md").write_text("old")
    moved, replace = [], Path.replace

    def spy(path: Path, target: Path) -> Path:
        moved.extend([path.name] if path.parent == tmp_path / ".model" else [])
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", spy)
    place(tiny_embedder, tmp_path, "# new")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"metrics.jsonl", *moved} and ".model" not in names
    assert moved.count("manifest.json") == 1 and moved[-1] == "manifest.json"
    assert (tmp_path / "README.md").read_text().strip() == "# new"
    assert load(tmp_path).embed_texts(["a dog"]).equal(tiny_embedder.embed_texts(["a dog"]))
