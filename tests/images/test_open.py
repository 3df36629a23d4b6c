"""Opening image files: colours, orientation, limits, reasons for refusal."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from tests.support.odd_images import ODD_IMAGES, four_corners, noise, write_odd_images
from vlm.errors import ImageError
from vlm.images.finding import find_images
from vlm.images.open import MAX_PIXELS, ImageSource, open_image, read_image_size
from vlm.images.signatures import IMAGE_SUFFIXES

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_odd_images(tmp_path_factory.mktemp("odd"))


def refusal(source: ImageSource) -> ImageError:
    with pytest.raises(ImageError) as caught:
        open_image(source)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def test_the_odd_images_open_or_say_why_not(odd: dict[str, Path]) -> None:
    reasons: dict[str, str | None] = {}
    for name, path in odd.items():
        try:
            reasons[name] = None
            assert open_image(path).mode == "RGB"
        except ImageError as error:
            reasons[name] = error.reason
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert reasons == ODD_IMAGES


def test_the_size_of_a_image_is_read_from_its_header_alone(odd: dict[str, Path]) -> None:
    for name in ("dot.png", "line.png", "grey16.png", "rotated.jpg", "truncated.jpg"):  # the last has lost its end
        with Image.open(odd[name]) as opened:
            assert read_image_size(odd[name]) == read_image_size(odd[name].read_bytes()) == opened.size
    assert read_image_size(np.zeros((3, 5, 3), np.uint8)) == read_image_size(Image.new("L", (5, 3))) == (5, 3)
    with pytest.raises(ImageError, match="too many pixels"):
        read_image_size(odd["bomb.png"])


@pytest.mark.parametrize("name", ["cmyk.jpg", "rotated.jpg", "animated.webp"])
def test_corners_keep_colour_and_place(odd: dict[str, Path], name: str) -> None:
    image = np.asarray(open_image(odd[name])).astype(int)
    assert np.abs(image - np.asarray(four_corners()).astype(int)).max() <= 6  # JPEG; a wrong corner is 255 off


def test_sixteen_bits_become_the_nearest_eight(odd: dict[str, Path]) -> None:
    wanted = np.linspace(0, 65535, 64 * 48).round() / 65535 * 255
    image = np.asarray(open_image(odd["grey16.png"])).reshape(-1, 3)
    assert np.abs(image - wanted[:, None]).max() <= 0.5


def test_transparency_lets_white_through(odd: dict[str, Path]) -> None:
    image = np.asarray(open_image(odd["palette_alpha.png"]))[0]
    assert image.tolist() == [[255, 0, 0], [127, 127, 255], [255, 255, 255], [0, 0, 0]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I;16", "I;16B"])
def test_every_colour_mode_keeps_white_white_and_black_black(mode: str) -> None:
    grey = Image.new("L", (2, 1))
    grey.putpixel((1, 0), 255)
    if mode.startswith("I;16"):
        image = Image.new(mode, (2, 1))
        image.putpixel((1, 0), 65535)
    else:
        image = grey.convert("RGBA").convert(mode) if mode == "PA" else grey.convert("RGB").convert(mode)
    assert np.asarray(open_image(image)).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_colours_without_a_meaning_are_refused(mode: str) -> None:
    found = refusal(Image.new(mode, (2, 2)))
    assert found.reason == "unsupported format"
    assert f"colour mode {mode}" in found.detail


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_what_pillow_makes_of_it(suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    four_corners().save(file, {"jpg": "JPEG"}.get(suffix, suffix), exif=exif)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    opened = open_image(file.getvalue())
    assert np.array_equal(np.asarray(opened), wanted)
    assert np.array_equal(np.asarray(open_image(opened)), wanted), "opened twice, turned twice"


def test_a_broken_exif_block_does_not_break_the_image() -> None:
    file = io.BytesIO()
    four_corners().save(file, "PNG", exif=b"Exif\0\0no such byte order")
    assert np.array_equal(np.asarray(open_image(file.getvalue())), np.asarray(four_corners()))


def test_all_kinds_of_source_give_the_same_image(tmp_path: Path) -> None:
    image = noise(9, 7)
    path = tmp_path / "絵 1.png"
    image.save(path)
    with path.open("rb") as file:
        sources: list[ImageSource] = [path, str(path), path.read_bytes(), file, image, np.asarray(image)]
        opened = [np.asarray(open_image(source)) for source in sources]
    assert all(np.array_equal(each, np.asarray(image)) for each in opened)
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(np.asarray(open_image(grey)), np.repeat(grey[..., None], 3, axis=-1))


def test_opening_leaves_the_callers_image_alone() -> None:
    image = Image.new("RGBA", (3, 2), (1, 2, 3, 4))
    image.info["note"] = "mine"
    open_image(image)
    assert image.mode == "RGBA" and image.info == {"note": "mine"} and image.getpixel((0, 0)) == (1, 2, 3, 4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_cut_file_is_refused_or_whole_never_half(kind: str) -> None:
    file = io.BytesIO()
    noise(40, 30).save(file, kind)
    data = file.getvalue()
    whole = np.asarray(open_image(data))
    refused = 0
    for keep in {*range(1, len(data), len(data) // 60), len(data) - 1, len(data) - 2}:
        try:
            assert np.array_equal(np.asarray(open_image(data[:keep])), whole)
        except ImageError as error:
            refused += 1
            assert error.reason in ("truncated", "damaged", "not an image")
    assert refused >= 50


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about odd metadata
def test_random_damage_raises_nothing_but_image_error(kind: str) -> None:
    file = io.BytesIO()
    noise(20, 15).save(file, kind)
    data = np.frombuffer(file.getvalue(), np.uint8)
    rng = np.random.default_rng(3)
    for _ in range(100):
        damaged = data.copy()
        damaged[rng.integers(0, min(len(data), 400), 4)] = rng.integers(0, 256, 4)
        try:
            assert open_image(damaged.tobytes()).mode == "RGB"
        except ImageError as error:
            assert "\n" not in str(error)


def test_caps_are_checked_before_decoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    noise(20, 10).save(path)
    size = path.stat().st_size
    monkeypatch.setattr("vlm.images.open.MAX_PIXELS", 200)
    monkeypatch.setattr("vlm.images.open.MAX_BYTES", size)
    with path.open("rb") as file:  # at the limits
        assert [open_image(source).size for source in (path, path.read_bytes(), file)] == [(20, 10)] * 3
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr("vlm.images.open.MAX_PIXELS", 199)
    assert str(refusal(path)) == f"{path}: too many pixels: 20 x 10 pixels; the limit is 199; make it smaller first"
    monkeypatch.setattr("vlm.images.open.MAX_BYTES", size - 1)
    with path.open("rb") as file:
        assert [refusal(source).reason for source in (path, path.read_bytes(), file)] == ["too many bytes"] * 3


def test_the_limits_are_those_of_the_documents(tmp_path: Path) -> None:
    """docs/data.md: more than 64 MiB, more than 89 million pixels, which is Pillow's own line."""
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS
    for size, reason in ((64 * 1024**2, "not an image"), (64 * 1024**2 + 1, "too many bytes")):
        with (tmp_path / "large.png").open("wb") as file:
            file.truncate(size)  # zeros that take no room
        assert refusal(tmp_path / "large.png").reason == reason
    assert "too many bytes: more than 64 MiB; make" in str(refusal(tmp_path / "large.png"))


@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "PNG"])
def test_a_format_that_this_pillow_cannot_read_is_called_unsupported(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    noise(8, 8).save(file, kind)
    monkeypatch.setattr(features, "check", lambda feature: feature != kind.lower())
    if kind == "PNG":  # each Pillow can
        open_image(file.getvalue())
    else:
        assert str(refusal(file.getvalue())) == f"<bytes>: unsupported format: this is {kind}; save it as JPEG or PNG"


def test_a_file_that_begins_well_and_an_error_without_words_are_damaged() -> None:
    class Wordless(Image.Image):
        def load(self) -> None:  # type: ignore[override]
            raise AssertionError

    file = io.BytesIO()
    noise(8, 8).save(file, "PNG")
    assert "damaged: begins like PNG, but its header cannot be read" in str(refusal(file.getvalue()[:8] + bytes(8)))
    wordless = Wordless()
    wordless._size = (8, 8)
    assert str(refusal(wordless)) == "<image>: damaged: AssertionError; get a whole copy"


def test_paths_that_are_no_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "ring.jpg").symlink_to(tmp_path / "ring.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    reasons = {
        "nothing.jpg": "missing",
        "nul\0.jpg": "missing",
        "": "not a file",
        "pipe.jpg": "not a file",
        "ring.jpg": "unreadable",
        "broken.jpg": "missing",
        "n" * 300: "unreadable",
    }
    assert {name: refusal(f"{tmp_path}/{name}").reason for name in reasons} == reasons
    assert str(refusal(tmp_path)) == f"{tmp_path}: not a file: this is a folder; wanted an image file"
    assert "pipe.jpg: not a file: this is a device, pipe or socket; wanted" in str(refusal(tmp_path / "pipe.jpg"))
    (tmp_path / "secret.jpg").write_bytes(b"x")
    monkeypatch.setattr("builtins.open", _forbidden)
    error = refusal(tmp_path / "secret.jpg")
    assert error.reason == "unreadable" and "secret.jpg" in str(error)


def _forbidden(*_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_other_objects_are_refused_in_one_line() -> None:
    closed = io.BytesIO(b"x")
    closed.close()
    assert refusal(closed).reason == "unreadable"
    wrong = [None, 3, io.StringIO("x"), np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8), np.zeros((0, 4, 3), "u1")]
    assert [refusal(source).reason for source in wrong] == ["not an image"] * len(wrong)  # type: ignore[arg-type]
    assert str(refusal(3)).startswith("<int>: not an image: wanted a path, ")  # type: ignore[arg-type]
    assert "got float64 (4, 4, 3), wanted uint8" in str(refusal(np.zeros((4, 4, 3))))
    assert "got uint8 (4, 4, 4)" in str(refusal(np.zeros((4, 4, 4), np.uint8)))
    assert "got uint8 (4,)" in str(refusal(np.zeros(4, np.uint8)))
    assert str(refusal(io.StringIO("x"))).startswith("<stream>: not an image: read str, wanted bytes")  # type: ignore[arg-type]


def test_an_error_crosses_processes_and_keeps_to_one_line() -> None:
    error = ImageError("new\nline\udcff.png", "damaged", "first\nsecond")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.reason) == (str(error), "damaged")
    assert "\n" not in str(error) and str(error).encode("utf-8")


# Folders


def test_find_images_finds_every_odd_image(odd: dict[str, Path]) -> None:
    assert set(find_images(next(iter(odd.values())).parent)) == set(odd.values())
    assert {path.suffix for path in odd.values()} <= IMAGE_SUFFIXES
