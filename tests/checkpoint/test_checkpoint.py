import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vlm.calibration import Calibration
from vlm.checkpoint.load import load, load_classifier
from vlm.checkpoint.manifest import manifest_text, sha256
from vlm.checkpoint.save import save, save_calibration
from vlm.config import CosineHeadConfig, PreprocessConfig, Projection, VisionConfig
from vlm.embedder import Embedder
from vlm.images.preprocess import Preprocess
from vlm.models.clip import CLIP
from vlm.models.vision import CosineHead, ViTClassifier


@pytest.fixture
def saved(tiny_embedder: Embedder, tmp_path: Path) -> Path:
    save(tiny_embedder, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def tiny_classifier() -> ViTClassifier:
    config = VisionConfig(image_size=32, patch_size=8, width=32, depth=1, num_heads=2, mlp_dim=64)
    preprocess = Preprocess(PreprocessConfig(image_size=32, resize="squash"))
    classifier = ViTClassifier(config, 3, labels=["犬", "cat", "bird"], preprocess=preprocess).eval()
    torch.nn.init.normal_(classifier.head.weight)
    return classifier


def resign(folder: Path) -> None:
    """What someone who means harm can do: the manifest made to agree with changed files."""
    names = [path.name for path in folder.iterdir() if path.name != "manifest.json"]
    sums = {name: sha256(folder / name) for name in names}
    (folder / "manifest.json").write_text(manifest_text(sums))


def rewrite(folder: Path, config: object) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    resign(folder)


def test_what_is_saved_comes_back_bit_for_bit(tiny_embedder: Embedder, saved: Path, image_folder: Path):
    again = load(saved)
    ours, theirs = tiny_embedder.model.state_dict(), again.model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.fingerprint == tiny_embedder.fingerprint
    assert again.name == "saved"
    assert torch.equal(again.embed_texts(["犬", "a dog"]), tiny_embedder.embed_texts(["犬", "a dog"]))
    assert torch.equal(
        again.embed_images([image_folder / "a.png"]), tiny_embedder.embed_images([image_folder / "a.png"])
    )
    assert not again.model.training
    assert all(weight.requires_grad for weight in again.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_halves_the_file_keeps_the_temperature_and_computes_in_float32(
    dtype: torch.dtype, tiny_embedder: Embedder, tmp_path: Path, saved: Path
):
    save(tiny_embedder, tmp_path / "half", dtype=dtype)
    again = load(tmp_path / "half")
    for name, weight in tiny_embedder.model.state_dict().items():
        expected = weight.to(dtype).float() if weight.ndim > 1 else weight
        assert again.model.state_dict()[name].dtype == torch.float32
        assert torch.equal(again.model.state_dict()[name], expected)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", saved)]
    assert sizes[0] < 0.6 * sizes[1]


def test_loading_draws_no_random_numbers(saved: Path):
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_model_does_not_read_its_file_again(saved: Path):
    again = load(saved)
    expected = again.fingerprint
    with (saved / "model.safetensors").open("r+b") as file:
        file.write(b"\0" * (saved / "model.safetensors").stat().st_size)
    assert again.fingerprint == expected


def test_absent_parts_stay_absent(tiny_clip: CLIP, tmp_path: Path):
    save(Embedder(tiny_clip, None, None), tmp_path / "bare")
    assert load(tmp_path / "bare").parts() == (None, None)


def test_a_classifier_comes_back_with_its_labels_and_preprocessing(
    tiny_classifier: ViTClassifier, tmp_path: Path, image_folder: Path
):
    save(tiny_classifier, tmp_path / "vit")
    again = load_classifier(tmp_path / "vit")
    assert again.labels == ("犬", "cat", "bird")
    assert '"犬"' in (tmp_path / "vit" / "config.json").read_text(encoding="utf-8")  # people read it too
    assert again.preprocess
    assert tiny_classifier.preprocess
    assert again.preprocess.config == tiny_classifier.preprocess.config
    pixels = again.preprocess(image_folder / "a.png")[None]
    assert torch.equal(again(pixels), tiny_classifier(pixels))


@pytest.mark.parametrize("proj", ["linear", "linear_bias", "none"])
def test_a_cosine_head_comes_back_bit_for_bit(proj: Projection, tiny_classifier: ViTClassifier, tmp_path: Path):
    config, head = tiny_classifier.vision.config, CosineHead(CosineHeadConfig(embed_dim=32, proj=proj), 32, 3)
    classifier = ViTClassifier(config, 3, labels=["犬", "cat", "bird"], head=head).eval()
    for weight in classifier.parameters():
        torch.nn.init.normal_(weight)
    save(classifier, tmp_path / "vit")
    again = load_classifier(tmp_path / "vit")
    assert isinstance(again.head, CosineHead) and again.head.config == head.config
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in classifier.state_dict().items())
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(pixels), classifier(pixels))


def test_a_classifier_saved_before_there_were_cosine_heads_has_a_linear_one(
    tiny_classifier: ViTClassifier, tmp_path: Path
):
    save(tiny_classifier, tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    assert config.pop("head") is None
    rewrite(tmp_path / "vit", config)
    assert torch.equal(load_classifier(tmp_path / "vit").head.weight, tiny_classifier.head.weight)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"embed_dim": 32, "projection": "linear"}, "CosineHeadConfig has no setting 'projection'"),
        ({"embed_dim": 32}, r"missing head\.proj\.weight"),
        ("cosine", "wanted the settings of a CosineHead, or null"),
    ],
)
def test_a_head_that_does_not_fit_its_weights_is_refused(
    head: object, message: str, tiny_classifier: ViTClassifier, tmp_path: Path
):
    save(tiny_classifier, tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    rewrite(tmp_path / "vit", config | {"head": head})
    with pytest.raises(ValueError, match=message) as error:
        load_classifier(tmp_path / "vit")
    assert "\n" not in str(error.value)


def test_each_kind_says_how_to_open_the_other(saved: Path, tiny_classifier: ViTClassifier, tmp_path: Path):
    save(tiny_classifier, tmp_path / "vit")
    with pytest.raises(ValueError, match=r"Open.*vlm\.load_classifier"):
        load(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"Open it with vlm\.load\."):
        load_classifier(saved)


def test_any_flipped_byte_in_any_file_is_refused_by_name(saved: Path):
    files = sorted(path for path in saved.iterdir())
    assert {path.name for path in files} >= {"config.json", "model.safetensors", "README.md", "manifest.json"}
    for path in files:
        whole = path.read_bytes()
        for position in {0, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
            for bit in (0x01, 0x20, 0x80):
                path.write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
                with pytest.raises(ValueError, match="is not what was saved") as error:
                    load(saved)
                assert str(path) in str(error.value)
                assert "\n" not in str(error.value)
        path.write_bytes(whole)
    load(saved)


def test_no_place_in_the_manifest_can_be_changed(saved: Path):
    path = saved / "manifest.json"
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x20]) + whole[position + 1 :])
        with pytest.raises(ValueError, match="is not what was saved"):
            load(saved)


def test_a_missing_or_cut_file_is_refused_by_name(saved: Path):
    for path in sorted(saved.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=f"{path.name}.*saved"):
            load(saved)
        path.unlink()
        with pytest.raises(ValueError, match=f"{path.name} is missing"):
            load(saved)
        path.write_bytes(whole)


def test_all_misfits_between_weights_and_config_are_named_at_once(saved: Path):
    weights = load_file(saved / "model.safetensors")
    weights["foo"] = weights.pop("vision.norm.bias")
    weights["logit_scale"] = weights["logit_scale"].double()
    weights["vision.pos_embed"] = weights["vision.pos_embed"][:, 1:].contiguous()
    save_file(weights, saved / "model.safetensors")
    resign(saved)
    expected = (
        r"logit_scale is torch.float64.*missing vision\.norm\.bias; unexpected foo; "
        r"vision\.pos_embed is \(1, 16, 32\), wanted \(1, 17, 32\)"
    )
    with pytest.raises(ValueError, match=expected):
        load(saved)


def test_a_pickle_in_place_of_the_weights_runs_nothing(saved: Path, tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "marker"),)

    torch.save(Evil(), saved / "model.safetensors")
    resign(saved)
    with pytest.raises(ValueError, match=r"model\.safetensors.*safetensors"):
        load(saved)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "vlm-9"}, "is not of format 'vlm-1'"),
        ({"format": None}, "is not of format 'vlm-1', the one this version of vlm reads"),
        ({"kind": "llm"}, "holds a model of kind 'llm', wanted 'clip'. Open it with a newer vlm"),
        ({"model": {"embed_dmi": 24}}, "Did you mean 'embed_dim'"),
        ({"preprocess": {"image_size": -1}}, "image_size must be positive"),
    ],
)
def test_a_config_that_makes_no_sense_is_one_line(saved: Path, change: dict[str, object], message: str):
    config = json.loads((saved / "config.json").read_text())
    rewrite(saved, config | change)
    with pytest.raises(ValueError, match=message) as error:
        load(saved)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("absent", [["tokenizer"], ["tokenizer", "model", "preprocess"]])
def test_settings_that_a_config_lacks_are_named(saved: Path, absent: list[str]):
    config = json.loads((saved / "config.json").read_text())
    rewrite(saved, {name: config[name] for name in config if name not in absent})
    with pytest.raises(ValueError, match=rf"config\.json lacks {', '.join(sorted(absent))}"):
        load(saved)
    rewrite(saved, [])
    with pytest.raises(ValueError, match="is not of format 'vlm-1'"):
        load(saved)


def test_a_classifier_without_labels_is_refused(tiny_classifier: ViTClassifier, tmp_path: Path):
    save(tiny_classifier, tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    rewrite(tmp_path / "vit", {name: config[name] for name in config if name != "labels"})
    with pytest.raises(ValueError, match=r"lacks labels\."):
        load_classifier(tmp_path / "vit")


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"[1]", b'{"files": 3}', b"[" * 200_000, b"\xff"])
def test_a_manifest_that_is_none_is_one_line(saved: Path, text: bytes):
    (saved / "manifest.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"manifest\.json.*checksum.*wrong"):
        load(saved)


def test_a_calibration_is_added_and_nothing_else_changes(saved: Path):
    """More of it in test_calibration.py."""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    save_calibration(saved, Calibration(scale=20.0, bias=-12.0, data="犬"), "# 校正\n")
    after = {path.name: path.read_bytes() for path in saved.iterdir()}
    assert load(saved).calibration == Calibration(scale=20.0, bias=-12.0, data="犬")
    assert {name for name in after if after[name] != before.get(name)} == {"config.json", "README.md", "manifest.json"}
    assert before.keys() == after.keys()
    assert after["README.md"].decode() == "# 校正\n"
    assert json.loads(after["config.json"]) | {"calibration": None} == json.loads(before["config.json"])


def test_a_folder_can_be_moved_linked_and_copied(saved: Path, tiny_embedder: Embedder, tmp_path: Path):
    (tmp_path / "cache").mkdir()  # as huggingface_hub keeps a download: links into a store
    for path in saved.iterdir():
        (tmp_path / "cache" / path.name).symlink_to(path)
    assert load(tmp_path / "cache").fingerprint == tiny_embedder.fingerprint
    shutil.copytree(saved, tmp_path / "日本語 の folder")
    assert load(str(tmp_path / "日本語 の folder")).name == "日本語 の folder"


def test_the_weights_file_is_plain_safetensors_with_our_names(saved: Path, tiny_clip: CLIP):
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(tiny_clip.state_dict())


@pytest.mark.parametrize("option", ["num_heads", "activation", "norm_eps", "image_size"])
def test_options_for_foreign_models_are_refused_not_ignored(
    saved: Path, tiny_classifier: ViTClassifier, tmp_path: Path, option: str
):
    save(tiny_classifier, tmp_path / "vit")
    options = {option: {"activation": "gelu", "norm_eps": 0.0}.get(option, 4)}
    with pytest.raises(ValueError, match=r"num_heads, activation, norm_eps"):
        load(saved, **options)
    with pytest.raises(ValueError, match=r"model.*everything itself"):
        load_classifier(tmp_path / "vit", **options)


def test_a_source_that_is_nothing_says_what_could_be_meant():
    for opener in (load, load_classifier):
        with pytest.raises(ValueError, match=r"model 'mimi'.*\(mini, photos"):
            opener("mimi")


def test_mini_is_the_released_model_and_a_path_to_mini_is_a_folder(
    tiny_embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    save(tiny_embedder, "mini")
    released, own = load("mini"), load("./mini")
    assert (released.name, own.name) == ("mini", "mini")
    assert own.fingerprint == tiny_embedder.fingerprint != released.fingerprint


def test_a_foreign_folder_is_not_taken_for_a_damaged_one_of_ours(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is a 'bert' of transformers"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_manifest_that_lists_no_model_is_one_line(saved: Path, name: str):
    (saved / name).unlink()
    resign(saved)
    with pytest.raises(ValueError, match=rf"manifest.json.*{name}.*model folder"):
        load(saved)
