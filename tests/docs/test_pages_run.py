"""Every command of the cheat sheet and the FAQ, in order, in an empty folder with the wheel; README and teach-words.

Downloads come from a hub on 127.0.0.1.  README and teach-words are followed in a copy of the checkout.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

import vlm
from docs.page_blocks import Block, blocks, printed
from tests.docs.test_guide import LEFT_BEHIND, NUMBER, ROOT, same_in_both_languages
from tests.docs.test_photos import same
from tests.support.fake_hub import serving
from vlm.bundled import BUNDLED
from vlm.demo.search.samples import samples
from vlm.interop.names.catalog import catalog

DOCS = ROOT / "docs"
MODEL = "japanese"  # a short name whose repository may hold any config
ENDLESS = ("vlm demo", "vlm serve", "--watch")  # go on until Ctrl-C
RECIPE = """task = "{task}"

[model]
source = "mini"
{model}
[data]
train = "photos"
train_splits = ["train"]
validation = "photos"
validation_split = "validation"
workers = 0

[run]
steps = 2
batch_size = 8
"""
PLACEHOLDERS = {  # what a reader writes in the place of a capital word
    "NAME": MODEL, "DATA": "photos", "SOURCE": "hf:org/foreign", "START": "mini", "RUN": "run", "INDEX": "photos.index",
    "/old/place": "{folder}/photos", "/new/place": "{folder}/moved",
}  # fmt: skip
MADE = {  # files after a command, by its beginning
    "vlm index photos": ["photos.index/index.sqlite"],
    "vlm search": [],
    "vlm look": ["look/look-attention.png", "look/look-relevance.png"],
    "vlm train": ["run/model.safetensors"],
    "vlm report": ["report/metrics.json"],
    "vlm embed": ["shards/part-00000.parquet"],
    "vlm tokenizer": ["tokenizer/tokenizer.model"],
    "vlm convert": ["converted/model.safetensors"],
    "vlm export": ["out/open_clip_config.json"],
}

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


class Place(NamedTuple):
    """A reader's folder and environment."""

    folder: Path
    python: Path

    def run(self, command: str) -> str:
        """Standard output of one line; a command that goes on without end is stopped once it is at work."""
        line = command
        for word, written in PLACEHOLDERS.items():
            line = re.sub(rf"(?<![\w/]){word}(?![\w/])", written.format(folder=self.folder), line)
        if any(part in line for part in ENDLESS):
            return self._stopped(line)
        return printed(Block("sh", line), self.folder, self.python)

    def _stopped(self, line: str) -> str:
        environment = {**os.environ, "GRADIO_TEMP_DIR": str(self.folder.parent / "uploads")}
        words = [str(self.python.parent / "vlm"), *shlex.split(line)[1:]]
        log = self.folder.parent / "endless.log"
        with log.open("w+") as said:
            process = subprocess.Popen(words, cwd=self.folder, env=environment, stdout=said, stderr=said)
            for _ in range(1200):
                time.sleep(0.1)
                text = log.read_text(encoding="utf-8")
                if re.search(r"answers at http|running on http|watching|in the index", text, re.IGNORECASE):
                    break
                assert process.poll() is None, text
            process.send_signal(signal.SIGINT)
            assert process.wait(60) in (0, 130, -signal.SIGINT), log.read_text(encoding="utf-8")
        return log.read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, wheel_python: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A folder with what the pages assume: photos with captions, classes and splits, one photo, a recipe, texts."""
    folder = tmp_path / "home"
    (folder / "photos" / "2024").mkdir(parents=True)
    lines = ["file_name,caption,label,split"]
    number = 0
    for label in ("cow face", "chicken", "pig face", "shark"):
        for place, one in enumerate([one for one in samples() if one.en == label][:6]):
            name, number = f"{'2024/' if number % 2 else ''}{number}.jpg", number + 1
            image = Image.open(one.path).convert("RGB")
            image.putpixel((0, 0), (number, 0, 0))
            image.save(folder / "photos" / name)
            split = ("train", "validation", "test")[place % 3]
            lines.append(f"{name},{label} number {number},{label},{split}")
    (folder / "photos" / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copy(folder / "photos" / "0.jpg", folder / "photo.jpg")
    (folder / "recipe.toml").write_text(RECIPE.format(task="clip", model="lock_vision = true"), encoding="utf-8")
    words = json.loads((ROOT / "demo" / "search" / "mini_words.json").read_text(encoding="utf-8"))
    (folder / "captions.txt").write_text("\n".join(words["en"] + words["ja"]), encoding="utf-8")
    vlm.export(vlm.load("mini", device="cpu"), tmp_path / "foreign", "huggingface")
    with serving(tmp_path / "cache", monkeypatch) as hub:
        hub.add_folder(catalog()[MODEL].source.removeprefix("hf:"), BUNDLED["mini"])
        hub.add_folder("org/foreign", tmp_path / "foreign")
        monkeypatch.setenv("VLM_CONFIG", str(tmp_path / "config.json"))
        monkeypatch.setenv("LANG", "C.UTF-8")
        monkeypatch.setenv("GRADIO_SERVER_PORT", "0")
        yield Place(folder, wheel_python)


def rows(page: str) -> list[str]:
    """The commands of the table of a cheat sheet, in order."""
    table = [line for line in (DOCS / page).read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [command for line in table for command in re.findall(r"`(vlm [^`]+)`", line)]


@pytest.mark.parametrize("page", ["cheat-sheet.md", "cheat-sheet.ja.md"])
def test_the_commands_of_the_cheat_sheet_run_in_order(page: str, place: Place) -> None:
    for command in rows(page):
        line = command.replace("SOURCE FOLDER", "SOURCE converted")
        if command.startswith("vlm report"):  # the report is of a classifier
            (place.folder / "classes.toml").write_text(RECIPE.format(task="vit", model=""), encoding="utf-8")
            place.run("vlm train classes.toml --out classes")
            line = line.replace(" run ", " classes ")
        if "models use" in command:
            place.run("vlm models get NAME")
        place.run(line)
        for start, made in MADE.items():
            if command.startswith(start) and "--dry-run" not in command:
                assert not [name for name in made if not (place.folder / name).is_file()], command
        if "--html" in command:
            assert (place.folder / "found.html").stat().st_size > 1000
        if "models use" in command:
            place.run("vlm models use mini")  # the rows below are about the bundled model
    assert len(rows(page)) > 25


@pytest.mark.parametrize("page", ["faq.md", "faq.ja.md"])
def test_the_commands_of_the_faq_run_in_order(page: str, place: Place) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    place.run("vlm train recipe.toml --out run")
    place.run("vlm index photos --index photos.index")
    found = re.findall(r"^(vlm .*)$|`(vlm [^`\n]+)`", text, re.MULTILINE)
    commands = [block or inline for block, inline in found if len((block or inline).split()) > 2 or "models" in block]
    for command in commands:
        if "--move" in command:
            (place.folder / "photos").rename(place.folder / "moved")
        place.run(command.replace("FOLDER --index", "photos --index"))
        if "--move" in command:
            assert "moved" in place.run("vlm index --index photos.index --roots")
            (place.folder / "moved").rename(place.folder / "photos")
    assert len(commands) >= 9


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with .venv, as README has it."""
    copy = tmp_path_factory.mktemp("pages") / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    (copy / ".venv").symlink_to(sys.prefix)  # all of it: python looks for pyvenv.cfg above bin
    return copy


def test_both_readmes_have_the_same_commands_and_outputs() -> None:
    english, japanese = (blocks((ROOT / name).read_text(encoding="utf-8")) for name in ("README.md", "README.ja.md"))
    code = [[block for block in page if block.kind in ("sh", "python", "text")] for page in (english, japanese)]
    for one, other in zip(*code, strict=True):
        same_words = [
            re.sub(r"<[^>\n]+> vlm", "REPOSITORY vlm", same_in_both_languages(block)) for block in (one, other)
        ]
        assert same_words[0] == same_words[1]


@pytest.mark.parametrize("name", ["README.md", "README.ja.md"])
def test_the_commands_of_the_readme_run_and_print_what_it_says(
    name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Training reads a folder of the reader's: here it is estimated only.  `make` targets are those of the Makefile."""
    monkeypatch.setenv("VLM_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert (
        set(re.findall(r"make ([a-z-]+)", "\n".join(re.findall(r"`[^`]*`|^make .*$", text, re.MULTILINE)))) <= targets
    )
    shutil.copy(next((ROOT / "demo" / "samples" / "fxemoji").glob("dog.webp")), checkout / "dog.png")
    output = ""
    for block in blocks(text):
        if block.kind == "sh" and ".venv/bin" in block.body:
            body = block.body
            if "vlm train" in body:
                shutil.rmtree(checkout / "photos", ignore_errors=True)  # of the other page
                printed(Block("sh", "python docs/german_words.py photos"), checkout)
                body = re.sub(r"( --out \S+).*", r"\1 --dry-run", body)
            output = printed(Block("sh", body), checkout).replace(f"{checkout}{os.sep}", ".../")
        elif block.kind == "python":
            printed(block, checkout)
        elif block.kind == "text" and not output.startswith("  name "):
            same(output, block.body)
        elif block.kind == "text":  # the words of `vlm models`; what is on this machine may differ
            assert [line.split()[:2] for line in output.splitlines()] == [
                line.split()[:2] for line in block.body.splitlines()
            ]


def test_teach_words_runs_and_the_new_words_are_learned(checkout: Path) -> None:
    """The table of the page is of the first edition of mini; here, what must hold for any."""
    output = ""
    shutil.rmtree(checkout / "photos", ignore_errors=True)
    for block in blocks((DOCS / "teach-words.md").read_text(encoding="utf-8")):
        if block.kind == "sh":
            output = printed(block, checkout)
        elif block.kind == "text" and "chance" not in block.body:
            same(output, block.body)
        elif block.kind == "text":
            german = {
                line[:22].strip(): float(NUMBER.findall(line)[0])
                for line in output.splitlines()[1:]
                if NUMBER.findall(line)
            }
            assert german["finetune.toml"] > german["mini, before"] + 0.3
