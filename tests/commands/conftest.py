"""The command line, run in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_words import CommandWords
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.embedder import Embedder

Command = Callable[..., tuple[int, str, str]]  # words -> exit code, stdout, stderr


@pytest.fixture
def vlm_command(tiny_embedder: Embedder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """`vlm` with a tiny model, unless the words name one."""
    save(tiny_embedder, tmp_path / "model")

    def run(*words: str | Path) -> tuple[int, str, str]:
        model = [] if "--model" in words or "--no-model" in words else ["--model", str(tmp_path / "model")]
        code = main([*(str(word) for word in words if word != "--no-model"), *model])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def place(tiny_embedder: Embedder, image_folder: Path, run_folder: Path, tmp_path: Path) -> CommandWords:
    save(tiny_embedder, tmp_path / "model")
    return CommandWords(tmp_path, image_folder, run_folder)
