"""The description of the server: its page, its OpenAPI, the examples in the documents."""

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from serving import png
from starlette.testclient import TestClient

ROOT = Path(__file__).parent.parent


def test_the_page_needs_no_other_host_and_no_script(client: TestClient):
    answer = client.get("/")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not re.findall(r"<script|<link|src=|url\(|@import|https?://", answer.text)
    for words in ("POST /search", "POST /classify", "POST /embed", "GET /health", "min_side", "probability"):
        assert words in answer.text


def test_the_openapi_description_is_whole(client: TestClient):
    schema = client.get("/openapi.json").json()
    assert sorted(schema["paths"]) == ["/classify", "/embed", "/health", "/search"]
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema)))
    assert named <= set(schema["components"]["schemas"])
    assert {"SearchAsked", "TermAsked", "SearchHit", "Problem"} <= named


@pytest.mark.parametrize("page", ["server.md", "server.ja.md"])
def test_the_curl_examples_of_the_documents_are_answered(
    page: str, client: TestClient, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(picture_folder)
    for name in ("dog.png", "cat.png"):
        Path(name).write_bytes(png(1))
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("curl ")]
    assert {path_of(words) for words in commands} == {"/search", "/classify", "/embed", "/health"}
    for words in commands:
        answer = client.request(**as_request(words))
        assert answer.status_code == 200, (words, answer.text)


def path_of(words: list[str]) -> str:
    return next(word for word in words if word.startswith("http")).removeprefix("http://127.0.0.1:8000")


def as_request(words: list[str]) -> dict[str, Any]:
    """What curl would send."""
    pairs = list(itertools.pairwise(words))
    headers = dict(given.split(": ", 1) for option, given in pairs if option == "-H")
    body = next((given for option, given in pairs if option == "-d"), None)
    fields = [given.split("=", 1) for option, given in pairs if option == "-F"]
    files = [(name, (value[1:], Path(value[1:]).read_bytes())) for name, value in fields if value.startswith("@")]
    data: dict[str, list[str]] = {}
    for name, value in fields:
        if not value.startswith("@"):
            data.setdefault(name, []).append(value)
    method = "POST" if body or fields else "GET"
    request: dict[str, Any] = {"method": method, "url": path_of(words), "headers": headers}
    return request | ({"content": body} if body else {}) | ({"files": files, "data": data} if fields else {})
