"""Whole runs of `python -m training.train_clip`, tiny ones; the many-process ones are marked long."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vlm
from tests.support.tiny_run import train_file as train
from tests.support.tiny_run import write_recipe
from vlm.cli import main
from vlm.errors import HubError
from vlm.loss import clip_loss, siglip_loss
from vlm.training.engine.distributed import SINGLE_PROCESS, Processes
from vlm.training.recipe.reading import read_recipe
from vlm.training.tasks import contrastive
from vlm.training.tasks.contrastive import chance_loss, open_embedder

ROOT = Path(__file__).parents[3]


def bytes_of(out: Path, *names: str) -> list[bytes]:
    return [(out / name).read_bytes() for name in names]


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def recipe(run_folder) -> Path:
    """Everything on: patch dropout, dropout, average, accumulation."""
    vision = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "dropout": 0.1}
    return write_recipe(run_folder, model={"vision": vision}, run={"accumulate": 2})


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    """A run from start to end."""
    out = tmp_path_factory.mktemp("finished") / "model"
    assert train(recipe, out, SINGLE_PROCESS) == 0
    return out


def test_a_run_ends_with_a_model_that_opens_and_a_card_with_its_numbers(finished, recipe):
    embedder = vlm.load(finished)
    assert embedder.embed_texts(["a red dog", "赤犬"]).norm(dim=1) == pytest.approx(1)
    card = (finished / "README.md").read_text(encoding="utf-8")
    assert "| validation | text->image R@1 | en |" in card
    assert recipe.read_text().strip() in card
    assert "48 images" in card
    assert (finished / "recipe.toml").read_bytes() == recipe.read_bytes()
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in finished.iterdir()}
    assert names >= {"metrics.jsonl", "timing.jsonl", "tensorboard", "checkpoints", "manifest.json"}
    assert not [name for name in names if name.startswith(".")]


def test_the_model_is_the_average_of_its_checkpoint(finished):
    (last, _) = sorted((finished / "checkpoints").iterdir(), reverse=True)
    saved = load_file(last / "tensors.safetensors")
    for name, weight in load_file(finished / "model.safetensors").items():
        assert torch.equal(weight, saved[f"/average/{name}"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_same_end_to_the_bit(finished, recipe, tmp_path, monkeypatch, number):
    def stop_and_measure(*arguments: Any) -> dict[str, float]:
        os.kill(os.getpid(), number)
        return measure(*arguments)

    measure = contrastive.retrieval_recall
    monkeypatch.setattr(contrastive, "retrieval_recall", stop_and_measure)
    out = tmp_path / "model"
    assert train(recipe, out, SINGLE_PROCESS) == 75
    assert not (out / "model.safetensors").exists()
    assert metrics(out)[-1]["step"] == 3
    monkeypatch.setattr(contrastive, "retrieval_recall", measure)
    torch.manual_seed(12345)
    assert train(recipe, out, SINGLE_PROCESS, resume=True) == 0
    files = ("model.safetensors", "metrics.jsonl", "checkpoints/step-00000006/tensors.safetensors")
    assert bytes_of(out, *files) == bytes_of(finished, *files)


def test_a_finished_run_resumed_is_the_same_model(finished, recipe):
    before = bytes_of(finished, "model.safetensors", "metrics.jsonl")
    assert train(recipe, finished, SINGLE_PROCESS, resume=True) == 0
    assert bytes_of(finished, "model.safetensors", "metrics.jsonl") == before


def test_an_earlier_run_is_not_overwritten(finished, recipe):
    with pytest.raises(ValueError, match=r"run's checkpoints.*--resume"):
        train(recipe, finished, SINGLE_PROCESS)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_chunks_change_memory_and_nothing_else(run_folder, tmp_path, loss):
    losses = []
    for chunks in (1, 4):
        settings = {"precision": "float64", "accumulate": chunks, "steps": 2, "eval_every": 9, "save_every": 9}
        recipe = write_recipe(run_folder, model={"loss": loss}, run=settings)
        assert train(recipe, tmp_path / f"{chunks}", SINGLE_PROCESS) == 0
        losses.append([line["loss"] for line in metrics(tmp_path / f"{chunks}") if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_chance_loss_is_the_loss_of_equal_embeddings(run_folder, loss):
    settings = read_recipe(write_recipe(run_folder, model={"loss": loss}))
    same = torch.ones(16, 1, dtype=torch.float64)
    if loss == "clip":
        truth = clip_loss(same, same, torch.tensor(2.0))
    else:  # the best of all equal logits
        logits = torch.linspace(-2.8, -2.6, 201, dtype=torch.float64)
        truth = min(siglip_loss(same, same, torch.tensor(0.0), logit - 1) for logit in logits)
    assert chance_loss(settings) == pytest.approx(float(truth), rel=1e-6)


def test_a_locked_image_tower_stays_as_it_came(finished, run_folder, tmp_path):
    model = {
        "source": str(finished),
        "lock_vision": True,
        "tokenizer": None,
        "embed_dim": None,
        "vision": None,
        "text": None,
    }
    recipe = write_recipe(run_folder, model=model, run={"steps": 2, "accumulate": 2, "eval_every": 2})
    assert train(recipe, tmp_path / "lit", SINGLE_PROCESS) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (finished, tmp_path / "lit"))
    changed = {name.split(".")[0] for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {"text", "text_proj", "logit_scale"}


def test_coarse_images_at_first_make_a_model_of_full_size(run_folder, tmp_path):
    data = {"coarse_size": 8, "dense_share": 0.5}
    assert train(write_recipe(run_folder, data=data), tmp_path / "model", SINGLE_PROCESS) == 0
    model = vlm.load(tmp_path / "model").model
    assert (model.config.vision.image_size, model.vision.any_size) == (16, False)
    for side, message in ((16, "coarse_size is 16; the model's images are"), (6, "image_size")):
        with pytest.raises(ValueError, match=message):
            train(write_recipe(run_folder, data=data | {"coarse_size": side}), tmp_path / "none", SINGLE_PROCESS)


def test_training_goes_on_from_a_source_only_with_its_own_loss(finished, run_folder):
    model = {
        "source": str(finished),
        "loss": "siglip",
        "tokenizer": None,
        "embed_dim": None,
        "vision": None,
        "text": None,
    }
    with pytest.raises(ValueError, match=r"trained.*= 'clip'"):
        open_embedder(read_recipe(write_recipe(run_folder, model=model)), SINGLE_PROCESS)


def test_chunks_and_processes_must_divide_the_batch(run_folder, tmp_path):
    recipe = write_recipe(run_folder, run={"accumulate": 8})
    four = Processes(rank=0, size=4, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"batch_size 16.*accumulate = 8.*4"):
        train(recipe, tmp_path / "model", four)


def test_a_dry_run_says_what_to_expect_and_writes_nothing(recipe, tmp_path, monkeypatch, capsys):
    assert main(["train", str(recipe), "--out", str(tmp_path / "model"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"memory +\d+\.\d+ GiB", out)
    assert re.search(r"speed +\d+\.\d samples/s, \d+\.\d+ s a step", out)
    assert re.search(r"all steps +about \d+ h \d\d min for 6", out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.toml", "--out", "x"], "vlm: error: There is no recipe none.toml."),
        (["RECIPE", "--out", "x", "--push", "nonsense"], "vlm: error: --push nonsense is no name on the hub"),
        (["RECIPE", "--out", "x", "--device", "cuda"], "vlm: error: device cuda: torch sees no such GPU here"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_what_the_user_can_put_right_is_one_line_and_code_1(recipe, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *(str(recipe) if word == "RECIPE" else word for word in words)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_out_is_asked_for(recipe, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(recipe)])
    assert stopped.value.code == 2
    assert "--out DIR is needed" in capsys.readouterr().err


class FakeHub:
    """In place of huggingface_hub.HfApi."""

    calls: list[tuple[str, Any]]

    def create_repo(self, repo: str, *, exist_ok: bool) -> None:
        self.calls.append(("create", (repo, exist_ok)))

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> None:
        self.calls.append(("upload", (repo_id, folder_path, sorted(allow_patterns))))


def test_push_uploads_the_model_and_nothing_else_of_the_run(finished, recipe, monkeypatch):
    monkeypatch.setattr(FakeHub, "calls", [], raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    assert train(recipe, finished, SINGLE_PROCESS, resume=True, push="somebody/small") == 0
    create, upload = FakeHub.calls
    assert create == ("create", ("somebody/small", True))
    files = [
        "README.md",
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    assert upload == ("upload", ("somebody/small", finished, files))


def test_a_push_that_fails_says_that_the_model_is_safe(finished, recipe, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("401 Unauthorized\nlong story")

    monkeypatch.setattr(FakeHub, "create_repo", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    with pytest.raises(HubError, match=r"finished, in .* 401 Unauthorized\."):
        train(recipe, finished, SINGLE_PROCESS, resume=True, push="somebody/small")


def start(recipe: Path, out: Path, processes: int = 1, *more: str) -> subprocess.CompletedProcess[str]:
    engine = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *engine, "-m", "training.train_clip", str(recipe), "--out", str(out), *more]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode in (0, 75), run.stderr[-3000:]
    return run


def assert_same_losses(one: Path, two: Path) -> None:
    a, b = metrics(one), metrics(two)
    assert len(a) == len(b) == 22
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name, value in x.items():
            if not name.startswith("val"):
                assert value == pytest.approx(y[name], abs=1e-8), (name, x["step"])


@pytest.fixture(scope="module")
def alone(run_folder, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """20 steps in float64 by one process, and the settings of [run]."""
    settings = {"steps": 20, "precision": "float64", "accumulate": 2, "eval_every": 10, "save_every": 5, "keep": 9}
    out = tmp_path_factory.mktemp("alone")
    start(write_recipe(run_folder, run=settings), out)
    return out, settings


@pytest.mark.long
@pytest.mark.parametrize(("processes", "shard"), [(2, False), (4, False), (2, True)])
def test_losses_do_not_depend_on_the_number_of_processes(alone, run_folder, tmp_path, processes, shard):
    truth, settings = alone
    start(write_recipe(run_folder, run=settings | {"shard": shard}), tmp_path / "model", processes)
    assert_same_losses(tmp_path / "model", truth)
    one, two = (load_file(out / "model.safetensors") for out in (truth, tmp_path / "model"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-5, atol=1e-7)


@pytest.mark.long
def test_a_run_moves_between_one_two_and_four_processes_and_from_ddp_to_fsdp2_and_back(alone, run_folder, tmp_path):
    truth, settings = alone
    whole, cut = (write_recipe(run_folder, run=settings | {"shard": shard}) for shard in (False, True))
    out = tmp_path / "model"
    for stop, processes, recipe in ((5, 1, whole), (10, 2, cut), (15, 4, whole), (20, 2, whole)):
        start(recipe, out, processes, "--resume", "auto")
        for path in (out / "checkpoints").iterdir():
            if int(path.name.removeprefix("step-")) > stop:  # as if it had been killed before that
                for file in path.iterdir():
                    file.unlink()
                path.rmdir()
        assert (out / "checkpoints" / f"step-{stop:08d}").exists()
    assert_same_losses(out, truth)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_process_group_saves_and_ends_with_75(run_folder, tmp_path, number):
    recipe = write_recipe(run_folder, data={"workers": 2}, run={"steps": 5000, "save_every": 5000, "eval_every": 5000})
    command = [sys.executable, "-m", "training.train_clip", str(recipe), "--out", str(tmp_path / "model")]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    lines = tmp_path / "model" / "metrics.jsonl"
    while not lines.exists() or lines.stat().st_size < 1000:
        assert run.poll() is None
    done = len(lines.read_text().splitlines())
    os.killpg(run.pid, number)
    _, error = run.communicate(timeout=120)
    assert run.returncode == 75, error[-3000:]
    assert "Traceback" not in error
    (path,) = (tmp_path / "model" / "checkpoints").iterdir()
    assert int(path.name.removeprefix("step-")) >= done
