"""docs/from-*: the code before, in the other library, and after, in ours, is run and computes the same.

docs/comparison: both languages say the same, and every link leads somewhere.
"""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

from tests.support.foreign_models import odd_images, randomise

DOCS = Path(__file__).parents[2] / "docs"
MIGRATIONS = ("from-open-clip", "from-transformers")
LANGUAGES = (".md", ".ja.md")
COMPARED = {
    "from-open-clip": {"pixels", "image_embeds", "text_embeds", "similarity", "probabilities", "loss", "gradient"}
    | {"image_features", "text_features"},
    "from-transformers": {"pixels", "image_embeds", "text_embeds", "logits", "only_images", "probabilities", "loss"}
    | {"gradient", "exported_texts"},
}  # and `again`, `exported`

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """(before or after, code), in the order of the page."""
    return re.findall(r"^```python (before|after)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def write_openclip(folder: Path) -> None:
    """A small CLIP in OpenCLIP's format: CLIP's own tokenizer, random weights."""
    sizes: dict[str, Any] = {"width": 32, "layers": 2}
    vision = sizes | {"image_size": 48, "patch_size": 16, "head_width": 8}
    text = sizes | {"context_length": 77, "vocab_size": 49408, "heads": 4}
    model_cfg: dict[str, Any] = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    model = randomise(open_clip.model.CLIP(**model_cfg))
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def write_transformers(folder: Path) -> None:
    """A small CLIPModel and its CLIPProcessor by save_pretrained: CLIP's own tokenizer, random weights."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    symbols = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    config = transformers.CLIPConfig(
        text_config=sizes | symbols, vision_config=sizes | {"image_size": 48, "patch_size": 16}, projection_dim=24
    )
    model = transformers.CLIPModel(config)
    randomise(model)
    model.save_pretrained(folder)
    words = SimpleTokenizer()  # the vocabulary that OpenCLIP ships; its two symbols have other names in Transformers
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    merges: Any = sorted(words.bpe_ranks, key=words.bpe_ranks.__getitem__)  # pairs; Transformers' type says strings
    tokenizer = transformers.CLIPTokenizer(
        vocab={names.get(token, token): number for token, number in words.encoder.items()},
        merges=merges,
        model_max_length=77,
    )
    pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    transformers.CLIPProcessor(pixels, tokenizer).save_pretrained(folder)


WRITERS = {"from-open-clip": write_openclip, "from-transformers": write_transformers}
Names = dict[str, Any]


@pytest.fixture(scope="module", params=[(name, language) for name in MIGRATIONS for language in LANGUAGES], ids="".join)
def walked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Names, Names]:
    """The name of a page, and what its code had computed when all of it had run."""
    name, language = request.param
    place = tmp_path_factory.mktemp(name)
    WRITERS[name](place / "my-clip")
    for file, image in zip(("dog.png", "cat.png"), odd_images(2), strict=True):
        image.save(place / file)
    spaces: dict[str, Names] = {"before": {}, "after": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("HF_HUB_OFFLINE", "1")
        for side, code in blocks(page(name + language)):
            exec(compile(code, f"{name}{language}, {side}", "exec"), spaces[side])
    return name, spaces["before"], spaces["after"]


def tensors(names: Names) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in names.items() if isinstance(value, torch.Tensor)}


def test_the_code_before_and_after_computes_the_same(walked: tuple[str, Names, Names]) -> None:
    name, before, after = walked
    theirs, ours = tensors(before), tensors(after)
    both = (theirs.keys() & ours.keys()) - {"ids"}  # of another length where padding differs
    assert both == COMPARED[name] | {"again", "exported"}
    assert {key: ours[key].shape for key in both} == {key: theirs[key].shape for key in both}
    scale = {"logits": float(theirs["logits"].abs().max()) if "logits" in theirs else 1.0}  # not of unit size
    apart = {key: float((ours[key] - theirs[key]).abs().max()) / scale.get(key, 1.0) for key in both}
    assert {key: distance for key, distance in apart.items() if not distance < 1e-5} == {}


def test_the_small_model_tells_images_and_texts_apart(walked: tuple[str, Names, Names]) -> None:
    """Else any two libraries would agree."""
    _, _, after = walked
    for key in ("image_embeds", "text_embeds"):
        assert float(after[key].std(0).max()) > 0.05, key
    assert float(after["probabilities"].max() - after["probabilities"].min()) > 0.01
    assert float((after["again"] - after["image_embeds"]).abs().max()) > 1e-4  # the step of training was one


def test_what_is_exported_is_the_trained_model_and_not_the_first(walked: tuple[str, Names, Names]) -> None:
    _, before, after = walked
    assert torch.equal(after["exported"], after["again"])
    assert float((before["exported"] - before["image_embeds"]).abs().max()) > 1e-4


@pytest.mark.parametrize("name", MIGRATIONS)
def test_both_languages_show_the_same_code_and_names(name: str) -> None:
    english, japanese = [page(name + language) for language in LANGUAGES]
    assert len(blocks(english)) >= 12
    code = [[(side, re.sub(r" *#.*", "", text)) for side, text in blocks(page)] for page in (english, japanese)]
    assert code[0] == code[1]
    old = [re.findall(r"^\| (`.*?) \| ", page, re.MULTILINE) for page in (english, japanese)]
    assert [sorted(re.findall(r"`[^`]+`", line)) for line in old[0]] == [
        sorted(re.findall(r"`[^`]+`", line)) for line in old[1]
    ]


def resolve(dotted: str, roots: Names) -> object:
    """`vlm.inspect.rollout.rollout` -> the function; a module that nobody imported yet is imported."""
    first, *rest = dotted.split(".")
    found, path = roots[first], first
    for part in rest:
        path += f".{part}"
        if not hasattr(found, part):
            importlib.import_module(path)
        found = getattr(found, part)
    return found


def test_every_name_that_the_page_speaks_of_exists(walked: tuple[str, Names, Names]) -> None:
    name, before, after = walked
    import vlm

    ours: Names = {"vlm": vlm, "embedder": after["embedder"]}
    theirs: Names = {"open_clip": open_clip, "transformers": transformers, "model": before["model"]}
    for language in LANGUAGES:
        inline = re.findall(r"`((?:vlm|embedder|open_clip|transformers|model)\.[\w.]+)", page(name + language))
        assert len(inline) > 30
        for dotted in inline:
            resolve(dotted, ours | theirs)


@pytest.mark.parametrize("name", [*MIGRATIONS, "comparison"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_link_of_the_page_leads_to_a_file_and_place(name: str, language: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)", page(name + language)) if "://" not in link]
    assert len(links) > 3
    for link in links:
        path, _, place = link.partition("#")
        target = DOCS / path if path else DOCS / (name + language)
        assert target.is_file(), link
        assert not place or place in headings(target), link


def headings(path: Path) -> set[str]:
    """As GitHub makes anchors of them."""
    lines = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_comparison_says_the_same_in_both_languages() -> None:
    """The same tables, row for row and column for column, with the same numbers, code and sources."""
    english, japanese = (page("comparison" + language) for language in LANGUAGES)
    rows = [[line.count("|") for line in text.splitlines() if line.startswith("|")] for text in (english, japanese)]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 20
    for pattern in (r"https?://[^)\s]+", r"\[([\w./-]+#\d+)\]"):
        found = [sorted(re.findall(pattern, text)) for text in (english, japanese)]
        assert found[0] == found[1]
        assert found[0]
    figures = [table_figures(text) for text in (english, japanese)]
    assert figures[0] == figures[1]


def table_figures(text: str) -> list[list[str]]:
    """The numbers of each row of the tables, links apart."""
    rows = [re.sub(r"\[[^]]*\]\([^)]*\)", "", line) for line in text.splitlines() if line.startswith("|")]
    return [sorted(re.findall(r"\d[\d,.]*\d|\d", row)) for row in rows]
