"""The blocks of docs/photos.md, run in an empty folder against a hub on 127.0.0.1 that serves mini's weights."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from docs.page_blocks import Block, printed
from tests.support.fake_hub import serving
from vlm.bundled import BUNDLED
from vlm.interop.names.catalog import catalog

PAGE = Path(__file__).parents[2] / "docs" / "photos.md"
STANDS_IN = "japanese"  # a model of the hub whose repository may hold any config; photos-small has one fixed size


@contextmanager
def evening(folder: Path, python: Path = Path(sys.executable)) -> Iterator["Evening"]:
    """Settings, cache and hub of their own, all below `folder`; commands are those of the environment of `python`."""
    with pytest.MonkeyPatch.context() as patch, serving(folder / "cache", patch) as hub:
        hub.add_folder(catalog()[STANDS_IN].source.removeprefix("hf:"), BUNDLED["mini"])
        patch.setenv("VLM_CONFIG", str(folder / "config.json"))
        patch.setenv("LANG", "C.UTF-8")
        (folder / "home").mkdir()
        yield Evening(folder / "home", python)


class Evening:
    """Runs blocks in one folder."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.python = folder, python

    def run(self, block: Block) -> str:
        """Standard output, with what differs between machines as `...`."""
        said = printed(Block(block.kind, block.body.replace("photos-small", STANDS_IN)), self.folder, self.python)
        said = said.replace(STANDS_IN, "photos-small").replace(f"{self.folder}{os.sep}", "")
        said = said.replace(str(self.folder.parent), "...")
        return re.sub(r"\d+(\.\d+)? images/s", "... images/s", said)
