"""`--columns` and `--root`: the same description of a table for every command that opens data."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.check_sets import noise_image
from vlm.checkpoint.load import load_classifier
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.embedder import Embedder
from vlm.models.vision import ViTClassifier

CLASSES = ["cat", "dog"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table apart from its images, whose columns have names that nobody would guess."""
    (tmp_path / "tables").mkdir()
    lines = ["shot,breed,note,part"]
    for n in range(16):
        (tmp_path / "photos").mkdir(exist_ok=True)
        noise_image(n, (20, 20)).save(tmp_path / "photos" / f"{n}.png")
        lines.append(f"{n}.png,{CLASSES[n % 2]},a {CLASSES[n % 2]} {n},{'train' if n < 8 else 'validation'}")
    (tmp_path / "tables" / "d.csv").write_text("\n".join(lines))
    return tmp_path / "tables" / "d.csv"


def words_of(table: Path, *, one_word: bool = True) -> list[str]:
    roles = ["image=shot", "label=breed", "caption=note", "split=part"]
    return ["--columns", *([",".join(roles)] if one_word else roles), "--root", str(table.parent.parent / "photos")]


@pytest.fixture
def clip(tiny_embedder: Embedder, tmp_path: Path) -> str:
    save(tiny_embedder, tmp_path / "clip")
    return str(tmp_path / "clip")


@pytest.fixture
def vit(tiny_embedder: Embedder, tmp_path: Path) -> str:
    config = tiny_embedder.model.vision.config
    model = ViTClassifier(config, 2, labels=CLASSES, preprocess=tiny_embedder.preprocess)
    save(model, tmp_path / "vit")
    shutil.copytree(tmp_path / "vit", tmp_path / "vit2")
    return str(tmp_path / "vit")


@pytest.mark.parametrize("one_word", [True, False])
def test_evaluate_reads_the_described_table(table: Path, clip: str, one_word: bool, capsys: pytest.CaptureFixture[str]):
    words = words_of(table, one_word=one_word)
    assert main(["evaluate", clip, "--data", str(table), "--split", "validation", *words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["n"] for row in rows if row["task"].startswith("text->image")} == {8}


def test_embed_reads_the_described_table(table: Path, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["embed", clip, str(table), "--workers", "0", "--json"]
    assert main([*words, "--out", str(tmp_path / "a"), *words_of(table)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["broken"], found["complete"]) == (16, 0, True)


def test_embed_of_nothing_but_broken_samples_is_an_error(
    table: Path, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["embed", clip, str(table), "--workers", "0", "--out", str(tmp_path / "a"), *words_of(table)[:2]]
    for _ in range(2):  # the finished shards of the first run do not make the second one right
        assert main(words) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "None of the 16 samples" in error and "0.png" in error and "--root" in error
    assert len((tmp_path / "a" / "broken.jsonl").read_text().splitlines()) == 16


@pytest.mark.parametrize("held_out", [["--choose", "validation"], ["--held-out", "0.5"]])
def test_probe_reads_the_described_table(
    table: Path, clip: str, held_out: list[str], capsys: pytest.CaptureFixture[str]
):
    words = ["probe", clip, str(table), *held_out, "--shots", "--neighbours", "0", "--json", *words_of(table)]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["n"] for row in rows} == {8 if held_out[0] == "--choose" else 4}


def test_report_and_wise_ft_read_the_described_table(
    table: Path, vit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = ["--out", str(tmp_path / "report"), "--json"]
    assert main(["report", vit, str(table), "--split", "validation", *out, *words_of(table)]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 8
    choose = ["--choose", "validation", "--steps", "1", "--json"]
    assert main(["wise-ft", vit, vit + "2", str(table), *choose, *words_of(table)]) == 0
    assert [point["n"] for point in json.loads(capsys.readouterr().out)] == [8, 8]


RECIPE = """task = "{task}"
[model]
source = "{source}"
[data]
train = "{table}"
{validation}
workers = 0
[optim]
matrices = "adamw"
[run]
steps = 1
batch_size = 4
"""


@pytest.mark.parametrize("task", ["clip", "vit"])
@pytest.mark.parametrize("way", ["command line", "recipe", "other validation table"])
def test_train_reads_the_described_table(task: str, way: str, table: Path, clip: str, tmp_path: Path):
    validation = 'validation_split = "validation"\ntrain_splits = ["train"]'
    words = words_of(table)
    description = f'root = "{table.parent.parent / "photos"}"\n' + (
        'columns = {image = "shot", label = "breed", caption = "note", split = "part"}'
    )
    if way == "recipe":
        validation, words = validation + "\n" + description, []
    elif way == "other validation table":
        text = table.read_text().replace("shot", "photo").replace("breed", "kind").replace("note", "words")
        (table.parent / "v.csv").write_text(text)
        validation = description + (
            f'\nvalidation = "{table.parent / "v.csv"}"\nvalidation_split = "validation"\ntrain_splits = ["train"]\n'
            'validation_columns = {image = "photo", label = "kind", caption = "words", split = "part"}'
        )
        words = []
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(task=task, source=clip, table=table, validation=validation))
    assert main(["train", str(recipe), "--out", str(tmp_path / "run"), *words]) == 0
    written = (tmp_path / "run" / "recipe.toml").read_text()
    assert "shot" in written and "photos" in written  # the run's folder says how to read its data


def test_numbers_of_a_csv_are_described_on_the_command_line(table: Path, tmp_path: Path):
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0] + ",age", *(f"{line},{n / 2}" for n, line in enumerate(lines[1:]))]))
    sizes = "{ image_size = 16, patch_size = 8, width = 8, depth = 1, num_heads = 2, mlp_dim = 16 }"
    (tmp_path / "r.toml").write_text(
        f'task = "vit"\n[model]\nvision = {sizes}\n[data]\ntrain = "{table}"\nworkers = 0\n'
        '[loss]\nproblem = "regression"\n[run]\nsteps = 1\nbatch_size = 4\n'
    )
    words = ["--columns", "image=shot,label=age,split=part", "--root", str(tmp_path / "photos")]
    assert main(["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run"), *words]) == 0
    trained = load_classifier(tmp_path / "run")
    assert (trained.problem, trained.labels) == ("regression", ("age",))


def test_a_description_without_a_role_is_one_line(table: Path, clip: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", clip, "--data", str(table), "--columns", "shot"])
    assert stop.value.code == 2
    assert "ROLE=NAME, got shot" in capsys.readouterr().err
    assert main(["evaluate", clip, *words_of(table)]) == 1
    assert "--data" in capsys.readouterr().err
