"""Names, origins and proxies; uploads of ended processes; calls that are refused before the queue."""

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.support.demo_pages import DOG
from vlm.demo.actions import PageActions
from vlm.demo.app import build
from vlm.demo.server.calls import MAX_BODY, CallGuard
from vlm.demo.server.security import RequestGuard, allowed_hosts, host_name, is_loopback
from vlm.demo.server.uploads import delete_stale_folders, private_upload_folder

OWN = allowed_hosts("127.0.0.1", ())


async def _echo(request: Request) -> JSONResponse:
    """The client and scheme that the application sees, and the body."""
    client = None if request.client is None else request.client.host
    forwarded = [name for name in request.headers if name.startswith("x-forwarded-")]
    body = (await request.body()).decode()
    return JSONResponse({"client": client, "scheme": request.url.scheme, "forwarded": forwarded, "body": body})


def guarded(hosts: frozenset[str] | None = OWN, proxies: Sequence[str] = (), peer: str = "127.0.0.1") -> TestClient:
    app = Starlette(routes=[Route("/{path:path}", _echo, methods=["GET", "POST", "OPTIONS"])])
    return TestClient(RequestGuard(app, hosts=hosts, proxies=proxies), client=(peer, 5))


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("[::1]", True), ("127.9.9.9", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.2", False), ("my-machine", False), ("", False)],
)  # fmt: skip
def test_only_loopback_addresses_are_of_this_machine_alone(host: str, alone: bool) -> None:
    assert is_loopback(host) == alone


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7860", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:7860", 200),
        ("evil.example", 403),
        ("evil.example:7860", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.nip.io:7860", 403),
        ("127.0.0.2:7860", 403),
        ("evil@localhost", 200),
        ("localhost@evil.example", 403),
        ("", 403),
        ("[", 403),
    ],
)
def test_a_server_of_this_machine_answers_to_names_of_this_machine_only(host: str, status: int) -> None:
    assert guarded().get("/config", headers={"Host": host}).status_code == status


def test_the_bound_address_and_named_hosts_are_allowed_and_others_are_not() -> None:
    assert allowed_hosts("127.0.0.5", ()) == {"localhost", "127.0.0.1", "::1", "127.0.0.5"}
    assert allowed_hosts("0.0.0.0", ()) is None
    named = allowed_hosts("0.0.0.0", ("Demo.Example:443",))
    assert guarded(named).get("/", headers={"Host": "demo.example"}).status_code == 200
    assert guarded(named).get("/", headers={"Host": "other.example"}).status_code == 403
    assert guarded(None).get("/", headers={"Host": "any.example"}).status_code == 200
    assert [host_name(host) for host in ("[::1]:80", "::1", "A.b.:8", "x:y:z]")] == ["::1", "::1", "a.b", ""]


ORIGINS = [
    ({}, 200),  # a program
    ({"Origin": "http://127.0.0.1:7860"}, 200),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "http://evil.example:7860"}, 403),
    ({"Origin": "http://127.0.0.1:8080"}, 403),  # another program of this machine
    ({"Origin": "http://localhost:7860"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "file://"}, 403),
    ({"Origin": "http://["}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Sec-Fetch-Site": "same-origin"}, 200),
]


@pytest.mark.parametrize(("headers", "status"), ORIGINS)
@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
def test_changes_and_uploads_from_pages_of_other_origins_are_refused(
    headers: dict[str, str], status: int, method: str
) -> None:
    answer = guarded().request(method, "/gradio_api/upload", headers={"Host": "127.0.0.1:7860", **headers})
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_named_public_host_is_an_origin_of_the_page() -> None:
    hosts = allowed_hosts("127.0.0.1", ("demo.example",))
    headers = {"Host": "127.0.0.1:7860", "Origin": "https://demo.example"}
    assert guarded(hosts).post("/x", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "198.51.100.1, 203.0.113.7", "203.0.113.7"),  # the first may be invented by the client
        ("10.0.0.1", "203.0.113.7, 10.0.0.1", "203.0.113.7"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.9", "203.0.113.7", "10.0.0.9"),
        ("127.0.0.1", "203.0.113.7", "127.0.0.1"),
    ],
)
def test_forwarded_addresses_are_believed_of_named_proxies_only(peer: str, forwarded: str, client: str) -> None:
    headers = {"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https", "X-Forwarded-Host": "demo.example"}
    seen = guarded(None, ["10.0.0.1"], peer).get("/", headers=headers).json()
    assert seen["client"] == client
    assert seen["scheme"] == ("https" if peer == "10.0.0.1" else "http")
    assert bool(seen["forwarded"]) == (peer == "10.0.0.1")


@pytest.mark.parametrize("path", ["/gradio_api/file=http://a/b", "/gradio_api/proxy=http://a", "/FILE= https://a"])
def test_addresses_that_gradio_would_fetch_are_not_found(path: str) -> None:
    assert guarded().get(path, headers={"Host": "localhost"}).status_code == 404


# ---- calls ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calls() -> TestClient:
    app = Starlette(routes=[Route("/{path:path}", _echo, methods=["POST"])])
    return TestClient(CallGuard(app, page=build(PageActions("mini"))))  # the model is not loaded before an action


CALLS: list[tuple[str, Any, int, str]] = [
    ("classify", b"", 422, "data"),
    ("classify", b"{", 422, "data"),
    ("classify", b"[]", 422, "data"),
    ("classify", b"[" * 100_000, 422, "data"),
    ("classify", {"data": 1}, 422, "data"),
    ("classify", {"data": []}, 422, "2 to 3"),
    ("classify", {"data": [None] * 4}, 422, "2 to 3"),
    ("classify", {"data": [7, "a"]}, 422, "image"),
    ("classify", {"data": [{"path": "/etc/passwd"}, "a"]}, 422, "image"),
    ("classify", {"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "a"]}, 422, "upload"),
    ("classify", {"data": [{"path": "http://a/b", "meta": {"_type": "gradio.FileData"}}, "a"]}, 422, "upload"),
    ("classify", {"data": [{"path": str(DOG), "meta": {"_type": "gradio.FileData"}}, 7]}, 422, "labels"),
    ("similar", {"data": [None]}, 422, "key"),
    ("nothing", {"data": []}, 404, "classify"),
    ("classify", b" " * (MAX_BODY + 1), 413, "bytes"),
    ("../queue/join", {"data": [], "fn_index": 9999, "session_hash": "a"}, 422, "page"),
    ("../queue/join", {"data": [], "fn_index": 0}, 422, "page"),
    ("../queue/join", {"data": [1] * 99, "fn_index": 0, "session_hash": "a"}, 422, "99"),
    ("../queue/join", {"data": [], "fn_index": True, "session_hash": "a"}, 422, "page"),
    ("../queue/join", {"data": [], "fn_index": 1, "session_hash": "a", "trigger_id": "x"}, 422, "trigger_id"),
    ("../run/search", b"[" * 99_999, 422, "body"),
    ("../cancel", b"\xff\xfe", 422, "body"),
    ("../cancel", {"session_hash": 1, "fn_index": 0, "event_id": "a"}, 422, "session_hash"),
    ("../reset", {}, 422, "event_id"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "status", "fact"), CALLS)
def test_a_malformed_call_is_one_line_and_one_log_line(
    calls: TestClient, caplog: pytest.LogCaptureFixture, name: str, body: Any, status: int, fact: str
) -> None:
    path = f"/gradio_api/call/{name}" if not name.startswith("..") else f"/gradio_api/{name[3:]}"
    with caplog.at_level(logging.WARNING, "vlm.demo"):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = calls.post(path, content=content)
    assert answer.status_code == status
    assert fact in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert len(caplog.records) == 1
    assert len(caplog.records[0].getMessage().splitlines()) == 1


UNUSED = ["component_server", "vibe-edit/", "undo-vibe-edit/", "process_recording", "login", "stream/a", "deep_link",
          "queue/data", "mcp/", "run-history/connect", "dev/reload", "../config", "../login"]  # fmt: skip


def test_addresses_of_gradio_that_the_page_does_not_use_are_not_served(
    calls: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    for address in UNUSED:
        path = f"/{address[3:]}" if address.startswith("..") else f"/gradio_api/{address}"
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            caplog.clear()
            with caplog.at_level(logging.WARNING, "vlm.demo"):
                assert calls.request(method, path, content=b"\xff--B").status_code == 404, path
            assert len(caplog.records) == 1


def test_an_answer_that_nobody_waits_for_is_not_there(calls: TestClient) -> None:
    for address in ("call/nothing/a", "call/search/unknown", "queue/data", "queue/data?session_hash=a"):
        assert calls.get(f"/gradio_api/{address}").status_code == 404


def test_a_call_gets_the_defaults_of_the_arguments_it_leaves_out(calls: TestClient) -> None:
    answer = calls.post("/gradio_api/call/search", json={"data": ["a red apple"]})
    assert answer.status_code == 200
    assert answer.json()["body"] == '{"data": ["a red apple", null, null, "", "", "", 0]}'


# ---- uploads -------------------------------------------------------------------------------------------------------


def test_uploads_are_private_and_deleted_with_those_of_dead_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for name in ("vlm-demo-dead", "vlm-demo-alive", "vlm-demo-unlocked-by-nobody", "other"):
        (tmp_path / name).mkdir()
    for name in ("vlm-demo-dead", "vlm-demo-alive"):
        (tmp_path / name / ".lock").touch()
    (tmp_path / "vlm-demo-link").symlink_to(tmp_path / "other")
    with (tmp_path / "vlm-demo-alive" / ".lock").open() as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        with private_upload_folder() as folder:
            assert folder.parent == tmp_path
            assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
            assert folder.stat().st_mode & 0o077 == 0
            (folder / "photo.png").write_bytes(b"x")
            assert delete_stale_folders(tmp_path) == []  # its own is locked
        assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
        left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["other", "vlm-demo-alive", "vlm-demo-link", "vlm-demo-unlocked-by-nobody"]


_HOLD = """
import signal, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # a run in the background ignores some
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from vlm.demo.server.signals import cleaned_up_on_signals
from vlm.demo.server.uploads import private_upload_folder
with cleaned_up_on_signals(), private_upload_folder() as folder:
    (folder / "photo.png").write_bytes(b"x")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_uploads_are_deleted_on_every_signal_and_the_process_ends_by_it(tmp_path: Path, number: int) -> None:
    holding = subprocess.Popen(
        [sys.executable, "-c", _HOLD],
        env={**os.environ, "GRADIO_TEMP_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert holding.stdout is not None
    with holding.stdout as out:
        assert out.readline() == "ready\n"
        holding.send_signal(number)
        assert holding.wait(20) == -number
    assert list(tmp_path.iterdir()) == []
