"""Requests and answers of `vlm serve`: their fields and limits."""

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from vlm.index.query import MAX_CHARACTERS, MAX_WEIGHT

MAX_IMAGES = 32  # of one request
MAX_TEXTS = 1000
MAX_LABELS = 1000
MAX_HITS = 1000

_RENAMED = {"picture": "image", "pictures": "images"}


@dataclass(frozen=True, slots=True)
class UploadedImage:
    """An image file that came with a request."""

    data: bytes
    name: str | None = None  # given by the client; never used as a path here


def _image(value: Any) -> UploadedImage:
    if isinstance(value, UploadedImage):
        return value
    if not isinstance(value, str):
        raise ValueError(f"an image is its file's bytes in base64, got {type(value).__name__}")
    try:
        encoded = "".join(value.rpartition("base64,")[2].split())  # a data: URL and line breaks (RFC 2045) are accepted
        return UploadedImage(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ValueError("an image is its file's bytes in base64, not a path or an address; this is none") from error


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("the text contains a NUL, which no text does; take it out")
    return text


_BASE64 = WithJsonSchema({"type": "string", "contentEncoding": "base64"})
ImageField = Annotated[UploadedImage, PlainValidator(_image), _BASE64]
Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS), AfterValidator(_no_nul)]
Line = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_no_nul)]


class RequestBody(BaseModel):
    """Base of all requests: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _name_renamed_fields(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            for old in _RENAMED.keys() & cast("dict[str, Any]", fields).keys():
                raise ValueError(f"the field {old!r} is now {_RENAMED[old]!r}")
        return cast(Any, fields)


class SearchTerm(RequestBody):
    """One part of a sum."""

    text: Text | None = None
    image: ImageField | None = None
    weight: float = Field(1.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.text is None) == (self.image is None):
            raise ValueError("a term is either a text or an image")
        return self


class SearchRequest(RequestBody):
    """Exactly one of text, image and terms, and conditions like those of `vlm search`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "赤い + 車 - 人", "k": 5},
                {"terms": [{"text": "red"}, {"text": "people", "weight": -0.5}], "glob": "2024/*"},
            ]
        }
    )
    text: Text | None = Field(None, description='words, or a sum of words: "赤い + 車 - 人"')
    image: ImageField | None = Field(None, description="to find others like it")
    terms: list[SearchTerm] | None = Field(
        None, min_length=1, max_length=20, description="a sum of texts and images, each with a weight; in JSON only"
    )
    k: int = Field(10, ge=1, le=MAX_HITS, description="how many")
    glob: Line | None = Field(None, description="only paths like this, * crosses folders: 2024/*.jpg")
    since: Line | None = Field(None, description="only images taken then or later: 2024-05-01")
    until: Line | None = Field(None, description="only images taken then or earlier")
    min_side: int | None = Field(None, ge=1, le=2**31 - 1, description="only images at least so high and wide, pixels")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        given = [name for name in ("text", "image", "terms") if getattr(self, name) is not None]
        if len(given) != 1:
            came = " and ".join(given) or "none"
            raise ValueError(f"wanted exactly one of text, image and terms, got {came}")
        return self


class ClassifyRequest(RequestBody):
    """Images and the labels to choose from."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"images": ["iVBORw0KGgo..."], "labels": ["犬", "猫", "a bird"], "k": 2}]}
    )
    images: list[ImageField] = Field(min_length=1, max_length=MAX_IMAGES)
    labels: list[Line] = Field(min_length=1, max_length=MAX_LABELS, description="in any language the model reads")
    templates: list[Line] | None = Field(
        None, min_length=1, max_length=100, description="sentences with {} where the label goes; default: by language"
    )
    k: int | None = Field(None, ge=1, le=MAX_LABELS, description="labels per image, default all")


class EmbedRequest(RequestBody):
    """Texts, images or both."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["犬", "a dog"]}]})
    texts: list[Text] = Field([], max_length=MAX_TEXTS)
    images: list[ImageField] = Field([], max_length=MAX_IMAGES)

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not self.texts and not self.images:
            raise ValueError("there is nothing to embed; give texts or images")
        return self


class SearchHit(BaseModel):
    """A row of `vlm search --json`."""

    path: str
    score: float = Field(description="cosine similarity, -1 to 1")
    rank: int = Field(description="from 1")
    probability: float | None = Field(description="that this is a match; null where the model cannot say")
    taken: str = Field(description="date in EXIF, else of the file: 2024-05-01 12:00:00")


class LabelScore(BaseModel):
    """A row of `vlm classify --json`."""

    path: str = Field(description="the name of the uploaded file, or images[0], images[1] ...")
    label: str
    score: float = Field(description="probability")
    rank: int = Field(description="from 1")


class Embeddings(BaseModel):
    """Unit vectors, in the order of the request."""

    model: str
    fingerprint: str = Field(description="embeddings with different fingerprints are not comparable")
    texts: list[list[float]]
    images: list[list[float]]


class Health(BaseModel):
    """The server runs; nothing was computed."""

    status: str = Field(description="ok")
    model: str
    fingerprint: str
    embed_dim: int
    device: str


class Readiness(Health):
    """A new image has just been drawn, decoded and embedded, and the index was opened."""

    indexed: int | None = Field(description="images in the index that this model can find; null: no index")
    milliseconds: float = Field(description="to decode and embed the image, with the wait for others")


class Problem(BaseModel):
    """One line: what came, what was wanted, what to do."""

    error: str
