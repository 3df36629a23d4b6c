"""A Hugging Face hub on 127.0.0.1 for the real huggingface_hub: files, commits, ranges, redirects, and troubles."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

import pytest

Trouble = Literal[
    "gated", "private", "expired token", "too many requests", "server error", "unavailable", "torn", "silent",
    "no commit header", "wrong endpoint", "disabled",
]  # fmt: skip


class FakeHub:
    """Repositories by (name, revision), and what goes wrong."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], dict[str, bytes]] = {}
        self.trouble: Trouble | None = None
        self.redirect: Literal["relative", "absolute"] | None = None
        self.requests: list[str] = []  # "GET /path"
        self.sent = 0  # bytes of files
        self.closing = threading.Event()
        self.address = ""

    def add(self, name: str, files: dict[str, bytes], revision: str = "main") -> None:
        self.repositories[name, revision] = files

    def add_folder(self, name: str, folder: Path, revision: str = "main") -> None:
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.add(name, files, revision)

    def commit(self, name: str, revision: str) -> str:
        listing = "".join(f"{file}:{_sha(data)}" for file, data in sorted(self.repositories[name, revision].items()))
        return _sha(f"{name}@{revision}{listing}".encode())[:40]

    def downloads(self) -> list[str]:
        """The files that were fetched, in order."""
        return [
            match[1] for request in self.requests if (match := re.fullmatch(r"GET /.+/resolve/[^/]+/(.+)", request))
        ]


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_HEAD(self) -> None:
        hub, url = self.hub, urlparse(self.path)
        path = unquote(url.path).strip("/")
        hub.requests.append(f"{self.command} /{path}")
        if hub.trouble == "silent":
            hub.closing.wait(60)
            self.close_connection = True
            return None
        if (refusal := self._refusal()) is not None:
            return refusal
        if path.startswith("api/models/"):
            return self._info(path.removeprefix("api/models/"), blobs="blobs" in url.query)
        if (match := re.fullmatch(r"moved/(.+)/resolve/([^/]+)/(.+)", path)) is not None:
            return self._file(*match.groups(), moved=True)
        if (match := re.fullmatch(r"(.+)/resolve/([^/]+)/(.+)", path)) is not None:
            return self._file(*match.groups(), moved=False)
        return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_GET = do_HEAD

    def _refusal(self) -> Any:
        token = self.headers.get("Authorization")
        match self.hub.trouble:
            case "gated":
                return self._answer(403 if token else 401, b"{}", {"X-Error-Code": "GatedRepo"}) or True
            case "private":
                return self._answer(401 if token is None else 404, b"{}", {"X-Error-Code": "RepoNotFound"}) or True
            case "expired token" if token:
                said = {"X-Error-Message": "Invalid credentials in Authorization header"}
                return self._answer(401, b'{"error": "Invalid credentials in Authorization header"}', said) or True
            case "too many requests":
                return self._answer(429, b"{}", {}) or True
            case "server error":
                return self._answer(500, b"{}", {}) or True
            case "unavailable":
                return self._answer(503, b"{}", {}) or True
            case "wrong endpoint":
                return self._answer(200, b"<html>Welcome</html>", {"Content-Type": "text/html"}) or True
            case _:
                return None

    def _info(self, path: str, *, blobs: bool) -> None:
        name, _, revision = path.partition("/revision/")
        for (known, branch), files in self.hub.repositories.items():
            sha = self.hub.commit(known, branch)
            if known == name and revision in ("", branch, sha):
                siblings = [{"rfilename": n, **({"size": len(d)} if blobs else {})} for n, d in files.items()]
                info = {"id": name, "modelId": name, "sha": sha, "siblings": siblings, "tags": [], "private": False}
                return self._answer(200, json.dumps(info).encode(), {"X-Repo-Commit": sha})
        known = any(name == repository for repository, _ in self.hub.repositories)
        return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})

    def _file(self, name: str, revision: str, file: str, *, moved: bool) -> None:
        for (known, branch), files in self.hub.repositories.items():
            sha = self.hub.commit(known, branch)
            if known == name and revision in (branch, sha):
                if file not in files:
                    return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
                data = files[file]
                headers = {"ETag": f'"{_sha(data)}"', "Accept-Ranges": "bytes"}
                if self.hub.trouble != "no commit header":
                    headers["X-Repo-Commit"] = sha
                if self.hub.redirect and not moved:
                    place = f"/moved/{name}/resolve/{revision}/{file}"
                    target = place if self.hub.redirect == "relative" else self.hub.address + place
                    linked = {"Location": target, "X-Linked-Size": str(len(data)), "X-Linked-Etag": headers["ETag"]}
                    return self._answer(302, b"", headers | linked)
                return self._data(data, headers)
        known = any(name == repository for repository, _ in self.hub.repositories)
        return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})

    def _data(self, data: bytes, headers: dict[str, str]) -> None:
        start = 0
        if (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")) is not None:
            start = int(asked[1])
            headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        part = data[start:]
        if self.command == "GET":
            self.hub.sent += len(part)
        torn = self.hub.trouble == "torn" and self.command == "GET" and len(data) > 1000
        self._answer(206 if start else 200, part, headers, cut=len(part) // 2 if torn else None)

    def _answer(self, code: int, data: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub answers, in this process and in those it starts; all that is fetched goes below `cache`."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        hub.address = f"http://127.0.0.1:{server.server_port}"
        reach(hub.address, cache, monkeypatch)
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()
            thread.join()


def reach(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub, here and in processes started from here, asks `address` and keeps its files below `cache`."""
    import huggingface_hub.utils

    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name, value in (
        ("HF_ENDPOINT", address), ("HF_HOME", str(cache)), ("HF_HUB_CACHE", str(cache / "hub")),
        ("XDG_CACHE_HOME", str(cache / "own")), ("HF_HUB_DISABLE_XET", "1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    huggingface_hub.utils.close_session()  # connections to an earlier hub


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub of its own for one test; the cache is tmp_path / "cache"."""
    with serving(tmp_path / "cache", monkeypatch) as hub:
        yield hub
