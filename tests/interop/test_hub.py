"""Downloads: huggingface_hub speaks with a small hub on this machine; open_clip's registry is read as it is."""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import open_clip
import pytest

from vlm.interop.hub import downloads as hub
from vlm.interop.loading import load_foreign

REPOS = {  # (name, revision) -> its files
    ("org/model", "main"): {
        "README.md": b"about",
        "config.json": b"{}",
        "model.safetensors": b"safe weights",
        "notes.pdf": b"for people",
        "pytorch_model.bin": b"pickled weights",
        "deep/model.safetensors": b"of another layout",
    },
    ("org/model", "v1"): {"config.json": b'{"first": 1}', "pytorch_model.bin": b"old weights"},
    ("timm/vit_base_patch32_clip_224.openai", "main"): {"open_clip_model.safetensors": b"of OpenAI"},
    ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "main"): {"open_clip_model.safetensors": b"of LAION"},
    ("timm/ViT-B-16-SigLIP", "main"): {
        "open_clip_model.safetensors": b"of Google",
        "tokenizer.json": b"{}",
        "empty.txt": b"",
    },
}


def commit(repo: str, revision: str) -> str:
    return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs."""

    def do_HEAD(self) -> None:
        url = urlparse(self.path)
        path = unquote(url.path).strip("/").removeprefix("api/models/")
        for (repo, revision), files in REPOS.items():
            sha = commit(repo, revision)
            listing = [{"type": "file", "path": n, "size": len(d), "oid": commit(n, "")} for n, d in files.items()]
            siblings = [
                {"rfilename": n, **({"size": len(d)} if "blobs" in url.query else {})} for n, d in files.items()
            ]
            info = {"id": repo, "modelId": repo, "sha": sha, "siblings": siblings}
            answers: dict[str, Any] = {f"{repo}/revision/{revision}": info}
            answers |= {repo: info} if revision == "main" else {}
            for name in (revision, sha):
                answers[f"{repo}/tree/{name}"] = listing
                answers |= {f"{repo}/resolve/{name}/{file}": data for file, data in files.items()}
            if path in answers:
                answer = answers[path]
                return self._send(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), sha)
        return self._send(404, b"{}", "", RepoNotFound="RepoNotFound")

    do_GET = do_HEAD

    def _send(self, code: int, data: bytes, sha: str, **more: str) -> None:
        self.send_response(code)
        headers = {"Content-Length": str(len(data)), "ETag": f'"{commit(data.decode(), "")}"', "X-Repo-Commit": sha}
        for name, value in (headers | ({"X-Error-Code": more["RepoNotFound"]} if more else {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The cache; all is fetched from a hub here."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        reached_at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        yield tmp_path
        server.shutdown()
        thread.join()


def reached_at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("place")
def test_one_form_of_the_weights_comes_with_the_small_files_and_is_found_again_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = REPOS["org/model", "main"]
    folder = hub.fetch("org/model")
    assert files_in(folder) == {name: files[name] for name in ("README.md", "config.json", "model.safetensors")}
    old = hub.fetch("org/model@v1")
    assert files_in(old) == REPOS["org/model", "v1"]
    reached_at(monkeypatch, "http://127.0.0.1:9")  # nobody answers
    assert (hub.fetch("org/model"), hub.fetch("org/model@v1")) == (folder, old)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert (hub.fetch("org/model"), hub.fetch("org/model@v1")) == (folder, old)
    with pytest.raises(ValueError, match=r"^The hub cannot be reached, and org/model is not in the cache\. Go online"):
        hub.fetch("org/model@v2")


@pytest.mark.usefixtures("place")
def test_a_repository_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^The hub has no org/none@v3 for you \(404 .*\)\. Is the name right"):
        hub.fetch("org/none@v3")
    for name in ("org", "org/model@", "../../etc", "org/model@v1@v2", ""):
        with pytest.raises(ValueError, match=f"^'{name}' is no hub name; wanted hf:org/name, or hf:org/name@revision"):
            load_foreign(f"hf:{name}")
    with pytest.raises(ValueError, match=r"^The hub does not answer for org/none \(404 .*\)\. Is this machine on"):
        hub.about("hf:org/none")
    reached_at(monkeypatch, "http://127.0.0.1:9")  # nobody answers
    with pytest.raises(ValueError, match=r"^The hub does not answer for org/model \(.*refused\)\. Is this machine onl"):
        hub.about("hf:org/model")


@pytest.mark.parametrize(
    "source",
    ["hf:org/model", "hf:org/model@v1", "openclip:ViT-B-32/openai", "openclip:ViT-B-16-SigLIP/webli"],
)
def test_what_a_download_brings_is_as_large_and_lies_where_was_told_before(place: Path, source: str) -> None:
    about = hub.about(source)
    assert about.folder is not None
    assert about.folder.parent == place
    assert not about.folder.exists()
    hub.bring(source)
    (snapshot,) = (about.folder / "snapshots").iterdir()
    assert about.size == sum(map(len, files_in(snapshot).values())) > 0


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("ViT-B-32/laion2b_s34b_b79k", b"of LAION"),
        ("ViT-B-32/openai", b"of OpenAI"),  # ViT-B-32 says GELU, these weights were trained with QuickGELU
        ("ViT-B-16-SigLIP/webli", b"of Google"),
    ],
)
def test_openclips_registry_says_what_its_weights_were_trained_with(name: str, weights: bytes) -> None:
    known: Any = open_clip.get_pretrained_cfg(*name.split("/"))
    config: Any = open_clip.get_model_config(name.split("/")[0])
    found = hub.openclip(name)
    assert found.weights.read_bytes() == weights
    assert found.preprocess == {name: known[name] for name in ("mean", "std", "interpolation", "resize_mode")}
    if weights == b"of Google":
        assert found.model == config
        assert found.tokenizer is not None
        assert (found.tokenizer / "tokenizer.json").read_bytes() == b"{}"
    else:
        assert found.model == config | {"quick_gelu": known.get("quick_gelu", False)}
        assert found.tokenizer is None


def test_weights_at_hand_need_only_the_name_of_their_model(tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(b"")
    found = hub.openclip(f"ViT-B-32-quickgelu/{tmp_path / 'mine.pt'}")
    assert (found.weights, found.tokenizer, found.preprocess) == (tmp_path / "mine.pt", tmp_path, None)
    assert found.model == open_clip.get_model_config("ViT-B-32-quickgelu")


def test_of_a_wrong_name_the_nearest_three_are_told() -> None:
    with pytest.raises(ValueError, match=r"^OpenCLIP has no model 'ViT-B-33'\. Near: ViT-B-32, [^,]+, [^,]+\.$"):
        load_foreign("openclip:ViT-B-33/openai")
    first = ", ".join(open_clip.list_models()[:3])
    with pytest.raises(ValueError, match=rf"^OpenCLIP has no model '\?'\. Near: {first}\.$"):
        hub.openclip("?/openai")
    assert open_clip.list_pretrained_tags_by_model("convnext_tiny") == []
    with pytest.raises(ValueError, match=r"^OpenCLIP has no weights 'x' for convnext_tiny, .* Known: none\.$"):
        hub.openclip("convnext_tiny/x")
    tags = open_clip.list_pretrained_tags_by_model("ViT-L-14-336")
    with pytest.raises(ValueError, match=rf"no weights 'x' for ViT-L-14-336, .* Known: {', '.join(tags)}\.$"):
        hub.openclip("ViT-L-14-336/x")
    with pytest.raises(ValueError, match=r"^OpenCLIP has no weights 'x' for 'ViT-B-32'\. Wanted openclip:NAME/TAG\.$"):
        hub.about("openclip:ViT-B-32/x")


def test_weights_that_only_an_address_leads_to_have_no_size_and_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda *_: {"url": "https://example.org/w.pt"})
    assert hub.about("openclip:ViT-B-32/x") == hub.About(None, None)


def test_without_open_clip_its_models_are_refused_and_none_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dict(hub.openclip_models()).keys() == set(open_clip.list_models())
    assert dict(hub.openclip_models())["ViT-B-32"] == open_clip.get_model_config("ViT-B-32")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert hub.openclip_models() == []
    for ask in (hub.openclip, hub.about):
        with pytest.raises(ValueError, match=r"need OpenCLIP's registry\. Run: pip install open_clip_torch$"):
            ask("openclip:ViT-B-32/openai")


def test_offline_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="hub cannot be reached, and nobody/nothing is not in the cache"):
        load_foreign("hf:nobody/nothing")


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["pytorch_model.bin", "model.safetensors", "config.json"], ["model.safetensors"]),
        (["open_clip_pytorch_model.bin", "other.safetensors"], ["open_clip_pytorch_model.bin"]),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "pytorch_model-00001-of-00001.bin",
            ],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            ["model-1-of-2.json", "pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin"],
            ["pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin"],
        ),
        (["deep/a.safetensors", "b.safetensors", "c.safetensors"], ["b.safetensors"]),
        (["README.md"], []),
    ],
)
def test_of_a_repository_one_form_of_the_weights_is_taken(there: list[str], taken: list[str]) -> None:
    assert hub._weights(there) == taken  # pyright: ignore[reportPrivateUsage]


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("open_clip.download_pretrained", unreachable)
    with pytest.raises(ValueError, match=r"^The weights of .* cannot be downloaded \(no route.*not in the cache\.$"):
        load_foreign("openclip:ViT-B-32/laion2b_s34b_b79k")
