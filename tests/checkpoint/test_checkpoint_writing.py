"""What `save` writes: whole or not at all, and never over anything else."""

import os
from pathlib import Path

import pytest
import torch

from vlm.checkpoint.load import load
from vlm.checkpoint.manifest import manifest_text, sha256
from vlm.checkpoint.save import save
from vlm.embedder import Embedder


@pytest.fixture
def saved(tiny_embedder: Embedder, tmp_path: Path) -> Path:
    save(tiny_embedder, tmp_path / "saved")
    return tmp_path / "saved"


def test_saving_again_replaces_the_model_and_leaves_nothing_beside(saved: Path, tiny_embedder: Embedder):
    with torch.no_grad():
        tiny_embedder.model.logit_scale.add_(1)
    save(tiny_embedder, saved, card="# second\n")
    assert load(saved).fingerprint == tiny_embedder.fingerprint
    assert (saved / "README.md").read_text() == "# second\n"
    assert [path.name for path in saved.parent.iterdir() if path.name.startswith(".")] == []


def test_a_save_that_fails_leaves_the_older_model_whole(
    saved: Path, tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
):
    before = load(saved).fingerprint
    with torch.no_grad():
        tiny_embedder.model.logit_scale.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"logit_scale.*values.*finite"):
        save(tiny_embedder, saved)
    with torch.no_grad():
        tiny_embedder.model.logit_scale.fill_(1.0)
    monkeypatch.setattr("vlm.checkpoint.save.sha256", lambda path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(tiny_embedder, saved)
    monkeypatch.undo()
    assert load(saved).fingerprint == before
    assert [path.name for path in saved.parent.iterdir() if path.name.startswith(".")] == []


def test_dying_between_the_two_renames_loses_nothing(saved: Path, tiny_embedder: Embedder):
    saved.rename(saved.with_name(".saved.old"))  # what the disk shows then
    (saved.with_name(".saved.new")).mkdir()
    assert load(saved).fingerprint == tiny_embedder.fingerprint
    save(tiny_embedder, saved)
    assert load(saved).fingerprint == tiny_embedder.fingerprint
    assert sorted(path.name for path in saved.parent.iterdir() if "saved" in path.name) == ["saved"]


def test_a_save_makes_its_folders_and_clears_what_dead_ones_left(tiny_embedder: Embedder, tmp_path: Path):
    folder = tmp_path / "a" / "b" / "model"
    for _ in range(2):
        save(tiny_embedder, folder)
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
        for name in (".model.old", ".model.new"):  # a save died before it had cleared these away
            (folder.parent / name).mkdir()
            (folder.parent / name / "config.json").write_text("{}")
    assert load(folder).fingerprint == tiny_embedder.fingerprint


def test_a_folder_with_other_files_is_left_alone(saved: Path, tiny_embedder: Embedder, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.txt").write_text("dear")
    (saved / "notes.txt").write_text("mine")
    for folder, name, text in ((tmp_path / "photos", "holiday.txt", "dear"), (saved, "notes.txt", "mine")):
        with pytest.raises(ValueError, match=rf"would be lost: {name}\."):
            save(tiny_embedder, folder)
        assert (folder / name).read_text() == text
    load(saved)  # an extra file does no harm to reading
    for number in range(6):
        (tmp_path / "photos" / f"{number}.txt").touch()
    with pytest.raises(ValueError, match=r"lost: 0\.txt, 1\.txt, 2\.txt, 3\.txt, 4\.txt"):
        save(tiny_embedder, tmp_path / "photos")


def test_files_in_folders_that_a_manifest_lists_are_part_of_the_model(saved: Path, tiny_embedder: Embedder):
    (saved / "samples").mkdir()
    (saved / "samples" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"would be lost: samples\."):
        save(tiny_embedder, saved)
    (saved / "manifest.json").unlink()
    sums = {str(path.relative_to(saved)): sha256(path) for path in saved.rglob("*") if path.is_file()}
    (saved / "manifest.json").write_text(manifest_text(sums))
    assert load(saved).fingerprint == tiny_embedder.fingerprint
    save(tiny_embedder, saved)
    assert not (saved / "samples").exists()


def test_all_of_a_model_is_on_disk_before_the_older_one_goes(
    saved: Path, tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
):
    flushed: set[int] = set()
    older, rename = saved.stat().st_ino, Path.rename

    def noted(self: Path, target: Path) -> Path:
        if self.stat().st_ino == older:
            new = saved.with_name(".saved.new")
            assert {path.stat().st_ino for path in [*new.rglob("*"), new]} <= flushed
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.add(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(Path, "rename", noted)
    save(tiny_embedder, saved)
    assert saved.stat().st_ino != older
    assert saved.parent.stat().st_ino in flushed  # and then the renaming
