"""The command `vlm search`: its options and what it prints."""

from pathlib import Path

import pytest

from vlm.cli import main


def test_a_search_needs_one_question_and_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for words in ([], ["x", "--duplicates", "0.9"]):
        with pytest.raises(SystemExit) as stopped:
            main(["search", *words, "--index", str(tmp_path)])
        assert stopped.value.code == 2
        assert "give either QUERY or --duplicates" in capsys.readouterr().err
    assert main(["search", "x", "--index", str(tmp_path / "none")]) == 1
    assert f"There is no index '{tmp_path / 'none'}'. Make one: vlm index FOLDER" in capsys.readouterr().err
