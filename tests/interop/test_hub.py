"""Downloads: the real huggingface_hub speaks with a hub on this machine; open_clip's registry is read as it is."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import open_clip
import pytest

from tests.support.fake_hub import FakeHub, Trouble, reach
from vlm.errors import CheckpointError, HubError, InputError, MissingPackageError
from vlm.interop.hub.address import HubAddress, parse_address
from vlm.interop.hub.openclip_registry import all_models, registered
from vlm.interop.hub.repository import download, list_repository
from vlm.interop.loading import load_foreign
from vlm.interop.sources import plan

MODEL = {
    "README.md": b"about",
    "config.json": b'{"model_type": "clip"}',
    "model.safetensors": b"safe weights" * 1000,
    "notes.pdf": b"for people",
    "pytorch_model.bin": b"pickled weights",
    "deep/model.safetensors": b"of another layout",
}


@pytest.fixture
def hub(fake_hub: FakeHub) -> FakeHub:
    fake_hub.add("org/model", MODEL)
    fake_hub.add("org/model", {"config.json": b'{"model_type": "clip"}', "pytorch_model.bin": b"old"}, "v1")
    fake_hub.add("timm/vit_base_patch32_clip_224.openai", {"open_clip_model.safetensors": b"of OpenAI"})
    fake_hub.add("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", {"open_clip_model.safetensors": b"of LAION"})
    google = {"open_clip_model.safetensors": b"of Google" * 500, "tokenizer.json": b"{}", "empty.txt": b""}
    fake_hub.add("timm/ViT-B-16-SigLIP", google)
    return fake_hub


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reach("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)  # nobody answers


def test_what_is_needed_comes_once_and_is_found_again_offline(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = plan("hf:org/model", "clip").fetch()
    assert found.folder is not None and found.weights == found.folder / "model.safetensors"
    assert files_in(found.folder) == {name: MODEL[name] for name in ("README.md", "config.json", "model.safetensors")}
    assert sorted(hub.downloads()) == ["README.md", "config.json", "model.safetensors"]  # each once
    old = plan("hf:org/model@v1", "clip").fetch()
    before = len(hub.downloads())
    assert plan("hf:org/model", "clip").fetch() == found and len(hub.downloads()) == before
    offline(monkeypatch, tmp_path)
    assert (plan("hf:org/model", "clip").fetch(), plan("hf:org/model@v1", "clip").fetch()) == (found, old)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert plan("hf:org/model", "clip").fetch() == found
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        plan("hf:org/model@v2", "clip")


@pytest.mark.parametrize("redirect", ["relative", "absolute"])
def test_files_behind_redirects_are_the_same(hub: FakeHub, redirect: Any) -> None:
    hub.redirect = redirect
    found = plan("hf:org/model", "clip").fetch()
    assert found.weights is not None and found.weights.read_bytes() == MODEL["model.safetensors"]


@pytest.mark.parametrize("source", ["hf:org/model", "openclip:ViT-B-32/openai", "openclip:ViT-B-16-SigLIP/webli"])
def test_the_size_that_is_told_is_the_size_that_comes(hub: FakeHub, source: str) -> None:
    wanted = plan(source, "clip")
    size, before, told = wanted.size, hub.sent, []
    wanted.fetch(lambda done, total: told.append((done, total)))
    assert size == hub.sent - before > 0
    assert told[-1] == (size, size)
    assert wanted.size == plan(source, "clip").size == 0


def test_a_tokenizers_repository_brings_no_weights(hub: FakeHub) -> None:
    hub.add("timm/ViT-B-16-SigLIP-256", {"open_clip_model.safetensors": b"256"})  # its tokenizer is that of SigLIP
    assert (open_clip.get_model_config("ViT-B-16-SigLIP-256") or {})["text_cfg"]["hf_tokenizer_name"] == (
        "timm/ViT-B-16-SigLIP"
    )
    found = plan("openclip:ViT-B-16-SigLIP-256/webli", "clip").fetch()
    assert found.tokenizer is not None and files_in(found.tokenizer) == {"tokenizer.json": b"{}"}
    assert found.weights is not None and found.weights.read_bytes() == b"256"


@pytest.mark.parametrize("model_type", ["bert", "blip-2"])
def test_a_family_that_cannot_be_read_is_refused_before_its_weights_are_downloaded(
    hub: FakeHub, model_type: str
) -> None:
    hub.add("org/other", {"config.json": f'{{"model_type": "{model_type}"}}'.encode(), "model.safetensors": b"w" * 999})
    with pytest.raises(CheckpointError, match=model_type):
        plan("hf:org/other", "clip")
    assert hub.downloads() == ["config.json"]


TROUBLES: dict[Trouble, tuple[str, ...]] = {  # what each message says
    "gated": ("gated", "/org/model", "hf auth login"),
    "private": ("org/model", "ask its owner", "hf auth login"),
    "too many requests": ("429", "Wait"),
    "server error": ("500", "later"),
    "unavailable": ("503", "later"),
    "torn": ("broke off", "again"),
    "silent": ("does not answer",),
    "no commit header": ("X-Repo-Commit", "HF_ENDPOINT"),
    "wrong endpoint": ("HF_ENDPOINT",),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_each_trouble_of_the_network_is_one_line_that_says_what_it_is(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, trouble: Trouble
) -> None:
    monkeypatch.setattr("vlm.interop.hub.repository.FIRST_PATIENCE", 1.0)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.trouble = trouble
    with pytest.raises(HubError) as refused:
        plan("hf:org/model", "clip").fetch()
    assert "\n" not in str(refused.value)
    assert not [word for word in TROUBLES[trouble] if word not in str(refused.value)], str(refused.value)


def test_a_hub_that_let_us_wait_is_not_asked_again_at_once(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    plan("hf:org/model", "clip").fetch()
    monkeypatch.setattr("vlm.interop.hub.repository.PATIENCE", 1.2)
    hub.trouble = "silent"
    list_repository(HubAddress("org/model"))
    with monkeypatch.context() as unasked:
        unasked.setattr("vlm.interop.hub.repository._within", lambda *_: pytest.fail("asked again"))
        again = list_repository(HubAddress("org/model"))
    assert again.trouble is not None and hub.address in str(again.trouble)
    monkeypatch.setattr("vlm.interop.hub.repository.PAUSE", 0.0)
    hub.trouble = None
    assert list_repository(HubAddress("org/model")).trouble is None


@pytest.mark.parametrize("trouble", [*TROUBLES, "expired token"])
def test_a_model_that_is_here_answers_in_every_trouble_and_the_network_adds_at_most_10_seconds(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, trouble: Trouble
) -> None:
    found = plan("hf:org/model", "clip").fetch()
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    hub.trouble = trouble
    monkeypatch.setattr("vlm.interop.hub.repository.PATIENCE", 1.0)
    start = time.monotonic()
    assert plan("hf:org/model", "clip").fetch() == found
    assert time.monotonic() - start < 3


@pytest.mark.long
@pytest.mark.parametrize("trouble", ["silent", "too many requests", "server error", "unavailable", "offline"])
@pytest.mark.parametrize("source", ["hf:org/model", "openclip:ViT-B-16-SigLIP-256/webli"])
def test_a_model_that_is_here_waits_at_most_10_seconds_for_the_network(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, trouble: Any
) -> None:
    """Also where the model needs two repositories: only the first of them waits."""
    hub.add("timm/ViT-B-16-SigLIP-256", {"open_clip_model.safetensors": b"256"})
    found = plan(source, "clip").fetch()
    if trouble == "offline":
        offline(monkeypatch, tmp_path)
    else:
        hub.trouble = trouble
    start = time.monotonic()
    assert plan(source, "clip").fetch() == found
    seconds = time.monotonic() - start
    print(f"{source}, {trouble}: {seconds:.1f} s")
    assert seconds < 10


@pytest.mark.parametrize("name", ["org/model", "org/none"])
def test_an_expired_token_is_said(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    hub.trouble = "expired token"
    with pytest.raises(HubError, match="token") as refused:
        plan(f"hf:{name}", "clip")
    assert "hf auth login" in str(refused.value) and "HF_TOKEN" in str(refused.value)


def test_a_transfer_that_broke_off_goes_on_where_it_stopped(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("vlm.interop.hub.repository.LARGE", 1000)
    found = list_repository(HubAddress("org/model"))
    hub.trouble = "torn"
    with pytest.raises(HubError):
        download(found, ["model.safetensors"])
    hub.trouble, hub.sent = None, 0
    folder = download(found, ["model.safetensors"])
    assert (folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert hub.sent < len(MODEL["model.safetensors"])


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "HF_HOME")])
def test_a_full_disk_and_a_cache_that_cannot_be_written_say_just_that(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError(number, os.strerror(number), "/cache/x")

    found = list_repository(HubAddress("org/model"))
    monkeypatch.setattr("huggingface_hub.file_download._download_to_tmp_and_move", fail)
    with pytest.raises(HubError, match=said):
        download(found, ["model.safetensors"])


def test_nobody_at_the_endpoint_is_said_with_the_endpoint(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offline(monkeypatch, tmp_path)
    with pytest.raises(HubError, match=r"127\.0\.0\.1:9.*reached.*org/none.*machine"):
        plan("hf:org/none", "clip")


@pytest.mark.parametrize(("source", "said"), [("hf:org/none@v3", "no model org/none"), ("hf:org/model@v3", "no revi")])
def test_a_repository_or_revision_that_is_not_there_is_said(hub: FakeHub, source: str, said: str) -> None:
    with pytest.raises(HubError, match=said):
        plan(source, "clip")


@pytest.mark.parametrize("name", ["org", "org/model@", "../../etc", "org/model@v1@v2", "", "org/model/../x"])
def test_what_is_no_hub_name_is_refused_with_the_forms(name: str) -> None:
    with pytest.raises(InputError, match="wanted hf:ORG/NAME"):
        load_foreign(f"hf:{name}")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("org/name", HubAddress("org/name")),
        ("org/name@refs/pr/1", HubAddress("org/name", "refs/pr/1")),
        ("org/name/a.safetensors", HubAddress("org/name", None, "", "a.safetensors")),
        ("org/name/deep/a.bin@v1", HubAddress("org/name", "v1", "deep", "a.bin")),
        ("org/name//deep/er", HubAddress("org/name", None, "deep/er")),
    ],
)
def test_an_address_names_a_file_or_a_subfolder(text: str, address: HubAddress) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("trouble", ["gated", "silent", "unavailable"])
@pytest.mark.long
def test_the_command_ends_with_1_and_one_line(hub: FakeHub, tmp_path: Path, trouble: Trouble) -> None:
    hub.trouble = trouble
    command = [sys.executable, "-m", "vlm", "convert", "hf:org/model", str(tmp_path / "out")]
    start = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert time.monotonic() - start < 40


# ---- OpenCLIP's registry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("ViT-B-32/laion2b_s34b_b79k", b"of LAION"),
        ("ViT-B-32/openai", b"of OpenAI"),  # ViT-B-32 says GELU, these weights were trained with QuickGELU
        ("ViT-B-16-SigLIP/webli", b"of Google" * 500),
    ],
)
def test_openclips_registry_says_what_its_weights_were_trained_with(hub: FakeHub, name: str, weights: bytes) -> None:
    known: Any = open_clip.get_pretrained_cfg(*name.split("/"))
    config: Any = open_clip.get_model_config(name.split("/")[0])
    found = plan(f"openclip:{name}", "clip").fetch()
    assert found.weights is not None and found.info is not None
    assert found.weights.read_bytes() == weights
    assert found.info["preprocess_cfg"] == {k: known[k] for k in ("mean", "std", "interpolation", "resize_mode")}
    if "SigLIP" in name:
        assert found.info["model_cfg"] == config
        assert found.tokenizer is not None and (found.tokenizer / "tokenizer.json").read_bytes() == b"{}"
    else:
        assert found.info["model_cfg"] == config | {"quick_gelu": known.get("quick_gelu", False)}
        assert found.tokenizer is None


def test_weights_at_hand_need_only_the_name_of_their_model(tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(b"")
    found = plan(f"openclip:ViT-B-32-quickgelu/{tmp_path / 'mine.pt'}", "clip").fetch()
    assert (found.weights, found.tokenizer) == (tmp_path / "mine.pt", tmp_path)
    assert found.info == {"model_cfg": open_clip.get_model_config("ViT-B-32-quickgelu"), "preprocess_cfg": None}


def test_of_a_wrong_name_the_nearest_are_told() -> None:
    with pytest.raises(InputError, match=r"no model 'ViT-B-33'\. Near: ViT-B-32, [^,]+, [^,]+\.$"):
        load_foreign("openclip:ViT-B-33/openai")
    assert open_clip.list_pretrained_tags_by_model("convnext_tiny") == []
    with pytest.raises(InputError, match=r"weights 'x'.*convnext_tiny, .*none"):
        registered("convnext_tiny/x")
    tags = open_clip.list_pretrained_tags_by_model("ViT-L-14-336")
    with pytest.raises(InputError, match=rf"weights 'x'.*ViT-L-14-336, .*{', '.join(tags)}"):
        registered("ViT-L-14-336/x")


def test_weights_that_only_an_address_leads_to_have_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda *_: {"url": "https://example.org/w.pt"})

    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("open_clip.download_pretrained", unreachable)
    wanted = plan("openclip:ViT-B-32/x", "clip")
    assert (wanted.size, wanted.folders) == (None, ())
    with pytest.raises(HubError, match=r"downloaded.*https://example\.org/w\.pt.*host\)"):
        wanted.fetch()


def test_without_open_clip_its_models_are_refused_and_none_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dict(all_models()).keys() == set(open_clip.list_models())
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert all_models() == []
    with pytest.raises(MissingPackageError, match="open_clip_torch"):
        plan("openclip:ViT-B-32/openai", "clip")
