"""Forms with files (multipart/form-data, RFC 7578) -> fields."""

from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vlm.errors import InputError
from vlm.serving.api_types import MAX_IMAGES, MAX_LABELS, UploadedImage

_MAX_FIELDS = MAX_LABELS + 200  # labels, templates and single fields
_MAX_TEXT = 2**20  # bytes of a field that is no file


@dataclass(slots=True)
class _Part:
    """One part of a form while it is read."""

    header: bytes = b""  # the name of the header that is being read
    value: bytes = b""
    disposition: bytes = b""
    data: bytearray = field(default_factory=bytearray)


def parse_form(body: bytes, content_type: str) -> list[tuple[str, str | UploadedImage]]:
    """Read the fields of a form, in order.

    Args:
        body: of the request.
        content_type: its header, which names the boundary.

    Returns:
        Names, with a text or a file; a part with a file name is a file.

    Raises:
        InputError: for anything that is no form, for texts that are not UTF-8 and for too many parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InputError("The form has no boundary. Name it in the header Content-Type, as curl -F does.")
    fields: list[tuple[str, str | UploadedImage]] = []
    part = _Part()
    ended = False

    def begin() -> None:
        nonlocal part
        part = _Part()

    def header_field(data: bytes, start: int, end: int) -> None:
        part.header += data[start:end]

    def header_value(data: bytes, start: int, end: int) -> None:
        part.value += data[start:end]

    def header_end() -> None:
        if part.header.lower() == b"content-disposition":
            part.disposition = part.value
        part.header = part.value = b""

    def part_data(data: bytes, start: int, end: int) -> None:
        part.data += data[start:end]

    def part_end() -> None:
        fields.append(_field(part))
        files = sum(isinstance(value, UploadedImage) for _, value in fields)
        if files > MAX_IMAGES or len(fields) - files > _MAX_FIELDS:
            raise InputError(f"The form has more than {MAX_IMAGES} files or {_MAX_FIELDS:,} fields. Send less at once.")

    def end() -> None:
        nonlocal ended
        ended = True

    callbacks: dict[str, Any] = {
        "on_part_begin": begin,
        "on_part_data": part_data,
        "on_part_end": part_end,
        "on_header_field": header_field,
        "on_header_value": header_value,
        "on_header_end": header_end,
        "on_end": end,
    }
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InputError(f"The form cannot be read: {error}. Send it as curl -F does.") from error
    if not ended:
        raise InputError("The form ends before its last boundary. Send it whole.")
    return fields


def _field(part: _Part) -> tuple[str, str | UploadedImage]:
    header = Message()
    header["Content-Disposition"] = _text(part.disposition, "a header of the form")
    name = header.get_param("name", header="Content-Disposition")
    if not isinstance(name, str):
        raise InputError("A part of the form has no name. Give each one: curl -F NAME=VALUE.")
    filename = header.get_filename()  # filename="..." and filename*=UTF-8''... (RFC 2231)
    if filename is not None:
        return name, UploadedImage(bytes(part.data), filename)
    if len(part.data) > _MAX_TEXT:
        raise InputError(f"The field {name[:100]!r} has more than {_MAX_TEXT:,} bytes. Send files with a file name.")
    return name, _text(bytes(part.data), f"the field {name[:100]!r}")


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"The text of {where} is not UTF-8 (byte {error.start}). Send UTF-8.") from error
