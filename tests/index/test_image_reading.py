"""What worker processes read of a file is what this process reads of it."""

import hashlib
import io
import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.odd_images import ODD_IMAGES, noise, write_odd_images
from vlm.config import PreprocessConfig
from vlm.errors import ImageError
from vlm.images.open import ImageSource, open_image
from vlm.images.preprocess import Decoding, Preprocess
from vlm.index import image_reading as image_reading
from vlm.index.image_reading import Job, read, read_batches
from vlm.index.vector_store import Record

PREPROCESS = Preprocess(PreprocessConfig(image_size=32))


def jobs_of(folder: Path, known: frozenset[bytes] = frozenset()) -> list[Job]:
    jobs: list[Job] = []
    for path in sorted(folder.iterdir()):
        info = os.stat(path)
        jobs.append(Job(path=str(path), size=info.st_size, mtime=info.st_mtime_ns, known=known))
    return jobs


@pytest.mark.parametrize("decoding", get_args(Decoding))
def test_workers_read_the_same_in_the_same_order(tmp_path: Path, decoding: Decoding) -> None:
    write_odd_images(tmp_path)
    noise(1200, 800).save(tmp_path / "large.jpg")
    preprocess, jobs = Preprocess(PREPROCESS.config, decoding=decoding), jobs_of(tmp_path)
    alone = [read for batch in read_batches(jobs, preprocess, 4, workers=0) for read in batch]
    shared = [read for batch in read_batches(jobs, preprocess, 4, workers=2) for read in batch]
    assert [each.record for each in alone] == [each.record for each in shared]
    for job, one, other in zip(jobs, alone, shared, strict=True):
        assert (one.pixels is None) == (other.pixels is None) == (one.record.reason is not None)
        if one.pixels is not None and other.pixels is not None:
            assert np.array_equal(one.pixels, other.pixels)
            assert np.array_equal(one.pixels, preprocess.pixels(job.path).numpy())


def test_a_record_says_what_open_image_says(tmp_path: Path) -> None:
    write_odd_images(tmp_path)
    for job in jobs_of(tmp_path):
        record = read(job, PREPROCESS).record
        assert record.reason == ODD_IMAGES[Path(job.path).name]
        if record.content is None:
            with pytest.raises(ImageError) as caught:
                open_image(job.path)
            assert (caught.value.reason, caught.value.detail) == (record.reason, record.detail)
        else:
            assert (record.content.width, record.content.height) == open_image(job.path).size
            assert record.content.size == job.size


def test_a_known_file_is_hashed_and_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(40, 30).save(tmp_path / "a.png")
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).digest()
    monkeypatch.setattr(PREPROCESS, "pixels_and_size", lambda _: pytest.fail("decoded"))
    found = read(jobs_of(tmp_path, frozenset([digest]))[0], PREPROCESS)
    assert found.record.digest == digest and found.pixels is None and found.record.reason is None


def test_what_cannot_be_read_is_refused_with_the_words_of_open_image(tmp_path: Path) -> None:
    too_large = tmp_path / "large.png"
    noise(40, 30).save(too_large)
    os.truncate(too_large, 64 * 2**20 + 1)  # docs/retrieval.md: an image file of more than 64 MiB
    for path in (too_large, tmp_path / "nowhere.png", tmp_path, tmp_path / "a\0b.png"):
        record = read(Job(path=str(path), size=5, mtime=7, known=frozenset()), PREPROCESS).record
        with pytest.raises(ImageError) as caught:
            open_image(path)
        refused = Record(path=str(path), size=5, mtime=7, reason=caught.value.reason, detail=caught.value.detail)
        assert record == refused


def test_a_file_of_just_the_most_bytes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(40, 30).save(tmp_path / "a.png")
    monkeypatch.setattr(image_reading, "MAX_BYTES", (tmp_path / "a.png").stat().st_size)
    assert read(jobs_of(tmp_path)[0], PREPROCESS).pixels is not None


def test_a_file_that_can_be_read_only_the_second_time_is_left_to_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(40, 30).save(tmp_path / "a.png")
    (job,) = jobs_of(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(PermissionError))
    record = read(job, PREPROCESS).record
    assert (record.reason, record.detail) == ("unreadable", "it changed while it was read")


class ShowsItsProcess(Preprocess):
    """Pixels that say which process made them, and how nice it was."""

    def pixels_and_size(self, source: ImageSource) -> tuple[torch.Tensor, tuple[int, int]]:
        return torch.tensor([os.getpid(), os.nice(0)]), (1, 1)


@pytest.mark.skipif(not hasattr(os, "nice"), reason="niceness is POSIX")
@pytest.mark.parametrize(("workers", "files", "processes"), [(0, 6, 0), (3, 2, 0), (3, 5, 1), (3, 6, 2)])
def test_no_process_is_started_for_less_than_a_batch_and_each_steps_back(
    tmp_path: Path, workers: int, files: int, processes: int
) -> None:
    for number in range(files):
        noise(8, 8, number).save(tmp_path / f"{number}.png")
    reads = [*read_batches(jobs_of(tmp_path), ShowsItsProcess(PREPROCESS.config), 3, workers)]
    assert [len(batch) for batch in reads] == [3] * (files // 3) + [files % 3] * (files % 3 > 0)
    shown = [tuple(each.pixels.tolist()) for batch in reads for each in batch if each.pixels is not None]
    assert len(shown) == files
    if processes:
        assert len({process for process, _ in shown}) == processes
        assert os.getpid() not in dict(shown)
        assert {nice for _, nice in shown} == {min(os.nice(0) + 10, 19)}
    else:
        assert {*shown} == {(os.getpid(), os.nice(0))}


def with_exif(original: object, changed: object = None) -> bytes:
    """A JPEG of which a camera says when it was taken, and a program when it was changed."""
    exif, file = Image.Exif(), io.BytesIO()
    if original is not None:
        exif.get_ifd(0x8769)[0x9003] = original
    if changed is not None:
        exif[0x0132] = changed
    noise(8, 8).save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("original", "changed", "taken"),
    [
        ("2021:03:04 05:06:07", "2022:08:09 10:11:12", "2021-03-04 05:06:07"),
        (None, "2022:08:09 10:11:12", "2022-08-09 10:11:12"),
        (" 2021:3:4 5:6:7 \0", None, "2021-03-04 05:06:07"),  # EXIF 2.3: "YYYY:MM:DD HH:MM:SS"; not all keep to it
        ("0987:12:31 23:59:59", None, "0987-12-31 23:59:59"),
        ("yesterday", None, None),
        ("    :  :     :  :  ", None, None),  # EXIF 2.3: unknown
        (None, None, None),
    ],
)
def test_the_date_is_when_the_camera_took_it_else_when_it_was_changed(
    tmp_path: Path, original: object, changed: object, taken: str | None
) -> None:
    (tmp_path / "a.jpg").write_bytes(with_exif(original, changed))
    content = read(jobs_of(tmp_path)[0], PREPROCESS).record.content
    assert content is not None and content.taken == taken
