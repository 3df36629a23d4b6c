"""docs/notebooks: they run from top to bottom, on settings made small; their outputs are kept."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.docs.test_guide import LEFT_BEHIND, ROOT

NOTEBOOKS = ROOT / "docs/notebooks"
SMALL = {
    "guide.ipynb": {"CLIP_STEPS": 4, "VIT_STEPS": 4},
    "own-data.ipynb": {"STEPS": 4, "WORDS": 6},
}


def read(name: str) -> Any:
    return nbformat.read(NOTEBOOKS / name, as_version=4)


def made_small(notebook: Any, settings: dict[str, int]) -> Any:
    """The cell tagged `parameters` with other numbers."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for setting, value in settings.items():
        cell.source, count = re.subn(rf"^{setting} = \d+", f"{setting} = {value}", cell.source, flags=re.M)
        assert count == 1, setting
    return notebook


def test_the_notebooks_are_these() -> None:
    assert {path.name for path in NOTEBOOKS.glob("*")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_speaks_both_languages(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert re.search("[ぁ-ん]", cell.source)
            assert re.search("[A-Za-z]{3}", cell.source)


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_shows_what_it_printed_and_drew(name: str) -> None:
    """python -m docs.quote_mini notebooks writes the outputs."""
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(outputs) >= 6
    assert not [output for output in outputs if output.output_type == "error"]
    assert not re.search(r"/(root|home|work|Users)/", str([output.get("text", "") for output in outputs]))
    assert (NOTEBOOKS / name).stat().st_size < 1_500_000


def test_the_first_cell_outside_a_checkout_asks_for_a_source(tmp_path: Path) -> None:
    """Without vlm and without a checkout the first cell says what to write; it installs nothing by itself."""
    source = read("own-data.ipynb").cells[1].source.replace('find_spec("vlm")', 'find_spec("vlm_is_not_here")')
    environment = {name: value for name, value in os.environ.items() if name != "VLM_SOURCE"}
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "VLM_SOURCE" in done.stderr


@pytest.mark.parametrize("name", SMALL)
def test_links_of_a_notebook_lead_somewhere(name: str) -> None:
    found = [link for cell in read(name).cells for link in re.findall(r"\]\(([^)]+)\)", cell.source)]
    assert found
    assert not [link for link in found if not (NOTEBOOKS / link).exists()]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    path = checkout / "docs/notebooks" / name
    nbformat.write(made_small(read(name), SMALL[name]), path)
    command = [sys.executable, "-m", "jupyter", "execute", "--inplace", "--timeout=900", str(path)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for cell in nbformat.read(path, as_version=4).cells:  # a command after ! that fails does not stop a notebook
        said = "".join(output.get("text", "") for output in cell.get("outputs", []))
        assert not re.search(r"^(usage|.*error): ", said, re.M), said
