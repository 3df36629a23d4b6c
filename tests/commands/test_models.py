"""`vlm models`: the list, downloads from a hub on 127.0.0.1, removal and the default."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support.fake_hub import FakeHub, fake_hub  # noqa: F401
from vlm.checkpoint.load import load
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.embedder import Embedder
from vlm.errors import MissingPackageError
from vlm.interop.names import catalog as module
from vlm.interop.names.catalog import catalog
from vlm.interop.names.installed import Measured, read_speed, usual_backend, write_speed
from vlm.onnx.backends import OnnxCLIP

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
    for place in ("default_model", "installed"):
        monkeypatch.setattr(f"vlm.interop.names.{place}.catalog", module.catalog)
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
    monkeypatch.setattr("vlm.commands.models._with_onnx", lambda entry, measured: measured)  # the long test compares
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
    assert isinstance(after["tiny"]["images_per_second"], float) and after["tiny"]["backend"] == "torch"
    assert main(["classify", str(image_folder / "a.png"), "--labels", "犬", "cat"]) == 0  # by the default model
    assert main(["models", "remove", "tiny"]) == 0
    assert not listed(capsys)["tiny"]["here"]


@pytest.mark.long
def test_the_faster_of_torch_and_onnx_runtime_is_recorded_and_used_with_the_same_vectors(
    curated: FakeHub, capsys: pytest.CaptureFixture[str], image_folder: Path
) -> None:
    assert main(["models", "get", "tiny"]) == 0
    said = capsys.readouterr()
    assert said.err.count("images/s by") == 2
    entry = module.catalog()["tiny"]
    measured = read_speed(entry)
    assert measured is not None and listed(capsys)["tiny"]["backend"] == measured.backend == usual_backend("tiny")
    write_speed(entry, Measured(measured.images_per_second, "onnx"))
    assert usual_backend("tiny") == "onnx" and usual_backend("mini") == usual_backend("hf:org/model") == "torch"
    images = [image_folder / "a.png"]
    words = ["classify", str(images[0]), "--labels", "犬", "cat", "--model", "tiny", "--json"]
    scores = {}
    for backend in ("auto", "torch"):
        assert main([*words, "--backend", backend]) == 0
        scores[backend] = {row["label"]: row["score"] for row in json.loads(capsys.readouterr().out)}
    assert scores["auto"] == pytest.approx(scores["torch"], abs=1e-4)
    one, two = (load(f"hf:{SMALL}", backend=backend) for backend in ("onnx", "torch"))
    assert type(one.model) is OnnxCLIP and one.fingerprint == two.fingerprint
    cosine = (one.embed_images(images) * two.embed_images(images)).sum(1)
    assert torch.allclose(cosine, torch.ones(1), atol=1e-5)


def test_what_onnx_runtime_cannot_compute_stays_with_torch(
    curated: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(backend: str) -> None:
        raise MissingPackageError(f"backend {backend}: onnxruntime is not installed")

    monkeypatch.setattr("vlm.checkpoint.load.check", lambda backend: missing(backend) if backend == "onnx" else None)
    assert main(["models", "get", "tiny"]) == 0
    assert "stays with torch: backend onnx: onnxruntime" in capsys.readouterr().err
    assert usual_backend("tiny") == "torch"


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
