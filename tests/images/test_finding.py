"""A folder gives its own images, in order, and says which links lead out of it."""

import subprocess
from pathlib import Path

import pytest

from vlm.errors import ImageError
from vlm.images.finding import find_images
from vlm.images.open import open_image


def test_images_come_in_order_and_from_inside(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside.png", tmp_path / "root"
    inside = ["B.PNG", "a/z.jpeg", "a.jpg", "c.svg", "猫/犬.webp", "d.nef", "e.ppm"]
    for name in [*inside, "notes.txt", ".hidden/x.png", "a/.x.png", "README"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "scan").write_bytes(b"GIF89a")  # no suffix, but an image's first bytes
    outside.touch()
    (root / "leaves.png").symlink_to(outside)
    (root / "leaves.txt").symlink_to(outside)
    (root / "up").symlink_to(tmp_path)
    (root / "loop").symlink_to(root)
    (root / "ring.png").symlink_to(root / "ring.png")
    (root / "stays.png").symlink_to(root / "a.jpg")
    assert list(find_images(root)) == sorted(root / name for name in [*inside, "stays.png", "scan"])


def test_folders_nested_deeper_than_calls_may_be_are_walked(tmp_path: Path) -> None:
    deepest = tmp_path.joinpath(*["d"] * 1500)
    subprocess.run(["mkdir", "-p", deepest], check=True)  # os.makedirs is recursive, and so is shutil.rmtree
    try:
        (deepest / "x.png").touch()
        assert list(find_images(tmp_path)) == [deepest / "x.png"]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    (absent,) = find_images(tmp_path / "absent")
    with pytest.raises(ImageError) as caught:
        open_image(absent)
    assert caught.value.reason == "missing"
