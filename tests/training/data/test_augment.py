"""Augmentation: the same numbers for the same sample anywhere, and each part does what its name says."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlm.training.data import augment as module
from vlm.training.data.augment import augment, uniform_draws
from vlm.training.recipe.augmentation import AugmentConfig

NOTHING: dict[str, Any] = {"zoom": (1.0, 1.0), "stretch": 0.0, "rotate": 0.0, "shear": 0.0, "shift": 0.0, "flip": 0.0,
                           "colour": 0.0, "hue": 0.0, "gray": 0.0, "line": 0.0, "blur": 0.0, "background": 0.0,
                           "erase": 0.0}  # fmt: skip
EVERYTHING = AugmentConfig(flip=0.5, line=0.7, blur=0.7, background=0.7, erase=0.7)
SIDE = 32
LARGEST = 1 - 2**-24  # the largest float32 below 1


def only(**parts: Any) -> AugmentConfig:
    return AugmentConfig(**(NOTHING | parts))


def drawings(count: int = 8) -> Tensor:
    """Soft blobs of colour, uint8 (B, 3, 32, 32)."""
    blobs = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(blobs, size=SIDE, mode="bicubic").clamp(0, 1) * 255).round().to(torch.uint8)


def run(images: Tensor, config: AugmentConfig, seed: int = 0, stream: int = 3, epoch: int = 0) -> Tensor:
    return augment(images, config, seed, stream, np.full(len(images), epoch), np.arange(len(images)))


def run_with_draws(monkeypatch: pytest.MonkeyPatch, images: Tensor, config: AugmentConfig, value: float) -> Tensor:
    """As if every draw came out as `value`."""
    monkeypatch.setattr(module, "uniform_draws", lambda _s, _t, epochs, _p, count: np.full((len(epochs), count), value))
    return run(images, config)


def levels_apart(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


def test_no_strength_is_no_change() -> None:
    assert torch.equal(run(drawings(), only()), drawings())


def test_a_draw_is_a_function_of_seed_stream_epoch_and_position_alone() -> None:
    epochs, positions = np.array([0, 0, 1, 5]), np.array([0, 7, 7, 3])
    together = uniform_draws(1, 2, epochs, positions, 9)
    for row in range(4):
        alone = uniform_draws(1, 2, epochs[row : row + 1], positions[row : row + 1], 9)[0]
        np.testing.assert_array_equal(together[row], alone)
    keys = [(1, 2, 0, 0), (2, 2, 0, 0), (1, 3, 0, 0), (1, 2, 1, 0), (1, 2, 0, 1), (2, 1, 0, 0)]
    others = [uniform_draws(seed, stream, np.array([epoch]), np.array([at]), 9)[0] for seed, stream, epoch, at in keys]
    assert len({tuple(draws) for draws in others}) == len(others)


def test_draws_are_uniform() -> None:
    draws = np.sort(uniform_draws(0, 1, np.zeros(400, int), np.arange(400), 10).ravel())
    distance = np.abs(draws - np.linspace(0, 1, len(draws))).max()  # Kolmogorov and Smirnov's
    assert distance < 1.95 / len(draws) ** 0.5  # one in a thousand


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_image_does_not_know_its_batch(size: int) -> None:
    images, epochs, positions = drawings(10), np.arange(10) // 4, np.arange(10) * 7
    whole = augment(images, EVERYTHING, 0, 1, epochs, positions)
    cuts = [slice(start, start + size) for start in range(0, 10, size)]
    parts = [augment(images[cut], EVERYTHING, 0, 1, epochs[cut], positions[cut]) for cut in cuts]
    assert torch.equal(torch.cat(parts), whole)
    order = np.random.default_rng(0).permutation(10)
    assert torch.equal(augment(images[order], EVERYTHING, 0, 1, epochs[order], positions[order]), whole[order])


def test_every_epoch_shows_another_image_and_every_run_the_same() -> None:
    images, config = drawings(), AugmentConfig()
    assert torch.equal(run(images, config), run(images, config))
    for other in (run(images, config, epoch=1), run(images, config, seed=1), run(images, config, stream=4)):
        assert not bool((other == run(images, config)).flatten(1).all(1).any())


def test_the_input_is_left_alone() -> None:
    images = drawings()
    run(images, EVERYTHING)
    assert torch.equal(images, drawings())


def test_white_paper_stays_white_without_background() -> None:
    strong = AugmentConfig(colour=0.9, hue=0.5, gray=0.5, flip=0.5, line=1.0, blur=1.0, erase=1.0, background=0.0)
    white = torch.full((16, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    assert torch.equal(run(white, strong), white)


def test_what_comes_in_from_outside_is_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    black = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    small = run_with_draws(monkeypatch, black, only(zoom=(0.5, 0.5)), 0.5)
    framed = torch.full_like(black, 255)
    framed[..., 8:24, 8:24] = 0
    assert torch.equal(small, framed)


def test_zoom_one_half_is_the_mean_of_four_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    small = run_with_draws(monkeypatch, drawings(), only(zoom=(0.5, 0.5)), 0.5)
    assert levels_apart(small[..., 8:24, 8:24], F.avg_pool2d(drawings().float(), 2).round()) <= 1


def test_rotation_by_a_right_angle_is_rot90(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        levels_apart(run_with_draws(monkeypatch, drawings(), only(rotate=90.0), LARGEST), drawings().rot90(1, (2, 3)))
        <= 1
    )
    assert levels_apart(
        run_with_draws(monkeypatch, drawings(), only(rotate=90.0), 0.0), drawings().rot90(-1, (2, 3))
    ) <= 1  # fmt: skip


def test_flip_is_a_mirror() -> None:
    assert levels_apart(run(drawings(), only(flip=1.0)), drawings().flip(3)) <= 1
    mixed, mirrored = run(drawings(64), only(flip=0.5)), drawings(64).flip(3)
    share = (mixed == mirrored).flatten(1).float().mean(1)
    assert 16 < int((share > 0.9).sum()) < 48  # four standard deviations of 64 coins


def test_shift_moves_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = run_with_draws(monkeypatch, drawings(), only(shift=0.25), 0.0)  # a quarter of the frame right and down
    assert levels_apart(moved[..., 8:, 8:], drawings()[..., :24, :24]) <= 1
    assert bool((moved[..., :8, :] == 255).all())
    assert bool((moved[..., :, :8] == 255).all())


def test_stretch_widens_what_it_flattens(monkeypatch: pytest.MonkeyPatch) -> None:
    square = torch.full((1, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    square[..., 12:20, 12:20] = 0
    wide = run_with_draws(monkeypatch, square, only(stretch=2 * float(np.log(2))), LARGEST)[0, 0] < 128
    assert (int(wide.any(1).sum()), int(wide.any(0).sum())) == (4, 16)  # rows, columns; it was 8 x 8


def test_shear_slides_rows_and_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = torch.full((1, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    bar[..., 14:18] = 0
    ink = 255 - run_with_draws(monkeypatch, bar, only(shear=0.5), LARGEST)[0, 0].float()
    centres = (ink * torch.arange(SIDE)).sum(1) / ink.sum(1)
    torch.testing.assert_close(ink.sum(1), torch.full((SIDE,), 4 * 255.0), rtol=0, atol=4)
    torch.testing.assert_close(centres.diff(), torch.full((SIDE - 1,), -0.5), rtol=0, atol=0.02)


def test_blur_is_torchvisions_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms.v2.functional import gaussian_blur

    blurred = run_with_draws(monkeypatch, drawings(), only(blur=1.0), 0.5)  # sigma 1.0, half way from 0.4 to 1.6
    wanted = gaussian_blur(drawings().float(), [7, 7], [1.0, 1.0]).round()
    assert levels_apart(blurred[..., 3:-3, 3:-3], wanted[..., 3:-3, 3:-3]) <= 1


def test_blur_takes_fine_detail_away() -> None:
    noise = torch.randint(0, 256, (8, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, after = (
        torch.fft.rfft2(z.float()).abs()[:, :, 8:24, 8:].flatten(1) for z in (noise, run(noise, only(blur=1.0)))
    )
    assert bool((after.mean(1) < before.mean(1)).all())


def test_outlines_stand_where_colour_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws of 0.5 are strength 1.75 and keep the body; draws of 0.2 are strength 1 and nothing but lines."""
    card = torch.full((1, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    card[..., 8:24, 8:24] = 155
    ring = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    ring[7:25, 7:25] = True
    ring[9:23, 9:23] = False
    for draw, line, body in ((0.5, 255 - 1.75 * 100, 155), (0.2, 255 - 100, 255)):
        drawn = run_with_draws(monkeypatch, card, only(line=1.0), draw)[0]
        wanted = torch.full((SIDE, SIDE), 255.0)
        wanted[9:23, 9:23], wanted[ring] = body, line
        assert levels_apart(drawn, wanted.expand(3, -1, -1).round()) <= 1


def test_outlines_are_the_local_contrast_of_any_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare lines at strength 1: max_pool2d minus min, the channel where most changes."""
    drawn = run_with_draws(monkeypatch, drawings(), only(line=1.0), 0.2)
    z = drawings().float()
    change = (F.max_pool2d(z, 3, 1, 1) + F.max_pool2d(-z, 3, 1, 1)).amax(1, keepdim=True)
    assert levels_apart(drawn, (255 - change).expand(-1, 3, -1, -1)) <= 1


def test_erase_leaves_one_blank_rectangle() -> None:
    black = torch.zeros(32, 3, SIDE, SIDE, dtype=torch.uint8)
    for image in run(black, only(erase=1.0)):
        blank = image[0] == 255
        rows, columns = int(blank.any(1).sum()), int(blank.any(0).sum())
        assert int(blank.sum()) == rows * columns  # a rectangle
        assert bool(((image == 0) | (image == 255)).all())
        assert 0.1 * SIDE - 1 <= min(rows, columns) <= max(rows, columns) <= 0.4 * SIDE + 1


def test_gray_is_pillows_luminance() -> None:
    images = drawings()
    gray = run(images, only(gray=1.0))
    for image, result in zip(images, gray, strict=True):
        luminance = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        assert levels_apart(result, torch.from_numpy(luminance.copy()).expand(3, -1, -1)) <= 1


def test_a_third_of_a_turn_of_hue_moves_each_channel_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = run_with_draws(monkeypatch, drawings(), only(hue=1 / 3), LARGEST)
    assert levels_apart(turned, drawings().roll(1, dims=1)) <= 1
    back = run_with_draws(monkeypatch, drawings(), only(hue=1 / 3), 0.0)
    assert levels_apart(back, drawings().roll(-1, dims=1)) <= 1


def test_colour_changes_the_strength_of_ink_and_not_the_grey_of_greys(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = torch.arange(255, -1, -4, dtype=torch.uint8).expand(16, 3, 1, -1)  # white to black
    for shade in run(ramp, only(colour=0.5)).int():
        assert torch.equal(shade[0], shade[1])
        assert torch.equal(shade[0], shade[2])
        assert int(shade[0, 0, 0]) == 255
        assert bool((shade[0, 0].diff() <= 0).all())
    weakest = run_with_draws(monkeypatch, ramp, only(colour=0.5), 0.0)  # contrast 0.5, half of brightness 0.5
    assert levels_apart(weakest, (255 - 0.5 * 0.75 * (255 - ramp.float())).round()) <= 1


def test_background_colours_the_paper_and_leaves_black_black() -> None:
    images = torch.full((16, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    images[..., :8] = 0
    papered = run(images, only(background=1.0))
    paper = papered[:, :, :1, 8:9]
    assert bool((papered[..., :8] == 0).all())
    assert bool((papered[..., 8:] == paper).all())  # one colour per image
    assert 0.4 * 255 - 1 <= int(paper.min()) <= int(paper.max()) <= 255
    assert len({tuple(colour.flatten().tolist()) for colour in paper}) == 16


def test_probabilities_are_shares_of_the_images() -> None:
    black = torch.zeros(400, 3, 8, 8, dtype=torch.uint8)
    erased = run(black, only(erase=0.3)).flatten(1).any(1)
    assert abs(float(erased.float().mean()) - 0.3) < 5 * (0.3 * 0.7 / 400) ** 0.5


def one_colour_drawings(count: int = 64) -> Tensor:
    """Dark discs on white, uint8 (B, 3, 32, 32)."""
    at = torch.arange(SIDE) - SIDE / 2
    disc = (at[:, None].square() + at.square()).sqrt() < 9
    return torch.where(disc, 40, 255).to(torch.uint8).expand(count, 3, -1, -1).clone()


@pytest.mark.parametrize("part", ["ink", "invert", "stroke"])
def test_drawings_of_several_colours_keep_them(part: str) -> None:
    assert torch.equal(run(drawings(), only(**{part: 1.0})), drawings())


def test_another_ink_keeps_the_white_and_the_shape() -> None:
    images = one_colour_drawings()
    drawn = run(images, only(ink=1.0))
    assert bool((drawn[images == 255] == 255).all())
    inside = drawn[(images == 40).all(1)[:, None].expand_as(images)].view(-1).float()
    assert 40 - 1 <= float(inside.min()) < float(inside.max()) <= 255 - 215 * 0.2 + 1  # ink of 0.2 to 1 in a channel
    assert len({tuple(image[:, SIDE // 2, SIDE // 2].tolist()) for image in drawn}) > 50
    chosen = (run(images, only(ink=0.5)) != images).flatten(1).any(1).float().mean()
    assert 0.25 < float(chosen) < 0.75


def test_inverted_is_light_on_dark() -> None:
    images = one_colour_drawings()
    assert torch.equal(run(images, only(invert=1.0)), 255 - images)


def test_strokes_grow_and_shrink_within_the_drawings_neighbours() -> None:
    images = one_colour_drawings()
    ink, drawn = 255 - images.float(), 255 - run(images, only(stroke=1.0)).float()
    grown = (drawn - ink).mean((1, 2, 3))
    assert bool((grown > 1).any())
    assert bool((grown < -1).any())
    largest, smallest = F.max_pool2d(ink, 3, 1, 1), -F.max_pool2d(-ink, 3, 1, 1)
    assert bool((drawn <= largest + 1).all())
    assert bool((drawn >= smallest - 1).all())
