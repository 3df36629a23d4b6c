"""Damaged and hostile files: each is refused in one line, and nothing in them is ever run."""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.foreign_models import clip_config, randomise
from vlm.errors import VlmError
from vlm.interop.formats import huggingface, openclip
from vlm.interop.loading import load_foreign, load_foreign_classifier
from vlm.interop.tensor_files import read_tensors
from vlm.models.clip import CLIP

MARKER = Path("marker-of-executed-code")


class Bomb:
    """Unpickling this runs code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return open, (str(self.marker), "w")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound folders: `openclip` and `huggingface`."""
    root, config = tmp_path_factory.mktemp("good"), clip_config()
    model = CLIP(config)
    randomise(model)
    model_cfg, tensors = openclip.write_model(config, model.state_dict())
    info, theirs = huggingface.write_clip(config, model.state_dict(), 48)
    for name, file, settings, state in (
        ("openclip", "open_clip_config.json", {"model_cfg": model_cfg}, tensors),
        ("huggingface", "config.json", info, theirs),
    ):
        (root / name).mkdir()
        (root / name / file).write_text(json.dumps(settings))
        save_file(state, root / name / "model.safetensors")
        load_foreign(str(root / name))  # sound as it is
    return root


Damage = Callable[[Path], Any]  # what it does to a folder that was sound


def cut(length: float) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: int(len(data) * length) if length < 1 else len(data) - 1])

    return damage


def flip(place: int) -> Damage:
    """One bit of the header: `place` thousandths of its length."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / "model.safetensors").read_bytes())
        header = len(bytes(data[8 : 8 + int.from_bytes(data[:8], "little")]).rstrip())
        data[8 + header * place // 1000] ^= 1 << (place % 7)
        (folder / "model.safetensors").write_bytes(data)

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")

    return damage


def pickled(write: Callable[[Path, Path], Any], name: str = "model.pth") -> Damage:
    """Instead of the safe file, one that `write(file, marker)` makes."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        write(folder / name, folder / MARKER)

    return damage


def config(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        path = next(folder.glob("*.json"))
        content = json.loads(path.read_text())
        change(content.get("model_cfg", content))
        path.write_text(json.dumps(content))

    return damage


def config_text(text: str) -> Damage:
    return lambda folder: next(folder.glob("*.json")).write_text(text)


def bytes_of(data: bytes) -> Damage:
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


def _zip_with(path: Path, marker: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(marker)))
        archive.writestr("archive/version", "3")


def _script(path: Path, marker: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/constants.pkl", pickle.dumps(Bomb(marker)))
        archive.writestr("model/data.pkl", pickle.dumps(Bomb(marker)))
        archive.writestr("model/code/__torch__.py", f"open({str(marker)!r}, 'w')")


def _object_array(path: Path, marker: Path) -> None:
    np.savez(path, np.array([Bomb(marker)], dtype=object))


def _legacy(path: Path, marker: Path) -> None:
    torch.save({"state_dict": Bomb(marker)}, path, _use_new_zipfile_serialization=False)


def _outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"logit_scale": "../elsewhere.safetensors"}}')


def _shard_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"logit_scale": "model-1-of-2.safetensors"}}')


def _rename(old: str, new: str) -> Damage:
    return tensors(lambda state: state.update({new: state.pop(old)}))


SCALE = "logit_scale"
ANY: dict[str, Damage] = {
    **{f"cut to {length}": cut(length) for length in (0, 0.0001, 0.01, 0.3, 0.999, 1)},
    **{f"header bit {place}": flip(place) for place in (0, 3, 77, 151, 310, 402, 498, 587, 661, 748, 839, 911, 999)},
    "another tensor too many": tensors(lambda state: state.update(extra=torch.zeros(2))),
    "a tensor missing": tensors(lambda state: state.pop(SCALE)),
    "renamed": _rename(SCALE, "logit_scala"),
    "names in capitals": tensors(lambda state: state.update({n.upper(): state.pop(n) for n in list(state)})),
    "int8": tensors(lambda state: state.update({SCALE: torch.tensor(3, dtype=torch.int8)})),
    "float64": tensors(lambda state: state.update({SCALE: state[SCALE].double()})),
    "bool": tensors(lambda state: state.update({SCALE: torch.tensor(True)})),
    "not a number": tensors(lambda state: state.update({SCALE: torch.tensor(float("nan"))})),
    "infinite": tensors(lambda state: state.update({SCALE: torch.tensor(float("inf"))})),
    "a scalar of three": tensors(lambda state: state.update({SCALE: torch.zeros(3)})),
    "no tensors": tensors(lambda state: state.clear()),
    "zero bytes": bytes_of(b""),
    "text": bytes_of(b"not weights at all"),
    "a header of 2**62 bytes": bytes_of((2**62).to_bytes(8, "little") + b"{}"),
    "a header that is a list": bytes_of((2).to_bytes(8, "little") + b"[]"),
    "shards outside the folder": _outside,
    "a shard missing": _shard_missing,
    "a pickle that runs code": pickled(lambda path, marker: path.write_bytes(pickle.dumps(Bomb(marker)))),
    "torch.save that runs code": pickled(lambda path, marker: torch.save({"w": Bomb(marker)}, path)),
    "torch.save of old that runs code": pickled(_legacy),
    "a zip that runs code": pickled(_zip_with),
    "TorchScript": pickled(_script, "ViT-B-32.pt"),
    "an object array": pickled(_object_array, "weights.npz"),
    "a whole module": pickled(lambda path, _: torch.save(torch.nn.Linear(2, 2), path), "pytorch_model.bin"),
    "a list instead of names": pickled(lambda path, _: torch.save([torch.zeros(2)], path)),
    "numbers instead of tensors": pickled(lambda path, _: torch.save({"a": 1}, path)),
    "an npz that is none": pickled(lambda path, _: path.write_bytes(b"PK\x03\x04broken"), "weights.npz"),
    "config: no JSON": config_text('{"model_cfg": '),
    "config: a list": config_text("[]"),
    "config: ten thousand brackets": config_text("[" * 10_000),
    "config: empty": config_text("{}"),
}  # fmt: skip
OPENCLIP: dict[str, Damage] = {
    "transposed": tensors(lambda state: state.update({"visual.proj": state["visual.proj"].T})),
    "config: a billion layers": config(lambda cfg: cfg["vision_cfg"].update(layers=10**9)),
    "config: layers as text": config(lambda cfg: cfg["text_cfg"].update(layers="two")),
    "config: negative width": config(lambda cfg: cfg["vision_cfg"].update(width=-64)),
    "config: no heads": config(lambda cfg: cfg["text_cfg"].update(heads=0)),
    "config: head_width 0": config(lambda cfg: cfg["vision_cfg"].update(head_width=0)),
    "config: infinite mlp": config(lambda cfg: cfg["vision_cfg"].update(mlp_ratio=1e300)),
    "config: unknown part": config(lambda cfg: cfg["vision_cfg"].update(rotary=True)),
    "config: another model": config(lambda cfg: cfg["text_cfg"].update(vocab_size=50_000)),
    "config: image of no patches": config(lambda cfg: cfg["vision_cfg"].update(image_size=7)),
}
HUGGINGFACE: dict[str, Damage] = {
    "wrong rows": tensors(lambda state: state.update({"text_projection.weight": torch.zeros(3, 3)})),
    "a layer missing": tensors(lambda state: [state.pop(n) for n in list(state) if "layers.0." in n]),
    "config: another kind": config(lambda cfg: cfg.update(model_type="siglip2")),
    "config: towers of text": config(lambda cfg: cfg.update(vision_config="large")),
    "config: unknown activation": config(lambda cfg: cfg["text_config"].update(hidden_act="swish")),
    "config: end-of-text outside": config(lambda cfg: cfg["text_config"].update(eos_token_id=10**6)),
    "config: heads that do not divide": config(lambda cfg: cfg["vision_config"].update(num_attention_heads=5)),
    "config: image of text": config(lambda cfg: cfg["vision_config"].update(image_size="big")),
    "broken tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "broken processor": lambda folder: (folder / "preprocessor_config.json").write_text('{"size": {"width": 3}}'),
}
CASES = [(layout, name, damage) for layout in ("openclip", "huggingface") for name, damage in ANY.items()]
CASES += [("openclip", *case) for case in OPENCLIP.items()] + [("huggingface", *case) for case in HUGGINGFACE.items()]


@pytest.mark.parametrize(("layout", "name", "damage"), CASES, ids=[f"{layout}: {name}" for layout, name, _ in CASES])
def test_a_damaged_or_hostile_source_is_refused_in_one_line(
    good: Path, tmp_path: Path, layout: str, name: str, damage: Damage
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (good / layout).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    with pytest.raises(VlmError) as refused:
        load_foreign(str(folder))
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.rglob(MARKER.name))


def test_the_marker_would_appear_if_a_pickle_were_trusted(tmp_path: Path) -> None:
    pickle.load(io.BytesIO(pickle.dumps(Bomb(tmp_path / MARKER)))).close()
    assert (tmp_path / MARKER).exists()


def test_all_unknown_names_are_listed_at_once(good: Path, tmp_path: Path) -> None:
    state = load_file(good / "openclip" / "model.safetensors") | {
        "one.more": torch.zeros(1),
        "two.more": torch.zeros(1),
    }
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "open_clip_config.json").write_text((good / "openclip" / "open_clip_config.json").read_text())
    with pytest.raises(ValueError, match=r"2.*tensors.*one.more, two.more"):
        load_foreign(str(tmp_path))


ONE = torch.ones(1)


@pytest.mark.parametrize("around", ["", "state_dict", "model", "model_state_dict"])
def test_a_checkpoint_holds_its_tensors_alone_or_beside_the_state_of_a_training(tmp_path: Path, around: str) -> None:
    state: dict[str, Any] = {"w": torch.randn(2, 3), "b": torch.randn(3)}
    training = {"epoch": 3, "optimizer": {"lr": [ONE]}, around: state, "scheduler": None}
    torch.save(training if around else state, tmp_path / "a.bin")
    read = read_tensors(tmp_path / "a.bin")
    assert list(read) == ["w", "b"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in read.items())


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.pt", None, "FILE is not a file."),
        ("a.txt", b"", "a.txt is no weight file known here: wanted a name ending in .safetensors, .pt, .pth, "),
        ("a.safetensors", b"no", "FILE is not a whole safetensors file (Error while deserializing header: "),
        ("a.npz", b"PK no", "FILE is not a whole .npz file of plain arrays ("),
        ("a.npz", {"o": np.array([{}])}, "(Object arrays cannot be loaded when allow_pickle=False). Pickled arrays"),
        ("a.npz", {"t": np.array(["x"])}, "FILE is not a whole .npz file of plain arrays (can't convert np.ndarray"),
        ("a.pt", b"no", "FILE is not a file of plain tensors ("),
        ("a.pt", io.StringIO, "FILE is not a file of plain tensors (its pickle asks for code). Code is never run: "),
        ("a.pt", [ONE], "FILE holds a list; wanted a state dict, names and tensors."),
        ("a.pt", {}, "FILE holds a dict; wanted a state dict, names and tensors."),
        ("a.pt", {"model": {}}, "FILE holds a dict; wanted a state dict, names and tensors."),
        ("a.pt", {"w": ONE, "lr": 3, 7: ONE}, "FILE holds more than names and tensors: lr, 7. Save model."),
        ("a.pt", {"state_dict": {"model": {"w": ONE}}}, "FILE holds more than names and tensors: model. Save "),
    ],
)  # fmt: skip
def test_what_holds_no_plain_tensors_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: Any, line: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.endswith(".npz"):
        np.savez(path, **content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=re.escape(line.replace("FILE", str(path)))):
        read_tensors(path)


@pytest.mark.parametrize(
    ("index", "line"),
    [
        ({}, " has no weight_map."),
        ({"weight_map": {}}, " has no weight_map."),
        ({"weight_map": ["a.pt"]}, " has no weight_map."),
        (
            {"weight_map": {"x": "a.pt", "y": "../a.pt", "z": "notes.txt", "u": "sub/a.pt"}},
            " names files outside its folder, or no weight files: ../a.pt, notes.txt, sub/a.pt.",
        ),
        (
            {"weight_map": {"y": "b.pt", "x": "a.pt", "u": "b.pt", "v": "a.pt"}},
            " lists tensors that its files do not hold: u, v.",
        ),
    ],
)
def test_shards_that_do_not_fit_their_list_are_refused_with_the_reason(
    tmp_path: Path, index: dict[str, Any], line: str
) -> None:
    for name, tensor in (("a", "x"), ("b", "y")):
        torch.save({tensor: ONE}, tmp_path / f"{name}.pt")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"y": "b.pt", "x": "a.pt"}}))
    assert read_tensors(path) == {"x": ONE, "y": ONE}
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path) + line)}$"):
        read_tensors(path)


def test_a_clip_is_no_classifier_and_a_missing_source_says_what_is_wanted(good: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"CLIP.* Open.*vlm\.load"):
        load_foreign_classifier(str(good / "openclip"))
    with pytest.raises(ValueError, match=r"wanted.*openclip:NAME/TAG, hf:ORG/NAME"):
        load_foreign(str(tmp_path / "nowhere"))
