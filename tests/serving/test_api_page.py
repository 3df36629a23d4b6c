"""The description of the server: its page, its OpenAPI, the examples in the documents."""

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.serving import png
from vlm.serving.api_page import api_page

ROOT = Path(__file__).parents[2]


def test_the_page_needs_no_other_host_and_no_script(client: TestClient):
    answer = client.get("/")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not re.findall(r"<script|<link|src=|url\(|@import|https?://", answer.text)
    for words in ("POST /search", "POST /classify", "POST /embed", "GET /health", "min_side", "probability"):
        assert words in answer.text


def test_the_openapi_description_is_whole(client: TestClient):
    schema = client.get("/openapi.json").json()
    assert sorted(schema["paths"]) == ["/classify", "/embed", "/health", "/ready", "/search"]
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema)))
    assert named <= set(schema["components"]["schemas"])
    assert {"SearchRequest", "SearchTerm", "SearchHit", "Problem"} <= named


def test_every_body_may_be_json_or_a_form_and_is_described(client: TestClient):
    schema = client.get("/openapi.json").json()
    for path, model in (("/search", "SearchRequest"), ("/classify", "ClassifyRequest"), ("/embed", "EmbedRequest")):
        body = schema["paths"][path]["post"]["requestBody"]
        wanted = {"schema": {"$ref": f"#/components/schemas/{model}"}}
        assert body == {"required": True, "content": dict.fromkeys(("application/json", "multipart/form-data"), wanted)}
    page = client.get("/").text
    asked = page[page.index("<h2>POST /search") : page.index("<h2>POST /classify")]
    assert "<tr><td><code>k</code></td><td>integer, 1 to 1000, default 10</td><td>how many</td></tr>" in asked
    assert "<h3>Send (application/json or multipart/form-data)</h3>" in asked
    assert asked.count("<pre>curl") == 2
    assert client.get("/openapi.json").json() == schema  # described twice, the same


def test_a_page_says_all_that_a_description_holds():
    thing = {
        "properties": {
            "name": {"type": "string", "description": "a <b> & c"},
            "side": {"anyOf": [{"type": "integer", "minimum": 3}, {"type": "null"}], "description": "of it"},
            "few": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "maxItems": 7},
            "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Part"}, "default": None},
            "level": {"type": "number", "default": 0},
        },
        "examples": [{"name": "<赤>"}, {"side": 4}],
    }
    found: dict[str, Any] = {"schema": {"type": "array", "items": {"$ref": "#/components/schemas/Part"}}}
    one: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/Part"}}
    send = {"requestBody": {"content": {"text/a": {"schema": {"$ref": "#/components/schemas/Thing"}}, "text/b": {}}}}
    page = api_page(
        {
            "info": {"title": "T<i>", "description": "D&d"},
            "paths": {
                "/a<b": {"post": {"summary": "S&s", "description": "Long <text>", "responses": answers(found), **send}},
                "/b": {
                    "get": {"summary": "Short", "responses": answers(one)},
                    "put": {"summary": "P", "responses": {}},
                },
            },
            "components": {
                "schemas": {"Thing": thing, "Part": {"properties": {"x": {"type": "boolean"}}}, "Other": {}},
            },
        }
    )
    assert "<title>T&lt;i&gt;</title>" in page
    assert "<h1>T&lt;i&gt;</h1><p>D&amp;d</p>" in page
    part = "<table><tr><td><code>x</code></td><td>boolean</td><td></td></tr></table>"
    rows = [
        ("name", "string", "a &lt;b&gt; &amp; c"),
        ("side", "integer, from 3", "of it"),
        ("few", "list of integer, 1 to 9, at most 7", ""),
        ("parts", "list of object", ""),
        ("level", "number, default 0", ""),
    ]
    table = "".join(f"<tr><td><code>{a}</code></td><td>{b}</td><td>{c}</td></tr>" for a, b, c in rows)
    examples = "{&quot;name&quot;: &quot;&lt;赤&gt;&quot;}", "{&quot;side&quot;: 4}"
    sent = [f"<pre>curl -H 'Content-Type: application/json' -d '{body}' …/a&lt;b</pre>" for body in examples]
    wanted = [
        "<h2>POST /a&lt;b <small>S&amp;s</small></h2>",
        "<p>Long &lt;text&gt;</p>",
        f"<h3>Send (text/a or text/b)</h3><table>{table}</table>",
        *sent,
        f"<h3>Get</h3><p>A list of</p>{part}",
        "<h2>GET /b <small>Short</small></h2>",
        "<p></p>",
        f"<h3>Get</h3><p>One object with</p>{part}",
        "<h2>PUT /b <small>P</small></h2>",
        "<p></p>",
    ]
    body = page[page.index("<h2>") : page.index("</body>")].strip()
    assert body.splitlines() == wanted


def answers(found: dict[str, Any]) -> dict[str, Any]:
    return {"200": {"content": {"application/json": found}}, "400": {}}


@pytest.mark.parametrize("page", ["server.md", "server.ja.md"])
def test_the_curl_examples_of_the_documents_are_answered(
    page: str, client: TestClient, image_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(image_folder)
    for name in ("dog.png", "cat.png"):
        Path(name).write_bytes(png(1))
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("curl ")]
    assert {path_of(words) for words in commands} == {"/search", "/classify", "/embed", "/health", "/ready"}
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
