import json
import os
import shutil

import pytest
import torch
from torch import Tensor

from vlm.errors import CheckpointError
from vlm.training.engine.distributed import SINGLE_PROCESS, Processes
from vlm.training.engine.state import load_state, newest, save_state, saved


def state(number: int = 0) -> dict:
    """All kinds of things a checkpoint holds; other values for another number."""
    torch.manual_seed(number)
    return {
        "model": {"a.weight": torch.randn(3, 4), "scale": torch.randn(()), "half": torch.randn(2).half()},
        "optimizers": [{"state": {0: {"step": torch.tensor(1.0 + number), "m": torch.randn(5)}}, "lr": 0.1 + number}],
        "none": None,
        "words": ["a", True, 3],
        "empty": {},
    }


def tensors(tree: object) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [t for part in parts for t in tensors(part)]


def assert_same(one: dict, two: dict) -> None:
    assert repr(one) == repr(two)  # structure, plain values, kinds of keys
    for a, b in zip(tensors(one), tensors(two), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    for step in (0, 7):
        path = save_state(tmp_path, step, state(1 + step), 2, SINGLE_PROCESS)
        assert newest(tmp_path, SINGLE_PROCESS, pytest.fail) == path
        found, back = load_state(path, state(0))
        assert found == step
        assert_same(back, state(1 + step))


def test_the_tensors_it_is_loaded_like_receive_the_values(tmp_path):
    path, like = save_state(tmp_path, 7, state(1), 2, SINGLE_PROCESS), state(0)
    held = tensors(like)
    load_state(path, like)
    assert len(held) == 5
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(held, tensors(state(1)), strict=True))


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, sync, final = {}, os.fsync, tmp_path / "step-00000003"

    def spy(handle: int) -> None:
        synced[os.fstat(handle).st_ino] = final.exists()
        sync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    save_state(tmp_path, 3, state(), 2, SINGLE_PROCESS)
    named = {path: synced.get(path.stat().st_ino) for path in (*final.iterdir(), final, tmp_path)}
    assert named == dict.fromkeys((*final.iterdir(), final), False) | {tmp_path: True}


def test_processes_but_the_first_leave_the_folder_to_it(tmp_path):
    other = Processes(rank=1, size=1, device=torch.device("cpu"))
    (tmp_path / ".deleting-00000001").mkdir()
    save_state(tmp_path, 1, state(), 1, other)
    assert newest(tmp_path, other, pytest.fail) is None
    assert [path.name for path in tmp_path.iterdir()] == [".deleting-00000001"]
    assert newest(tmp_path, SINGLE_PROCESS, pytest.fail) is None
    assert list(tmp_path.iterdir()) == []


def test_only_the_last_are_kept(tmp_path):
    for step in (1, 2, 10, 11):
        save_state(tmp_path, step, state(step), 2, SINGLE_PROCESS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def test_an_empty_or_missing_folder_has_none(tmp_path):
    assert newest(tmp_path, SINGLE_PROCESS, pytest.fail) is None
    assert newest(tmp_path / "nowhere", SINGLE_PROCESS, pytest.fail) is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "delete", "empty"])
def test_any_damage_is_said_aloud_and_the_checkpoint_before_is_used(tmp_path, name, harm):
    for step in (1, 2):
        save_state(tmp_path, step, state(step), 2, SINGLE_PROCESS)
    file = tmp_path / "step-00000002" / name
    content = file.read_bytes()
    middle = len(content) // 2
    if harm == "delete":
        file.unlink()
    elif harm == "flip":
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        file.write_bytes(content[:middle] if harm == "truncate" else b"")
    said: list[str] = []
    found = newest(tmp_path, SINGLE_PROCESS, said.append)
    assert found is not None
    assert found.name == "step-00000001"
    (line,) = said
    assert line.startswith(f"checkpoint {tmp_path / 'step-00000002'} is damaged (")
    assert line.endswith("); going back to the one before it.")
    if name != "manifest.json":
        assert ("No such file" if harm == "delete" else f"{name} does not match its checksum") in line
    assert_same(load_state(found, state(0))[1], state(1))


@pytest.mark.parametrize("manifest", ["{}", "[]", "5", "null", '{"tensors.safetensors": ""}'])
def test_a_manifest_that_lists_something_else_is_damage(tmp_path, manifest):
    path = save_state(tmp_path, 1, state(), 1, SINGLE_PROCESS)
    (path / "manifest.json").write_text(manifest)
    said: list[str] = []
    assert newest(tmp_path, SINGLE_PROCESS, said.append) is None
    assert len(said) == 1 and "is damaged (" in said[0] and "()" not in said[0]


def test_a_crash_while_saving_leaves_the_checkpoint_before_and_the_next_run_tidies_up(tmp_path, monkeypatch):
    save_state(tmp_path, 1, state(1), 2, SINGLE_PROCESS)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    for moment in (
        "vlm.training.engine.state.save_file",
        "vlm.training.engine.state._sha256",
        "vlm.atomic.sync",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(moment, crash)
            with pytest.raises(KeyboardInterrupt):
                save_state(tmp_path, 2, state(2), 2, SINGLE_PROCESS)
            with pytest.raises(KeyboardInterrupt):  # nor does what is left of the first hinder another
                save_state(tmp_path, 2, state(2), 2, SINGLE_PROCESS)
        assert newest(tmp_path, SINGLE_PROCESS, pytest.fail) == tmp_path / "step-00000001"
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_damaged_checkpoint_is_written_anew_when_its_step_comes_again(tmp_path):
    save_state(tmp_path, 1, state(1), 2, SINGLE_PROCESS)
    path = save_state(tmp_path, 2, state(2), 2, SINGLE_PROCESS)
    (path / "state.json").write_text("{")
    save_state(tmp_path, 2, state(3), 2, SINGLE_PROCESS)
    assert_same(load_state(path, state(0))[1], state(3))
    assert saved(tmp_path) == [path, tmp_path / "step-00000001"]


def test_the_manifest_lists_every_file(tmp_path):
    path = save_state(tmp_path, 1, state(), 1, SINGLE_PROCESS)
    listed = json.loads((path / "manifest.json").read_text())
    assert {"manifest.json", *listed} == {file.name for file in path.iterdir()}


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    path = save_state(tmp_path, 1, state(), 1, SINGLE_PROCESS)
    other = state()
    other["model"]["b.weight"] = other["model"].pop("a.weight")
    other["model"]["scale"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"3 tensors.*/model/a.weight, /model/b.weight, /model/scale"):
        load_state(path, other)
    other["model"] |= {f"c{number}": torch.zeros(number + 1) for number in range(4)}
    with pytest.raises(
        CheckpointError, match=r"7 tensors differ: /model/a.weight, /model/b.weight(, /model/c[012]){3}\."
    ):
        load_state(path, other)


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(TypeError, match="/a/b is a set"):
        save_state(tmp_path, 1, {"a": {"b": {1, 2}}}, 1, SINGLE_PROCESS)


def test_a_moved_checkpoint_is_whole(tmp_path):
    path = save_state(tmp_path / "here", 1, state(4), 1, SINGLE_PROCESS)
    shutil.move(path, tmp_path / path.name)
    found = newest(tmp_path, SINGLE_PROCESS, pytest.fail)
    assert found is not None
    assert_same(load_state(found, state(0))[1], state(4))
