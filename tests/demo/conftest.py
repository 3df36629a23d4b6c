"""What the tests of the demo share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import vlm
from vlm.demo.actions import PageActions


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small is slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def actions(tiny_embedder: vlm.Embedder, tmp_path: Path) -> PageActions:
    vlm.save(tiny_embedder, tmp_path / "tiny")
    return PageActions(str(tmp_path / "tiny"))
