"""Forms as clients send them, and what is no form."""

import io
import urllib.parse
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.serving import base64_of, png
from vlm.errors import InputError
from vlm.serving.api_types import UploadedImage
from vlm.serving.form_data import parse_form


def form(*parts: tuple[str, bytes]) -> tuple[bytes, str]:
    """Header lines and data of each part -> body and content type."""
    file = io.BytesIO()
    for headers, data in parts:
        file.write(b"--line\r\n" + headers.encode() + b"\r\n\r\n" + data + b"\r\n")
    return file.getvalue() + b"--line--\r\n", "multipart/form-data; boundary=line"


def disposition(rest: str) -> str:
    return f"Content-Disposition: form-data; {rest}"


@pytest.mark.parametrize(
    ("rest", "name"),
    [
        ('name="images"; filename="a.png"', "a.png"),
        ('name="images"; filename="犬.png"', "犬.png"),
        ("name=\"images\"; filename*=UTF-8''a.png", "a.png"),  # RFC 5987: the only name that some clients send
        (f"name=\"images\"; filename*=utf-8'ja'{urllib.parse.quote('犬.png')}", "犬.png"),
        ('name="images"; filename=""', ""),
        ("name=images; filename=a.png", "a.png"),
    ],
)
def test_a_part_with_a_file_name_of_either_kind_is_a_file(rest: str, name: str):
    data = b"\r\n--lin\r\n\x00\xff" * 3
    ((field, file),) = parse_form(*form((disposition(rest), data)))
    assert (field, file) == ("images", UploadedImage(data, name))


def test_texts_and_files_keep_their_order():
    parts = [("labels", "犬"), ("labels", "a cat"), ("k", "2")]
    body, kind = form(*((disposition(f'name="{name}"'), text.encode()) for name, text in parts))
    assert parse_form(body, kind) == parts
    assert parse_form(body, 'Multipart/Form-Data; charset=utf-8; boundary="line"') == parts


@pytest.mark.parametrize("text", ["犬".encode("shift_jis"), "犬".encode("euc_jp"), b"\xff", "é".encode("latin-1")])
def test_a_text_that_is_not_utf_8_is_refused(text: bytes, client: TestClient):
    """As a label it got 98 %."""
    body, kind = form((disposition('name="labels"'), text), (disposition('name="images"; filename="a.png"'), png()))
    with pytest.raises(InputError, match=r"labels.*UTF-8"):
        parse_form(body, kind)
    answer = client.post("/classify", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400 and "UTF-8" in answer.json()["error"]


BROKEN: Sequence[tuple[bytes, str]] = [
    (b"", "multipart/form-data; boundary=line"),
    (b"x", "multipart/form-data"),
    (b"x", "multipart/form-data; boundary=line"),
    (form((disposition('name="a"'), b"1"))[0][:-4], "multipart/form-data; boundary=line"),
    (form((disposition('name="a"'), b"1"))[0][:30], "multipart/form-data; boundary=line"),
    form(("Content-Type: text/plain", b"1")),
    form((disposition("filename=a.png"), b"1")),
    form((disposition('name="text"'), b"x" * (2**20 + 1))),
]


@pytest.mark.parametrize(("body", "kind"), BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_form_is_one_line(body: bytes, kind: str, client: TestClient):
    with pytest.raises(InputError):
        parse_form(body, kind)
    answer = client.post("/embed", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, [*answer.json()]) == (400, ["error"])


@pytest.mark.parametrize(
    "sent",
    [
        base64_of(png()),
        "\n".join(base64_of(png())[at : at + 76] for at in range(0, 10_000, 76)),  # RFC 2045
        "\r\n " + base64_of(png())[:8] + "\t" + base64_of(png())[8:],
        "data:image/png;base64," + base64_of(png()),
    ],
    ids=["plain", "lines", "spaces", "address"],
)
def test_base64_may_be_broken_into_lines_in_json_and_in_a_form(sent: str, client: TestClient):
    requests: list[dict[str, Any]] = [
        {"json": {"images": [sent]}},
        {"data": {"images": [sent]}, "files": {"images": ("a.png", png())}},
    ]
    for request in requests:
        answer = client.post("/embed", **request)
        assert answer.status_code == 200, answer.text
        assert (
            answer.json()["images"][0] == client.post("/embed", json={"images": [base64_of(png())]}).json()["images"][0]
        )
