"""However the code is started, each module is loaded once, under one name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_run import write_recipe
from vlm.tokenizers.load import load_tokenizer

ROOT = Path(__file__).parent.parent
# At the end: the modules whose file another module has too.  The started file itself is __main__, as always.
WATCH = """
import atexit, os, sys

def report():
    names = {}
    for module in list(sys.modules.values()):
        file, spec = getattr(module, "__file__", None), getattr(module, "__spec__", None)
        if file and spec and file.startswith(os.environ["WATCHED"]):
            names.setdefault(os.path.realpath(file), set()).add(spec.name)
    twice = {file: found for file, found in names.items() if len(found) > 1}
    print("LOADED", len(names), "TWICE", twice, file=sys.stderr, flush=True)

atexit.register(report)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RANK", "WORLD_SIZE")}
    return kept | {"PYTHONPATH": str(tmp_path / "watch"), "WATCHED": str(ROOT), "OMP_NUM_THREADS": "1"}


def started(words: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("words", [["-m", "demo", "--help"], ["-m", "training.check", "--help"]])
def test_entry_points_load_each_module_once(words: list[str], environment: dict[str, str]):
    error = started(words, environment)
    assert "TWICE {}" in error and "LOADED 0" not in error


@pytest.mark.parametrize(
    "start",
    [
        ["-m", "training.train_clip"],
        pytest.param(
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training.train_clip"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vlm", "train"],
            marks=pytest.mark.long,
        ),
    ],
    ids=["python", "torchrun", "torchrun vlm"],
)
def test_a_training_run_loads_each_module_once(
    start: list[str], run_folder: Path, tmp_path: Path, environment: dict[str, str]
):
    recipe = write_recipe(run_folder, run={"steps": 2, "eval_every": 2}, data={"workers": 1})
    error = started([*start, str(recipe), "--out", str(tmp_path / "model"), "--device", "cpu"], environment)
    loaded = [line for line in error.splitlines() if line.startswith("LOADED")]
    assert len([line for line in loaded if int(line.split()[1]) > 40]) >= (2 if "torch.distributed.run" in start else 1)
    assert all("TWICE {}" in line for line in loaded)
    assert load_tokenizer(tmp_path / "model").vocab_size
