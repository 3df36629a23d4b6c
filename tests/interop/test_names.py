"""Short names, and which model is used where nobody or several places name one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.errors import ConfigError, InputError
from vlm.interop.names.catalog import catalog, source_of
from vlm.interop.names.default_model import read_default, resolve_model, write_default


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a config file that is not there yet."""
    path = tmp_path / "vlm" / "config.json"
    monkeypatch.setenv("VLM_CONFIG", str(path))
    return path


def test_the_catalog_names_models_that_open_clip_knows_with_their_own_sizes() -> None:
    import open_clip

    assert next(iter(catalog())) == "mini"
    for entry in list(catalog().values())[1:]:
        assert entry.repository and entry.licence and {"en", "ja"} == set(entry.purpose)
        if entry.source.startswith("openclip:"):
            name, tag = entry.source.removeprefix("openclip:").split("/")
            known = open_clip.get_pretrained_cfg(name, tag)
            assert known["hf_hub"].strip("/") == entry.repository
            model = open_clip.get_model_config(name)
            assert model is not None
            assert model["vision_cfg"]["image_size"] == entry.image_size


def test_the_catalog_covers_what_a_first_evening_needs() -> None:
    languages = {name: entry.languages for name, entry in catalog().items()}
    assert [name for name, spoken in languages.items() if spoken == ("en",)] == ["photos-small", "photos"]
    assert "ja" in languages["multilingual"] and languages["japanese"] == ("ja",)
    assert max(catalog().values(), key=lambda entry: entry.parameters).name == "large"


def test_a_short_name_stands_for_its_source_and_a_model_folder_of_that_name_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_of("photos") == catalog()["photos"].source
    assert source_of("mini") == "mini"
    assert source_of("./photos") == "./photos"
    (tmp_path / "photos").mkdir()  # photographs, no model
    assert source_of("photos") == catalog()["photos"].source
    (tmp_path / "photos" / "config.json").write_text("{}")
    assert source_of("photos") == "photos"


def test_the_order_is_option_index_environment_file_mini(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model() == ("mini", "the default")
    write_default("large")
    assert resolve_model() == ("large", f"the config file {config}")
    monkeypatch.setenv("VLM_MODEL", "photos")
    assert resolve_model() == ("photos", "VLM_MODEL")
    assert resolve_model(index_model="japanese") == ("japanese", "the index")
    assert resolve_model("hf:org/name", index_model="japanese") == ("hf:org/name", "--model")


def test_an_empty_vlm_config_switches_the_file_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_CONFIG", "")
    assert resolve_model() == ("mini", "the default")
    with pytest.raises(InputError, match="VLM_CONFIG"):
        write_default("photos")


def test_a_folder_is_written_as_a_whole_path_and_other_settings_stay(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.parent.mkdir()
    config.write_text('{"model": "mini", "other": 1}')
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert write_default("mine") == config
    assert json.loads(config.read_text()) == {"model": str(tmp_path / "mine"), "other": 1}
    assert read_default() == str(tmp_path / "mine")


@pytest.mark.parametrize("origin", ["--model", "VLM_MODEL", "the config file"])
def test_an_unknown_name_is_refused_with_who_said_it_and_what_there_is(
    origin: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if origin == "VLM_MODEL":
        monkeypatch.setenv("VLM_MODEL", "foto")
    elif origin == "the config file":
        config.parent.mkdir()
        config.write_text('{"model": "foto"}')
    with pytest.raises(InputError, match="foto") as refused:
        resolve_model("foto" if origin == "--model" else None)
    assert str(refused.value).startswith(origin) and "photos-small" in str(refused.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 3}'])
def test_a_broken_config_file_is_one_line_that_names_it(config: Path, text: str) -> None:
    config.parent.mkdir()
    config.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        resolve_model()


def test_names_need_neither_torch_nor_the_hub() -> None:
    code = "import sys; import vlm.interop.names.catalog, vlm.interop.names.default_model; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "huggingface_hub", "open_clip", "transformers"} & set(loaded)
