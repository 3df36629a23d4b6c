import errno
import os
from pathlib import Path

import pytest

from tests.support.messages import refused
from vlm.checkpoint.load import load
from vlm.embedder import Embedder
from vlm.errors import RunFolderError
from vlm.training.engine.loop import Rehearsal
from vlm.training.engine.run_folder import DataIdentity, begin_run, changed_since, check_run, forecast, locked, place
from vlm.training.recipe.sections import RunSection


def test_an_earlier_run_is_gone_on_with_and_not_overwritten(tmp_path: Path):
    check_run(tmp_path, resume=False, push=None)
    (tmp_path / "checkpoints").mkdir()
    check_run(tmp_path, resume=True, push=None)
    with pytest.raises(ValueError, match=r"earlier run's checkpoints.*--resume"):
        check_run(tmp_path, resume=False, push=None)


@pytest.mark.parametrize("name", ["README.md", "config.json", "recipe.toml", "1.png", "model.safetensors"])
def test_a_folder_that_is_not_a_runs_is_refused_and_stays_as_it_is(name: str, tmp_path: Path):
    (tmp_path / name).write_text("mine")
    for resume in (False, True):
        with refused(RunFolderError, str(tmp_path), name):
            check_run(tmp_path, resume=resume, push=None)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_logs_of_the_launcher_and_runs_of_earlier_versions_may_be_there(tmp_path: Path):
    (tmp_path / "slurm.log").touch()
    check_run(tmp_path, resume=False, push=None)
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "README.md").touch()
    check_run(tmp_path, resume=False, push=None)


@pytest.mark.parametrize("below", ["", "runs/one"])
def test_a_run_does_not_write_among_its_data(below: str, tmp_path: Path):
    with refused(RunFolderError, str(tmp_path)):
        check_run(tmp_path / below, resume=False, push=None, data=[str(tmp_path)])
    check_run(tmp_path / "run", resume=False, push=None, data=[str(tmp_path / "data"), "org/name"])
    assert not list(tmp_path.iterdir())


def test_two_runs_do_not_share_a_folder(tmp_path: Path):
    out = tmp_path / "run"
    with locked(out):
        begin_run(out, "")
        for _ in range(2):
            with refused(RunFolderError, f"process {os.getpid()}", str(out)), locked(out):
                pass
    with locked(out):
        pass
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_changed_classes_are_refused_and_changed_data_are_said(tmp_path: Path):
    begin_run(tmp_path, "", DataIdentity(labels=["ant", "cat"], data_hash="a"))
    assert changed_since(tmp_path, DataIdentity(labels=["ant", "cat"], data_hash="a")) == ""
    assert "data have changed" in changed_since(tmp_path, DataIdentity(labels=["ant", "cat"], data_hash="b"))
    for labels, facts in ((["cat", "dog"], ["gone: ant", "new: dog"]), (["cat", "ant"], ["gone: none", "new: none"])):
        with refused(RunFolderError, *facts):
            changed_since(tmp_path, DataIdentity(labels=labels, data_hash="a"))
    assert changed_since(tmp_path / "of an earlier version", DataIdentity(labels=["x"], data_hash="a")) == ""


def test_a_name_on_the_hub_is_an_organisation_and_a_name(tmp_path: Path):
    for name in ("a/b", "some-body/small.model_2"):
        check_run(tmp_path, resume=False, push=name)
    for name in ("a", "/b", "a/", "a/b/c", "a b/c", ""):
        with pytest.raises(ValueError, match=f"--push {name}.*wanted org/name"):
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
