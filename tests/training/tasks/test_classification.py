"""What a ViT recipe makes: models, losses, streams, against their definitions."""

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.support.tiny_run import write_vit_recipe
from tests.training.tasks.test_train_vit import SINGLE_PROCESS
from vlm.checkpoint.save import save
from vlm.config import PreprocessConfig, VisionConfig
from vlm.images.preprocess import Preprocess
from vlm.models.layers import Block
from vlm.models.vision import ViTClassifier
from vlm.training.data.class_stream import ClassBatch, ClassImages
from vlm.training.data.labelled import ClassSet, open_labelled
from vlm.training.engine.optim import optimizers
from vlm.training.recipe.config import VitRecipe
from vlm.training.recipe.reading import read_recipe
from vlm.training.recipe.sections import LossSection, VitSection
from vlm.training.tasks.classification import (
    accuracy,
    classifying,
    final_rows,
    from_source,
    learn_from_above,
    mixing,
    open_classes,
    open_classifier,
    open_images,
    open_stream,
    plain,
)

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


def batch(count: int = 8) -> ClassBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, len(LABELS), (count,), generator=generator)
    return ClassBatch(images, targets, None, [str(i) for i in range(count)])


def gradients(model: ViTClassifier) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_loss_is_the_smoothed_cross_entropy_of_its_definition():
    model, some = tiny(), batch()
    found = classifying(recipe({"label_smoothing": 0.2}), model, PREPROCESS)(model, some, 1.0)
    with torch.no_grad():
        log_p = model(PREPROCESS.normalize(some.images)).log_softmax(1)
    wanted = 0.8 * F.one_hot(some.targets, len(LABELS)) + 0.2 / len(LABELS)
    assert found.item() == pytest.approx(-(wanted * log_p).sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("keep", [None, torch.stack([torch.arange(i % 3, 16, 3)[:5] for i in range(8)])])
def test_chunks_and_the_loss_scale_change_nothing_but_memory(keep):
    one, four = tiny().double(), tiny().double()
    some = batch()._replace(keep=keep)
    whole = classifying(recipe(batch_size=8), one, PREPROCESS)(one, some, 1.0)
    parts = classifying(recipe(batch_size=8, accumulate=4), four, PREPROCESS)(four, some, 16.0)
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
    classes = open_classes(settings)
    classifier, preprocess = open_classifier(settings, classes, SINGLE_PROCESS)
    torch.nn.init.normal_(classifier.head.weight)
    _, validation = open_images(settings, classes, preprocess)
    pixels, targets = next(validation.batches())
    with torch.no_grad():
        right = classifier.eval()(preprocess.normalize(pixels)).argmax(1) == targets
    found = accuracy(classifier, preprocess, validation, torch.device("cpu"))
    assert found["val top-1"] == pytest.approx(right.float().mean().item())
    with torch.no_grad():
        logits = classifier(preprocess.normalize(pixels))
    among = (logits.topk(5).indices == targets[:, None]).any(1)
    assert found["val top-5"] == pytest.approx(among.float().mean().item())
    assert found["val loss"] == pytest.approx(F.cross_entropy(logits, targets).item())
    rows = final_rows(settings, classifier.train(), preprocess, validation)
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
    assert accuracy(model, PREPROCESS, images, torch.device("cpu")).keys() == names
    rows = final_rows(recipe(), model, PREPROCESS, images)
    assert {row.split for row in rows} == {"1 held out"} and len(rows) == len(names) - 1


def test_held_out_images_are_not_trained_on(run_folder):
    settings = read_recipe(write_vit_recipe(run_folder, data={"validation_split": None, "held_out": 10}), VitRecipe)
    classes = open_classes(settings)
    classifier, preprocess = open_classifier(settings, classes, SINGLE_PROCESS)
    training, validation = open_images(settings, classes, preprocess)
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


def test_a_vit_knows_no_words(tmp_path):
    save(tiny(), tmp_path / "model")
    with pytest.raises(ValueError, match=r"knows no words, so head = 'names' needs another source: a CLIP"):
        from_source(VitSection(source=str(tmp_path / "model"), head="names"), LABELS)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_only_the_asked_for_blocks_learn(blocks):
    model = tiny()
    learn_from_above(model, blocks)
    before = copy.deepcopy(model.state_dict())
    settings = recipe()
    classifying(settings, model, PREPROCESS)(model, batch(), 1.0)
    for optimizer in optimizers(model, settings.optim):
        optimizer.step()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert {"head.weight", "head.bias"} <= moved
    assert {int(name.split(".")[2]) for name in moved if "blocks" in name} == set(range(2 - blocks, 2))
    assert not moved & {"vision.pos_embed", "vision.cls_token", "vision.patch_embed.proj.weight"}
    assert ("vision.norm.weight" in moved) == (blocks > 0)


def test_more_blocks_than_there_are_is_an_error():
    for blocks in (-1, 3):
        with pytest.raises(ValueError, match=f"train_blocks is {blocks}; this model has 2 blocks, so wanted 0 to 2"):
            learn_from_above(tiny(), blocks)


def test_a_new_model_reads_images_as_the_data_say_and_starts_from_its_seed(run_folder):
    def opened(seed: int, **run) -> ViTClassifier:
        changes = {"data": {"mean": 0.4, "std": 0.2, "language": "ja"}, "run": {"seed": seed, **run}}
        settings = read_recipe(write_vit_recipe(run_folder, **changes), VitRecipe)
        return open_classifier(settings, classes, SINGLE_PROCESS)[0]

    keys = ("red dog", "grey sun")
    classes = ClassSet(keys=keys, names={"ja": ("赤犬", "灰日")}, column="concept")
    one, same, other = opened(1), opened(1), opened(2)
    assert one.preprocess is not None
    assert one.preprocess.config == PreprocessConfig(image_size=16, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    assert one.labels == ("赤犬", "灰日")
    qkv = [model.vision.blocks[0].get_parameter("attn.qkv.weight") for model in (one, same, other)]
    assert torch.equal(qkv[0], qkv[1]) and not torch.equal(qkv[0], qkv[2])
    assert {p.dtype for p in one.parameters()} == {torch.float32}
    assert {p.dtype for p in opened(1, precision="float64").parameters()} == {torch.float64}


def test_validation_images_may_lie_elsewhere(run_folder):
    changes = {"validation": str(run_folder / "data.parquet"), "validation_split": None}
    settings = read_recipe(write_vit_recipe(run_folder, data=changes), VitRecipe)
    training, validation = open_images(settings, open_classes(settings), PREPROCESS)
    assert (len(training), len(validation)) == (48, 60)


def test_a_source_that_does_not_say_how_images_are_prepared_is_refused(tmp_path):
    model = tiny()
    model.preprocess = None
    save(model, tmp_path / "model")
    with pytest.raises(ValueError, match=r"model does not say how images are prepared\. Convert it with its config"):
        from_source(VitSection(source=str(tmp_path / "model")), LABELS)


def test_a_plain_copy_takes_the_weights_whatever_its_head(tiny_embedder, tmp_path):
    save(tiny_embedder, tmp_path / "clip")
    images = torch.randn(2, 3, 32, 32)
    for head in ("names", "zero"):
        ours = from_source(VitSection(source=str(tmp_path / "clip"), head=head), LABELS).eval()
        copied = plain(ours).eval()
        copied.load_state_dict(ours.state_dict())
        assert torch.equal(copied(images), ours(images))
        assert (copied.labels, copied.preprocess) == (ours.labels, ours.preprocess)
        assert bool(ours(images).any()) is (head == "names")
