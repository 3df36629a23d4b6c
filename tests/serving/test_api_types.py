"""What a request may hold: exactly at each limit of docs/server.md, one beyond it, and in what words it is refused."""

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vlm.errors import InputError
from vlm.index.embedding_index import EmbeddingIndex
from vlm.serving.api_types import ClassifyRequest, EmbedRequest, RequestBody, SearchRequest, SearchTerm, UploadedImage

FILE = b"an image's bytes"
BASE64 = base64.b64encode(FILE).decode()


def accepts(model: type[RequestBody], fields: dict[str, Any]) -> bool:
    try:
        model.model_validate(fields, strict=True)
    except ValidationError:
        return False
    return True


CLASSIFY = {"images": [BASE64], "labels": ["犬"]}


@pytest.mark.parametrize(
    ("model", "others", "field", "most", "of"),
    [
        (SearchRequest, {}, "text", 10_000, "x"),
        (SearchRequest, {}, "terms", 20, [{"text": "x"}]),
        (SearchRequest, {"text": "x"}, "k", 1_000, 1),
        (SearchRequest, {"text": "x"}, "glob", 1_000, "x"),
        (SearchRequest, {"text": "x"}, "since", 1_000, "2"),
        (SearchRequest, {"text": "x"}, "until", 1_000, "2"),
        (SearchTerm, {}, "text", 10_000, "x"),
        (ClassifyRequest, CLASSIFY, "images", 32, [BASE64]),
        (ClassifyRequest, CLASSIFY, "labels", 1_000, ["x"]),
        (ClassifyRequest, CLASSIFY, "templates", 100, ["{}"]),
        (ClassifyRequest, CLASSIFY, "k", 1_000, 1),
        (EmbedRequest, {"texts": ["x"]}, "images", 32, [BASE64]),
        (EmbedRequest, {"images": [BASE64]}, "texts", 1_000, ["x"]),
    ],
)
def test_the_most_is_taken_and_one_more_is_not(
    model: type[RequestBody], others: dict[str, Any], field: str, most: int, of: Any
):
    assert accepts(model, {**others, field: of})
    assert accepts(model, {**others, field: of * most})
    assert not accepts(model, {**others, field: of * (most + 1)})
    least = 0 if field in ("images", "texts") and model is EmbedRequest else 1
    assert accepts(model, {**others, field: of * 0}) == (least == 0)


@pytest.mark.parametrize(("field", "of"), [("labels", "x"), ("templates", "x")])
def test_a_label_has_a_thousand_characters_at_most(field: str, of: str):
    assert accepts(ClassifyRequest, {**CLASSIFY, field: [of, of * 1_000]})
    assert not accepts(ClassifyRequest, {**CLASSIFY, field: [of, of * 1_001]})
    assert not accepts(ClassifyRequest, {**CLASSIFY, field: [of, ""]})
    assert not accepts(ClassifyRequest, {**CLASSIFY, field: [of, "a\0b"]})


def test_the_numbers_are_those_of_the_documents():
    text = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    table = text.split("## Limits")[1].split("| requests at once")[0]
    assert re.findall(r"\d[\d,]*", table) == [
        *("32", "32", "1,000", "1,000", "10,000"),  # MiB, images, texts, labels, labels x templates
        *("40", "10,000", "1,000", "1,000"),  # megapixels, characters of a text and of a label, k
    ]


@pytest.mark.parametrize("side", [0, 1, 2**31 - 1, 2**31])
def test_a_side_is_one_that_the_index_takes(index: EmbeddingIndex, side: int):
    if accepts(SearchRequest, {"text": "x", "min_side": side}):
        assert index.search("x", min_side=side) == []
    else:
        with pytest.raises(InputError, match="min_side"):
            index.search("x", min_side=side)


@pytest.mark.parametrize(
    ("weight", "accepted"),
    [(-100, True), (100.0, True), (-100.1, False), (100.1, False), (float("nan"), False), (float("inf"), False)],
)
def test_a_weight_is_between_minus_and_plus_100(weight: float, accepted: bool):
    assert accepts(SearchTerm, {"text": "x", "weight": weight}) == accepted


def test_what_is_left_out_has_its_default():
    asked = SearchRequest.model_validate({"terms": [{"text": "x"}, {"image": BASE64, "weight": -2}]})
    assert asked.terms is not None
    assert [(t.text, t.image, t.weight) for t in asked.terms] == [("x", None, 1), (None, UploadedImage(FILE), -2)]
    assert asked.model_dump(exclude={"terms", "k"}) == dict.fromkeys(
        ("text", "image", "glob", "since", "until", "min_side")
    )
    assert ClassifyRequest.model_validate(CLASSIFY).model_dump(exclude={"images", "labels"}) == {
        "templates": None,
        "k": None,
    }


@pytest.mark.parametrize("model", [SearchRequest, ClassifyRequest, EmbedRequest])
def test_the_examples_that_are_shown_can_be_sent(model: type[RequestBody]):
    examples: Any = model.model_json_schema()["examples"]
    for example in examples:  # but for the dots where an image is cut short
        model.model_validate({k: [BASE64] if k == "images" else v for k, v in example.items()}, strict=True)


def test_images_come_as_base64_also_in_a_data_address():
    for sent in (BASE64, f"data:image/png;base64,{BASE64}", UploadedImage(FILE)):
        assert EmbedRequest.model_validate({"images": [sent]}).images == [UploadedImage(FILE)]
    assert EmbedRequest.model_validate({"images": [UploadedImage(FILE, "a.png")]}).images[0].name == "a.png"


NOTHING = "wanted exactly one of text, image and terms, got "


@pytest.mark.parametrize(
    ("model", "fields", "place", "line"),
    [
        (SearchRequest, {}, (), NOTHING + "none"),
        (SearchRequest, {"text": "x", "image": BASE64}, (), NOTHING + "text and image"),
        (SearchRequest, {"text": "x", "terms": [{"text": "x"}]}, (), NOTHING + "text and terms"),
        (
            SearchRequest,
            {"text": "x", "image": BASE64, "terms": [{"text": "x"}]},
            (),
            NOTHING + "text and image and terms",
        ),
        (SearchRequest, {"text": "x", "min_side": 0}, ("min_side",), "Input should be greater than or equal to 1"),
        (SearchRequest, {"text": "x", "k": 0}, ("k",), "Input should be greater than or equal to 1"),
        (SearchRequest, {"text": "x", "size": 3}, ("size",), "Extra inputs are not permitted"),
        (SearchRequest, {"terms": [{"text": "x"}, {}]}, ("terms", 1), "a term is either a text or an image"),
        (
            SearchRequest,
            {"terms": [{"text": "x", "image": BASE64}]},
            ("terms", 0),
            "a term is either a text or an image",
        ),
        (EmbedRequest, {"texts": [], "images": []}, (), "there is nothing to embed; give texts or images"),
        (
            EmbedRequest,
            {"texts": ["x", "a\0b"]},
            ("texts", 1),
            "the text contains a NUL, which no text does; take it out",
        ),
        (
            EmbedRequest,
            {"images": [BASE64, 5]},
            ("images", 1),
            "an image is its file's bytes in base64, got int",
        ),
        (
            EmbedRequest,
            {"images": ["/etc/passwd"]},
            ("images", 0),
            "an image is its file's bytes in base64, not a path or an address; this is none",
        ),
        (
            EmbedRequest,
            {"images": ["my.image.png"]},
            ("images", 0),
            "an image is its file's bytes in base64, not a path or an address; this is none",
        ),
        (
            EmbedRequest,
            {"images": ["犬"]},
            ("images", 0),
            "an image is its file's bytes in base64, not a path or an address; this is none",
        ),
    ],
)
def test_what_is_wrong_is_said_where_it_is(
    model: type[RequestBody], fields: dict[str, Any], place: tuple[str | int, ...], line: str
):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(fields)
    (error,) = caught.value.errors()
    assert (error["loc"], error["msg"].removeprefix("Value error, ")) == (place, line)
