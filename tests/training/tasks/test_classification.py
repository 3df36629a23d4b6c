"""What a ViT recipe makes: models, losses, streams, against their definitions."""

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.support.tiny_run import write_vit_recipe
from tests.training.tasks.test_train_vit import SINGLE_PROCESS
from vlm.checkpoint.save import save
from vlm.config import PreprocessConfig, VisionConfig
from vlm.errors import CheckpointError, RecipeError
from vlm.images.preprocess import Preprocess
from vlm.models.layers import Block
from vlm.models.vision import ViTClassifier
from vlm.training.data.class_stream import ClassBatch, ClassImages
from vlm.training.data.labelled import ClassSet, open_labelled
from vlm.training.data.targets import open_classifier_data
from vlm.training.engine.optim import optimizers
from vlm.training.recipe.config import VitRecipe
from vlm.training.recipe.reading import read_recipe
from vlm.training.recipe.sections import LossSection, VitSection
from vlm.training.tasks.classification import (
    card_measurements,
    classifying,
    finish_outputs,
    mixing,
    open_objective,
    open_stream,
    predictions,
)
from vlm.training.tasks.classifier_model import choose_trained, from_source, open_classifier, ordinary
from vlm.training.tasks.objectives import Regression, SingleLabel

TINY = VisionConfig(image_size=16, patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=32)
PREPROCESS = Preprocess(PreprocessConfig(image_size=16))
LABELS = ["red", "green", "blue", "black", "grey", "white"]


def tiny(**changes) -> ViTClassifier:
    torch.manual_seed(0)
    model = ViTClassifier(TINY, len(LABELS), labels=LABELS, preprocess=PREPROCESS)
    torch.nn.init.normal_(model.head.weight)
    return model


def recipe(loss: dict[str, float] | None = None, **run) -> VitRecipe:
    return VitRecipe.from_dict(
        {"data": {"train": "x", "held_out": 1}, "loss": loss or {}, "run": {"precision": "float32"} | run}
    )


def opened(settings: VitRecipe) -> tuple[ViTClassifier, ClassImages, ClassImages]:
    """The model of a recipe, its training images and its validation images."""
    data = open_classifier_data(settings.data, settings.loss.problem)
    classifier, preprocess = open_classifier(settings, data.labels, SINGLE_PROCESS)
    return classifier, ClassImages(data.training, preprocess), ClassImages(data.validation, preprocess)


def batch(count: int = 8) -> ClassBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, len(LABELS), (count,), generator=generator)
    return ClassBatch(images, targets, None, [str(i) for i in range(count)])


def gradients(model: ViTClassifier) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_loss_is_the_smoothed_cross_entropy_of_its_definition():
    model, some = tiny(), batch()
    found = classifying(recipe(), model, PREPROCESS, SingleLabel(6, label_smoothing=0.2))(model, some, 1.0)
    with torch.no_grad():
        log_p = model(PREPROCESS.normalize(some.images)).log_softmax(1)
    wanted = 0.8 * F.one_hot(some.targets, len(LABELS)) + 0.2 / len(LABELS)
    assert found.item() == pytest.approx(-(wanted * log_p).sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("keep", [None, torch.stack([torch.arange(i % 3, 16, 3)[:5] for i in range(8)])])
def test_chunks_and_the_loss_scale_change_nothing_but_memory(keep):
    one, four = tiny().double(), tiny().double()
    some = batch()._replace(keep=keep)
    whole = classifying(recipe(batch_size=8), one, PREPROCESS, SingleLabel(6))(one, some, 1.0)
    parts = classifying(recipe(batch_size=8, accumulate=4), four, PREPROCESS, SingleLabel(6))(four, some, 16.0)
    with torch.no_grad():
        logits = one(PREPROCESS.normalize(some.images).double(), keep)
    assert whole.item() == pytest.approx(F.cross_entropy(logits, some.targets).item(), rel=1e-10)
    assert parts.item() == pytest.approx(whole.item(), rel=1e-10)
    for name, gradient in gradients(one).items():
        torch.testing.assert_close(gradients(four)[name], 16 * gradient, rtol=1e-9, atol=1e-12)


def test_mixup_gives_each_image_and_label_the_same_share_of_its_neighbour():
    images, targets = torch.rand(6, 3, 4, 4), torch.arange(6)
    mixed, wanted = mixing(LossSection(mixup=0.5), 6)(images, targets)
    share = wanted[1, 1].item()
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0))
    one_hot = torch.eye(6)
    torch.testing.assert_close(wanted, share * one_hot + (1 - share) * one_hot.roll(1, 0))


def test_cutmix_gives_the_label_the_share_of_the_area_that_was_pasted():
    torch.manual_seed(3)
    images, targets = torch.arange(6.0)[:, None, None, None].expand(6, 3, 10, 10).clone(), torch.arange(6)
    mixed, wanted = mixing(LossSection(cutmix=1.0), 6)(images, targets)
    for i in range(6):
        own = (mixed[i] == i).float().mean().item()
        assert wanted[i, i].item() == pytest.approx(own)
        assert (mixed[i] == (i - 1) % 6).float().mean().item() == pytest.approx(1 - own)


def test_without_mixing_nothing_changes_and_a_share_of_the_steps_is_left_alone():
    images, targets = torch.rand(4, 3, 4, 4), torch.arange(4)
    same, classes = mixing(LossSection(), 4)(images, targets)
    assert same is images
    assert classes is targets
    half = mixing(LossSection(mixup=1.0, mix_share=0.5), 4)
    alone = sum(half(images, targets)[1].ndim == 1 for _ in range(400))
    assert 150 < alone < 250


def test_accuracy_is_the_share_of_right_answers(run_folder):
    settings = read_recipe(write_vit_recipe(run_folder), VitRecipe)
    classifier, _, validation = opened(settings)
    preprocess = classifier.prepare()
    torch.nn.init.normal_(classifier.head.weight)
    pixels, targets = next(validation.batches())
    with torch.no_grad():
        right = classifier.eval()(preprocess.normalize(pixels)).argmax(1) == targets
    outputs = predictions(classifier, preprocess, validation, torch.device("cpu"))
    found = SingleLabel(20).metrics(*outputs)
    assert found["val top-1"] == pytest.approx(right.float().mean().item())
    with torch.no_grad():
        logits = classifier(preprocess.normalize(pixels))
    among = (logits.topk(5).indices == targets[:, None]).any(1)
    assert found["val top-5"] == pytest.approx(among.float().mean().item())
    assert found["val loss"] == pytest.approx(F.cross_entropy(logits, targets).item())
    rows = card_measurements(SingleLabel(20), *outputs, settings, "validation")
    assert [(row.split, row.task, row.language, row.chance, row.n) for row in rows] == [
        ("validation", "classification top-1", "en", 1 / 20, 12),
        ("validation", "classification top-5", "en", 5 / 20, 12),
    ]
    assert [row.value for row in rows] == [found["val top-1"], found["val top-5"]]


@pytest.mark.parametrize(
    ("classes", "names"), [(5, {"val loss", "val top-1"}), (6, {"val loss", "val top-1", "val top-5"})]
)
def test_the_best_five_are_asked_for_where_there_are_more(run_folder, classes, names):
    keys = ("red dog", "red cat", "grey sun", "red bird", "blue bird", "green cat")[:classes]
    data = open_labelled(str(run_folder / "data.parquet"), "train", ClassSet(keys=keys, column="concept"))
    images, model = ClassImages(data, PREPROCESS), ViTClassifier(TINY, classes, labels=keys, preprocess=PREPROCESS)
    outputs = predictions(model, PREPROCESS, images, torch.device("cpu"))
    assert SingleLabel(classes).metrics(*outputs).keys() == names
    rows = card_measurements(SingleLabel(classes), *outputs, recipe(), "1 held out")
    assert {row.split for row in rows} == {"1 held out"} and len(rows) == len(names) - 1


def test_held_out_images_are_not_trained_on(run_folder):
    settings = read_recipe(write_vit_recipe(run_folder, data={"validation_split": None, "held_out": 10}), VitRecipe)
    classifier, training, validation = opened(settings)
    seen = {uid for step in range(12) for uid in open_stream(settings, classifier, training, SINGLE_PROCESS)[step].uids}
    held = {validation.rows.uid(i) for i in range(len(validation))}
    assert len(held) == 10
    assert len(seen) == 38
    assert not seen & held


@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_the_tower_of_any_checkpoint_gives_its_own_features(kind, tiny_embedder, tmp_path):
    tower = tiny_embedder.model.vision if kind == "clip" else tiny().vision
    save(tiny_embedder if kind == "clip" else tiny(), tmp_path / "model")
    section = VitSection(source=str(tmp_path / "model"), vision={"drop_path": 0.1})
    ours = from_source(section, LABELS).eval()
    images = torch.randn(2, 3, *tower.config.image_shape)
    torch.testing.assert_close(ours.vision(images), tower.eval()(images))
    assert torch.equal(ours(images), torch.zeros(2, len(LABELS)))  # a new head
    assert ours.labels == tuple(LABELS)
    last = ours.vision.blocks[-1]
    assert isinstance(last, Block)
    assert last.drop_path.rate == pytest.approx(0.1)


def test_a_source_is_read_at_another_resolution(tiny_embedder, tmp_path):
    save(tiny_embedder, tmp_path / "model")
    old = tiny_embedder.model.vision.config
    side = old.image_shape[0] + 2 * old.patch_size
    ours = from_source(VitSection(source=str(tmp_path / "model"), vision={"image_size": side}), LABELS)
    assert ours.preprocess is not None
    assert ours.preprocess.config.image_shape == (side, side)
    assert ours(torch.randn(1, 3, side, side)).shape == (1, len(LABELS))
    kept = int(old.class_token)
    assert torch.equal(ours.vision.pos_embed[:, :kept], tiny_embedder.model.vision.pos_embed[:, :kept])


def test_a_zero_shot_head_needs_a_text_encoder(tmp_path):
    save(tiny(), tmp_path / "model")
    with pytest.raises(RecipeError, match=r"zero_shot.*CLIP"):
        from_source(VitSection(source=str(tmp_path / "model"), head="zero_shot"), LABELS)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_only_the_asked_for_blocks_learn(blocks):
    model = tiny()
    choose_trained(model, VitSection(source="x", train_blocks=blocks))
    before = copy.deepcopy(model.state_dict())
    settings = recipe()
    classifying(settings, model, PREPROCESS, SingleLabel(6))(model, batch(), 1.0)
    for optimizer in optimizers(model, settings.optim):
        optimizer.step()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert {"head.weight", "head.bias"} <= moved
    assert {int(name.split(".")[2]) for name in moved if "blocks" in name} == set(range(2 - blocks, 2))
    assert not moved & {"vision.pos_embed", "vision.cls_token", "vision.patch_embed.proj.weight"}
    assert ("vision.norm.weight" in moved) == (blocks > 0)


def test_more_blocks_than_there_are_is_an_error():
    for blocks in (-1, 3):
        with pytest.raises(RecipeError, match=f"{blocks}.* 2 blocks"):
            choose_trained(tiny(), VitSection(source="x", train_blocks=blocks))


def test_a_new_model_reads_images_as_the_data_say_and_starts_from_its_seed(run_folder):
    def started(seed: int, **run) -> ViTClassifier:
        changes = {"data": {"mean": 0.4, "std": 0.2, "language": "ja"}, "run": {"seed": seed, **run}}
        settings = read_recipe(write_vit_recipe(run_folder, **changes), VitRecipe)
        return open_classifier(settings, classes.words("ja"), SINGLE_PROCESS)[0]

    keys = ("red dog", "grey sun")
    classes = ClassSet(keys=keys, names={"ja": ("赤犬", "灰日")}, column="concept")
    one, same, other = started(1), started(1), started(2)
    assert one.preprocess is not None
    assert one.preprocess.config == PreprocessConfig(
        image_size=16, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2), to_srgb=True
    )
    assert one.labels == ("赤犬", "灰日")
    qkv = [model.vision.blocks[0].get_parameter("attn.qkv.weight") for model in (one, same, other)]
    assert torch.equal(qkv[0], qkv[1]) and not torch.equal(qkv[0], qkv[2])
    assert {p.dtype for p in one.parameters()} == {torch.float32}
    assert {p.dtype for p in started(1, precision="float64").parameters()} == {torch.float64}


def test_validation_images_may_lie_elsewhere(run_folder):
    changes = {"validation": str(run_folder / "data.parquet"), "validation_split": None}
    settings = read_recipe(write_vit_recipe(run_folder, data=changes), VitRecipe)
    data = open_classifier_data(settings.data, "single_label")
    assert (len(data.training.index), len(data.validation.index)) == (48, 60)


def test_a_source_that_does_not_say_how_images_are_prepared_is_refused(tmp_path):
    model = tiny()
    model.preprocess = None
    save(model, tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"model .*prepared.*vlm convert"):
        from_source(VitSection(source=str(tmp_path / "model")), LABELS)


def test_a_plain_copy_takes_the_weights_whatever_its_head(tiny_embedder, tmp_path):
    save(tiny_embedder, tmp_path / "clip")
    images = torch.randn(2, 3, 32, 32)
    for head in ("zero_shot", "new"):
        section = VitSection(source=str(tmp_path / "clip"), head=head)
        ours = from_source(section, LABELS).eval()
        copied = ordinary(ours, section, ours.state_dict()).eval()
        assert torch.equal(copied(images), ours(images))
        assert (copied.labels, copied.preprocess) == (ours.labels, ours.preprocess)
        assert bool(ours(images).any()) is (head == "zero_shot")


@pytest.mark.parametrize("old", ["zero", "names"])
def test_the_old_names_of_heads_are_an_error_that_names_the_new_ones(old):
    new = {"zero": "new", "names": "zero_shot"}[old]
    with pytest.raises(RecipeError, match=f'"{new}"'):
        VitSection(source="mini", head=old)


def test_a_head_is_kept_with_the_labels_it_was_trained_for(tmp_path):
    save(tiny(), tmp_path / "model")
    section = VitSection(source=str(tmp_path / "model"), head="keep")
    images = torch.randn(2, 3, 16, 16)
    expected = tiny().eval()(images)
    torch.testing.assert_close(from_source(section, LABELS)(images), expected)
    torch.testing.assert_close(from_source(section, LABELS[::-1])(images), expected.flip(1))  # by name, not by place


@pytest.mark.parametrize("labels", [[*LABELS[:-1], "violet"], LABELS[:3]], ids=["name", "fewer"])
def test_a_head_is_not_kept_for_other_labels(tmp_path, labels):
    """Labels that slip over a head make a right model wrong without a word."""
    save(tiny(), tmp_path / "model")
    with pytest.raises(RecipeError, match=r"keep.*labels"):
        from_source(VitSection(source=str(tmp_path / "model"), head="keep"), labels)


@pytest.mark.parametrize("blocks", [None, 1])
def test_lora_trains_adapters_and_the_head_and_merges_into_an_ordinary_classifier(blocks, tmp_path):
    save(tiny(), tmp_path / "model")
    section = VitSection(source=str(tmp_path / "model"), train_blocks=blocks, lora_rank=2)
    model = from_source(section, LABELS)
    choose_trained(model, section)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("head.") for name in trained)
    assert {int(name.split(".")[2]) for name in trained if "blocks" in name} == set(
        range(2 if blocks is None else 1, 2)
    ) | ({0, 1} if blocks is None else set())
    for _ in range(3):
        classifying(recipe(), model, PREPROCESS, SingleLabel(6))(model, batch(), 1.0)
        for optimizer in optimizers(model, recipe().optim):
            optimizer.step()
            optimizer.zero_grad()
    merged = ordinary(model, section, model.state_dict())
    assert merged.state_dict().keys() == tiny().state_dict().keys()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(merged.eval()(images), model.eval()(images), atol=1e-5, rtol=1e-4)
    qkv, before = (part.get_parameter("vision.blocks.1.attn.qkv.weight") for part in (merged, tiny()))
    assert not torch.equal(qkv, before)


def test_the_outputs_of_a_regression_get_the_units_of_the_targets():
    objective, model = Regression(torch.tensor([3.0] * 6), torch.tensor([2.0] * 6)), tiny().eval()
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        before = model(images)
        finish_outputs(model, objective, before, torch.zeros(4, 6))
        torch.testing.assert_close(model(images), before * 2 + 3)


def test_class_weights_of_a_recipe_are_those_of_the_training_images(run_folder):
    settings = read_recipe(write_vit_recipe(run_folder, loss={"class_weights": "balanced"}), VitRecipe)
    data = open_classifier_data(settings.data, "single_label")
    objective = open_objective(settings.loss, data)
    assert isinstance(objective, SingleLabel) and objective.weights is not None
    counts = data.training.targets.bincount(minlength=20)
    torch.testing.assert_close(objective.weights, len(data.training.targets) / (20 * counts.double()))
