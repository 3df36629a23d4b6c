"""What worker processes read of a file is what this process reads of it."""

import hashlib
import os
import signal
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.odd_images import ODD_IMAGES, noise, write_odd_images
from vlm.config import PreprocessConfig
from vlm.errors import ImageError, IndexFileError
from vlm.images.open import ImageSource, OpenedImage, open_image
from vlm.images.preprocess import Decoding, Preprocess
from vlm.index import image_reading as image_reading
from vlm.index.image_reading import FileToRead, ReadFile, read_batches, read_file

PREPROCESS = Preprocess(PreprocessConfig(image_size=32))


def files_of(folder: Path, known: frozenset[bytes] = frozenset()) -> list[FileToRead]:
    files: list[FileToRead] = []
    for path in sorted(folder.iterdir()):
        info = os.stat(path)
        files.append(FileToRead(path=str(path), size=info.st_size, mtime=info.st_mtime_ns, known=known))
    return files


def reason_of(found: ReadFile) -> str | None:
    return None if found.problem is None else found.problem.reason


@pytest.mark.parametrize("decoding", get_args(Decoding))
def test_workers_read_the_same_in_the_same_order(tmp_path: Path, decoding: Decoding) -> None:
    write_odd_images(tmp_path)
    noise(1200, 800).save(tmp_path / "large.jpg")
    preprocess, files = Preprocess(PREPROCESS.config, decoding=decoding), files_of(tmp_path)
    alone = [read for batch in read_batches(files, preprocess, 4, workers=0) for read in batch]
    shared = [read for batch in read_batches(files, preprocess, 4, workers=2) for read in batch]
    assert [each.record for each in alone] == [each.record for each in shared]
    for file, one, other in zip(files, alone, shared, strict=True):
        assert reason_of(one) == reason_of(other)
        assert (one.pixels is None) == (other.pixels is None) == (reason_of(one) is not None)
        if one.pixels is not None and other.pixels is not None:
            assert np.array_equal(one.pixels, other.pixels)
            assert np.array_equal(one.pixels, preprocess.pixels(file.path).numpy())


def test_a_record_says_what_open_image_says(tmp_path: Path) -> None:
    write_odd_images(tmp_path)
    for file in files_of(tmp_path):
        found = read_file(file, PREPROCESS)
        assert reason_of(found) == ODD_IMAGES[Path(file.path).name]
        if found.record is None or found.record.content is None:
            with pytest.raises(ImageError) as caught:
                open_image(file.path)
            assert found.problem is not None
            assert (found.problem.name, found.problem.detail) == (caught.value.name, caught.value.detail)
        else:
            assert (found.record.content.width, found.record.content.height) == open_image(file.path).size
            assert found.record.content.size == file.size


def test_a_known_file_is_hashed_and_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(40, 30).save(tmp_path / "a.png")
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).digest()
    monkeypatch.setattr(PREPROCESS, "pixels_and_size", lambda _: pytest.fail("decoded"))
    found = read_file(files_of(tmp_path, frozenset([digest]))[0], PREPROCESS)
    assert found.record is not None and found.record.digest == digest and found.pixels is None and not found.problem


def test_what_cannot_be_accessed_has_no_record_and_what_is_refused_has_one(tmp_path: Path) -> None:
    too_large = tmp_path / "large.png"
    noise(40, 30).save(too_large)
    os.truncate(too_large, 64 * 2**20 + 1)  # docs/retrieval.md: an image file of more than 64 MiB
    for path in (too_large, tmp_path / "nowhere.png", tmp_path, tmp_path / "a\0b.png"):
        found = read_file(FileToRead(path=str(path), size=5, mtime=7, known=frozenset()), PREPROCESS)
        with pytest.raises(ImageError) as caught:
            open_image(path)
        assert found.problem is not None
        assert (found.problem.reason, found.problem.detail) == (caught.value.reason, caught.value.detail)
        assert (found.record is not None) == (path == too_large)
        if found.record:
            assert (found.record.reason, found.record.size, found.record.mtime) == ("too many bytes", 5, 7)


def test_a_file_of_just_the_most_bytes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(40, 30).save(tmp_path / "a.png")
    monkeypatch.setattr(image_reading, "MAX_BYTES", (tmp_path / "a.png").stat().st_size)
    assert read_file(files_of(tmp_path)[0], PREPROCESS).pixels is not None


def test_a_file_that_can_be_read_only_the_second_time_is_left_to_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(40, 30).save(tmp_path / "a.png")
    (file,) = files_of(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(PermissionError))
    found = read_file(file, PREPROCESS)
    assert found.record is None and reason_of(found) == "unreadable"


class ShowsItsProcess(Preprocess):
    """Pixels that say which process made them, and how nice it was."""

    def pixels_and_size(self, source: ImageSource | OpenedImage) -> tuple[torch.Tensor, tuple[int, int]]:
        return torch.tensor([os.getpid(), os.nice(0)]), (1, 1)


@pytest.mark.skipif(not hasattr(os, "nice"), reason="niceness is POSIX")
@pytest.mark.parametrize(("workers", "files", "processes"), [(0, 6, 0), (3, 2, 0), (3, 5, 1), (3, 6, 2)])
def test_no_process_is_started_for_less_than_a_batch_and_each_steps_back(
    tmp_path: Path, workers: int, files: int, processes: int
) -> None:
    for number in range(files):
        noise(8, 8, number).save(tmp_path / f"{number}.png")
    reads = [*read_batches(files_of(tmp_path), ShowsItsProcess(PREPROCESS.config), 3, workers)]
    assert [len(batch) for batch in reads] == [3] * (files // 3) + [files % 3] * (files % 3 > 0)
    shown = [tuple(each.pixels.tolist()) for batch in reads for each in batch if each.pixels is not None]
    assert len(shown) == files
    if processes:
        assert len({process for process, _ in shown}) == processes
        assert os.getpid() not in dict(shown)
        assert {nice for _, nice in shown} == {min(os.nice(0) + 10, 19)}
    else:
        assert {*shown} == {(os.getpid(), os.nice(0))}


class KillsItsWorker(Preprocess):
    """Dies with the third file, as a process does that the kernel kills when memory is full."""

    def pixels_and_size(self, source: ImageSource | OpenedImage) -> tuple[torch.Tensor, tuple[int, int]]:
        assert isinstance(source, OpenedImage)
        if b"last breath" in (source.data or b""):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().pixels_and_size(source)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_a_killed_worker_is_one_error_with_the_remedy(tmp_path: Path) -> None:
    for number in range(6):
        noise(8, 8, number).save(tmp_path / f"{number}.png")
    with (tmp_path / "4.png").open("ab") as file:
        file.write(b"last breath")
    batches = read_batches(files_of(tmp_path), KillsItsWorker(PREPROCESS.config), 2, workers=1)
    assert len(next(batches)) == 2
    with pytest.raises(IndexFileError, match=r"killed.*of 6 files.*--workers 1"):
        list(batches)


@pytest.mark.parametrize("exif", [False, True])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_each_image_is_opened_and_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, exif: bool
) -> None:
    """A PNG without EXIF was decoded twice: Pillow looks for the block behind the pixels."""
    tags = Image.Exif()
    if exif:
        tags[0x0132] = "2021:03:04 05:06:07"
    noise(40, 30).save(tmp_path / f"a.{suffix}", exif=tags)
    opened, decoded = list[object](), list[object]()
    real_open, real_decoder = Image.open, Image._getdecoder  # type: ignore[attr-defined]
    monkeypatch.setattr(Image, "open", lambda *given, **named: opened.append(1) or real_open(*given, **named))
    count = lambda *given, **named: decoded.append(1) or real_decoder(*given, **named)  # noqa: E731
    monkeypatch.setattr(Image, "_getdecoder", count)
    found = read_file(files_of(tmp_path)[0], PREPROCESS)
    assert found.pixels is not None and found.record is not None and found.record.content is not None
    assert (len(opened), len(decoded)) == (1, 1)
    dated = exif and suffix not in ("gif", "bmp")
    assert found.record.content.taken == ("2021-03-04 05:06:07" if dated else None)
