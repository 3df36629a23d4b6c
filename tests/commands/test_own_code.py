"""`--trust-remote-code`: without it one line, with it the model answers and one line says whose code runs."""

from pathlib import Path

import pytest

from tests.interop.test_external import images, with_own_code
from tests.support.fake_hub import FakeHub
from vlm.cli import main

COMMANDS = {
    "classify": ["classify", "{folder}/50.png", "--labels", "red", "apple", "--model", "hf:org/model"],
    "index": ["index", "{folder}", "--index", "{out}", "--model", "hf:org/model"],
    "search": ["search", "a red apple", "--folder", "{folder}", "--model", "hf:org/model"],
    "embed": ["embed", "hf:org/model", "{folder}", "--out", "{out}"],
    "probe": ["probe", "hf:org/model", "{data}", "--label", "concept", "--choose", "validation", "--shots", "1"],
    "evaluate": ["evaluate", "hf:org/model", "--data", "{table}"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_code_that_comes_with_a_model_runs_only_with_the_option(
    fake_hub: FakeHub,
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with_own_code(fake_hub, tmp_path)
    places = {"folder": tmp_path / "images", "out": tmp_path / "out", "table": tmp_path / "images" / "table.csv"}
    places["data"] = run_folder / "data.parquet"
    places["folder"].mkdir()
    paths = images(places["folder"])
    rows = [f"{path.name},a red apple {number}" for number, path in enumerate(paths)]
    places["table"].write_text("\n".join(["image,caption", *rows]))
    words = [word.format(**places) for word in COMMANDS[name]]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert not [word for word in ("own.py", "written by org", "--trust-remote-code") if word not in error], error
    assert main([*words, "--trust-remote-code"]) == 0
    said = [record.getMessage() for record in caplog.records if "own.py" in record.getMessage()]
    assert len(said) == 1 and "written by org" in said[0]


def test_what_needs_layers_of_ours_refuses_an_external_model_from_its_config_alone(
    fake_hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_own_code(fake_hub, tmp_path)
    assert main(["look", "x.png", "--model", "hf:org/model"]) == 1
    assert "external model" in capsys.readouterr().err
    assert fake_hub.downloads() == ["config.json"]
