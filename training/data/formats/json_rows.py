"""Rows of JSON: an object a line, an array of objects, or COCO's captions and instances."""

import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, TextIO

from vlm.errors import DataError
from vlm.images.signatures import IMAGE_SUFFIXES

_MAX_LINE = 1 << 24  # characters; a longer line is no row
_MAX_DOCUMENT = 1 << 30  # characters of a file that is read whole
JsonRow = tuple[int, dict[str, Any], str]  # line or number, values by key, what is wrong


def json_lines(stream: TextIO) -> Iterator[JsonRow]:
    """An object a line; blank lines are left out.  Only a line feed ends a line, not U+2028."""
    number = 0
    while line := stream.readline(_MAX_LINE):
        number += 1
        if line.strip():
            try:
                yield number, _object(line), ""
            except ValueError as error:
                yield number, {}, str(error)


def keys_of_lines(source: str, head: str) -> list[str]:
    """All keys of the first 1,000 objects; `DataError` where there is no object."""
    keys: dict[str, None] = {}
    problem = ""
    for number, line in enumerate(head.split("\n")[:1000], start=1):
        try:
            keys |= dict.fromkeys(_object(line)) if line.strip() else {}
        except ValueError as error:
            problem = problem or f"line {number}: {error}"
    if not keys:
        raise DataError(f"{source} has no JSON objects, one a line ({problem or 'nothing in it'}).")
    return list(keys)


def json_document(path: str) -> Iterator[JsonRow]:
    """The objects of an array, or an image a row of COCO's {"images": [...], "annotations": [...]}."""
    try:
        with open(path, encoding="utf-8-sig") as stream:
            text = stream.read(_MAX_DOCUMENT + 1)
        if len(text) > _MAX_DOCUMENT:
            raise DataError(f"{path} has more than {_MAX_DOCUMENT:,} characters. Write one object a line (.jsonl).")
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no JSON ({' '.join(str(error).split())[:80]}). Write it anew.") from None
    if isinstance(found, dict) and {"images", "annotations"} <= found.keys():
        found = _coco(found)
    elif isinstance(found, dict):
        found = _rows_of_object(found)
    if not isinstance(found, list):
        keys = ", ".join(list(found)[:8]) if isinstance(found, dict) else type(found).__name__
        raise DataError(
            f"{path} holds JSON of an unknown kind ({keys}). Wanted an array of objects, COCO's images and "
            'annotations, or an object a line: {"image": "1.jpg", "caption": "a dog"}.'
        )
    for number, row in enumerate(found, start=1):
        if isinstance(row, dict):
            yield number, row, ""
        else:
            yield number, {}, f"a JSON {type(row).__name__}, wanted an object"


def _rows_of_object(found: dict[str, Any]) -> Any:
    """{"1.png": "a dog"}, {"1.png": ["a dog", "a pet"]}, {"image": [...], "caption": [...]} or {"data": [{...}]}."""
    values = list(found.values())
    if not any(isinstance(value, (list, dict)) for value in values):
        return [{"image": name, "caption": caption} for name, caption in found.items()]
    if all(PurePath(name).suffix.lower() in IMAGE_SUFFIXES for name in found):
        return [{"image": name, "caption": captions} for name, captions in found.items()]
    if (
        len(found) > 1
        and all(isinstance(value, list) for value in values)
        and len({len(value) for value in values}) == 1
    ):
        return [dict(zip(found, row, strict=True)) for row in zip(*values, strict=True)]
    tables = [value for value in values if isinstance(value, list) and value and isinstance(value[0], dict)]
    return tables[0] if len(tables) == 1 and not any(isinstance(value, dict) for value in values) else found


def _coco(found: dict[str, Any]) -> list[Any]:
    """A row an image: its file, its captions, the names of its categories."""
    names = {category.get("id"): category.get("name") for category in found.get("categories") or []}
    rows = {image.get("id"): {"image": image.get("file_name")} for image in found["images"]}
    for note in found["annotations"]:
        row = rows.get(note.get("image_id"))
        for key, value in (("captions", note.get("caption")), ("label", names.get(note.get("category_id")))):
            if row is not None and value is not None and value not in row.setdefault(key, []):
                row[key].append(value)
    return list(rows.values())


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__}, wanted an object")
    return row
