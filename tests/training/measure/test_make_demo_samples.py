from pathlib import Path

import pytest

from vlm.training import make_demo_samples as module


def test_the_demos_gallery_is_what_the_script_makes_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "deep" / "samples"
    monkeypatch.setattr(module, "OUT", out)
    module.main()
    gallery = Path(__file__).parents[3] / "demo" / "samples"
    made, kept = (
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (out, gallery)
    )
    assert kept.pop("README.md")  # written by hand
    assert made == kept
    images = sum(name.endswith(".webp") for name in made)
    assert capsys.readouterr().out == f"{images} images in {out}\n"
