"""A mistake of the user is one line with its facts and exit code 1; a defect of vlm is a traceback and one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_words import CommandWords, one_line
from tests.support.tiny_run import write_recipe, write_vit_recipe
from vlm.cli import main


def failing(kind: type[Exception]) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise kind("planted")

    return fail


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyError])
@pytest.mark.parametrize("command", ["classify", "look", "search", "index", "train", "train vit", "evaluate", "embed"])
def test_a_defect_in_the_network_is_a_traceback_and_a_line_where_to_report_it(
    command: str,
    kind: type[Exception],
    place: CommandWords,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("vlm.models.vision.VisionTransformer.forward", failing(kind))
    monkeypatch.setattr("vlm.inspect.figures.draw_all", failing(kind))
    code = main([*place.words(command), *(["--workers", "1"] if command == "index" else [])])
    lines = capsys.readouterr().err.splitlines()
    assert code == 70
    assert any(line.endswith("Traceback (most recent call last):") for line in lines)
    assert [line for line in lines if line.startswith(kind.__name__) and "planted" in line]
    assert "defect of vlm" in lines[-1] and "report" in lines[-1]
    assert not [line for line in lines if "error: " in line and line.startswith("vlm:")]


@pytest.mark.parametrize("kind", [ValueError, OSError])
@pytest.mark.parametrize(
    ("command", "place_of_defect"),
    [
        ("check", "vlm.training.data.sources.open_rows"),
        ("convert", "vlm.checkpoint.save.stored"),
        ("find", "vlm.index.search.nearest"),
    ],
)
def test_a_defect_elsewhere_is_one_too(
    command: str,
    place_of_defect: str,
    kind: type[Exception],
    place: CommandWords,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert command != "find" or place.run("index") == 0
    monkeypatch.setattr(place_of_defect, failing(kind))
    assert place.run(command) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err and "planted" in err and "defect of vlm" in err.splitlines()[-1]


# What is wrong -> what the line says of it.  {place} is a folder with images/, model/, data.parquet and the odd files.
ODD: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "junk": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path.name),
    "utf16": lambda path: path.write_bytes('task = "clip"\n'.encode("utf-16")),
}
NAMES = [f"~{'x' * 9}/a", "x" * 300, "\udcff"]  # no such user, longer than a name may be, not UTF-8

PATH_ARGUMENTS = {
    "classify, image": lambda place, odd: ["classify", odd, "--labels", "a", "--model", place / "model"],
    "classify, model": lambda place, odd: ["classify", place / "images/a.png", "--labels", "a", "--model", odd],
    "classify, classifier": lambda place, odd: ["classify", place / "images/a.png", "--classifier", odd],
    "look, image": lambda place, odd: ["look", odd, "--model", place / "model", "--out", place / "look"],
    "index, folder": lambda place, odd: ["index", odd, "--index", place / "i", "--model", place / "model"],
    "index, embeddings": lambda place, odd: [
        "index", "--index", place / "i", "--model", place / "model", "--from-embeddings", odd
    ],
    "search, index": lambda place, odd: ["search", "a", "--index", odd, "--model", place / "model"],
    "search, folder": lambda place, odd: ["search", "a", "--folder", odd, "--model", place / "model"],
    "check, data": lambda place, odd: ["check", odd, "--workers", "0"],
    "check, tokenizer": lambda place, odd: ["check", place / "images", "--workers", "0", "--tokenizer", odd],
    "tokenizer, captions": lambda place, odd: ["tokenizer", odd, "--out", place / "t"],
    "train, recipe": lambda place, odd: ["train", odd, "--out", place / "run"],
    "evaluate, model": lambda place, odd: ["evaluate", odd, "--data", place / "images"],
    "evaluate, data": lambda place, odd: ["evaluate", place / "model", "--data", odd],
    "probe, data": lambda place, odd: ["probe", place / "model", odd, "--choose", "validation"],
    "report, classifier": lambda place, odd: ["report", odd, place / "images", "--out", place / "report"],
    "wise-ft, start": lambda place, odd: ["wise-ft", odd, place / "model", place / "images", "--choose", "x"],
    "convert, source": lambda place, odd: ["convert", odd, place / "out"],
    "export, model": lambda place, odd: ["export", odd, place / "out", "--to", "openclip"],
    "embed, data": lambda place, odd: ["embed", place / "model", odd, "--out", place / "shards", "--workers", "0"],
    "models use": lambda place, odd: ["models", "use", odd],
    "serve, model": lambda place, odd: ["serve", "--model", odd, "--port", "0"],
}  # fmt: skip


@pytest.mark.parametrize("argument", PATH_ARGUMENTS)
def test_a_path_that_is_not_what_it_should_be_is_one_line(
    argument: str, place: CommandWords, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, make in ODD.items():
        make(place.folder / name)
    wrong: dict[str, tuple[int, list[str]]] = {}
    for odd in [*ODD, *NAMES]:
        try:
            code = main([str(word) for word in PATH_ARGUMENTS[argument](place.folder, odd)])
        except SystemExit as error:  # a wrong usage: argparse printed its line
            assert error.code == 2
            continue
        err = capsys.readouterr().err
        errors = [line for line in err.splitlines() if line.startswith("vlm: error: ")]
        if code == 0 and odd == "folder":  # an empty folder is nothing to index, and no mistake
            continue
        if (code, len(errors)) != (1, 1) or "Traceback" in err:
            wrong[odd] = (code, err.splitlines()[-9:])
    assert not wrong


@pytest.mark.parametrize(
    "section, setting, value",
    [
        ("data", "train", "a\0b"),
        ("data", "train", "/nope.csv"),
        ("data", "root", "a\0b"),
        ("model", "tokenizer", "a\0b"),
        ("model", "tokenizer", "/nope"),
        ("model", "source", "a\0b"),
    ],
)
@pytest.mark.parametrize("task", ["train", "train vit"])
def test_a_path_in_a_recipe_that_cannot_be_opened_is_one_line(
    task: str, section: str, setting: str, value: str, place: CommandWords, capsys: pytest.CaptureFixture[str]
):
    write = write_recipe if task == "train" else write_vit_recipe
    recipe = write(place.run_folder, **{section: {setting: value}})
    one_line(main(["train", str(recipe), "--out", str(place.folder / "run")]), capsys)


@pytest.mark.parametrize("host", ["x" * 70, "a..b", "256.1.1.1"])
def test_an_address_that_cannot_be_one_is_one_line(host: str, place: CommandWords, capsys: pytest.CaptureFixture[str]):
    words = ["serve", "--host", host, "--no-token", "--port", "0", "--model", str(place.folder / "model")]
    one_line(main(words), capsys, host, "--host")


@pytest.mark.parametrize(
    ("variables", "facts"),
    [({"RANK": "0", "WORLD_SIZE": "two"}, ["WORLD_SIZE", "two"]), ({"RANK": "0", "WORLD_SIZE": "2"}, ["MASTER_ADDR"])],
)
def test_a_wrong_environment_of_torchrun_is_one_line(
    variables: dict[str, str],
    facts: list[str],
    place: CommandWords,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    one_line(place.run("train"), capsys, "torchrun", *facts)
