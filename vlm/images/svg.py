"""SVG drawings, rendered by resvg: nothing outside of the file is read, and its size and complexity are limited."""

import base64
import binascii
import io
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from PIL import Image, ImageFile

from vlm.errors import ImageError

MAX_SVG_BYTES = 16 * 2**20  # of the XML, unpacked
MAX_ELEMENTS = 50_000
MAX_DEPTH = 200  # of nested elements and references
MAX_DRAWN = 500_000  # elements after each reference (use, mask, pattern ...) is replaced by what it names
DEFAULT_SIDE = 1024  # pixels of the longer side, where nobody asks for a size: a drawing has none of its own

_FILTER_COST = 2_000  # a filter step counts as so many elements: it visits every pixel
_MAX_RASTER_PIXELS = 40_000_000  # of the raster images in it together
_MAX_OCTAVES = 8  # of feTurbulence
_MAX_ENTITY = 1_000  # characters; editors declare short ones for namespaces
_RASTER = re.compile(r"data:image/(png|jpe?g|gif|webp)[;,]", re.I)
_LOCAL = re.compile(r"url\(\s*['\"]?\s*#([^'\")\s]+)")
_UNITS = {
    "": 1.0,
    "px": 1.0,
    "pt": 4 / 3,
    "pc": 16.0,
    "mm": 96 / 25.4,
    "cm": 96 / 2.54,
    "in": 96.0,
    "em": 16.0,
    "ex": 8.0,
}
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_LENGTH = re.compile(r"\s*\+?((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(px|pt|pc|mm|cm|in|em|ex)?\s*")


@dataclass(slots=True)
class _Element:
    """An element, those in it, and the names of those that it refers to."""

    tag: str
    identifier: str | None
    references: list[str]
    children: list["_Element"] = field(default_factory=list["_Element"])
    size: "_Expanded | None" = None
    entered: bool = False


class _Expanded(NamedTuple):
    """Size of an element when each reference is replaced by the element that it names."""

    elements: int
    depth: int


class SvgImage(ImageFile.ImageFile):
    """A drawing as a Pillow image, white where it is transparent; it is rendered when its pixels are asked for."""

    format = "SVG"
    format_description = "Scalable Vector Graphics"

    def _open(self) -> None:
        self._drawing: _Drawing  # set by open_svg
        self._mode = "RGB"
        self._size = (DEFAULT_SIDE, DEFAULT_SIDE)

    def render_at(self, size: tuple[int, int]) -> None:
        """Render at this (width, height) when the pixels are asked for, if that was not done yet."""
        if self._im is None:
            self._size = size

    def load(self) -> Any:
        """Render the drawing, once."""
        if self._im is None:
            self.im = self._drawing.render(self.size).im
        return Image.Image.load(self)


def open_svg(data: bytes, name: str, open_raster: Callable[[bytes], Image.Image]) -> SvgImage:
    """Open a drawing within limits; nothing is rendered yet.

    Args:
        data: SVG, or SVG compressed by gzip.
        name: stands in the errors.
        open_raster: opens the raster images inside of the drawing and checks their limits.

    Raises:
        ImageError: resvg-py is not installed, the file is damaged, or a limit is exceeded.
    """
    try:
        import resvg_py  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        detail = "this is SVG; install vlm's extra svg (resvg-py), or save it as PNG"
        raise ImageError(name, "unsupported format", detail) from error
    drawing = _Reader(name, open_raster).read(_unpacked(data, name))
    image = SvgImage(io.BytesIO(b"<svg"), name)
    image._drawing = drawing  # pyright: ignore[reportPrivateUsage]
    image.render_at(drawing.size(DEFAULT_SIDE))
    return image


def _unpacked(data: bytes, name: str) -> bytes:
    if data[:2] == b"\x1f\x8b":
        try:
            unpack = zlib.decompressobj(wbits=31)
            data = unpack.decompress(data, MAX_SVG_BYTES + 1)
        except zlib.error as error:
            raise ImageError(name, "damaged", f"its gzip data cannot be read ({error}); get a whole copy") from error
        if not unpack.eof and len(data) <= MAX_SVG_BYTES:
            raise ImageError(name, "truncated", "its gzip data ends early; get a whole copy")
    if len(data) > MAX_SVG_BYTES:
        raise ImageError(name, "too many bytes", f"an SVG of more than {MAX_SVG_BYTES // 2**20} MiB; save it as PNG")
    return data


@dataclass(frozen=True, slots=True)
class _Drawing:
    """The checked copy of a drawing: its root element, what is inside, and the root's size in units of its own."""

    name: str
    tag: str
    attributes: dict[str, str]
    inner: str
    width: float
    height: float
    has_text: bool

    def size(self, side: int) -> tuple[int, int]:
        """(width, height) in pixels, the longer one `side`."""
        scale = side / max(self.width, self.height)
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    def render(self, size: tuple[int, int]) -> Image.Image:
        """Draw it at this (width, height), on white."""
        import resvg_py

        box = {"viewBox": f"0 0 {self.width:.9g} {self.height:.9g}"} | self.attributes
        scale = 1000 / max(self.width, self.height)  # float32 loses digits of huge and tiny units
        sides = [f"{side * scale:.9g}" for side in (self.width, self.height)]
        root = box | {"width": sides[0], "height": sides[1], "x": "0", "y": "0"}
        around = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
            f'viewBox="0 0 {sides[0]} {sides[1]}" preserveAspectRatio="none">'
            f"<{self.tag}{_written(root)}>{self.inner}</{self.tag}></svg>"
        )
        try:
            png = resvg_py.svg_to_bytes(svg_string=around, background="#ffffff", skip_system_fonts=not self.has_text)
        except ValueError as error:
            raise ImageError(self.name, "damaged", f"resvg cannot draw it ({error}); save it again") from error
        return Image.open(io.BytesIO(bytes(png)), formats=("PNG",)).convert("RGB")


class _Reader:
    """Copies a drawing element by element: without a document type, and without references out of the file."""

    def __init__(self, name: str, open_raster: Callable[[bytes], Image.Image]) -> None:
        self._name, self._open_raster = name, open_raster
        self._parts: list[str] = []
        self._root: dict[str, str] = {}
        self._open: list[_Element] = []
        self._elements: list[_Element] = []
        self._style: list[str] = []
        self._pixels = 0

    def read(self, data: bytes) -> _Drawing:
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.EntityDeclHandler = self._entity
        try:
            parser.Parse(data, True)
        except (expat.ExpatError, ValueError) as error:  # ValueError: an encoding that Python does not have
            if isinstance(error, ImageError):
                raise
            raise ImageError(self._name, "damaged", f"its XML cannot be read ({error}); save it again") from error
        drawn = _expand(self._elements, {*_LOCAL.findall("".join(self._style))})
        if drawn.elements > MAX_DRAWN:
            raise self._too_complex(f"references make more than {MAX_DRAWN:,} elements of it")
        if drawn.depth > MAX_DEPTH:
            raise self._too_complex(f"its elements and references are nested more than {MAX_DEPTH} deep")
        width, height = self._sides()
        has_text = any(element.tag == "text" for element in self._elements)
        tag = self._parts[0]
        return _Drawing(self._name, tag, self._root, "".join(self._parts[1:]), width, height, has_text)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        tag = name.rpartition(":")[2]
        if not self._elements and tag != "svg":
            raise ImageError(self._name, "not an image", f"its root element is <{name[:40]}>, wanted <svg>")
        if len(self._elements) >= MAX_ELEMENTS:
            raise self._too_complex(f"it has more than {MAX_ELEMENTS:,} elements")
        if len(self._open) >= MAX_DEPTH:
            raise self._too_complex(f"its elements are nested more than {MAX_DEPTH} deep")
        kept = dict(self._kept(tag, attributes))
        references = [found for value in kept.values() for found in _LOCAL.findall(value)]
        references += [value[1:] for key, value in kept.items() if value[:1] == "#" and key.endswith("href")]
        element = _Element(tag, attributes.get("id"), references)
        if self._open:
            self._open[-1].children.append(element)
            self._parts.append(f"<{name}{_written(kept)}>")
        else:
            self._root = kept
            self._parts.append(name)
        self._open.append(element)
        self._elements.append(element)

    def _end(self, name: str) -> None:
        self._open.pop()
        if self._open:
            self._parts.append(f"</{name}>")

    def _text(self, text: str) -> None:
        if self._open[-1].tag == "style":
            self._style.append(text)
        self._parts.append(escape(text))

    def _entity(self, name: str, is_parameter: bool, value: str | None, *_: Any) -> None:
        """Entities of other files are not read; those that hold entities, or much text, can grow without a limit."""
        if value is not None and ("&" in value or "%" in value or len(value) > _MAX_ENTITY):
            raise self._too_complex(f"its entity '{name[:40]}' holds entities, or more than {_MAX_ENTITY} characters")

    def _kept(self, tag: str, attributes: dict[str, str]) -> Iterator[tuple[str, str]]:
        for key, value in attributes.items():
            if key.rpartition(":")[2] == "href":
                address = value.strip()
                if address.startswith("#") or (tag in ("image", "feImage") and self._is_raster(address)):
                    yield key, address
            elif key == "numOctaves":
                yield key, value if value.isdecimal() and int(value) < _MAX_OCTAVES else str(_MAX_OCTAVES)
            elif key != "xml:base":
                yield key, value

    def _is_raster(self, address: str) -> bool:
        """True for a raster image inside of the file; the limits hold for it too."""
        if not _RASTER.match(address):
            return False
        kind, _, content = address.partition(",")
        data = unquote_to_bytes(content)
        try:
            data = base64.b64decode(data) if kind.rstrip().lower().endswith("base64") else data
        except binascii.Error as error:
            raise ImageError(self._name, "damaged", f"an image in it is no base64 ({error}); save it again") from error
        image = self._open_raster(data)
        self._pixels += image.width * image.height
        if self._pixels > _MAX_RASTER_PIXELS:
            came = f"the images in it have {self._pixels:,} pixels; the limit is {_MAX_RASTER_PIXELS:,}; save it as PNG"
            raise ImageError(self._name, "too many pixels", came)
        return True

    def _sides(self) -> tuple[float, float]:
        """(width, height) of the root in units of its own."""
        numbers = [float(number) for number in _NUMBER.findall(self._root.get("viewBox", ""))]
        box = numbers[2:] if len(numbers) == 4 and all(0 < side < math.inf for side in numbers[2:]) else None
        width, height = (_length(self._root.get(name, "")) for name in ("width", "height"))
        if box is not None:
            ratio = box[1] / box[0]
            width, height = width or (height / ratio if height else box[0]), height or (width or box[0]) * ratio
        width, height = width or 300.0, height or 150.0  # CSS 2.2, section 10.3.2: replaced elements without a size
        if not (1e-30 < width < 1e30 and 1e-30 < height < 1e30):
            raise ImageError(self._name, "not an image", f"its size is {width:g} x {height:g}; give it another one")
        return width, height

    def _too_complex(self, why: str) -> ImageError:
        return ImageError(self._name, "unsupported format", f"this SVG is too complex: {why}; save it as PNG")


def _expand(elements: Sequence[_Element], style: Iterable[str]) -> _Expanded:
    """The size of the first element, which holds all others.

    Args:
        elements: of the whole file; a reference back to an element that holds it is left out, as resvg does.
        style: names that a style sheet refers to: any element may use them.
    """
    named: dict[str, _Element] = {}
    for element in elements:
        if element.identifier is not None:
            named.setdefault(element.identifier, element)
    shared = [named[name] for name in style if name in named and not named[name].tag.endswith("Gradient")]
    stack = [elements[0]]
    while stack:  # a chain of references may be longer than Python's stack
        element = stack[-1]
        targets = [*element.children, *(named[name] for name in element.references if name in named), *shared]
        if not element.entered:
            element.entered = True
            stack += [target for target in targets if not target.entered]
            continue
        stack.pop()
        if element.size is None:
            sizes = [target.size for target in targets if target.size is not None]
            own = _FILTER_COST if element.tag.startswith("fe") else 1
            count = min(own + sum(size.elements for size in sizes), MAX_DRAWN + 1)
            element.size = _Expanded(count, 1 + max((size.depth for size in sizes), default=0))
    assert elements[0].size is not None
    return elements[0].size


def _written(attributes: dict[str, str]) -> str:
    return "".join(f" {name}={quoteattr(value)}" for name, value in attributes.items())


def _length(text: str) -> float | None:
    """CSS pixels; None for a percentage, which is one of a page, and for what is no length."""
    found = _LENGTH.fullmatch(text)
    return float(found[1]) * _UNITS[found[2] or ""] if found else None
