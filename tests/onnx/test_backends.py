"""What ONNX Runtime computes, against what PyTorch computes; and the cache it computes from."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import vlm
from benchmarks.backends import agreement, validation
from tests.support.foreign_models import clip_config, odd_images, pixels, randomise, rows, siglip_config
from vlm.cli import main
from vlm.config import CLIPConfig
from vlm.embedder import Embedder
from vlm.errors import MissingPackageError
from vlm.index.embedding_index import EmbeddingIndex
from vlm.models.clip import CLIP
from vlm.onnx import backends
from vlm.onnx import towers as onnx_towers
from vlm.onnx.backends import OnnxCLIP, run_by
from vlm.serving.embedding_cache import CachedEmbedder
from vlm.user_folders import cache_folder

TEXTS = ["犬", "a drawing of a house", "car", "海に沈む夕日", "a dog", "a red apple on a table"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of this module fill once."""
    return tmp_path_factory.mktemp("written")


@pytest.fixture
def cache(written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(written))
    return cache_folder()


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def saved(tiny_embedder: Embedder, tmp_path: Path) -> Path:
    vlm.save(tiny_embedder, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def quick_writer(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that no session can open, in no time; what was written."""
    paths: list[Path] = []

    def write(model: CLIP, path: Path) -> None:
        paths.append(path)
        path.write_bytes(b"no model")

    monkeypatch.setattr(onnx_towers, "write_images", write)
    monkeypatch.setattr(onnx_towers, "write_texts", write)
    return paths


def test_onnx_gives_the_vectors_of_torch_for_images_and_texts_in_any_batches(cache: Path, saved: Path):
    torch_, onnx_ = vlm.load(saved), vlm.load(saved, backend="onnx")
    sources = odd_images(7)
    for batch_size in (1, 3, 32):
        images = onnx_.embed_images(sources, batch_size)
        assert torch.allclose(images, torch_.embed_images(sources), atol=1e-5)
        texts = onnx_.embed_texts(TEXTS, batch_size)
        assert torch.allclose(texts, torch_.embed_texts(TEXTS), atol=1e-5)
        assert torch.allclose(torch.cat([images, texts]).norm(dim=1), torch.ones(7 + len(TEXTS)), atol=1e-6)


@pytest.mark.parametrize("config", [clip_config(), siglip_config()])
def test_onnx_gives_the_vectors_of_torch_for_the_towers_of_other_libraries(cache: Path, config: CLIPConfig):
    model = CLIP(config)
    randomise(model)
    fast = run_by(model, "onnx", key=f"foreign-{config.vision.pool}")
    images, ids = pixels(config.vision), rows(config.text)
    with torch.inference_mode():
        assert torch.allclose(fast.encode_image(images), model.encode_image(images), atol=1e-5)
        assert torch.allclose(fast.encode_text(ids), model.encode_text(ids), atol=1e-5)


def test_int8_rounds_every_matrix_of_the_image_tower_but_one_to_a_scale_for_each_column(cache: Path, saved: Path):
    embedder = vlm.load(saved, backend="int8")
    key = vlm.load(saved).fingerprint
    floats = arrays(cache / f"{key}-onnx-1" / "image.onnx")
    stored = arrays(cache / f"{key}-int{backends.whole_bits()}-2" / "image.onnx")
    matrices = [name for name, array in stored.items() if array.dtype == np.int8 and array.ndim == 2]
    rounded = [name.removesuffix("_quantized") for name in matrices]
    depth = embedder.model.config.vision.depth
    # qkv, proj, fc1, fc2 but of the first block; vision_proj; the patches' where folded
    assert 4 * depth - 1 < len(rounded) <= 4 * depth + 1
    mlp = embedder.model.config.vision.mlp_dim, embedder.model.config.vision.width
    assert sum(array.dtype == np.int8 and array.shape == mlp for array in stored.values()) == depth - 1
    first = embedder.model.vision.blocks[0].get_parameter("mlp.fc2.weight").detach().numpy().T
    assert any(array.dtype == np.float32 and array.shape == mlp and (array == first).all() for array in stored.values())
    for name in rounded:
        wanted = floats[name] if name in floats else floats[name.removesuffix("_Transposed")].T
        scale = stored[f"{name}_scale"]
        assert scale.shape == wanted.shape[1:]
        assert (abs(stored[f"{name}_quantized"] * scale - wanted) <= scale / 2 * 1.001).all()


def arrays(file: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.asarray(onnx.numpy_helper.to_array(tensor)) for tensor in onnx.load(file).graph.initializer}


def test_int8_vectors_are_of_unit_length_near_those_of_torch_and_not_the_same(cache: Path, saved: Path):
    torch_, int8 = vlm.load(saved), vlm.load(saved, backend="int8")
    near, exact = int8.embed_images(odd_images(7)), torch_.embed_images(odd_images(7))
    assert torch.allclose(near.norm(dim=1), torch.ones(7), atol=1e-6)
    assert (near * exact).sum(1).min() > 0.99
    assert not torch.allclose(near, exact, atol=1e-5)
    assert torch.allclose(int8.embed_texts(TEXTS), torch_.embed_texts(TEXTS), atol=1e-5)  # texts are not rounded


def test_an_index_is_shared_by_torch_and_onnx_and_not_by_int8(cache: Path, saved: Path, tmp_path: Path):
    torch_, onnx_, int8 = (vlm.load(saved, backend=backend) for backend in ("torch", "onnx", "int8"))
    assert onnx_.fingerprint == torch_.fingerprint != int8.fingerprint
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(odd_images(3)):
        image.save(folder / f"{number}.png")
    with EmbeddingIndex.open(tmp_path / "index", torch_) as index:
        index.add_folder(folder, workers=1)
    with EmbeddingIndex.open(tmp_path / "index", onnx_) as index:
        assert index.add_folder(folder, workers=1).unchanged == len(index) == 3
    with EmbeddingIndex.open(tmp_path / "index", int8) as index:
        assert len(index) == 0


def test_the_server_s_cache_of_vectors_is_run_by_the_same_backend(cache: Path, saved: Path):
    int8 = vlm.load(saved, backend="int8")
    images = odd_images(2)
    assert torch.equal(CachedEmbedder(int8).embed_images(images), int8.embed_images(images))


def test_a_model_run_by_onnx_is_saved_exported_and_looked_into_as_before(cache: Path, saved: Path, tmp_path: Path):
    plain, embedder = vlm.load(saved), vlm.load(saved, backend="int8")
    vlm.save(embedder, tmp_path / "again")
    assert vlm.load(tmp_path / "again").fingerprint == plain.fingerprint
    vlm.export(embedder, tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "image.onnx")
    images = torch.stack([plain.preprocess(image) for image in odd_images(3)])
    exported = np.asarray(session.run(None, {"pixels": images.numpy()})[0])
    assert np.allclose(exported, plain.embed_pixels(images), atol=1e-5)
    with torch.inference_mode():
        assert torch.equal(embedder.model.vision(images), plain.model.vision(images))


def test_a_model_run_by_onnx_refuses_to_be_trained_and_to_read_parts_of_images(cache: Path, saved: Path):
    embedder = vlm.load(saved, backend="onnx")
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="not those of keep"):
        embedder.model.encode_image(images, keep=torch.zeros(1, 2, dtype=torch.int64))
    embedder.model.train()
    with pytest.raises(ValueError, match=r"trained.*backend torch"):
        embedder.model(images, torch.tensor([[2]]))
    assert len(embedder.embed_pixels(images)) == 1  # which sets evaluation mode
    assert isinstance(embedder.model, OnnxCLIP)
    options = embedder.model._images.get_session_options()  # pyright: ignore[reportPrivateUsage]
    assert options.intra_op_num_threads == torch.get_num_threads()


def test_a_model_is_written_once_and_another_one_beside_it(
    empty_cache: Path, quick_writer: list[Path], tiny_clip: CLIP, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backends, "open_session", lambda path, backend: path)
    for key in ("one", "one", "two"):
        assert isinstance(run_by(tiny_clip, "onnx", key), OnnxCLIP)
    assert [path.name for path in quick_writer] == ["image.onnx", "text.onnx"] * 2
    assert sorted(path.name for path in empty_cache.iterdir()) == ["one-onnx-1", "two-onnx-1"]


def test_changed_weights_are_another_model_of_the_cache(
    empty_cache: Path, quick_writer: list[Path], tiny_embedder: Embedder, saved: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backends, "open_session", lambda path, backend: path)
    vlm.load(saved, backend="onnx")
    with torch.no_grad():
        tiny_embedder.model.vision.norm.get_parameter("bias")[0] += 1
    vlm.save(tiny_embedder, saved)
    vlm.load(saved, backend="onnx")
    assert len(list(empty_cache.iterdir())) == 2


def test_a_write_that_fails_leaves_nothing_and_the_next_one_is_whole(
    empty_cache: Path, quick_writer: list[Path], tiny_clip: CLIP, monkeypatch: pytest.MonkeyPatch
):
    def full(model: CLIP, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backends, "open_session", lambda path, backend: path)
    with monkeypatch.context() as patched:
        patched.setattr(onnx_towers, "write_texts", full)
        with pytest.raises(ValueError, match=r"write .*No.*device.*XDG_CACHE_HOME"):
            run_by(tiny_clip, "onnx", "model")
    assert list(empty_cache.iterdir()) == []
    run_by(tiny_clip, "onnx", "model")
    assert sorted(path.name for path in (empty_cache / "model-onnx-1").iterdir()) == ["image.onnx", "text.onnx"]


def test_a_folder_that_cannot_take_its_place_is_one_line(
    empty_cache: Path, quick_writer: list[Path], tiny_clip: CLIP, monkeypatch: pytest.MonkeyPatch
):
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ValueError, match=r"model-onnx-1: .*Device.*resource busy"):
        run_by(tiny_clip, "onnx", "model")
    assert list(empty_cache.iterdir()) == []


def test_the_first_use_says_what_takes_time_and_torch_writes_nothing(
    empty_cache: Path,
    quick_writer: list[Path],
    tiny_clip: CLIP,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(backends, "open_session", lambda path, backend: path)
    assert run_by(tiny_clip, "torch", "model") is tiny_clip
    assert (caplog.messages, empty_cache.exists()) == ([], False)
    run_by(tiny_clip, "onnx", "model")
    (line,) = caplog.messages
    assert "onnx" in line and str(empty_cache / "model-onnx-1") in line
    run_by(tiny_clip, "onnx", "model")
    assert caplog.messages == [line]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("platform", "environment", "place"),
    [
        ("linux", {}, "home/.cache/vlm"),
        ("darwin", {}, "home/Library/Caches/vlm"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/vlm"),
        ("win32", {}, "home/vlm"),
        ("linux", {"XDG_CACHE_HOME": ""}, "home/.cache/vlm"),
        ("darwin", {"XDG_CACHE_HOME": "xdg", "LOCALAPPDATA": "local"}, "xdg/vlm"),
    ],
)
def test_the_cache_lies_where_the_system_keeps_such_things(
    platform: str, environment: dict[str, str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(sys, "platform", platform)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == tmp_path / place


def test_of_two_processes_that_write_one_model_the_first_is_kept(
    empty_cache: Path, quick_writer: list[Path], tiny_clip: CLIP, monkeypatch: pytest.MonkeyPatch
):
    def as_the_other_finishes(model: CLIP, path: Path) -> None:
        path.write_bytes(b"late")
        (empty_cache / "model-onnx-1").mkdir()
        (empty_cache / "model-onnx-1" / "image.onnx").write_bytes(b"first")

    monkeypatch.setattr(backends, "open_session", lambda path, backend: path)
    monkeypatch.setattr(onnx_towers, "write_texts", as_the_other_finishes)
    run_by(tiny_clip, "onnx", "model")
    assert [path.name for path in empty_cache.iterdir()] == ["model-onnx-1"]
    assert (empty_cache / "model-onnx-1" / "image.onnx").read_bytes() == b"first"


def test_a_broken_file_of_the_cache_is_named_with_what_to_delete(
    empty_cache: Path, quick_writer: list[Path], tiny_clip: CLIP
):
    with pytest.raises(ValueError, match=r"backend.*image\.onnx: .*Delete .*model-onnx-1"):
        run_by(tiny_clip, "onnx", "model")
    shutil.rmtree(empty_cache / "model-onnx-1")


def test_a_missing_package_is_one_line_with_its_remedy(monkeypatch: pytest.MonkeyPatch, empty_cache: Path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"int8.*onnxruntime\. .*pip install"):
        vlm.load("mini", backend="int8")


def test_so_is_one_that_only_the_writing_needs(
    empty_cache: Path, quick_writer: list[Path], tiny_clip: CLIP, monkeypatch: pytest.MonkeyPatch
):
    def lacks(model: CLIP, path: Path) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")

    monkeypatch.setattr(onnx_towers, "write_texts", lacks)
    with pytest.raises(MissingPackageError, match=r"onnxscript\. .*pip.*onnxscript"):
        run_by(tiny_clip, "onnx", "model")
    assert list(empty_cache.iterdir()) == []


def test_onnx_runtime_reports_to_nobody(tmp_path: Path):
    """Its device id is the first thing it writes where it may report; CI and its own tests are exceptions to it."""
    quiet = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS"}
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", "from vlm.onnx.backends import check; check('onnx')"]
    subprocess.run(command, env=environment, check=True)
    assert list(tmp_path.rglob("*")) == []


def test_an_unknown_backend_is_refused_before_the_model_is_read():
    with pytest.raises(ValueError, match=r"backend 'tensorrt'.*torch, onnx, int8"):
        vlm.load("there-is-no-such-model", backend="tensorrt")  # type: ignore[arg-type]


def test_a_tower_or_a_device_without_onnx_is_one_line_with_its_remedy(tiny_clip: CLIP, empty_cache: Path):
    config = dataclasses.replace(tiny_clip.config.text, pool="mean")
    averaging = CLIP(dataclasses.replace(tiny_clip.config, text=config))
    with pytest.raises(ValueError, match=r"backend.*text.*'mean'"):
        run_by(averaging, "onnx", "model")
    with pytest.raises(ValueError, match=r"backend int8.*meta"):
        run_by(tiny_clip.to("meta"), "int8", "model")
    assert not empty_cache.exists()


def test_weights_keep_eight_bits_where_sums_of_products_are_exact_and_seven_elsewhere(monkeypatch: pytest.MonkeyPatch):
    for able, bits in (
        ({"architecture": "x86_64", "avx512_vnni": True, "avx_vnni": False}, 8),
        ({"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": True}, 8),
        ({"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": False}, 7),
        ({"architecture": "aarch64"}, 8),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert backends.whole_bits() == bits


def test_the_commands_choose_the_backend(
    cache: Path, saved: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["classify", str(image_folder / "a.png"), "--labels", "犬", "a cat", "--model", str(saved), "--json"]
    printed = []
    for backend in ("torch", "onnx"):
        assert main([*command, "--backend", backend]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    for one, other in zip(*printed, strict=True):
        assert (one["label"], one["score"]) == (other["label"], pytest.approx(other["score"], abs=1e-4))


@pytest.mark.long
def test_int8_mini_names_at_least_97_of_100_drawings_as_before(cache: Path):
    """Chance is one name, below 1 %."""
    exact, rounded = vlm.load("mini"), vlm.load("mini", backend="int8")
    images, names = validation()
    for words in names.values():
        assert len(words) > 100
        assert agreement(exact, rounded, images, words) >= 0.97
