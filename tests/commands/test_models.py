"""`vlm models`: the list, downloads from a hub on 127.0.0.1, removal and the default."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.fake_hub import FakeHub, fake_hub  # noqa: F401
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.embedder import Embedder
from vlm.interop.names import catalog as module
from vlm.interop.names.catalog import catalog

SMALL = "tiny/clip"


@pytest.fixture
def curated(
    monkeypatch: pytest.MonkeyPatch,
    fake_hub: FakeHub,  # noqa: F811
    tiny_embedder: Embedder,
    tmp_path: Path,
) -> FakeHub:
    """The catalog with one more model, `tiny`, which the hub of this test serves."""
    save(tiny_embedder, tmp_path / "made")
    fake_hub.add_folder(SMALL, tmp_path / "made")
    mini = catalog()["mini"]
    parameters = sum(parameter.numel() for parameter in tiny_embedder.model.parameters())
    tiny = dataclasses.replace(mini, name="tiny", source=f"hf:{SMALL}", repository=SMALL, parameters=parameters)
    monkeypatch.setattr(module, "catalog", lambda: {"mini": mini, "tiny": tiny})
    monkeypatch.setattr("vlm.interop.names.default_model.catalog", module.catalog)
    return fake_hub


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    capsys.readouterr()
    assert main(["models", "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_a_model_is_fetched_used_and_removed(
    curated: FakeHub,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    image_folder: Path,
) -> None:
    monkeypatch.setenv("VLM_CONFIG", str(tmp_path / "config.json"))
    before = listed(capsys)
    assert before["mini"]["here"] and before["mini"]["default"]
    assert not before["tiny"]["here"]
    assert main(["models", "get", "tiny"]) == 0
    weights = len(curated.repositories[SMALL, "main"]["model.safetensors"])
    said = capsys.readouterr()
    assert "tiny is on this machine" in said.out
    assert float(said.err.split("MB to download")[0].split()[-1]) >= round(weights / 1e6, 1)
    fetched = len(curated.downloads())
    assert main(["models", "get", "tiny"]) == 0
    assert len(curated.downloads()) == fetched  # nothing is fetched twice
    assert main(["models", "use", "tiny"]) == 0
    after = listed(capsys)
    assert after["tiny"]["here"] and after["tiny"]["default"] and not after["mini"]["default"]
    assert isinstance(after["tiny"]["images_per_second"], float)
    assert main(["classify", str(image_folder / "a.png"), "--labels", "犬", "cat"]) == 0  # by the default model
    assert main(["models", "remove", "tiny"]) == 0
    assert not listed(capsys)["tiny"]["here"]


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["get", "photoss"], ["photoss", "photos-small"]),
        (["remove", "mini"], ["mini", "cannot be removed"]),
        (["remove", "photos"], ["photos", "not on this machine"]),
        (["use", "no-such-model"], ["no-such-model", "vlm models"]),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: list[str],
    facts: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("VLM_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert main(["models", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert all(fact in line for fact in facts)


@pytest.mark.parametrize("words", [["get"], ["use"], ["remove"]])
def test_an_action_without_a_name_is_wrong_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["models", *words])
    assert stopped.value.code == 2


def test_the_list_needs_no_hub_library_and_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from vlm.cli import main; main(['models']); "
        "assert not {'torch', 'huggingface_hub', 'transformers'} & set(sys.modules), 'heavy imports'"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "chance 0.1 %" in done.stdout and time.perf_counter() - start < 5
