"""docs/tutorial-classification: its commands are run in order, and transformers then says what we say."""

import hashlib
import io
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image

from vlm import cli
from vlm.checkpoint.load import load_classifier
from vlm.config import VisionConfig
from vlm.interop.exports import export
from vlm.models.vision import ViTClassifier
from vlm.training.data.labelled import classes_of, open_labelled
from vlm.training.recipe.config import VitRecipe

ROOT = Path(__file__).parents[3]
IMAGE = "docs/images/tutorial-cow.png"
TINY = {"lr": 0.1, "steps": 2, "batch_size": 8, "warmup_steps": 1, "eval_every": 2, "save_every": 1}

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def code(kind: str, text: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    return [line for block in code("sh", text) for line in block.splitlines()]


def recipe() -> str:
    """The one of the page, with tiny settings."""
    (found,) = (block for block in code("toml", page("tutorial-classification.md")) if "[run]" in block)
    for name, value in TINY.items():
        found, times = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value}", found)
        assert times == 1
    return found.replace("[data]\n", "[data]\nworkers = 0\n")


def png(number: int, side: int = 24) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_images(folder: Path) -> None:
    """The eight groups, three images of noise each for training and one by another artist."""
    folder.mkdir(parents=True)
    groups = json.loads((ROOT / "training/picture_words/classes.json").read_text(encoding="utf-8"))["emoji_group8"]
    (folder / "classes.json").write_text(json.dumps({"emoji_group8": groups}), encoding="utf-8")
    for name, split, count in (("train", "train", 24), ("validation", "val_style", 8)):
        rows = [
            {
                "uid": f"{name}-{number}",
                "image": {"bytes": png(number + 100 * (split == "train")), "path": None},
                "captions_en": [f"image {number}"],
                "captions_ja": [f"絵 {number}"],
                "group": list(groups["classes"])[number % 8],
                "split": split,
            }
            for number in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def write_foreign_vit(folder: Path) -> None:
    """A ViT as Hugging Face saves it, random."""
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def run(words: list[str]) -> None:
    """As the shell would, in this process."""
    assert words[0] == "vlm"
    assert cli.main(words[1:]) == 0, words


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """After all commands of the page: the folder they ran in, and what was pushed."""
    place = tmp_path_factory.mktemp("tutorial")
    text, pushed = page("tutorial-classification.md"), []
    write_images(place / "training/picture_words")
    write_foreign_vit(place / "vit")
    (place / IMAGE).parent.mkdir(parents=True)
    shutil.copyfile(ROOT / IMAGE, place / IMAGE)
    (place / "my-vit.toml").write_text(recipe(), encoding="utf-8")
    (place / "my-hf-vit.toml").write_text(recipe().replace('"mini"', '"vit"'), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("vlm.training.tasks.train.push_to_hub", lambda folder, repo: pushed.append((folder, repo)))
        run(shlex.split("vlm train my-hf-vit.toml --out runs/my-hf-vit"))
        for command in commands(text):
            run(shlex.split(command))
        yield {"place": place, "pushed": pushed}


def ours(folder: str) -> dict[str, float]:
    classifier = load_classifier(folder)
    assert classifier.preprocess is not None
    with torch.inference_mode():
        return dict(
            zip(classifier.labels, classifier(classifier.preprocess(IMAGE)[None]).softmax(1)[0].tolist(), strict=True)
        )


@pytest.mark.long
@pytest.mark.parametrize(
    ("trained", "exported", "kind"),
    [
        ("runs/my-vit", "runs/my-vit-timm", "TimmWrapperForImageClassification"),
        ("runs/my-hf-vit", "runs/my-hf-vit-huggingface", "ViTForImageClassification"),
    ],
)
def test_the_pipeline_of_transformers_gives_our_probabilities(
    walked: dict[str, Any], trained: str, exported: str, kind: str
):
    pipeline: Any = transformers.pipeline("image-classification", model=exported)
    assert type(pipeline.model).__name__ == kind
    theirs = {row["label"]: row["score"] for row in pipeline(IMAGE, top_k=8)}
    expected = ours(trained)
    assert max(expected.values()) - min(expected.values()) > 1e-3  # else any two classifiers would agree
    assert theirs == pytest.approx(expected, abs=1e-5)


@pytest.mark.long
def test_the_push_is_of_the_finished_run_and_happens_only_where_the_page_says_push(walked: dict[str, Any]):
    assert walked["pushed"] == [(Path("runs/my-vit"), "ORG/NAME")]
    assert sum("--push" in command for command in commands(page("tutorial-classification.md"))) == 1
    steps = [json.loads(line)["step"] for line in Path("runs/my-vit/metrics.jsonl").read_text().splitlines()]
    assert max(steps) == TINY["steps"]  # the second call trained no more


@pytest.mark.long
def test_the_pages_python_runs_and_prints_what_the_commands_made(
    walked: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    for block in code("python", page("tutorial-classification.md")):
        exec(block, {})
    output = capsys.readouterr().out
    assert "8 ('a face or emotion symbol', " in output  # 8 images of val_style
    best = max(ours("runs/my-vit").items(), key=lambda item: item[1])
    assert best[0] in output.splitlines()[-1]


@pytest.mark.long
def test_the_report_counts_the_images_of_the_split(walked: dict[str, Any]):
    found = json.loads(Path("runs/my-vit-report/metrics.json").read_text(encoding="utf-8"))
    assert found["n"] == 8
    assert found["top_1"]["value"] * 8 == pytest.approx(round(found["top_1"]["value"] * 8))


def test_a_vit_that_hugging_faces_class_cannot_be_is_sent_to_timm(tmp_path: Path):
    config = VisionConfig(image_size=16, patch_size=8, width=8, depth=1, num_heads=2, mlp_dim=8, pre_norm=True)
    with pytest.raises(ValueError, match=r"blocks.* pipeline"):
        export(ViTClassifier(config, 2), tmp_path / "out", "huggingface")


def test_a_folder_per_class_and_a_table_are_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    lines = ["filepath,label"]
    for number in range(6):
        kind = ("cat", "dog")[number % 2]
        path = Path("my-images") / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
        lines.append(f"{path},{kind}")
    Path("my-images.csv").write_text("\n".join(lines), encoding="utf-8")
    blocks = code("toml", page("tutorial-classification.md"))[:3]
    folder, table, hub = (VitRecipe.from_dict(tomllib.loads(block)).data for block in blocks)
    found = []
    for data in (folder, table):
        labelled = open_labelled(data.train, data.train_splits, classes_of(data.train, data.train_splits))
        images = [Image.open(labelled.rows.image(index)).tobytes() for index in labelled.index]  # type: ignore[arg-type]
        found.append({hashlib.sha256(p).hexdigest(): t for p, t in zip(images, labelled.targets.tolist(), strict=True)})
    assert found[0] == found[1]
    assert sorted(found[0].values()) == [0, 0, 0, 1, 1, 1]
    assert hub.train == "org/name"


def test_both_languages_have_the_same_commands_and_code():
    english, japanese = page("tutorial-classification.md"), page("tutorial-classification.ja.md")
    assert commands(english) == commands(japanese)
    assert len(commands(english)) > 7
    for kind in ("toml", "python"):
        blocks = [[re.sub(r" *#.*", "", block) for block in code(kind, text)] for text in (english, japanese)]
        named = [block.replace('language = "ja"', 'language = "en"') for block in blocks[1]]
        assert blocks[0] == [block.replace('words("ja")', 'words("en")') for block in named]


@pytest.mark.parametrize("name", ["tutorial-classification.md", "tutorial-classification.ja.md"])
def test_every_link_of_the_page_leads_to_a_file(name: str):
    links = [link for link in re.findall(r"\]\(([^)#]+)", page(name)) if "://" not in link]
    assert len(links) > 3
    assert [link for link in links if not (ROOT / "docs" / link).is_file()] == []
