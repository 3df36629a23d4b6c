"""A cache of decoded images gives back what was put in, or nothing: whoever writes, and whenever it is killed."""

import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from vlm.training.data.pixel_cache import PixelCache

COUNT, SHAPE = 40, (3, 64, 64)
FORK = multiprocessing.get_context("fork")


def image(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, SHAPE, dtype=np.uint8)


def cache(folder: Path, key: str = "a") -> PixelCache:
    return PixelCache(folder, COUNT, SHAPE, key)


def test_what_was_put_is_got_now_later_and_by_others(tmp_path: Path) -> None:
    ours = cache(tmp_path / "new" / "folder")
    other = cache(tmp_path / "new" / "folder")
    assert len(ours) == 0 and ours.get(7) is None
    ours.put(7, image(7))
    ours.put(0, np.zeros(SHAPE, np.uint8))  # black is an image, not a gap
    for reader in (ours, other, cache(tmp_path / "new" / "folder"), pickle.loads(pickle.dumps(ours))):
        for index, wanted in ((7, image(7)), (0, np.zeros(SHAPE))):
            got = reader.get(index)
            assert got is not None and np.array_equal(got, wanted)
        assert len(reader) == 2 and reader.get(8) is None


def test_the_callers_copy_is_its_own(tmp_path: Path) -> None:
    ours = cache(tmp_path)
    ours.put(3, image(3))
    first = ours.get(3)
    assert first is not None
    first[:] = 0
    again = ours.get(3)
    assert again is not None and np.array_equal(again, image(3))


def test_another_key_count_or_shape_is_another_cache(tmp_path: Path) -> None:
    cache(tmp_path).put(1, image(1))
    others = [
        cache(tmp_path, "b"),
        PixelCache(tmp_path, COUNT + 1, SHAPE, "a"),
        PixelCache(tmp_path, COUNT, (3, 32, 128), "a"),  # as many bytes
    ]
    assert [other.get(1) for other in others] == [None, None, None]
    assert len({other.path for other in others} | {cache(tmp_path).path}) == 4


def test_pixels_stored_transposed_come_back_right(tmp_path: Path) -> None:
    ours, turned = cache(tmp_path), np.moveaxis(np.ascontiguousarray(np.moveaxis(image(1), 0, 2)), 2, 0)
    assert not turned.flags.c_contiguous
    ours.put(1, turned)
    got = ours.get(1)
    assert got is not None and np.array_equal(got, image(1))


def test_a_row_that_was_half_written_is_not_there(tmp_path: Path) -> None:
    """What a power cut may leave: the sum on disk, the pixels not, or only some."""
    ours = cache(tmp_path)
    ours.put(5, image(5))
    with ours.path.open("r+b") as file:
        file.seek(5 * image(5).nbytes + 4096)
        file.write(bytes(4096))
    assert ours.get(5) is None
    ours.put(5, image(5))
    assert ours.get(5) is not None


def test_four_processes_that_write_the_same_rows_leave_them_right(tmp_path: Path) -> None:
    processes = [FORK.Process(target=_fill, args=(tmp_path, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    ours = cache(tmp_path)
    assert [process.exitcode for process in processes] == [0] * 4 and len(ours) == COUNT
    assert _wrong(ours) == []


def _fill(folder: Path, seed: int) -> None:
    ours = cache(folder)
    for index in np.random.default_rng(seed).permutation(COUNT):
        got = ours.get(int(index))
        assert got is None or np.array_equal(got, image(int(index)))  # also while others write
        ours.put(int(index), image(int(index)))


def test_a_killed_writer_leaves_rows_that_are_right_or_absent(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        process = FORK.Process(target=_rewrite_for_ever, args=(tmp_path,))
        process.start()
        while not len(cache(tmp_path)):  # the first one is given the time to begin
            time.sleep(0.001)
        time.sleep(0.01 + rng.random() * 0.03)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert _wrong(cache(tmp_path)) == []


def _rewrite_for_ever(folder: Path) -> None:
    ours, images = cache(folder), [image(index) for index in range(COUNT)]
    while True:
        for index in range(COUNT):
            ours.put(index, np.zeros(SHAPE, np.uint8))
            ours.put(index, images[index])


def _wrong(ours: PixelCache) -> list[int]:
    """Rows that are neither absent, nor black, nor the image."""
    rows = [(index, ours.get(index)) for index in range(COUNT)]
    return [i for i, got in rows if got is not None and got.any() and not np.array_equal(got, image(i))]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    ours = cache(tmp_path)
    with pytest.raises(ValueError, match=r"holds uint8 \(3, 64, 64\); got uint8 \(3, 32, 32\)"):
        ours.put(0, np.zeros((3, 32, 32), np.uint8))
    for kind in (np.float64, np.bool_, np.int8):
        with pytest.raises(ValueError, match=rf"got {np.dtype(kind)} \(3, 64, 64\)\.$"):
            ours.put(0, np.zeros(SHAPE, kind))
    for index in (-1, COUNT):
        with pytest.raises(IndexError, match=f"row {index} of a cache of 40"):
            ours.get(index)
        with pytest.raises(IndexError, match=f"row {index} of a cache of 40"):
            ours.put(index, image(0))
    for count, shape in ((0, SHAPE), (1, (3, 0, 4))):
        with pytest.raises(ValueError, match=rf"{count} images.*\({shape[0]}, .*Is"):
            PixelCache(tmp_path, count, shape, "a")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Name another folder"):
        cache(tmp_path / "file")


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = PixelCache(tmp_path, 2**17, SHAPE, "a")  # of 12 KiB each: nothing is there of 1.5 GiB

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(ValueError, match=r"space.*device.*1\.5"):
        ours.put(0, image(0))
    assert ours.get(0) is None


def test_what_is_written_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, whole = cache(tmp_path), os.pwrite
    monkeypatch.setattr("os.pwrite", lambda file, data, offset: whole(file, data[:1000], offset))
    for index in (2, 3, 1):
        ours.put(index, image(index))
    for index in (1, 2, 3):
        got = ours.get(index)
        assert got is not None and np.array_equal(got, image(index))


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="counts open files there")
def test_a_cache_that_is_gone_has_closed_its_files(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    ours = cache(tmp_path)
    assert len(os.listdir("/dev/fd")) > before
    del ours
    assert len(os.listdir("/dev/fd")) == before
