"""What worker processes read of a file is what this process reads of it."""

import hashlib
import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from tests.odd_pictures import ODD_PICTURES, noise, write_odd_pictures
from vlm.config import PreprocessConfig
from vlm.index.picture_reading import Job, read, read_batches
from vlm.preprocess import Decoding, ImageError, Preprocess, open_image

PREPROCESS = Preprocess(PreprocessConfig(image_size=32))


def jobs_of(folder: Path, known: frozenset[bytes] = frozenset()) -> list[Job]:
    jobs: list[Job] = []
    for path in sorted(folder.iterdir()):
        info = os.stat(path)
        jobs.append(Job(path=str(path), size=info.st_size, mtime=info.st_mtime_ns, known=known))
    return jobs


@pytest.mark.parametrize("decoding", get_args(Decoding))
def test_workers_read_the_same_in_the_same_order(tmp_path: Path, decoding: Decoding) -> None:
    write_odd_pictures(tmp_path)
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
    write_odd_pictures(tmp_path)
    for job in jobs_of(tmp_path):
        record = read(job, PREPROCESS).record
        assert record.reason == ODD_PICTURES[Path(job.path).name]
        if record.content is None:
            with pytest.raises(ImageError) as caught:
                open_image(job.path)
            assert caught.value.reason == record.reason
        else:
            assert (record.content.width, record.content.height) == open_image(job.path).size
            assert record.content.size == job.size


def test_a_known_file_is_hashed_and_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(40, 30).save(tmp_path / "a.png")
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).digest()
    monkeypatch.setattr(PREPROCESS, "pixels_and_size", lambda _: pytest.fail("decoded"))
    found = read(jobs_of(tmp_path, frozenset([digest]))[0], PREPROCESS)
    assert found.record.digest == digest and found.pixels is None and found.record.reason is None
