"""Every file of Pillow's own tests is read, or refused for a reason that docs/retrieval.md gives.

They are not part of this repository.  Unpack Pillow's source distribution and name its folder:
VLM_PILLOW_IMAGES=pillow-12.3.0/Tests/images pytest -m long tests/index/test_pillow_images.py
"""

import os
import re
import warnings
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from vlm.config import PreprocessConfig
from vlm.errors import ImageReason
from vlm.images.preprocess import Preprocess
from vlm.index.embedding_index import EmbeddingIndex
from vlm.index.image_reading import FileToRead, read_file

FOLDER = os.environ.get("VLM_PILLOW_IMAGES")
ROOT = Path(__file__).parents[2]
PAGES = ("retrieval.md", "retrieval.ja.md")


def refused_formats(page: str) -> set[str]:
    """Pillow's names of the formats in the row of the table that says what is refused."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| (?:refused by format|形式による拒否) \| (.*) \|$", text, re.M)
    return set(re.findall(r"[A-Z][A-Za-z0-9]+", row))


def test_both_pages_name_the_same_formats():
    first, second = map(refused_formats, PAGES)
    assert first == second and {"EPS", "DDS"} <= first


def opened_by_pillow(path: Path) -> str | None:
    """The format and colour mode, where Pillow opens and decodes the file; None for others and for animations."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            image.load()
            still = getattr(image, "n_frames", 1) == 1
            return f"{image.format} {image.mode}" if still else None
    except Exception:
        return None


@pytest.mark.long
@pytest.mark.skipif(FOLDER is None, reason="VLM_PILLOW_IMAGES names no folder")
def test_every_image_of_pillow_is_read_or_refused_for_a_known_reason(
    index: EmbeddingIndex, capsys: pytest.CaptureFixture[str]
):
    folder, preprocess = Path(FOLDER or ""), Preprocess(PreprocessConfig(image_size=32))
    named, unexplained, counts = refused_formats(PAGES[0]), list[str](), {"files": 0, "read": 0, "refused": 0}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with warnings.catch_warnings(action="ignore"):  # of Pillow, about damaged metadata; here they would be errors
            found = read_file(FileToRead(path=str(path), size=0, mtime=0, known=frozenset()), preprocess)
        counts["files"] += 1
        counts["read" if found.problem is None else "refused"] += 1
        if found.problem is None:
            continue
        assert found.problem.reason in get_args(ImageReason), found.problem
        kind = opened_by_pillow(path)
        if kind is not None and kind.split()[0] not in named and kind not in ("TIFF I", "TIFF F", "PPM F"):
            unexplained.append(f"{path.name} ({kind}): {found.problem}")
    assert counts["files"] > 500
    with warnings.catch_warnings(action="ignore"):
        added = index.add_folder(folder, workers=0)
    with capsys.disabled():
        print("\n", counts, f"in a folder: {added.embedded} embedded, {len(added.skipped)} skipped, {added.others}")
    assert not unexplained, "\n".join(unexplained)
