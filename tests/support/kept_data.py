"""Small images, tars and what is read of them, for the tests of data as people keep it."""

import io
import tarfile
from pathlib import Path

from PIL import Image

from vlm.training.data.rows import BrokenSample, Rows


def png(number: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "png")
    return file.getvalue()


def images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))
    return folder


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def captions(rows: Rows) -> list[list[str] | str]:
    """The captions of each sample, or the reason why it has none."""
    found: list[list[str] | str] = []
    for index in range(len(rows)):
        try:
            found.append([text for texts, _ in rows.captions(index).values() for text in texts])
        except BrokenSample as error:
            found.append(error.reason)
    return found


def labels(rows: Rows) -> list[tuple[list[str], str]]:
    return [(rows.labels(i), rows.split(i)) for i in range(len(rows))]
