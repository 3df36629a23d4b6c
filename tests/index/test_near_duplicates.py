import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlm.index import near_duplicates
from vlm.index.near_duplicates import fold, group_near


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_BLOCK", 400)  # copies lie 800 apart: in a block's diagonal


def pairs(spectrum: float, seed: int = 0) -> np.ndarray:
    """float16 (1600, 48): each vector and a noisy copy; axis i has size i^-spectrum."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.arange(1, 49).float() ** -spectrum
    centres = torch.randn(800, 48, generator=generator) * sizes
    points = torch.cat([centres, centres + 0.15 * torch.randn(800, 48, generator=generator) * sizes])
    return F.normalize(points, dim=1).half().numpy()


def components(near: np.ndarray) -> np.ndarray:
    """By the definition: spread the smallest label along edges until nothing moves."""
    labels = np.arange(len(near))
    while True:
        spread = np.where(near, labels, len(labels)).min(1)
        if (spread == labels).all():
            return labels
        labels = spread


@pytest.mark.parametrize("spectrum", [0.0, 0.7])
@pytest.mark.parametrize("threshold", [0.98, 0.99])
def test_groups_are_the_components_of_the_graph_of_high_cosines(spectrum: float, threshold: float):
    vectors = pairs(spectrum)
    labels = group_near(vectors, threshold)
    exact = vectors.astype(np.float32)
    assert (labels == components(exact @ exact.T >= threshold)).all()
    assert 200 < len(set(labels)) < 1600


def test_a_long_chain_is_one_group_though_its_ends_are_far_apart():
    angles = torch.randperm(1000, generator=torch.Generator().manual_seed(0)) * (torch.pi / 1000)
    vectors = torch.stack([angles.cos(), angles.sin(), torch.zeros(1000)], 1).half().numpy()
    assert set(group_near(vectors, 0.998)) == {0}
    assert len(set(group_near(vectors[angles.numpy() % 0.2 < 0.1], 0.998))) > 10


@pytest.mark.parametrize("spectrum", [0.0, 0.7, 2.0])
def test_the_bound_is_never_less_than_the_cosine(spectrum: float):
    vectors = pairs(spectrum, seed=1)
    folded = fold(vectors, 0.98)
    exact = torch.from_numpy(vectors).float()
    assert (folded @ folded.T >= exact @ exact.T - 1e-5).all()
    assert folded.shape[1] <= 49


def rotated(sizes: torch.Tensor, count: int = 600) -> np.ndarray:
    """float16 unit vectors whose principal components, of these sizes, lie along no axis."""
    generator = torch.Generator().manual_seed(2)
    turn = torch.linalg.qr(torch.randn(len(sizes), len(sizes), generator=generator)).Q
    return F.normalize(torch.randn(count, len(sizes), generator=generator) * sizes @ turn, dim=1).half().numpy()


def test_vectors_that_fill_16_dimensions_of_48_are_seen_whole_with_16_coordinates():
    vectors = rotated((torch.arange(48) < 16).float())
    folded, exact = fold(vectors, 0.98), torch.from_numpy(vectors).float()
    assert folded.shape == (600, 17)
    torch.testing.assert_close(folded @ folded.T, exact @ exact.T, atol=2e-3, rtol=0)  # float16 leaves its plane a bit


@pytest.mark.parametrize(("threshold", "decay"), [(0.3, 0.0), (0.5, 0.0), (0.6, 0.02), (0.8, 0.0), (0.8, 0.02)])
def test_coordinates_are_as_few_as_let_one_pair_in_16384_pass_in_vain(threshold: float, decay: float):
    vectors = rotated(torch.exp(-decay * torch.arange(160)))
    exact = torch.from_numpy(vectors).double()
    axes = torch.linalg.svd(exact, full_matrices=False).Vh.T  # the most important first

    def false_positives(m: int) -> float:
        first, rest = exact @ axes[:, :m], (exact @ axes[:, m:]).norm(dim=1)
        bounds = first @ first.T + rest[:, None] * rest
        return ((bounds >= threshold) & (exact @ exact.T < threshold)).double().mean().item()

    few = next((m for m in (16, 32, 64, 128) if false_positives(m) <= 1 / 16384), 160)
    assert fold(vectors, threshold).shape[1] == few + 1


def test_equal_vectors_are_one_group_and_none_are_none():
    assert set(group_near(np.full((700, 4), 0.5, np.float16), 0.99)) == {0}
    assert group_near(np.empty((0, 4), np.float16), 0.99).shape == (0,)
    assert fold(np.empty((0, 4), np.float16), 0.99).shape == (0, 5)
    assert group_near(np.full((1, 4), 0.5, np.float16), 0.99).tolist() == [0]
    assert group_near(np.eye(3, dtype=np.float16)[[2, 0, 1, 0, 2]], 0.99).tolist() == [0, 1, 2, 1, 0]
