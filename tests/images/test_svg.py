"""SVG drawings: the expected pixels, however they are written, or a refusal; nothing outside of the file is read."""

import base64
import gzip
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.config import PreprocessConfig
from vlm.errors import ImageError
from vlm.images.finding import find_images
from vlm.images.open import open_header, open_image, read_image_size
from vlm.images.preprocess import Preprocess
from vlm.images.signatures import sniff
from vlm.images.svg import DEFAULT_SIDE, MAX_DRAWN, MAX_ELEMENTS

NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
RED = '<rect width="10" height="10" fill="red"/>'
SIZED = f'<svg {NAMESPACES} width="20" height="10">{RED}</svg>'


def svg(content: str, attributes: str = 'width="20" height="10"', before: str = "") -> bytes:
    return f"{before}<svg {NAMESPACES} {attributes}>{content}</svg>".encode()


def png(side: int, colour: str = "blue", mode: str = "RGB") -> str:
    file = io.BytesIO()
    Image.new(mode, (side, side), colour).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def colours(data: bytes, at: tuple[float, float] = (0.25, 0.5)) -> tuple[int, ...]:
    image = open_image(data)
    pixel = image.getpixel((int(at[0] * image.width), int(at[1] * image.height)))
    assert isinstance(pixel, tuple)
    return pixel


HALF_RED = {  # the left half is red, the right one white
    "plain": svg(RED),
    "XML prolog": svg(RED, before='<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'),
    "document type": svg(
        RED, before='<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">'
    ),
    "namespace as entity": b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY ns "http://www.w3.org/2000/svg">]>'
    + svg(RED).replace(b"http://www.w3.org/2000/svg", b"&ns;"),
    "byte order mark": "\ufeff".encode() + svg(RED),
    "UTF-16": f'<?xml version="1.0" encoding="utf-16"?>{SIZED}'.encode("utf-16"),
    "gzip": gzip.compress(svg(RED)),
    "gzip of a prolog": gzip.compress(svg(RED, before='<?xml version="1.0"?><!-- made by hand -->')),
    "namespace prefix": b'<s:svg xmlns:s="http://www.w3.org/2000/svg" width="20" height="10">'
    b'<s:rect width="10" height="10" fill="red"/></s:svg>',
    "no namespace": svg(RED).replace(NAMESPACES.encode(), b""),
    "viewBox alone": svg(RED, 'viewBox="0 0 20 10"'),
    "percent": svg(RED, 'width="100%" height="100%" viewBox="0,0,20,10"'),
    "one percent": svg(RED, 'width="50%" viewBox="0 0 20 10"'),
    "only a width": svg(RED, 'width="2em" viewBox="0 0 20 10"'),
    "millimetres": svg(RED, 'width="2cm" height="10mm" viewBox="0 0 20 10"'),
    "huge": svg(RED, 'width="100000" height="50000px" viewBox="0 0 20 10"'),
    "tiny": svg(RED, 'width="2e-3" height="1e-3" viewBox="0 0 20 10"'),
    "viewBox that does not start at 0": svg(RED, 'width="20" height="10" viewBox="0 -5 20 10"').replace(
        b"<rect", b'<rect y="-5"'
    ),
    "style sheet": svg(RED.replace('fill="red"', 'class="a"') + "<style><![CDATA[.a{fill:red}]]></style>"),
    "script and link": svg(f'<script>alert(1)</script><a href="http://127.0.0.1:9/x">{RED}</a>'),
    "a reference to itself": svg(f'<g id="a"><use xlink:href="#a"/></g>{RED}'),
    "150 groups": svg("<g>" * 150 + RED + "</g>" * 150),
}


@pytest.mark.parametrize("name", HALF_RED)
def test_each_way_to_write_a_drawing_gives_its_pixels(name: str):
    data = HALF_RED[name]
    assert sniff(data) == "SVG"
    assert read_image_size(data) == (DEFAULT_SIDE, DEFAULT_SIDE // 2)
    image = np.asarray(open_image(data)).astype(int)
    expected = np.full_like(image, 255)
    expected[:, : DEFAULT_SIDE // 2] = (255, 0, 0)
    assert np.abs(image - expected).max() <= 1


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("attributes", ['width="4" height="2"', 'width="4000" height="2000" viewBox="0 0 4 2"'])
def test_a_drawing_is_rendered_at_the_size_of_the_model(resize, attributes: str):
    """Every edge lies between two pixels: nothing in between is found, whatever size the file claims."""
    squares = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1"/>' for x in range(4) for y in range(2) if (x + y) % 2
    )
    config = PreprocessConfig(image_size=32, resize=resize, fill=255)
    pixels = Preprocess(config).pixels(svg(squares, attributes))
    assert set(pixels.unique().tolist()) == {0, 255}
    board = np.where((np.indices((2, 4)).sum(0) % 2).astype(bool), 0, 255)  # black where x + y is odd
    height, width = {"crop": (16, 16), "pad": (8, 8), "squash": (16, 8)}[resize]  # of a square
    whole = np.kron(board, np.ones((height, width), int))
    expected = (
        whole[:, 16:48]
        if resize == "crop"
        else np.pad(whole, ((8, 8), (0, 0)), constant_values=255)
        if resize == "pad"
        else whole
    )
    assert (pixels[0].numpy() == expected).all()


def test_transparent_parts_are_white():
    assert colours(svg('<rect width="20" height="10" fill="black" opacity="0.5"/>')) == pytest.approx((127,) * 3, abs=1)
    assert colours(svg("")) == (255, 255, 255)


@pytest.mark.parametrize("element", ["image", "feImage", "use"])
@pytest.mark.parametrize("key", ["href", "xlink:href"])
@pytest.mark.parametrize(
    "address", ["{}/a.png", "file://{}/a.png", "a.png", "file:///etc/passwd", "http://127.0.0.1:9/a.png"]
)
def test_nothing_outside_of_the_file_is_drawn(
    element: str, key: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "a.png")
    reference = f'<{element} {key}="{address.format(tmp_path)}" width="20" height="10"/>'
    if element == "feImage":
        reference = f'<filter id="f">{reference}</filter><rect width="20" height="10" filter="url(#f)"/>'
    (tmp_path / "a.svg").write_bytes(svg(reference, 'width="20" height="10" xml:base="file:///"'))
    assert open_image(tmp_path / "a.svg").getcolors() == [(DEFAULT_SIDE * DEFAULT_SIDE // 2, (255, 255, 255))]


@pytest.mark.parametrize(
    "entity", ['<!ENTITY x SYSTEM "file:///etc/passwd">', '<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;']
)
def test_entities_of_other_files_are_not_read(entity: str):
    data = svg('<text y="9">&x;</text>', before=f"<!DOCTYPE svg [{entity}]>")
    try:
        assert open_image(data).getcolors() == [(DEFAULT_SIDE * DEFAULT_SIDE // 2, (255, 255, 255))]
    except ImageError as error:
        assert error.reason == "damaged"


def test_a_raster_image_inside_of_the_file_is_drawn():
    for address in (png(4), png(4).replace("base64,", "base64,\n ")):
        assert colours(svg(f'<image href="{address}" width="10" height="10"/>')) == (0, 0, 255)


BILLION_LAUGHS = "<!DOCTYPE svg [" + '<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefghi", "bcdefghij", strict=True)
) + "]>"  # fmt: skip
TEN = "".join(f'<g id="a{n + 1}">' + f'<use href="#a{n}"/>' * 10 + "</g>" for n in range(9))
MASKS = "".join(
    f'<mask id="m{n}">' + f'<rect class="c{n + 1}" width="9" height="9"/>' * 10 + "</mask>" for n in range(9)
)
RULES = "".join(f".c{n}{{mask:url(#m{n})}}" for n in range(9))
CHAIN = '<rect id="c0"/>' + "".join(f'<use id="c{n + 1}" href="#c{n}"/>' for n in range(300))
REFUSED: dict[str, tuple[Callable[[], bytes], str, list[str]]] = {
    "entities": (lambda: svg("<text>&j;</text>", before=BILLION_LAUGHS), "unsupported format", ["entit"]),
    "one long entity": (
        lambda: svg("<text>&a;</text>", before=f'<!DOCTYPE svg [<!ENTITY a "{"x" * 9999}">]>'),
        "unsupported format", ["entit"],
    ),
    "elements": (lambda: svg(RED * 100_000), "unsupported format", [f"{MAX_ELEMENTS:,}"]),
    "elements, compressed": (lambda: gzip.compress(svg(RED * 100_000)), "unsupported format", [f"{MAX_ELEMENTS:,}"]),
    "depth": (lambda: svg("<g>" * 100_000 + "</g>" * 100_000), "unsupported format", ["nested"]),
    "depth of references": (
        lambda: svg(CHAIN),
        "unsupported format", ["nested"],
    ),
    "uses of uses": (lambda: svg(f'<g id="a0">{RED}</g>{TEN}'), "unsupported format", [f"{MAX_DRAWN:,}"]),
    "masks of masks": (
        lambda: svg(f"<style>{RULES}</style>{MASKS}<rect class='c0'/>"),
        "unsupported format", [f"{MAX_DRAWN:,}"],
    ),
    "filters": (
        lambda: svg(f'<filter id="f">{"<feTurbulence/>" * 999}</filter><rect filter="url(#f)"/>'),
        "unsupported format", [f"{MAX_DRAWN:,}"],
    ),
    "gzip bomb": (lambda: gzip.compress(svg(" " * 40_000_000)), "too many bytes", ["16 MiB"]),
    "large": (lambda: svg(" " * 17_000_000), "too many bytes", ["16 MiB"]),
    "pixels inside": (lambda: svg(f'<image href="{png(9000, "black", "1")}"/>'), "too many pixels", ["81,000,000"]),
    "no raster image inside": (
        lambda: svg(f'<image href="data:image/png;base64,{base64.b64encode(svg(RED)).decode()}"/>'), "damaged", ["SVG"]
    ),
    "not finished": (lambda: svg(RED)[:-9], "damaged", ["XML"]),
    "gzip not finished": (lambda: gzip.compress(svg(RED))[:-9], "truncated", ["gzip"]),
    "no size": (lambda: svg(RED, 'width="1e300" height="1"'), "not an image", ["1e+300"]),
    "another root": (lambda: b"<?xml version='1.0'?><svgs>" + svg(RED) + b"</svgs>", "not an image", ["svgs"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_drawing_beyond_a_limit_is_refused_at_once(name: str, tmp_path: Path):
    make, reason, facts = REFUSED[name]
    (tmp_path / "a.svg").write_bytes(make())
    begin = time.process_time()
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "a.svg")
    assert time.process_time() - begin < 20  # the bombs would take hours
    assert caught.value.reason == reason and str(tmp_path / "a.svg") in str(caught.value)
    assert all(fact in caught.value.detail for fact in facts), caught.value.detail


def test_noise_of_any_number_of_octaves_is_drawn():
    noise = '<filter id="f"><feTurbulence baseFrequency="0.1" numOctaves="{}"/></filter>'
    rectangle = '<rect width="20" height="10" filter="url(#f)"/>'
    many, few = (
        Preprocess(PreprocessConfig(image_size=32)).pixels(svg(noise.format(n) + rectangle)) for n in (10**9, 8)
    )
    assert (many == few).all()


def test_an_html_page_with_a_drawing_in_it_is_no_image():
    assert sniff(b"<!DOCTYPE html><html><body>" + svg(RED)) is None


def test_drawings_are_found_in_a_folder(tmp_path: Path):
    for name in ("a.svg", "b.SVGZ", "without"):
        (tmp_path / name).write_bytes(gzip.compress(svg(RED)) if "Z" in name else svg(RED))
    (tmp_path / "c.gz").write_bytes(gzip.compress(svg(RED)))
    assert [path.name for path in find_images(tmp_path)] == ["a.svg", "b.SVGZ", "without"]


@pytest.mark.parametrize("name", ["a.svg", "a.svgz"])
def test_without_the_package_the_reason_says_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    (tmp_path / name).write_bytes(svg(RED))
    with pytest.raises(ImageError) as caught:
        open_header(tmp_path / name)
    assert caught.value.reason == "unsupported format"
    assert all(fact in caught.value.detail for fact in ("SVG", "resvg-py", "extra svg"))
