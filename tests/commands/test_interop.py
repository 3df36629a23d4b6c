"""`vlm convert` and `vlm export`, there and back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vlm
from tests.support.foreign_models import clip_config, randomise
from vlm.cli import main
from vlm.embedder import Embedder
from vlm.interop.formats import openclip
from vlm.models.clip import CLIP
from vlm.models.vision import ViTClassifier


def test_a_model_exported_and_converted_back_embeds_as_before(tiny_embedder: Embedder, tmp_path: Path) -> None:
    # the tiny model of the other tests has a patch bias, which OpenCLIP's towers have not
    model = CLIP(
        clip_config(
            text={"vocab_size": tiny_embedder.tokenizer.vocab_size, "context_length": 16, "eot_id": 2, "pad_id": 0}
        )
    )
    randomise(model)
    preprocess = vlm.Preprocess(vlm.PreprocessConfig(image_size=48))
    ours = Embedder(model, tiny_embedder.tokenizer, preprocess, name="ours")
    vlm.save(ours, tmp_path / "ours")
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "openclip"]) == 0
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "back")]) == 0
    back = vlm.load(tmp_path / "back")
    texts = ["a dog", "赤いりんご", "😀"]
    assert torch.equal(back.embed_texts(texts), ours.embed_texts(texts))
    assert back.preprocess.config == preprocess.config.__class__.from_dict(
        preprocess.config.to_dict() | {"fill": 255, "exact": True}
    )
    assert all(torch.equal(tensor, back.model.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_what_only_the_user_knows_is_said_with_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = clip_config()
    model = CLIP(config)
    randomise(model)
    save_file(openclip.write_model(config, model.state_dict())[1], tmp_path / "weights.safetensors")
    command = ["convert", str(tmp_path / "weights.safetensors"), str(tmp_path / "ours")]
    assert main(command) == 1
    assert "--activation" in capsys.readouterr().err
    assert main([*command, "--activation", "gelu", "--num-heads", "4", "--image-size", "32x64"]) == 0
    vision = vlm.load(tmp_path / "ours").model.config.vision
    assert (vision.num_heads, vision.activation, vision.image_size) == (4, "gelu", (32, 64))


def test_a_classifier_goes_there_and_back(tmp_path: Path) -> None:
    vision = vlm.VisionConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_dim=64)
    ours = ViTClassifier(vision, 2, labels=("犬", "猫"))
    randomise(ours)
    vlm.save(ours, tmp_path / "ours")
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "timm"), "--to", "timm", "--classifier"]) == 0
    assert main(["convert", str(tmp_path / "timm"), str(tmp_path / "back"), "--classifier"]) == 0
    back = vlm.load_classifier(tmp_path / "back")
    assert back.labels == ("犬", "猫")
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_impossible_sizes_and_formats_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["convert", "a", "b", "--image-size", "12xx"], ["export", "a", "b", "--to", "keras"]):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2
    assert "must be a number of pixels, or HEIGHTxWIDTH" in capsys.readouterr().err
